"""A bounded number of connections, and the requests that are due: those that find no free connection wait for one."""

import asyncio
import socket
import time
from array import array
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress

from capstan_runtime.bench.load.connection import Connection
from capstan_runtime.bench.load.target import Target

SPREAD = 16
"""Connections that are kept open, as far as there are requests for them: behind a Service a connection stays with the
pod that it was given to, so requests must not all take one."""
IDLE_SECONDS = 2.0
"""Unused for so long, a connection is closed: servers do that after 2 to 5 s themselves, and a request that is then
under way would fail for no fault of the server's."""
_LOOK_SECONDS = 0.02
"""Between two looks for requests whose time is up."""
_GOODBYE_SECONDS = 5.0
TIMEOUT = "not answered in time"


class Asked:
    """A request that was due."""

    __slots__ = ("connection", "due", "is_over", "kind")

    def __init__(self, due: float, kind: int) -> None:
        self.due = due
        self.kind = kind
        self.connection: Connection | None = None
        self.is_over = False


class Record:
    """What became of every request of a rung: 25 bytes each, exact, in the order in which they ended."""

    def __init__(self) -> None:
        self.due = array("d")
        """On time.monotonic."""
        self.seconds = array("d")
        """From when it was due to its whole answer; infinity: it failed."""
        self.kinds = array("B")
        self.lags = array("d")
        """Of each request that found a free connection: seconds from when it was due to when it was sent. This is the
        generator's own delay; it is part of `seconds`, too."""
        self.failures: Counter[tuple[int, str]] = Counter()
        """By kind, and what happened."""
        self.bytes: Counter[int] = Counter()
        """Of bodies, by kind."""


class Pool:
    """Use as `async with`. Every request that is asked ends, at the latest `timeout_seconds` after it was due."""

    def __init__(self, target: Target, requests: Sequence[bytes], connections: int, timeout_seconds: float) -> None:
        self._target = target
        self._requests = requests
        self._most = connections
        self._timeout = timeout_seconds
        self._addresses: list[tuple[str, int]] = []
        self._next_address = 0
        self._spread = 0
        self._open: set[Connection] = set()
        self._idle: deque[Connection] = deque()
        self._connecting: set[asyncio.Task[None]] = set()
        self._waiting: deque[Asked] = deque()
        self._under_way: deque[Asked] = deque()
        """By when they were due; those that are over leave when all before them have."""
        self.record = Record()

    async def __aenter__(self) -> "Pool":
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._timeout):
            found = await loop.getaddrinfo(self._target.host, self._target.port, type=socket.SOCK_STREAM)
        self._addresses = list(dict.fromkeys((str(each[4][0]), int(each[4][1])) for each in found))
        self._looking = loop.create_task(self._look())
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (self._looking, *self._connecting):
            task.cancel()
        await asyncio.gather(self._looking, *self._connecting, return_exceptions=True)
        for connection in list(self._open):
            connection.end()
        with suppress(TimeoutError):  # they are aborted, and nothing is left to say
            async with asyncio.timeout(_GOODBYE_SECONDS):
                while self._open:
                    await asyncio.sleep(0.001)

    # ---- what a rung does

    def expect(self, rate: float) -> None:
        """So many requests per second will come: opens connections for them."""
        self._spread = min(SPREAD, self._most, max(1, int(rate * IDLE_SECONDS / 2)))
        while len(self._open) + len(self._connecting) < self._spread:
            self._connect(None)

    async def settled(self) -> None:
        """Returns when no connection is being made."""
        await asyncio.gather(*self._connecting, return_exceptions=True)

    def ask(self, due: float, kind: int) -> None:
        """Sends the request, or lets it wait for a connection."""
        request = Asked(due, kind)
        self._under_way.append(request)
        connection = self._next_idle()
        if connection is not None:
            self.record.lags.append(time.monotonic() - due)
            connection.ask(request, self._requests[kind])
            return
        self._waiting.append(request)
        if len(self._open) + len(self._connecting) < self._most:
            self._connect(request)

    @property
    def is_quiet(self) -> bool:
        """Every request that was asked is over."""
        while self._under_way and self._under_way[0].is_over:
            self._under_way.popleft()
        return not self._under_way

    # ---- what connections tell

    def answered(self, request: Asked, status: int, size: int) -> None:
        if request.is_over:
            return
        self.record.bytes[request.kind] += size
        seconds = time.monotonic() - request.due
        if status >= 300:  # of a redirection nothing was served: nobody follows it
            self.failed(request, f"status {status}")
        elif seconds > self._timeout:
            self.failed(request, TIMEOUT)
        else:
            self.ended(request, seconds)

    def failed(self, request: Asked, reason: str) -> None:
        if not request.is_over:
            self.record.failures[request.kind, reason] += 1
            self.ended(request, float("inf"))

    def ended(self, request: Asked, seconds: float) -> None:
        """It was answered in so many seconds; infinity: it failed."""
        request.is_over = True
        record = self.record
        record.due.append(request.due)
        record.seconds.append(seconds)
        record.kinds.append(request.kind)

    def free(self, connection: Connection) -> None:
        """Gives it to the request that waits longest."""
        while self._waiting:
            request = self._waiting.popleft()
            if not request.is_over:
                connection.ask(request, self._requests[request.kind])
                return
        connection.idle_since = time.monotonic()
        self._idle.append(connection)

    def lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._connect_for_waiting()

    # ---- connections

    def _next_idle(self) -> Connection | None:
        """That which was unused longest: so all take turns."""
        while self._idle:
            connection = self._idle.popleft()
            if connection.is_open:
                return connection
        return None

    def _connect(self, request: Asked | None) -> None:
        """Opens one more. If that fails so does `request`, as it would have for who asked it alone; None: nobody
        waits for it."""
        task = asyncio.get_running_loop().create_task(self._try_to_connect(request))
        self._connecting.add(task)
        task.add_done_callback(self._connected)

    def _connected(self, task: asyncio.Task[None]) -> None:
        self._connecting.discard(task)
        if not task.cancelled():
            task.result()
            self._connect_for_waiting()

    def _connect_for_waiting(self) -> None:
        """As many connections are being made as requests wait, as long as there may be more."""
        while self._waiting and self._waiting[0].is_over:
            self._waiting.popleft()
        made = len(self._connecting)
        if made < len(self._waiting) and len(self._open) + made < self._most:
            self._connect(self._waiting[made])

    async def _try_to_connect(self, request: Asked | None) -> None:
        host, port = self._addresses[self._next_address % len(self._addresses)]
        self._next_address += 1
        context = self._target.ssl_context
        try:
            async with asyncio.timeout(self._timeout):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(self),
                    host,
                    port,
                    ssl=context,
                    server_hostname=self._target.host if context else None,
                )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            if request is not None and request.connection is None:
                self.failed(request, f"no connection: {_reason(error)}")
            return
        if connection.is_open:
            self._open.add(connection)
            self.free(connection)

    # ---- time

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            self._expire(now)
            while self._idle and (not self._idle[0].is_open or now - self._idle[0].idle_since > IDLE_SECONDS):
                connection = self._idle.popleft()
                if connection.is_open:
                    connection.end()
            if len(self._open) < self._spread and not self._connecting:
                self._connect(None)

    def _expire(self, now: float) -> None:
        while self._under_way and (self._under_way[0].is_over or now > self._under_way[0].due + self._timeout):
            request = self._under_way.popleft()
            connection = request.connection
            self.failed(request, TIMEOUT)
            if connection is not None:
                connection.request = request.connection = None
                connection.end()


def _reason(error: BaseException) -> str:
    text = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
