"""Clients of one HTTP server in a process of their own: `python -m benchmarks.http_load LOAD`, LOAD being JSON.

Closed loop: each connection asks again as soon as it is answered. Open loop: requests are due at random times (Poisson)
whatever the answers do, and latency counts from when a request was due, so that a server that stalls cannot hide it.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import uvloop

CONNECTIONS_OPEN_LOOP = 512


@dataclass(frozen=True, slots=True)
class Load:
    address: str
    port: int
    path: str
    body: str
    """File that holds it."""
    seconds: float
    connections: int = 16
    rate: float | None = None
    """Requests per second that are due; None: closed loop."""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seen:
    answered: int
    """With 200."""
    refused: int
    """With 429."""
    failed: int
    """All others."""
    seconds: float
    p50_ms: float
    """Of those answered with 200."""
    p99_ms: float
    generator_cpu: float
    """Share of one core that the clients used: near 1 they measure themselves."""

    @property
    def per_second(self) -> float:
        return self.answered / self.seconds


def put(load: Load) -> Seen:
    """What clients saw of `load`."""
    command = [sys.executable, "-m", "benchmarks.http_load", json.dumps(asdict(load))]
    return Seen(**json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


class _Clients:
    def __init__(self, load: Load) -> None:
        self.load = load
        body = Path(load.body).read_bytes()
        headers = {"host": load.address, "content-length": str(len(body)), **load.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.request = f"POST {load.path} HTTP/1.1\r\n{lines}\r\n".encode() + body
        self.latencies: list[float] = []
        self.refused = self.failed = 0
        self.due: deque[float] = deque()
        self.idle: list[_Connection] = []
        self.connecting: set[asyncio.Task[None]] = set()
        self.end = 0.0

    async def run(self) -> Seen:
        count = self.load.connections if self.load.rate is None else CONNECTIONS_OPEN_LOOP
        for _ in range(count):
            await self.connect()
        began, used = time.perf_counter(), time.process_time()
        self.end = began + self.load.seconds
        if self.load.rate is None:
            for connection in self.idle[:]:
                connection.ask(time.perf_counter())
            await asyncio.sleep(self.load.seconds)
        else:
            await self._make_due(self.load.rate, began)
        seconds = time.perf_counter() - began
        share = (time.process_time() - used) / seconds
        self.failed += len(self.due) if self.load.rate is not None else 0
        latencies = sorted(self.latencies) or [float("inf")]
        p50, p99 = (1e3 * latencies[int(part * (len(latencies) - 1))] for part in (0.5, 0.99))
        return Seen(len(self.latencies), self.refused, self.failed, seconds, p50, p99, share)

    async def connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: _Connection(self), self.load.address, self.load.port)
        return connection

    def replace(self) -> None:
        """Opens a connection for one that the server has ended."""
        task = asyncio.get_running_loop().create_task(self._replace())
        self.connecting.add(task)
        task.add_done_callback(self.connecting.discard)

    async def _replace(self) -> None:
        try:
            connection = await self.connect()
        except OSError:
            self.failed += 1
            return
        if self.load.rate is None:
            connection.ask(time.perf_counter())

    async def _make_due(self, rate: float, began: float) -> None:
        chance = random.Random(1)
        next_at = began
        while (now := time.perf_counter()) < self.end:
            while next_at <= now:
                self.due.append(next_at)
                next_at += chance.expovariate(rate)
            while self.due and self.idle:
                self.idle.pop().ask(self.due.popleft())
            await asyncio.sleep(0.001)


class _Connection(asyncio.Protocol):
    """Is replaced when the server ends it; that is a failure only for a request that is not answered yet."""

    def __init__(self, clients: _Clients) -> None:
        self._clients = clients
        self._answer = b""
        self._since = 0.0
        self._is_asking = False
        self._is_last = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._clients.idle.append(self)

    def ask(self, since: float) -> None:
        self._since = since
        self._is_asking = True
        self._transport.write(self._clients.request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        head = self._answer.find(b"\r\n\r\n")
        if head < 0:
            return
        lines = self._answer[:head].lower()
        length = lines.find(b"content-length:")
        if len(self._answer) < head + 4 + int(lines[length + 15 :].split(b"\r", 1)[0]):
            return
        status, self._answer = self._answer[9:12], b""
        self._is_asking, self._is_last = False, b"connection: close" in lines
        self._note(status)

    def _note(self, status: bytes) -> None:
        clients, now = self._clients, time.perf_counter()
        if status == b"200":
            clients.latencies.append(now - self._since)
        elif status == b"429":
            clients.refused += 1
        else:
            clients.failed += 1
        if self._is_last:
            self._transport.close()
        elif clients.load.rate is not None:
            clients.idle.append(self)
        elif now < clients.end:
            self.ask(now)

    def connection_lost(self, error: Exception | None) -> None:
        clients = self._clients
        if time.perf_counter() >= clients.end:
            return
        clients.failed += self._is_asking
        if self in clients.idle:
            clients.idle.remove(self)
        clients.replace()


if __name__ == "__main__":
    print(json.dumps(asdict(uvloop.run(_Clients(Load(**json.loads(sys.argv[1]))).run()))))
