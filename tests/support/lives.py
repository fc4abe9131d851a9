"""The life of a job, look after look, when only the decisions matter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from capstan_operator.api.recovery_status import RecoveryStatus
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.training_job import decide_training_job
from capstan_operator.decide.types import Decision
from capstan_operator.observe import Observed
from tests.support.looks import lived_until, look, make_state, merged


class Life:
    """A job whose pods say what a test makes them say; every decision's status is what the next look sees."""

    def __init__(self, stage: str = "running", **spec: Any) -> None:
        self.seen: Observed = lived_until(stage, spec)
        self.decision = Decision(status=self.seen.job.status)
        """The newest."""

    @property
    def status(self) -> TrainingJobStatus:
        return self.seen.job.status

    @property
    def recoveries(self) -> list[RecoveryStatus]:
        return self.status.recoveries

    def say(self, *names: str, **words: Any) -> None:
        """What the supervisors of these pods, or of all, say from now on, merged into what they said."""
        known = self.seen.supervisors
        states = {pod.name: known[pod.uid].state for pod in self.seen.pods if pod.uid in known}
        for name in names or states:
            before = states[name].document()
            states[name] = make_state(self._pod(name), merged(before, words))
        told = look(self.seen.job, list(self.seen.pods), states)
        self.seen = replace(self.seen, supervisors=told.supervisors)

    def change_pod(self, name: str, **changes: Any) -> None:
        pods = tuple(replace(pod, **changes) if pod.name == name else pod for pod in self.seen.pods)
        self.seen = replace(self.seen, pods=pods)

    def delete_pod(self, name: str, at: float = 30.0) -> None:
        """The pod is being deleted, and its trainer has saved and ended."""
        fence = self.status.fence
        exit_ = {"fence": fence, "code": 80, "failure": "Stopped", "message": "stopped as asked", "at": at}
        self.say(name, phase="Exited", exit=exit_)
        self.change_pod(name, is_deleting=True)

    def change_spec(self, **spec: Any) -> None:
        job = self.seen.job
        self.seen = replace(self.seen, job=replace(job, spec=merged(job.spec, spec)))

    def decide(self, now: float) -> list[str]:
        """One look; the events in words."""
        self.decision = decide_training_job(self.seen, now)
        self.seen = replace(self.seen, job=replace(self.seen.job, status=self.decision.status))
        return [f"{note.reason}: {note.message}" for note in self.decision.events]

    def _pod(self, name: str) -> Any:
        return next(pod for pod in self.seen.pods if pod.name == name)
