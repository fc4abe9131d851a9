"""One client's connection to a replica: how long it lasts, how long a request's head may take, and who gives way.

A request that has arrived is bounded by the guards (`serving/app.py`); what is here bounds what comes before.
"""

import asyncio
import itertools
import random

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from capstan_runtime.listening import most_connections

CONNECTION_SECONDS = 15.0
"""How long a client may keep a connection, give or take a fifth; its next answer says `Connection: close`. A Service
chooses a pod once for each connection: clients that keep theirs for ever would send nothing to a canary, and nothing to
the pods that were added for their sake."""
HEAD_SECONDS = 10.0
"""From the first byte of a request's head to its last, or from the answer to the request before it: as for a TLS
handshake."""
HEAD_BYTES = 65536
"""What servers usually take of headers is 8 to 64 KiB; neither uvicorn nor httptools has a limit."""
MOST_CONNECTIONS = 4096
"""Whole gateways may stand behind one replica; of each, 64 KiB of head and one read are kept at the most."""
RETIRING = "capstan.retiring"
_TURNS = itertools.count()
"""Who began to wait when. The loop's clock has milliseconds only, in which many may."""


class Connection(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._retires_at = self.loop.time() + CONNECTION_SECONDS * random.uniform(0.8, 1.2)  # nosec B311  # jitter
        self._turn = next(_TURNS)
        self._is_in_body = False
        self._has_advanced = False
        self._head_bytes = 0
        self._head_ends: asyncio.TimerHandle | None = None  # not None: a request's head is on its way
        # uvicorn sets this after an answer only: who never asks would stay for ever.
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        if len(self.connections) > most_connections(MOST_CONNECTIONS):
            self._make_room()

    def data_received(self, data: bytes) -> None:
        if self._head_ends is None and not self._is_in_body and not data.strip(b"\r\n"):
            return  # Blank lines between requests mean nothing (RFC 9112, 2.2), and keep no connection open.
        self._has_advanced = False
        super().data_received(data)
        # Of a head, or of what is neither: a chunk's extensions and trailers, which are kept like headers. Where a body
        # went on or ended within these bytes, one read at most is of what follows, and is not counted.
        if not self._has_advanced and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.send_400_response(f"the headers are longer than {HEAD_BYTES} bytes")

    def on_message_begin(self) -> None:
        self._await_head()
        super().on_message_begin()
        if self.loop.time() >= self._retires_at:
            self.scope["extensions"] = {RETIRING: {}}

    def on_headers_complete(self) -> None:
        self._forget_head()
        self._is_in_body = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        self._has_advanced = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._is_in_body = False
        self._has_advanced = True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._turn = next(_TURNS)
        if self._head_ends is not None:
            self._await_head()  # Nothing was read meanwhile of a client that had asked for two things already.

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        """No request of it is worked on."""
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        if self._head_ends is not None:
            self._head_ends.cancel()
        self._head_ends = self.loop.call_later(HEAD_SECONDS, self._give_up_head)

    def _give_up_head(self) -> None:
        if self.is_idle:  # else the request before it is still answered, and on_response_complete waits anew
            self.transport.abort()

    def _forget_head(self) -> None:
        self._head_bytes = 0
        if self._head_ends is not None:
            self._head_ends.cancel()
            self._head_ends = None

    def _make_room(self) -> None:
        """The one that has waited longest for a request gives way, so that a flood of them keeps no probe out; where
        all are worked on, this one does."""
        others = (one for one in self.connections if isinstance(one, Connection) and one is not self and one.is_idle)
        longest = min(others, key=lambda one: one._turn, default=self)
        self.connections.discard(longest)
        longest.transport.abort()
