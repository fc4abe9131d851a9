"""One HTTP request and its answer, over ASGI."""

import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from capstan_runtime.serving.refusal import Gone, Outcome, Refusal
from capstan_runtime.serving.scores import Floats, Scores

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

JSON: Header = (b"content-type", b"application/json")

MIRRORED = b"capstan-mirrored"
"""Header of a request that a replica asks another one, to compare their answers. Anybody can send it, so it opens no
guard: such a request is only told apart in metrics and audit, and not mirrored again."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_MOST_LENGTH_DIGITS = 15
"""Python refuses to convert thousands of digits, and nobody sends a petabyte."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes
    headers: tuple[Header, ...] = (JSON,)


@dataclass(slots=True)
class Trip:
    """What happened to a request on its way, as far as it came. Times are `perf_counter` seconds; 0.0: not reached."""

    received: float = field(default_factory=perf_counter)
    admitted: float = 0.0
    """Its body was read and valid."""
    batched: float = 0.0
    """It had a place and waited for others to be computed with."""
    computing: float = 0.0
    computed: float = 0.0
    batch_size: int = 0
    """Samples computed together."""
    is_cached: bool = False
    input_digest: str = ""
    """SHA-256 of the canonical input, where there is a cache."""


class Exchange:
    """A request on its way. `client` is who asks: the name of an API key or, without keys, an address."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        address = scope.get("client")
        self.client: str = address[0] if address else "unknown"
        self.is_mirrored = MIRRORED in self.headers
        self.request_id = request_id_of(self.headers.get(b"x-request-id"))
        self.trip = Trip()
        self.outcome = Outcome.OK
        self.status = 0
        self.has_started = False
        self.facts: dict[str, Any] = {}
        """What the audit record says beside the usual; arrays `input` and `output` become hashes there."""
        self.inputs: Floats | None = None
        self.scores: Scores | None = None
        """What a classifier was asked and found; None: not yet, or this is none."""
        self.extend: Callable[[], None] = _nothing
        """Begins the request's deadline anew: for streams, after each part that was sent."""
        self._receive = receive
        self._send = send

    async def body(self, most_bytes: int) -> bytes:
        """All of the request's body. Raises Refusal 413 without reading more than `most_bytes`, Gone if the client
        goes away first."""
        declared = self.headers.get(b"content-length")
        if declared is not None:
            if not declared.isdigit():
                raise Refusal(400, "Content-Length is not a number; leave it to your HTTP client")
            if len(declared) > _MOST_LENGTH_DIGITS or int(declared) > most_bytes:
                raise _too_large(most_bytes)
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            body: bytes = message.get("body", b"")
        else:
            body = await self._rest(message, most_bytes)
        if len(body) > most_bytes:
            raise _too_large(most_bytes)
        if declared is not None and int(declared) != len(body):
            raise Refusal(400, f"Content-Length says {int(declared)} bytes, {len(body)} came; send all of them")
        return body

    async def _rest(self, message: Message, most_bytes: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while message["type"] == "http.request":
            part = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if size > most_bytes:
                raise _too_large(most_bytes)
            if not message.get("more_body", False):
                return b"".join(parts)
            message = await self._receive()
        raise Gone

    async def until_gone(self) -> None:
        """Returns when the client has gone away; only after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def send(self, answer: Answer, extra: tuple[Header, ...] = ()) -> None:
        body = answer.body
        self.status = answer.status
        self.has_started = True
        headers = [
            *answer.headers,
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", self.request_id.encode()),
            *extra,
        ]
        await self._send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def begin_stream(self, headers: tuple[Header, ...]) -> None:
        self.status = 200
        self.has_started = True
        all_headers = [*headers, (b"x-request-id", self.request_id.encode())]
        await self._send({"type": "http.response.start", "status": 200, "headers": all_headers})

    async def stream(self, part: bytes, *, is_last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": part, "more_body": not is_last})


def _nothing() -> None:
    pass


def request_id_of(given: bytes | None) -> str:
    """The client's own id if it is one that may stand in logs and headers, else a new one."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode("ascii")
    return os.urandom(16).hex()


def _too_large(most_bytes: int) -> Refusal:
    # The rest of the body is not read, so nothing else can come over this connection.
    return Refusal(
        413,
        f"the body is larger than {most_bytes} bytes; send fewer samples at a time",
        headers=((b"connection", b"close"),),
    )
