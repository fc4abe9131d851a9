"""Over whole lives, with operators that die at any moment: the story on status adds up, and no fault comes twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.provenance import VOLUNTARY
from capstan_operator.decide.times import seconds_since_1970
from capstan_operator.observe import OperatorSettings
from capstan_runtime.contract.chaos import Fault, Injected
from capstan_runtime.contract.exit_codes import FailureClass
from capstan_runtime.contract.state import Phase
from tests.simulate.operator_model import Operator, Trouble
from tests.simulate.pods import Pod
from tests.simulate.test_lives import disturb, finish
from tests.simulate.world import World
from tests.support.looks import SPEC, merged

CHAOS = [
    {"name": "kill", "fault": "Kill", "step": 30},
    {"name": "delete", "fault": "DeletePod", "step": 90},
    {"name": "slow", "fault": "SlowRank", "step": 110, "rank": 1},
    {"name": "segfault", "fault": "Segfault", "step": 150, "seed": 3},
]


class Witness:
    """Makes supervisors keep ledgers and trainers suffer what they are told to, and checks every write of status."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self._world = world
        self._since: dict[str, float] = {}
        self.executed: Counter[str] = Counter()
        say, write_status = Pod.say, world.write_status

        def say_with_ledger(pod: Pod, **changes: Any) -> None:
            say(pod, **self._ledger(pod, changes), **changes)
            self._suffer(pod, say)

        def write_and_check(status: TrainingJobStatus, seen_version: int) -> None:
            known = {entry["name"] for entry in world.status.get("injected", [])}
            for entry in status.injected:
                if entry.fault == Fault.DELETE_POD and entry.name not in known:
                    self.executed[entry.name] += 1
                    world.fault(f"chaos deletes {entry.pod}")
            write_status(status, seen_version)
            check(status, world.now)

        monkeypatch.setattr(Pod, "say", say_with_ledger)
        monkeypatch.setattr(world, "write_status", write_and_check)

    def _ledger(self, pod: Pod, changes: dict[str, Any]) -> dict[str, Any]:
        now, state = self._world.now, pod.state
        if changes.get("fence", state.fence) != state.fence:
            self._since[pod.uid] = now
            return {"timeline": {changes["phase"]: now}, "seconds": {}}
        spent = now - self._since.get(pod.uid, now)
        self._since[pod.uid] = now
        phase = changes.get("phase", state.phase)
        return {
            "timeline": {phase: now} | state.timeline,
            "seconds": state.seconds | {state.phase: state.seconds.get(state.phase, 0.0) + spent},
        }

    def _suffer(self, pod: Pod, say: Any) -> None:
        world, state = self._world, pod.state
        told = pod.membership.chaos if pod.membership else ()
        for chaos in told if state.phase is Phase.TRAINING else ():
            if chaos.step is None or chaos.step > state.step or any(e.name == chaos.name for e in state.injected):
                continue
            self.executed[chaos.name] += 1
            injected = Injected(
                name=chaos.name, fault=chaos.fault, rank=state.rank or 0, step=state.step, at=round(world.now, 3)
            )
            say(pod, injected=[*state.injected, injected])
            if chaos.fault in (Fault.KILL, Fault.SEGFAULT):
                world.at(0.0, lambda: world.trainers.kill(pod, 137, FailureClass.CRASH, "SIGKILL"))
            return


def check(status: TrainingJobStatus, now: float) -> None:
    """What must hold of every status that is written at `now`, of a job that was created at 0 s."""
    assert status.goodput is not None
    assert abs(sum(status.goodput.seconds.model_dump().values()) - now) < 0.02, "a second was lost, or counted twice"
    fences = [record.fence for record in status.recoveries]
    assert fences == sorted(set(fences))
    for record in status.recoveries:
        parts = record.seconds.model_dump(exclude={"total"}, exclude_none=True)
        assert min(parts.values()) >= 0.0
        assert round(sum(parts.values()), 3) == record.seconds.total
        if record.recovered_at is not None:
            took = seconds_since_1970(record.recovered_at) - seconds_since_1970(record.at)
            assert abs(took - record.seconds.total) < 0.002
            # Fewer steps were told than were saved: how many followed the save nobody knows.
            is_unknown = record.step_before is None or record.step_before < (record.step or 0)
            assert (record.steps_lost is None) == (is_unknown and record.cause not in VOLUNTARY)


@pytest.mark.parametrize("seed", range(60))
def test_in_every_disturbed_life_each_second_is_told_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = {"max": 1 + seed % 4, "min": 1} if seed % 2 else {"max": 1 + seed % 4}
    world = World(seed, merged(SPEC, {"workers": workers, "training": {"globalBatchSize": 60}}))
    Witness(world, monkeypatch)
    trouble = Trouble(lost_event=0.05, repeated_event=0.1, lost_answer=0.05, death_at_write=0.03 * (seed % 3))
    operator = Operator(world, trouble, OperatorSettings())
    disturb(world, operator, faults=world.random.randrange(5))
    status = finish(world)
    spent = status.goodput.seconds if status.goodput else None
    assert spent is not None
    assert status.phase != "Succeeded" or spent.training > 0
    lost = sum(record.seconds_lost or 0.0 for record in status.recoveries)
    assert spent.rework <= lost + 0.01


@pytest.mark.parametrize("seed", range(40))
def test_every_fault_is_injected_once_and_told_with_the_recovery_it_caused(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(seed, merged(SPEC, {"chaos": CHAOS, "workers": {"max": 2, "min": 1 + seed % 2}}))
    witness = Witness(world, monkeypatch)
    trouble = Trouble(lost_event=0.05, repeated_event=0.1, lost_answer=0.05, death_at_write=0.03 * (seed % 3))
    Operator(world, trouble, OperatorSettings(allow_chaos=True))
    status = finish(world)
    assert status.phase == "Succeeded"
    assert max(witness.executed.values()) == 1
    assert {entry.name for entry in status.injected} == set(witness.executed)
    caused = [record.chaos for record in status.recoveries if record.chaos]
    assert len(caused) == len(set(caused))
    assert set(caused) <= {"kill", "delete", "segfault"}
    assert {"kill"} <= set(caused)


def test_without_the_operators_consent_nothing_is_injected(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(1, merged(SPEC, {"chaos": CHAOS}))
    witness = Witness(world, monkeypatch)
    Operator(world, Trouble(), OperatorSettings())
    status = finish(world)
    assert (status.phase, status.restarts.total, status.injected, dict(witness.executed)) == ("Succeeded", 0, [], {})
