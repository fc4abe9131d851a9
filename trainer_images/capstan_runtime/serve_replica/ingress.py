"""The same application behind Ray Serve's own HTTP proxies, for a cluster of Ray that somebody else runs (KubeRay).

`capstan_runtime.serve_replica.ingress:build` is the import path of serveConfigV2; `:middlewares` is what
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names on every node.
"""

import os
import time
from typing import TYPE_CHECKING

from ray import serve
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from capstan_runtime.serve_replica.settings import read_settings

if TYPE_CHECKING:
    from capstan_runtime.serving.app import Application

RAY_HEADERS = frozenset((b"x-request-timeout-seconds", b"x-request-disconnect-disabled"))
"""By these a client could tell Serve's proxy to wait for ever, and not to notice that it has gone."""
_HEALTH_SECONDS = 2.0
_MOST_REQUESTS = 1_000_000
"""That Serve hands to a replica at a time: all. Queue, limits and 429 are the application's."""


def build(_arguments: dict[str, str]) -> serve.Application:
    """One replica of it takes one CPU of Ray's, of which a worker has one. Raises ConfigError."""
    config = read_settings(os.environ).config
    deploy = serve.deployment(
        name="replica",
        max_ongoing_requests=_MOST_REQUESTS,
        ray_actor_options={"num_cpus": 1},
        health_check_period_s=_HEALTH_SECONDS,
        health_check_timeout_s=max(30.0, 2 * config.guards.timeout_seconds),  # it waits for its turn among the batches
        graceful_shutdown_timeout_s=config.longest_finish_seconds,
    )
    application: serve.Application = deploy(serve.ingress()(_Replica)).bind()
    return application


class _Replica:
    def __init__(self) -> None:
        """Raises what keeps it from serving; Serve says so on the application's status."""
        self._app = _load()

    def __serve_build_asgi_app__(self) -> "Application":
        """Started by Serve, as an ASGI server starts it: warm before the first request."""
        return self._app

    async def check_health(self) -> None:
        """Asked by Serve, which replaces a replica that fails three times, or does not answer."""
        await self._app.check()


def _load() -> "Application":
    began = time.monotonic()
    # Here, because Serve's controller and proxies import this module too, and need none of it.
    from capstan_runtime.checkpoint.open import open_store
    from capstan_runtime.serving.app import make_app
    from capstan_runtime.serving.load import load

    settings = read_settings(os.environ)
    model = load(settings.config, open_store(settings.store, os.environ))
    print(f"verified and loaded in {time.monotonic() - began:.1f} s", flush=True)
    return make_app(settings.config, model, api_keys=settings.api_keys)


class _WithoutRayHeaders:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            kept = [header for header in scope["headers"] if header[0].lower() not in RAY_HEADERS]
            scope = {**scope, "headers": kept}
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """Of every proxy: what clients say to Ray itself does not reach it."""
    return [Middleware(_WithoutRayHeaders)]
