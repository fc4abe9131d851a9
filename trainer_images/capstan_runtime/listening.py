"""How the operator and the supervisors listen: the same bounds at both ends.

So many connections, so many requests of each client, and none that dawdles. Probes are never counted, and neither is
who shows a token: a flood must not make a kubelet restart a pod, or keep the operator from its job.
"""

import asyncio
import logging
import resource
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

REQUESTS_PER_SECOND = 10.0
"""Of one client. Prometheus asks every 15 s, and a pod that has news tries again after 50 ms at the soonest."""
BURST = 20.0
MOST_CLIENTS = 4096
"""Whose requests are counted; those that were heard of longest ago are forgotten."""
WAIT_SECONDS = 10.0
"""How long a connection may be without a request whose headers have arrived, and an answer may take to be read."""
SWEEP_SECONDS = 1.0
MOST_CONNECTIONS = 1024
"""Nodes let a process open a million files and more, which bounds nothing."""
HEADER_LINES = 32
HEADER_LINE_BYTES = 4096
"""A token of Kubernetes has 1 to 2 KiB. With a thousand connections, an unfinished head holds 250 kB each and a body
that nobody reads 140 kB; by aiohttp's own bounds, 2 MB and 760 kB."""
BODY_BUFFER_BYTES = 4096
"""Reading waits at twice as many that no handler has asked for."""
PROBES = frozenset({"/healthz", "/readyz"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def most_connections(most: int = MOST_CONNECTIONS) -> int:
    """No more than half as many as this process may have open files; the rest is for its work."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if files == resource.RLIM_INFINITY else min(most, files // 2)


def _is_ours(record: logging.LogRecord) -> bool:
    """No traceback for each thing that somebody sends and that is no HTTP: a flood would drown the log."""
    return record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError)


_logger = logging.getLogger(__name__)
_logger.addFilter(_is_ours)


class Allowance:
    """So many requests a second for each client, and `burst` at once: a token bucket each."""

    def __init__(self, per_second: float = REQUESTS_PER_SECOND, burst: float = BURST) -> None:
        self._per_second = per_second
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """What each client had left, and when; those not heard of for longest come first."""

    def take(self, client: str, now: float) -> bool:
        """Whether the client has one left at `now` seconds, which it then has not any more."""
        left, at = self._buckets.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - at) * self._per_second)
        is_one_left = left >= 1
        self._buckets[client] = (left - 1 if is_one_left else left, now)
        if len(self._buckets) > MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return is_one_left


class Listener:
    """Serves an application on one address until it is closed, or cut off.

    When there are too many connections, the one that has waited longest for its next request goes, so that no flood of
    them keeps a probe out.
    """

    def __init__(
        self,
        app: web.Application,
        *,
        is_known: Callable[[web.Request], bool] = lambda request: False,
        allowance: Allowance | None = None,
        connections: int | None = None,
        close_seconds: float = 0.5,
        on_limited: Callable[[web.Request], None] = lambda request: None,
    ) -> None:
        """`is_known` tells of whom requests are not counted, and `on_limited` is told of those that were too many.
        `connections` None: `most_connections()`. `close_seconds`: what requests under way get to end."""
        self._is_known = is_known
        self._allowance = allowance or Allowance()
        self._on_limited = on_limited
        self._most_connections = connections or most_connections()
        app.middlewares.insert(0, self._bounded)
        # Bodies are small and never compressed: what a kilobyte would unpack to is nobody's business.
        self._runner = web.AppRunner(
            app,
            logger=_logger,
            access_log=None,
            keepalive_timeout=WAIT_SECONDS,
            shutdown_timeout=close_seconds,
            auto_decompress=False,
            max_headers=HEADER_LINES,
            max_line_size=HEADER_LINE_BYTES,
            max_field_size=HEADER_LINE_BYTES,
            read_bufsize=BODY_BUFFER_BYTES,
        )
        self._idle: dict[RequestHandler, float] = {}
        """Connections that wait for a request, and since when; longest first."""
        self._listener: asyncio.Server | None = None
        self._sweeping: asyncio.TimerHandle | None = None

    async def open(self, address: str, port: int) -> list[str]:
        """Listens, and says at which URLs. Raises OSError when it cannot."""
        await self._runner.setup()
        self._listener = await asyncio.get_running_loop().create_server(self._admit, address, port)
        self._sweep()
        names = (socket.getsockname()[:2] for socket in self._listener.sockets)
        return [f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}" for host, port in names]

    async def close(self) -> None:
        """Lets requests under way end."""
        self._stop()
        await self._runner.cleanup()

    def cut(self) -> None:
        """Stops listening and resets every connection, in the middle of whatever it was sending."""
        self._stop()
        assert self._runner.server is not None
        for connection in self._runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    def _stop(self) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._sweeping is not None:
            self._sweeping.cancel()

    @web.middleware
    async def _bounded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        self._idle.pop(request.protocol, None)
        try:
            is_free = request.path in PROBES or self._is_known(request)
            if not is_free and not self._allowance.take(request.remote or "", loop.time()):
                self._on_limited(request)
                return web.Response(status=429, headers={"Retry-After": "1"}, text="too many requests\n")
            return await handler(request)
        finally:
            self._idle[request.protocol] = loop.time()

    def _admit(self) -> asyncio.BaseProtocol:
        """The protocol of a new connection."""
        assert self._runner.server is not None
        if len(self._runner.server.connections) >= self._most_connections:
            longest = next((one for one in self._idle if one.transport is not None), None)
            if longest is None:
                return _Refused()
            self._end(longest)
        connection: RequestHandler = self._runner.server()
        self._idle[connection] = asyncio.get_running_loop().time()
        return connection

    def _sweep(self) -> None:
        """Ends what has waited for too long, and forgets what ended by itself."""
        loop = asyncio.get_running_loop()
        for connection, since in list(self._idle.items()):
            if loop.time() - since > WAIT_SECONDS:
                self._end(connection)
            elif connection.transport is None and loop.time() - since > SWEEP_SECONDS:
                del self._idle[connection]
        self._sweeping = loop.call_later(SWEEP_SECONDS, self._sweep)

    def _end(self, connection: RequestHandler) -> None:
        self._idle.pop(connection, None)
        if connection.transport is not None:
            connection.transport.abort()


class _Refused(asyncio.Protocol):
    """A connection too many: all others have a request."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()
