"""One connection of the pool: one request at a time, and what becomes of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from capstan_runtime.bench.load.answer import AnswerReader, BadAnswer

if TYPE_CHECKING:
    from capstan_runtime.bench.load.pool import Asked, Pool


class Connection(asyncio.Protocol):
    """Tells its pool when a request was answered or has failed, and when it is free again or gone."""

    __slots__ = ("_pool", "_reader", "_transport", "idle_since", "is_open", "request")

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._reader = AnswerReader()
        self.request: Asked | None = None
        """Under way; None: it is free."""
        self.idle_since = 0.0
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.is_open = True

    def ask(self, request: Asked, data: bytes) -> None:
        self.request = request
        request.connection = self
        self._reader.restart()
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        request = self.request
        if request is None:  # an answer to nothing, such as 408 before a server closes
            self.end()
            return
        try:
            is_complete = self._reader.feed(data)
        except BadAnswer as error:
            self._fail(request, f"bad answer: {error}")
            return
        if is_complete:
            self._finish(request, is_over=not self._reader.is_reusable)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        request = self.request
        if request is not None and error is None and self._reader.end():
            self._finish(request, is_over=True)
        elif request is not None:
            self._fail(request, "closed before it was answered")
        self._pool.lost(self)

    def end(self) -> None:
        """Whatever is under way. At once: a goodbye, TLS' for one, would have to be waited for."""
        self.is_open = False
        self._transport.abort()

    def _finish(self, request: Asked, *, is_over: bool) -> None:
        self.request = request.connection = None
        self._pool.answered(request, self._reader.status, self._reader.size)
        if is_over:
            self.end()
        else:
            self._pool.free(self)

    def _fail(self, request: Asked, reason: str) -> None:
        self.request = request.connection = None
        self._pool.failed(request, reason)
        self.end()
