"""The operator's own HTTP port: /healthz, /readyz, /metrics, and the wake-up hints of the pods."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable

from aiohttp import web
from pydantic import ValidationError

from capstan_operator.metrics import Metrics
from capstan_runtime.contract.state import Hint
from capstan_runtime.listening import Allowance, Listener

logger = logging.getLogger(__name__)

MAX_HINT_BYTES = 4096
HINT_SECONDS = 5.0
"""How long a hint may take to arrive."""
HINTS_PER_SECOND = 100.0
HINT_BURST = 200.0


class Front:
    """Answers while `serve` is entered. `problem()` says in one line why the operator is not ready, None when it is;
    `on_hint` takes a hint and says whether this replica can use it.

    A hint needs no password because it means nothing: it only makes the operator look sooner, and not too often.
    """

    def __init__(self, metrics: Metrics, problem: Callable[[], str | None], on_hint: Callable[[Hint], bool]) -> None:
        self._metrics = metrics
        self._problem = problem
        self._on_hint = on_hint
        self._allowance = Allowance(HINTS_PER_SECOND, HINT_BURST)

    @contextlib.asynccontextmanager
    async def serve(self, host: str, port: int) -> AsyncIterator[None]:
        """Listen on `host`:`port` until left. Raises OSError when the port is taken."""
        app = web.Application(client_max_size=MAX_HINT_BYTES)
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/readyz", self._readyz),
                web.get("/metrics", self._render_metrics),
                web.post("/hint", self._hint),
            ]
        )
        listener = Listener(app, on_limited=self._count_limited)
        try:
            try:
                addresses = await listener.open(host, port)
            except socket.gaierror as error:
                raise OSError(f"--host: {host} is no address of this machine: {error.strerror}") from error
            logger.info("listening on %s", ", ".join(addresses))
            yield
        finally:
            await listener.close()

    def _count_limited(self, request: web.Request) -> None:
        if request.path == "/hint":
            self._metrics.hints.labels("limited").inc()

    async def _healthz(self, _: web.Request) -> web.Response:
        """The loop turns; a task that died would have ended the process."""
        return web.Response(text="ok\n")

    async def _readyz(self, _: web.Request) -> web.Response:
        problem = self._problem()
        return web.Response(text=f"{problem or 'ok'}\n", status=503 if problem else 200)

    async def _render_metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _hint(self, request: web.Request) -> web.Response:
        # Of all pods together, besides what each may say.
        if not self._allowance.take("all", asyncio.get_running_loop().time()):
            self._metrics.hints.labels("limited").inc()
            return web.Response(status=429, headers={"Retry-After": "1"}, text="too many hints\n")
        try:
            async with asyncio.timeout(HINT_SECONDS):
                body = await request.read()
            hint = Hint.model_validate_json(body, by_alias=True, by_name=False, extra="ignore")
        except TimeoutError:
            self._metrics.hints.labels("refused").inc()
            return web.Response(status=408, text=f"the hint did not arrive within {HINT_SECONDS:g} s\n")
        except ValidationError as error:
            self._metrics.hints.labels("refused").inc()
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "hint"
            return web.Response(status=400, text=f"{where}: {first['msg']}\n")
        if not self._on_hint(hint):
            self._metrics.hints.labels("standby").inc()
            return web.Response(status=503, text="this replica stands by; another one acts\n")
        self._metrics.hints.labels("accepted").inc()
        return web.Response(status=202)
