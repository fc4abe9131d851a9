"""Paths and methods, and what each path is to the guards."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

import orjson

from capstan_runtime.serving.exchange import JSON, Answer, Exchange
from capstan_runtime.serving.refusal import Refusal

Handle = Callable[[Exchange], Awaitable[Answer | None]]
"""None: the answer was streamed."""
ErrorBody = Callable[[Refusal, str], bytes]
"""A refusal, and the request's id, in a protocol's own form."""


class Access(Enum):
    OPEN = "open"
    """Probes and metrics: for everybody, and probes are never refused."""
    KEYED = "keyed"
    """An API key is needed, where there are any."""
    INFERENCE = "inference"
    """All guards apply."""


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    handle: Handle
    access: Access
    error_body: ErrorBody


def answers(document: object) -> Handle:
    """A handler that always answers the same."""
    answer = Answer(200, orjson.dumps(document))

    async def handle(_: Exchange) -> Answer:
        return answer

    return handle


def json_answer(status: int, document: object) -> Answer:
    return Answer(status, orjson.dumps(document), (JSON,))
