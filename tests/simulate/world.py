"""A cluster in memory: an API server's objects, kubelets, supervisors and trainers, all moved by one clock.

Nothing here knows how the operator decides. What it must never do is asserted where it would do it.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from capstan_operator.api.meta import LABEL_INCARNATION, LABEL_WORKER
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.observe import ObservedPod
from capstan_runtime.contract.exit_codes import FailureClass
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import Checkpoint, Exit, Phase, Quarantine, State
from tests.support.looks import JOB_UID, root

STEPS, STEPS_A_TICK, SAVE_EVERY = 200, 10, 40
FORM_SECONDS = 120.0
HAS_TRAINER = frozenset({Phase.STARTING, Phase.COMPILING, Phase.TRAINING})


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
    exit_code: int | None = None
    exit_reason: str | None = None
    final: State | None = None
    state: State = field(init=False)
    is_reachable: bool = True
    joined_at: float = 0.0

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
            node=f"node-{self.worker}",
            exit_code=self.exit_code,
            exit_reason=self.exit_reason,
            final=self.final,
        )


class World:
    """`at` puts an action on the clock, `run` lets time pass."""

    def __init__(self, seed: int, spec: dict[str, Any]) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.transcript: list[str] = []
        self.spec, self.generation = spec, 1
        self.status: dict[str, Any] = {}
        self.version = 1
        self.pods: dict[str, Pod] = {}
        self.has_secret = False
        self.writes: list[str] = []
        self.on_change: Callable[[str], None] = lambda name: None
        """Called with the name of a pod that changed, or "job"."""
        self.on_hint: Callable[[], None] = lambda: None
        self.places: dict[int, dict[int, tuple[str, str]]] = {}
        """By fence and rank: (pod uid, coordinator) that were pushed."""
        self.checkpoints: list[Checkpoint] = []
        self.corrupt: set[str] = set()
        self.faults = 0
        self.crashing_start_ups = 0
        """How many of the next pods die while they start."""
        self._clock: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._uids = itertools.count(1)
        self.at(1.0, self._tick)

    # Time

    def at(self, delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._clock, (self.now + delay, next(self._order), action))

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        while self._clock and self._clock[0][0] <= until and not done():
            self.now, _, action = heapq.heappop(self._clock)
            action()

    def note(self, text: str) -> None:
        self.transcript.append(f"{self.now:7.1f}  {text}")

    def soon(self, low: float, high: float) -> float:
        return self.random.uniform(low, high)

    # The API server

    def create_pod(self, manifest: dict[str, Any]) -> Pod:
        """Creates the pod, or returns the one of that name."""
        name, labels = manifest["metadata"]["name"], manifest["metadata"]["labels"]
        if name in self.pods:
            return self.pods[name]
        assert self.has_secret, "a pod was created before its Secret"
        assert not self.is_finished, f"pod {name} was created after the end"
        command = manifest["spec"]["containers"][0]["command"]
        worker, incarnation = int(labels[LABEL_WORKER]), int(labels[LABEL_INCARNATION])
        pod = Pod(name, f"uid-{next(self._uids)}", worker, incarnation, self.now, "capstan_runtime" in command[-1])
        self.pods[name] = pod
        self.writes.append(f"create {name}")
        self.note(f"create pod {name}")
        self.at(self.soon(1.0, 3.0), lambda: self._start(pod))
        self.on_change(name)
        return pod

    def delete_pod(self, name: str, uid: str) -> None:
        pod = self.pods.get(name)
        if pod is None or pod.uid != uid or pod.is_deleting:
            return
        self.writes.append(f"delete {name}")
        self.note(f"delete pod {name}")
        self.terminate(pod)

    def apply_secret(self) -> None:
        if not self.has_secret:
            self.writes.append("secret")
            self.note("create secret")
        self.has_secret = True

    def delete_secret(self) -> None:
        self.has_secret = False
        self.note("delete secret")

    def write_status(self, status: TrainingJobStatus, seen_version: int) -> None:
        """Raises Refused when the job was changed since it was seen."""
        if seen_version != self.version:
            raise Refused("conflict")
        before, after = TrainingJobStatus.parse(self.status), status
        self._check_status(before, after)
        self.status = status.document()
        self.version += 1
        self.writes.append(f"status {after.phase} {after.reason}")
        if (before.phase, before.reason) != (after.phase, after.reason):
            self.note(f"status {after.phase} ({after.reason}): {after.message}")
        self.on_change("job")

    def change_spec(self, spec: dict[str, Any]) -> None:
        self.spec, self.generation, self.version = spec, self.generation + 1, self.version + 1
        self.on_change("job")

    @property
    def is_finished(self) -> bool:
        return self.status.get("finishedAt") is not None

    def _check_status(self, before: TrainingJobStatus, after: TrainingJobStatus) -> None:
        assert after.fence >= before.fence, "the fence went back"
        if after.fence == before.fence and after.resumed_from == before.resumed_from:
            assert (after.step or 0) >= (before.step or 0), f"step {before.step} became {after.step} for no reason"
        if before.finished_at is not None:
            kept = {"observed_generation": None, "cleaned_up_at": None}
            assert after.model_copy(update=kept) == before.model_copy(update=kept), "a finished job changed"
        # More restarts than faults would mean that one was counted twice.
        assert after.restarts.total <= self.faults, f"{after.restarts} after {self.faults} faults"

    # Kubelets

    def _start(self, pod: Pod) -> None:
        if pod.is_deleting or self.pods.get(pod.name) is not pod:
            return
        if self.crashing_start_ups:
            self.crashing_start_ups -= 1
            self.fault(f"{pod.name} dies while it starts")
            return self.fail_pod(pod, 1, "Error")
        pod.phase, pod.ip = "Running", f"10.0.{pod.incarnation}.{pod.worker + 1}"
        self.on_change(pod.name)
        if not pod.has_supervisor:
            self.at(self.soon(3.0, 6.0), lambda: self._end(pod, 0))

    def _end(self, pod: Pod, exit_code: int, reason: str | None = None) -> None:
        if pod.phase not in ("Pending", "Running"):
            return
        pod.phase = "Failed" if exit_code else "Succeeded"
        pod.exit_code, pod.exit_reason = exit_code, reason or ("Error" if exit_code else "Completed")
        pod.final = pod.state if pod.has_supervisor and reason != "OOMKilled" else None
        self.on_change(pod.name)

    def terminate(self, pod: Pod) -> None:
        """SIGTERM, a few seconds, and gone."""
        pod.is_deleting = True
        if pod.state.phase in HAS_TRAINER:
            self._exit(pod, 80, FailureClass.STOPPED, "stopped as asked")
        self.on_change(pod.name)

        def leave() -> None:
            self._end(pod, 80)
            self.at(self.soon(0.1, 1.0), lambda: self.vanish(pod))

        self.at(self.soon(0.5, 3.0), leave)

    def vanish(self, pod: Pod) -> None:
        if self.pods.get(pod.name) is pod:
            del self.pods[pod.name]
            pod.phase = "Gone"
            self.on_change(pod.name)

    def fail_pod(self, pod: Pod, exit_code: int, reason: str) -> None:
        self._end(pod, exit_code, reason)

    # Supervisors and trainers

    def ask(self, uid: str) -> State | None:
        """The state of a pod's supervisor; None: no answer."""
        pod = next((pod for pod in self.pods.values() if pod.uid == uid), None)
        is_there = pod is not None and pod.phase == "Running" and pod.has_supervisor and pod.is_reachable
        return pod.state if pod is not None and is_there else None

    def push(self, uid: str, membership: Membership) -> None:
        """Raises Refused when nobody takes it."""
        status = TrainingJobStatus.parse(self.status)
        assert membership.fence <= status.fence, "a membership was pushed before it was on record"
        place = (uid, membership.coordinator)
        known = self.places.setdefault(membership.fence, {}).setdefault(membership.rank, place)
        assert known == place, f"two pods were given rank {membership.rank} of fence {membership.fence}"
        pod = next((pod for pod in self.pods.values() if pod.uid == uid), None)
        if pod is None or self.ask(uid) is None or pod.is_deleting or pod.state.phase is Phase.SUCCEEDED:
            raise Refused("not there")
        if membership.fence < pod.state.fence:
            raise Refused("older")
        if membership.fence == pod.state.fence:
            return
        pod.joined_at = self.now
        pod.say(
            fence=membership.fence,
            rank=membership.rank,
            world=membership.world,
            phase=Phase.STARTING,
            step=0,
            metrics={},
            resumed_from=None,
            exit=None,
        )

    def kill_trainer(self, pod: Pod, code: int, failure: FailureClass, signal: str | None = None) -> None:
        if pod.state.phase in HAS_TRAINER and pod.phase == "Running" and not pod.is_deleting:
            self.fault(f"the trainer of {pod.name} ends: {failure}")
            self._exit(pod, code, failure, "something broke", signal)

    def fault(self, text: str) -> None:
        """Everything that may rightly cost a restart is counted."""
        self.faults += 1
        self.note(f"! {text}")

    def _exit(self, pod: Pod, code: int, failure: FailureClass, message: str, signal: str | None = None) -> None:
        end = Exit(
            fence=pod.state.fence, code=code, failure=failure, message=message, signal=signal, at=round(self.now, 3)
        )
        pod.say(phase=Phase.EXITED, exit=end)
        self.on_hint()

    def _tick(self) -> None:
        self.at(1.0, self._tick)
        crews: dict[int, list[Pod]] = {}
        for pod in self.pods.values():
            if pod.state.phase in HAS_TRAINER and pod.phase == "Running":
                crews.setdefault(pod.state.fence, []).append(pod)
        for crew in crews.values():
            if len(crew) == crew[0].state.world:
                self._advance(crew)
            else:
                self._wait_or_break(crew)

    def _wait_or_break(self, crew: list[Pod]) -> None:
        for pod in crew:
            if pod.state.phase is Phase.STARTING and self.now - pod.joined_at < FORM_SECONDS:
                continue
            if self.random.random() < 0.7:
                self._exit(pod, 75, FailureClass.RETRYABLE, "a peer went away")

    def _advance(self, crew: list[Pod]) -> None:
        phases = {pod.state.phase for pod in crew}
        if Phase.STARTING in phases:
            for pod in crew:
                pod.say(phase=Phase.COMPILING, steps=STEPS, **self._restore(pod))
        elif Phase.COMPILING in phases:
            for pod in crew:
                pod.say(phase=Phase.TRAINING)
        else:
            self._train(sorted(crew, key=lambda pod: pod.state.rank or 0))

    def _restore(self, pod: Pod) -> dict[str, Any]:
        good = [checkpoint for checkpoint in self.checkpoints if checkpoint.root not in self.corrupt]
        bad = [checkpoint for checkpoint in self.checkpoints if checkpoint.root in self.corrupt]
        newest = max(good, key=lambda c: (c.step, c.at), default=None)
        passed_over = [Quarantine(step=c.step, root=c.root, reason="leaf 3 does not match") for c in bad]
        resumed = newest.model_copy(update={"at": round(self.now, 3)}) if newest else None
        return {"step": newest.step if newest else 0, "resumed_from": resumed, "quarantined": passed_over}

    def _train(self, crew: list[Pod]) -> None:
        step = min(STEPS, crew[0].state.step + STEPS_A_TICK)
        for pod in crew:
            pod.say(step=step, metrics={"loss": 1.0 / step, "step_seconds": 0.1})
        if step % SAVE_EVERY == 0:
            checkpoint = Checkpoint(
                step=step, root=f"{root(step)[:-8]}{crew[0].state.fence:08d}", at=round(self.now, 3)
            )
            self.checkpoints.append(checkpoint)
            crew[0].say(checkpoint=checkpoint)
        if step >= STEPS:
            for pod in crew:
                pod.say(phase=Phase.SUCCEEDED)
                self.at(self.soon(0.1, 4.0), lambda pod=pod: self._end(pod, 0))
            self.on_hint()
