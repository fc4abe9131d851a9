"""The node's HTTPS endpoint, which the API server asks for logs and exec.

It listens on 127.0.0.1 only. `/healthz` is open. Everything else asks for the caller's credential where there is one to
ask for: the bearer token of the embedded API server, or a client certificate signed by `client_ca` (kube-apiserver's
--kubelet-client-certificate). With neither, every local process may read logs and run commands in containers, with the
rights of the user the node runs as.
"""

import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from capstan_local.node.certificate import serving_context
from capstan_local.node.container import Container
from capstan_local.node.exec import serve_exec
from capstan_local.node.logs import LogQuery, read_log, stamp
from capstan_local.node.pod import Pod

ADDRESS = "127.0.0.1"
STOP_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class KubeletAccess:
    """Who may ask for logs and exec; with both None, whoever reaches the loopback address."""

    token: str | None = None
    client_ca: Path | None = None


FindPod = Callable[[str, str], Pod | None]
"""(namespace, name) -> the pod on this node."""


class Kubelet:
    def __init__(self, node_name: str, access: KubeletAccess, find_pod: FindPod) -> None:
        self._access = access
        self._find_pod = find_pod
        self._context = serving_context(node_name, ADDRESS, access.client_ca)
        app = web.Application(middlewares=[self._authenticate])
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        for method in ("GET", "POST"):
            app.router.add_route(method, "/exec/{namespace}/{pod}/{container}", self._exec)
            app.router.add_route(method, "/exec/{namespace}/{pod}/{uid}/{container}", self._exec)
            for unsupported in ("attach", "portForward"):
                app.router.add_route(method, f"/{unsupported}/{{namespace}}/{{pod}}{{rest:.*}}", self._refuse)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_SECONDS, handler_cancellation=True)
        self.port = 0

    async def start(self) -> None:
        """Listens on a free port, `port`."""
        await self._runner.setup()
        await web.TCPSite(self._runner, ADDRESS, 0, ssl_context=self._context).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self._runner.cleanup()

    @web.middleware
    async def _authenticate(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path != "/healthz" and not self._is_allowed(request):
            raise web.HTTPUnauthorized(text="Unauthorized")
        return await handler(request)

    def _is_allowed(self, request: web.Request) -> bool:
        if self._access.token is None and self._access.client_ca is None:
            return True
        # The handshake has verified a certificate if there is one.
        if request.transport is not None and request.transport.get_extra_info("peercert"):
            return True
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return self._access.token is not None and hmac.compare_digest(given.encode(), self._access.token.encode())

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok")

    def _container(self, request: web.Request) -> tuple[Pod, Container]:
        namespace, name, wanted = (request.match_info[part] for part in ("namespace", "pod", "container"))
        pod = self._find_pod(namespace, name)
        if pod is None:
            raise web.HTTPNotFound(text=f'pod "{name}" not found in namespace "{namespace}" on this node')
        container = next((container for container in pod.containers if container.name == wanted), None)
        if container is None:
            raise web.HTTPNotFound(text=f'container "{wanted}" not found in pod "{name}"')
        return pod, container

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        pod, container = self._container(request)
        try:
            query = parse_log_query(request.query, time.time_ns())
        except ValueError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        restart = container.state.restart_count
        if not container.state.container_id:
            reason = container.state.state.get("waiting", {}).get("reason", "ContainerCreating")
            text = f'container "{container.name}" in pod "{pod.key[1]}" is waiting to start: {reason}'
            raise web.HTTPBadRequest(text=text)
        writer = container.log
        if is_true(request.query.get("previous")):
            restart, writer = restart - 1, None
        path = pod.folder.log(container.name, restart)
        if not path.exists():
            which = "previous terminated " if writer is None and restart < container.state.restart_count else ""
            raise web.HTTPBadRequest(text=f'{which}container "{container.name}" in pod "{pod.key[1]}" not found')
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        async for chunk in read_log(path, query, writer):
            await response.write(chunk)
        await response.write_eof()
        return response

    async def _refuse(self, request: web.Request) -> web.StreamResponse:
        what = request.path.split("/")[1]
        raise web.HTTPNotImplemented(
            text=f"{what} is not supported by this node: use kubectl exec and kubectl logs -f, "
            "and reach ports of a pod at its podIP, an address of this machine"
        )

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        _, container = self._container(request)
        return await serve_exec(request, container)


def is_true(text: str | None) -> bool:
    """Booleans in queries come as `true` from kubectl and as `1` from API servers."""
    return text is not None and text.lower() in ("1", "t", "true")


def parse_log_query(given: Mapping[str, str], now: int) -> LogQuery:
    """The LogQuery of a request's parameters; `now` in nanoseconds. ValueError names the parameter."""
    since_seconds = _number(given, "sinceSeconds")
    since = None
    if since_seconds is not None:
        since = stamp(now - since_seconds * 1_000_000_000)
    elif given.get("sinceTime"):
        since = given["sinceTime"]
    return LogQuery(
        tail_lines=_number(given, "tailLines"),
        since=since,
        limit_bytes=_number(given, "limitBytes"),
        timestamps=is_true(given.get("timestamps")),
        follow=is_true(given.get("follow")),
    )


def _number(given: Mapping[str, str], name: str) -> int | None:
    text = given.get(name)
    if not text:
        return None
    if not text.isdigit():
        raise ValueError(f"{name}: {text!r} is not a whole number of at least 0")
    return int(text)
