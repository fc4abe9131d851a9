"""The audit trail: one line of JSON for everything the operator changes in the API server or tells a supervisor.

Who (this replica), what (verb, kind, namespace, name, uid), for whom and why (the object of ours whose decision it
follows from, with the decision's reason), and how it ended. Bodies are never in it, so no token or key can be.

Left out are what changes nothing (reads, dry runs) and the renewals of a lease that is held, one every two seconds.
"""

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

import msgspec

from capstan_operator.cluster.work_queue import ObjectKey

logger = logging.getLogger("capstan.audit")
logger.setLevel(logging.INFO)  # whatever --log-level says: a trail with holes is none

AS_PLANNED = "AsPlanned"
MAX_WHY = 300
"""Characters of a decision's message; all of it is on the object's status."""


@dataclass(frozen=True, slots=True)
class Cause:
    """Why something is written."""

    reason: str
    """One CamelCase word, as on status."""
    message: str = ""
    key: ObjectKey | None = None
    """The object of ours that it is for; None: the operator itself."""
    uid: str | None = None
    """Of that object."""

    @classmethod
    def of(cls, about: "_Identified", status: "_Told") -> Self:
        """What `status` of one of our objects says; one without a reason says that all goes as it should."""
        return cls(status.reason or AS_PLANNED, status.message or "", about.key, about.uid)


class _Identified(Protocol):
    @property
    def key(self) -> ObjectKey: ...

    @property
    def uid(self) -> str: ...


class _Told(Protocol):
    @property
    def reason(self) -> str | None: ...

    @property
    def message(self) -> str | None: ...


UNEXPLAINED: Final = Cause("Unexplained")
"""Of what is written outside of `because`: a flaw of ours, and told all the same."""
_cause: ContextVar[Cause | None] = ContextVar("cause", default=UNEXPLAINED)


@contextlib.contextmanager
def because(cause: Cause | None) -> Iterator[None]:
    """What is written inside, by tasks begun inside too, has this cause. None: it is routine, and not told."""
    token = _cause.set(cause)
    try:
        yield
    finally:
        _cause.reset(token)


class _Named(msgspec.Struct, gc=False):
    name: str = ""
    uid: str = ""


class _Object(msgspec.Struct, gc=False):
    metadata: _Named = msgspec.field(default_factory=_Named)


_decode = msgspec.json.Decoder(_Object).decode


def named(document: bytes) -> tuple[str, str]:
    """(name, uid) of an object as the API server has it, empty where it has none."""
    try:
        metadata = _decode(document).metadata
    except msgspec.MsgspecError:
        return "", ""
    return metadata.name, metadata.uid


class Trail:
    """The trail of one replica, known as `identity` on its Lease and in its events, too."""

    def __init__(self, identity: str) -> None:
        self._identity = identity

    def note(
        self, verb: str, kind: str, namespace: str | None, name: str, *, uid: str, result: str, seconds: float
    ) -> None:
        """Something was written, or could not be: `result` is OK, or the error in one word."""
        cause = _cause.get()
        if cause is None:
            return
        line: dict[str, Any] = {
            "who": self._identity,
            "verb": verb,
            "kind": kind,
            "namespace": namespace or (cause.key.namespace if cause.key else ""),
            "name": name,
            "uid": uid,
            "reason": cause.reason,
            "why": cause.message[:MAX_WHY],
            "result": result,
            "seconds": round(seconds, 4),
        }
        if cause.key is not None:
            line["for"] = {"kind": cause.key.kind, "name": cause.key.name, "uid": cause.uid}
        logger.info("%s %s %s/%s: %s", verb, kind, line["namespace"], name, result, extra={"audit": line})
