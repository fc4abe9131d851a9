"""An HTTP server that answers as its path says, on a thread of its own, and writes down what it was asked."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
ANSWERS = {
    "/ok": OK,
    "/error": b"HTTP/1.1 500 Oh\r\ncontent-length: 3\r\n\r\nbad",
    "/moved": b"HTTP/1.1 302 There\r\nlocation: /ok\r\ncontent-length: 0\r\n\r\n",
    "/unauthorized": b"HTTP/1.1 401 Who\r\ncontent-length: 0\r\n\r\n",
    "/limited": b"HTTP/1.1 429 Slow\r\ncontent-length: 0\r\n\r\n",
    "/chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n3;a=b\r\n{  \r\n0\r\nx: y\r\n\r\n",
    "/last": b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}",
    "/rest": b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
    "/rubbish": b"\x00\x01 this is no answer\r\n\r\n",
    "/close": b"",
    "/cut": b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}",
}
"""By path; `/hang` gets none at all."""
_ENDS = ("/last", "/rest", "/close", "/cut")


@dataclass
class LoadServer:
    """What it saw. `stall_after`: having been asked so often, it answers nothing for `stall_seconds`."""

    stall_after: int | None = None
    stall_seconds: float = 0.0
    url: str = ""
    asked: list[bytes] = field(default_factory=list)
    """Whole requests, in order."""
    connections: int = 0
    held: int = 0
    """Requests that the stall kept waiting: all that a client with one answer at a time sees of it."""
    stalled_until: float | None = None


class _Served(asyncio.Protocol):
    def __init__(self, server: LoadServer) -> None:
        self.server = server
        self.pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.server.connections += 1

    def data_received(self, data: bytes) -> None:
        self.pending += data
        head, found, body = self.pending.partition(b"\r\n\r\n")
        _, _, length = head.lower().partition(b"content-length: ")
        if not found or len(body) < int(length.partition(b"\r\n")[0] or 0):
            return
        self.server.asked.append(self.pending)
        self.pending = b""
        path = head.split(b" ", 2)[1].decode()
        server = self.server
        if len(server.asked) == server.stall_after:
            server.stalled_until = time.monotonic() + server.stall_seconds
        wait = (server.stalled_until or 0.0) - time.monotonic()
        if wait > 0:
            server.held += 1
            asyncio.get_running_loop().call_later(wait, self.answer, path)
        else:
            self.answer(path)

    def answer(self, path: str) -> None:
        if path == "/hang":
            return
        self.transport.write(ANSWERS[path])
        if path in _ENDS:
            self.transport.close()


@contextmanager
def load_server(server: LoadServer | None = None, tls: ssl.SSLContext | None = None) -> Iterator[LoadServer]:
    """Runs inside the block, on a free port of 127.0.0.1."""
    server = server or LoadServer()
    started = threading.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        listening = await loop.create_server(lambda: _Served(server), "127.0.0.1", 0, ssl=tls)
        port = listening.sockets[0].getsockname()[1]
        server.url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            listening.close()

    def work() -> None:
        asyncio.set_event_loop(loop)
        running = loop.create_task(serve())
        stops.append(lambda: loop.call_soon_threadsafe(running.cancel))
        try:
            loop.run_until_complete(running)
        except asyncio.CancelledError:
            pass
        finally:
            loop.close()

    stops: list = []
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert started.wait(10), "the server did not start"
    try:
        yield server
    finally:
        stops[0]()
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"
