"""Which checkpoints of a TrainingJob InferenceServices serve: what its retention must not remove."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from capstan_operator.cluster.objects import ObjectRecord
from capstan_operator.cluster.work_queue import ObjectKey

MOST_ROOTS = 64
"""Of one job. They are part of what its supervisors are told and tell again at every look."""


@dataclass(frozen=True, slots=True)
class _Use:
    """What one service uses of one job."""

    proven: frozenset[str]
    """Roots that its proven revision serves."""
    others: frozenset[str]
    """Those of revisions on their way, and what the service is to serve next."""


class RootsInUse:
    """`on_change(job)` is called when other checkpoints of a TrainingJob are in use than before."""

    def __init__(self, on_change: Callable[[ObjectKey], None]) -> None:
        self._on_change = on_change
        self._uses: dict[ObjectKey, dict[ObjectKey, _Use]] = {}
        """By job, then by service."""
        self._jobs: dict[ObjectKey, frozenset[ObjectKey]] = {}
        """By service, the jobs of whose checkpoints it uses some."""

    def of(self, job: ObjectKey) -> tuple[str, ...]:
        """Sorted, at most 64; if more are in use, those that are proven come first."""
        uses = self._uses.get(job, {}).values()
        proven = frozenset[str]().union(*(use.proven for use in uses))
        others = frozenset[str]().union(*(use.others for use in uses)) - proven
        return tuple(sorted([*sorted(proven), *sorted(others)][:MOST_ROOTS]))

    def note(self, key: ObjectKey, service: ObjectRecord | None) -> None:
        """Take in a service as it is now; None: it is gone."""
        uses = _uses_of(service) if service is not None else {}
        touched = self._jobs.pop(key, frozenset()) | uses.keys()
        before = {job: self.of(job) for job in touched}
        for job in touched:
            self._uses.setdefault(job, {}).pop(key, None)
            if job in uses:
                self._uses[job][key] = uses[job]
            if not self._uses[job]:
                del self._uses[job]
        if uses:
            self._jobs[key] = frozenset(uses)
        for job in sorted(touched):
            if self.of(job) != before[job]:
                self._on_change(job)


def _uses_of(service: ObjectRecord) -> dict[ObjectKey, _Use]:
    """By job. A revision that was given up needs its checkpoint no more; once it is tried again, it is not given up."""
    status = orjson.loads(service.status)
    stable = status.get("stable")
    found: dict[ObjectKey, tuple[set[str], set[str]]] = {}
    for name, job, root in _named(status, service.key.namespace):
        proven, others = found.setdefault(ObjectKey(service.key.namespace, job), (set(), set()))
        (proven if name is not None and name == stable else others).add(root)
    return {job: _Use(frozenset(proven), frozenset(others)) for job, (proven, others) in found.items()}


def _named(status: Mapping[str, Any], namespace: str) -> Iterator[tuple[str | None, str, str]]:
    """(revision or None, job, root) of all that a status names, which nobody has checked yet."""
    model = status.get("model")
    if isinstance(model, dict) and isinstance(model.get("run"), str) and isinstance(model.get("digest"), str):
        folder = model["run"].split("/")
        # What another namespace trains is no business of this one's: it could keep its disk from ever being freed.
        if len(folder) == 3 and folder[0] == namespace:
            yield None, folder[1], model["digest"]
    revisions = status.get("revisions")
    for one in revisions if isinstance(revisions, list) else ():
        if not isinstance(one, dict) or one.get("failure"):
            continue
        if isinstance(one.get("job"), str) and isinstance(one.get("digest"), str):
            yield one.get("name"), one["job"], one["digest"]
