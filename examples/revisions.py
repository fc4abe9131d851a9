"""A live table of an InferenceService's revisions, beside what its clients see of them."""

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from live import (
    QUIET_REDRAW_SECONDS,
    REDRAW_SECONDS,
    SERVICES,
    Columns,
    ExampleFailed,
    Object,
    bar,
    number,
    paint,
    table,
)
from load import Answers, Seen

from capstan_local.client import Client

REVISION_COLUMNS: Columns = (
    ("REVISION", -16),
    ("MODEL", -17),
    ("PHASE", -9),
    ("TRAFFIC", -15),
    ("READY", 5),
    ("ANSWERS", 8),
    ("RIGHT", 6),
)
SIGNS = dict(zip(("Pass", "Fail", "Inconclusive"), "+-?", strict=True))

Models = Mapping[str, str]
"""By the digest of a checkpoint: its name for people."""


class Revisions:
    """All revisions that there were while the demo looked: one that is gone keeps its row. `seen` None: no load yet."""

    def __init__(self, models: Models, seen: Seen | None = None) -> None:
        self.models = models
        self.seen = seen
        self._known: dict[str, Object] = {}

    async def watch(
        self, client: Client, key: tuple[str, str], what: str, seconds: float, holds: Callable[[Object], bool]
    ) -> Object:
        """The service once `holds`; paints its revisions until then. Raises ExampleFailed when that takes longer than
        `seconds`; so may `holds`, when it can never be."""
        namespace, name = key
        deadline = time.monotonic() + seconds
        pause = 0.0 if sys.stdout.isatty() else QUIET_REDRAW_SECONDS
        shown: list[str] = []
        painted_at = float("-inf")
        while True:
            service = await client.get(SERVICES, name, namespace)
            is_done = holds(service)
            lines = self.lines(service)
            if lines != shown and (is_done or time.monotonic() >= painted_at + pause):
                paint(lines, shown)
                shown, painted_at = lines, time.monotonic()
            if is_done:
                return service
            if time.monotonic() > deadline:
                message = service.get("status", {}).get("message")
                raise ExampleFailed(f"{name}: not {what} after {seconds:.0f} s: {message}; see kubectl describe infs")
            await asyncio.sleep(REDRAW_SECONDS)

    def lines(self, service: Object) -> list[str]:
        gone = {
            name: known | {"phase": "Gone", "weight": 0, "ready": 0, "total": 0} for name, known in self._known.items()
        }
        self._known = gone | {one["name"]: one for one in service.get("status", {}).get("revisions", [])}
        rows = [self.row(known) for known in self._known.values()]
        asked = [str(self.seen)] if self.seen else []
        return [*table(REVISION_COLUMNS, "GATES", rows), *asked]

    def row(self, revision: Object) -> tuple[str, ...]:
        answers = (self.seen or Seen()).by_revision.get(revision["name"], Answers())
        weight = revision.get("weight", 0)
        return (
            revision["name"],
            self.models.get(revision["digest"], revision["digest"][7:15]),
            revision["phase"],
            f"{bar(weight, 10)} {weight}%",
            f"{revision.get('ready', 0)}/{revision.get('total', 0)}",
            number(answers.count or None, 0),
            f"{answers.right / answers.count:.0%}" if answers.count else "",
            gates(revision.get("gates") or []),
        )


def gates(said: Sequence[Object]) -> str:
    return "  ".join(f"{SIGNS[gate['verdict']]}{gate['name']}" for gate in said)


def revision_of(service: Object, digest: str) -> Object:
    """What status says of the newest revision of this checkpoint; nothing, if there is none."""
    revisions = service.get("status", {}).get("revisions", [])
    return next((one for one in reversed(revisions) if one["digest"] == digest), {})


def failure_of(service: Object, digest: str) -> Object | None:
    """Why the revision of this checkpoint was given up; None: it was not."""
    return revision_of(service, digest).get("failure")


def is_live(service: Object, digest: str) -> bool:
    """Whether this checkpoint is what the spec asks for, is proven, and has all traffic and all pods."""
    status = service.get("status", {})
    if status.get("observedGeneration") != service["metadata"]["generation"]:
        return False
    up_to_date = next((one for one in status["conditions"] if one["type"] == "UpToDate"), {"status": "False"})
    wanted = service["spec"]["replicas"]
    return (
        up_to_date["status"] == "True"
        and status["model"]["digest"] == digest
        and status["ready"] == f"{wanted}/{wanted}"
    )
