"""A pod of the fake world, and what its supervisor says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from capstan_operator.observe import ObservedPod
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import State
from tests.support.looks import JOB_UID


class Refused(Exception):
    """The API server or a supervisor does not do what it is asked."""


@dataclass(eq=False)
class Pod:
    """A pod and what runs in it."""

    name: str
    uid: str
    worker: int
    incarnation: int
    created_at: float
    has_supervisor: bool
    phase: str = "Pending"
    is_deleting: bool = False
    ip: str | None = None
    node: str | None = None
    waiting: str | None = None
    running_since: float | None = None
    kept_off: frozenset[str] = frozenset()
    """Nodes it must not be put on."""
    exit_code: int | None = None
    exit_reason: str | None = None
    final: State | None = None
    state: State = field(init=False)
    is_reachable: bool = True
    joined_at: float = 0.0
    membership: Membership | None = None
    """The newest it took."""
    run: dict[str, Any] | None = None
    """What it has read of the run; None: it has not started."""
    is_frozen: bool = False
    """Its trainer was stopped by a signal: it makes no step and tells nobody."""

    def __post_init__(self) -> None:
        self.state = State(pod=self.name, uid=JOB_UID)

    def say(self, **changes: Any) -> None:
        self.state = self.state.model_copy(update=changes)

    def observe(self) -> ObservedPod:
        return ObservedPod(
            name=self.name,
            uid=self.uid,
            worker=self.worker,
            incarnation=self.incarnation,
            phase=self.phase,
            is_deleting=self.is_deleting,
            created_at=self.created_at,
            ip=self.ip,
            node=self.node,
            running_since=self.running_since,
            waiting=self.waiting,
            exit_code=self.exit_code,
            exit_reason=self.exit_reason,
            final=self.final,
        )
