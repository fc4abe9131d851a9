"""Supervisors and trainers of the fake world: places are taken, steps are made, things break.

All numbers are a world's own: a look is cheap, so a step takes 0.1 s and a hang is known after 20 s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_runtime.contract.exit_codes import FailureClass
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import Checkpoint, Exit, Phase, Quarantine, Section
from tests.simulate.pods import Pod, Refused
from tests.support.looks import root

if TYPE_CHECKING:
    from tests.simulate.world import World

STEPS, STEPS_A_TICK, SAVE_EVERY = 200, 10, 40
FORM_SECONDS = 120.0
HANG_SECONDS = 20.0
HAS_TRAINER = frozenset({Phase.STARTING, Phase.COMPILING, Phase.TRAINING})


class Trainers:
    """What runs in the pods of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.places: dict[int, dict[int, tuple[str, Membership]]] = {}
        """By fence and rank: (pod uid, the first membership that was pushed)."""
        self.checkpoints: list[Checkpoint] = []
        self.corrupt: set[str] = set()
        """Roots."""
        self.bad_batches: set[int] = set()
        """Indices in the data order that make the loss infinite."""
        self.most_samples: int | None = None
        """The largest micro-batch that fits a GPU; None: any does."""
        world.at(1.0, self._tick)

    def ask(self, uid: str) -> Any:
        """The state of a pod's supervisor; None: no answer."""
        pod = self._pod(uid)
        is_there = pod is not None and pod.phase == "Running" and pod.has_supervisor and self._world.can_reach(pod)
        return pod.state if pod is not None and is_there else None

    def push(self, uid: str, membership: Membership) -> None:
        """Raises Refused when nobody takes it."""
        if membership.is_over:
            self._end_with_the_job(uid, membership.fence)
            return
        self._check_place(uid, membership)
        pod = self._pod(uid)
        if pod is None or self.ask(uid) is None or pod.is_deleting or pod.state.phase is Phase.SUCCEEDED:
            raise Refused("not there")
        if membership.fence < pod.state.fence:
            raise Refused("older")
        if pod.membership is not None and membership.fence == pod.state.fence:
            assert membership.model_copy(update={"leave_at_checkpoint": False}) == pod.membership, "another place"
            pod.say(leave_at_checkpoint=membership.leave_at_checkpoint or pod.state.leave_at_checkpoint)
            return
        pod.membership = membership.model_copy(update={"leave_at_checkpoint": False})
        pod.joined_at, pod.is_frozen = self._world.now, False
        pod.say(
            fence=membership.fence,
            rank=membership.rank,
            world=membership.world,
            micro_splits=membership.micro_splits,
            leave_at_checkpoint=membership.leave_at_checkpoint,
            phase=Phase.STARTING,
            step=0,
            metrics={},
            resumed_from=None,
            exit=None,
        )

    def _end_with_the_job(self, uid: str, fence: int) -> None:
        assert self._world.is_finished, "a pod was told to end for good while its job goes on"
        pod = self._pod(uid)
        if pod is None or self.ask(uid) is None or pod.is_deleting or pod.state.exit is None:
            raise Refused("not there")
        assert (pod.state.fence, pod.state.exit.fence) == (fence, fence), "a pod whose trainer runs was told to end"
        code = pod.state.exit.code or 1
        if pod.state.phase is Phase.EXITED:
            pod.say(phase=Phase.STOPPING)
            self._world.at(self._world.soon(0.1, 2.0), lambda: self._world.end(pod, code))

    def kill(self, pod: Pod, code: int, failure: FailureClass, signal: str | None = None) -> None:
        """The trainer of `pod` ends, if there is one."""
        if pod.state.phase in HAS_TRAINER and pod.phase == "Running" and not pod.is_deleting:
            self._world.fault(f"the trainer of {pod.name} ends: {failure}")
            self.exit(pod, code, failure, "something broke", signal=signal)

    def freeze(self, pod: Pod) -> None:
        """The trainer of `pod` is stopped by a signal, and nobody tells."""
        if pod.state.phase in HAS_TRAINER and pod.phase == "Running" and not pod.is_deleting:
            self._world.fault(f"the trainer of {pod.name} is stopped by a signal")
            pod.is_frozen = True
            crew = [other for other in self._running() if other.state.fence == pod.state.fence]
            fence = pod.state.fence
            self._world.at(HANG_SECONDS, lambda: self._end_of_hang(crew, fence))

    def exit(self, pod: Pod, code: int, failure: FailureClass, message: str, **more: Any) -> None:
        """The supervisor of `pod` sees its trainer end."""
        at = round(self._world.now, 3)
        end = Exit(
            fence=pod.state.fence, code=code, failure=failure, message=message, step=pod.state.step, at=at, **more
        )
        pod.say(phase=Phase.EXITED, exit=end)
        self._world.on_hint()

    def _pod(self, uid: str) -> Pod | None:
        return next((pod for pod in self._world.pods.values() if pod.uid == uid), None)

    def _running(self) -> list[Pod]:
        pods = self._world.pods.values()
        return [pod for pod in pods if pod.state.phase in HAS_TRAINER and pod.phase == "Running"]

    def _check_place(self, uid: str, membership: Membership) -> None:
        """What no membership may ever be."""
        status = TrainingJobStatus.parse(self._world.status)
        assert membership.fence <= status.fence, "a membership was pushed before it was on record"
        plain = membership.model_copy(update={"leave_at_checkpoint": False})
        known = self.places.setdefault(membership.fence, {}).setdefault(membership.rank, (uid, plain))
        assert known[0] == uid, f"two pods were given rank {membership.rank} of fence {membership.fence}"
        assert known[1] == plain, f"rank {membership.rank} of fence {membership.fence} was told two things"
        firsts = [first for _, first in self.places[membership.fence].values()]
        shared = {first.model_copy(update={"rank": 0, "chaos": ()}) for first in firsts}
        assert len(shared) == 1, f"the ranks of fence {membership.fence} were told different things: {shared}"
        assert len({uid for uid, _ in self.places[membership.fence].values()}) == len(firsts), "a pod has two ranks"
        pods = [self._pod(uid) for uid, _ in self.places[membership.fence].values()]
        runs = [pod.run for pod in pods if pod is not None]
        assert runs == runs[:1] * len(runs), f"the ranks of fence {membership.fence} have read different runs"
        assert self._world.virtual_ranks % membership.world == 0, f"world {membership.world} is not valid"
        assert membership.world <= self._world.largest_max, f"world {membership.world} is above every max there was"
        known_step = self._world.known_step_at.get(membership.fence, 0)
        assert membership.floor_step >= known_step, (
            "an attempt might start from step 0, though a checkpoint was committed"
        )

    def _end_of_hang(self, crew: list[Pod], fence: int) -> None:
        for pod in crew:
            is_hung = pod.state.fence == fence and pod.state.phase in HAS_TRAINER and pod.phase == "Running"
            if not is_hung:
                continue
            section, letter = (Section.STEP, "T") if pod.is_frozen else (Section.EXCHANGE, "S")
            doing = "stopped by a signal (state T) while computing"
            if not pod.is_frozen:
                doing = "asleep (state S) waiting for the other ranks' messages"
            message = f"no step for {HANG_SECONDS:.0f} s (limit {HANG_SECONDS:.0f} s): {doing}"
            self.exit(pod, 79, FailureClass.HANG, message, signal="SIGKILL", section=section, process_state=letter)

    def _tick(self) -> None:
        self._world.at(1.0, self._tick)
        crews: dict[int, list[Pod]] = {}
        for pod in self._running():
            if not self._world.is_dark(pod):
                crews.setdefault(pod.state.fence, []).append(pod)
        for crew in crews.values():
            if len(crew) < (crew[0].state.world or 0):
                self._wait_or_break(crew)
            elif not any(pod.is_frozen for pod in crew):
                self._advance(sorted(crew, key=lambda pod: pod.state.rank or 0))

    def _wait_or_break(self, crew: list[Pod]) -> None:
        for pod in crew:
            if pod.state.phase is Phase.STARTING and self._world.now - pod.joined_at < FORM_SECONDS:
                continue
            if self._world.random.random() < 0.7:
                self.exit(pod, 75, FailureClass.RETRYABLE, "a peer went away")

    def _advance(self, crew: list[Pod]) -> None:
        phases = {pod.state.phase for pod in crew}
        if Phase.STARTING in phases:
            for pod in crew:
                self._restore(pod)
        elif Phase.COMPILING in phases:
            self._compile(crew)
        else:
            self._train(crew)

    def _restore(self, pod: Pod) -> None:
        good = [checkpoint for checkpoint in self.checkpoints if checkpoint.root not in self.corrupt]
        bad = [checkpoint for checkpoint in self.checkpoints if checkpoint.root in self.corrupt]
        passed_over = [Quarantine(step=c.step, root=c.root, reason="leaf 3 does not match") for c in bad]
        newest = max(good, key=lambda c: (c.step, c.at), default=None)
        if newest is None and pod.membership is not None and pod.membership.floor_step > 0:
            pod.say(quarantined=passed_over)
            self._world.fault("no checkpoint verifies")
            return self.exit(pod, 65, FailureClass.CORRUPT_CHECKPOINT, "no committed checkpoint verifies")
        resumed = newest.model_copy(update={"verified_at": round(self._world.now, 3)}) if newest else None
        step = newest.step if newest else 0
        pod.say(phase=Phase.COMPILING, steps=STEPS, step=step, resumed_from=resumed, quarantined=passed_over)
        return None

    def _compile(self, crew: list[Pod]) -> None:
        world = self._world
        samples = world.spec["training"]["globalBatchSize"] // world.virtual_ranks // crew[0].state.micro_splits
        if self.most_samples is not None and samples > self.most_samples:
            victim = crew[-1]
            world.fault(f"the GPU of {victim.name} has no room for {samples} samples")
            return self.exit(victim, 76, FailureClass.GPU_OUT_OF_MEMORY, f"no room for {samples} samples")
        for pod in crew:
            pod.say(phase=Phase.TRAINING)
        return None

    def _train(self, crew: list[Pod]) -> None:
        first = crew[0].state.step
        step = min(STEPS, first + STEPS_A_TICK)
        bad = next((index for n in range(first, step) if (index := self._batch(crew[0], n)) in self.bad_batches), None)
        if bad is not None:
            self._world.fault(f"batch {bad} makes the loss infinite")
            for pod in crew:
                self.exit(pod, 77, FailureClass.NUMERICAL, f"the loss is inf at batch {bad}", bad_batch=bad)
            return
        for pod in crew:
            pod.say(step=step, metrics={"loss": 1.0 / step, "step_seconds": 0.1})
        if step % SAVE_EVERY == 0:
            self._save(crew, step)
        if step >= STEPS:
            for pod in crew:
                pod.say(phase=Phase.SUCCEEDED)
                self._world.at(self._world.soon(0.1, 4.0), lambda pod=pod: self._world.end(pod, 0))
            self._world.on_hint()
        elif step % SAVE_EVERY == 0 and any(pod.state.leave_at_checkpoint for pod in crew):
            for pod in crew:
                self.exit(pod, 80, FailureClass.STOPPED, "stopped at the checkpoint, as asked")

    def _save(self, crew: list[Pod], step: int) -> None:
        name = f"{root(step)[:-8]}{crew[0].state.fence:08d}"
        checkpoint = Checkpoint(step=step, root=name, at=round(self._world.now, 3))
        self.checkpoints.append(checkpoint)
        crew[0].say(checkpoint=checkpoint)

    def _batch(self, pod: Pod, step: int) -> int:
        """Index in the data order of what optimizer step `step` takes."""
        index = step
        for skip in pod.membership.skips if pod.membership else ():
            if index >= skip.first:
                index += skip.count
        return index
