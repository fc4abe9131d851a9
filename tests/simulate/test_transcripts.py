"""What a user would see happen, told line by line. `CAPSTAN_REWRITE=1 pytest tests/simulate` writes the files anew;
the difference is what there is to review."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from capstan_operator.observe import OperatorSettings
from capstan_runtime.contract.exit_codes import FailureClass
from tests.simulate.operator_model import Operator, Trouble
from tests.simulate.world import Pod, World
from tests.support.looks import SPEC, merged

GOLDEN = Path(__file__).parent / "golden"
REWRITE = os.environ.get("CAPSTAN_REWRITE") == "1"
OWN_COMMAND = {"spec": {"containers": [{"name": "trainer", "command": ["sleep", "4"]}]}}

Scenario = Callable[[World], None]


def newest(world: World, worker: int) -> Pod:
    return max((pod for pod in world.pods.values() if pod.worker == worker), key=lambda pod: pod.incarnation)


def nothing_happens(world: World) -> None:
    pass


def a_trainer_is_killed(world: World) -> None:
    world.at(15.0, lambda: world.kill_trainer(newest(world, 1), 137, FailureClass.CRASH, "SIGKILL"))


def a_pod_is_deleted(world: World) -> None:
    def strike() -> None:
        world.fault("somebody deletes digits-worker-0")
        world.terminate(newest(world, 0))

    world.at(15.0, strike)


def a_pod_runs_out_of_memory(world: World) -> None:
    def strike() -> None:
        world.fault("digits-worker-1 runs out of memory")
        world.fail_pod(newest(world, 1), 137, "OOMKilled")

    world.at(15.0, strike)


def a_node_falls_silent(world: World) -> None:
    def strike() -> None:
        world.fault("the node of digits-worker-1 loses its network for good")
        newest(world, 1).is_reachable = False

    world.at(7.0, strike)


def a_trainer_crashes_until_the_budget_is_used_up(world: World) -> None:
    for at in (8.0, 13.0, 18.0, 27.0):
        world.at(at, lambda: world.kill_trainer(newest(world, 0), 139, FailureClass.CRASH, "SIGSEGV"))


def pods_die_while_they_start(world: World) -> None:
    world.crashing_start_ups = 1000


def the_newest_checkpoint_is_corrupt(world: World) -> None:
    def strike() -> None:
        world.corrupt.add(world.checkpoints[-1].root)
        world.note(f"! checkpoint {world.checkpoints[-1].step} rots on the disk")
        world.kill_trainer(newest(world, 1), 137, FailureClass.CRASH, "SIGKILL")

    world.at(17.0, strike)


def the_job_is_suspended_and_resumed(world: World) -> None:
    def change(suspend: bool) -> None:
        world.note(f"! spec.suspend: {suspend}")
        world.change_spec(merged(world.spec, {"suspend": suspend}))

    world.at(15.0, lambda: change(True))
    world.at(40.0, lambda: change(False))


def the_pods_are_removed_after_the_ttl(world: World) -> None:
    world.spec = merged(world.spec, {"ttlSecondsAfterFinished": 60})


def the_pods_run_a_program_of_the_users_own(world: World) -> None:
    world.spec = merged(world.spec, {"workers": {"podPatch": OWN_COMMAND}})


def the_deadline_passes(world: World) -> None:
    world.spec = merged(world.spec, {"activeDeadlineSeconds": 15})


SCENARIOS: tuple[Scenario, ...] = (
    nothing_happens,
    a_trainer_is_killed,
    a_pod_is_deleted,
    a_pod_runs_out_of_memory,
    a_node_falls_silent,
    a_trainer_crashes_until_the_budget_is_used_up,
    pods_die_while_they_start,
    the_newest_checkpoint_is_corrupt,
    the_job_is_suspended_and_resumed,
    the_pods_are_removed_after_the_ttl,
    the_pods_run_a_program_of_the_users_own,
    the_deadline_passes,
)


def live(scenario: Scenario, trouble: Trouble) -> list[str]:
    """The transcript of a whole life of two workers, and of two minutes after it."""
    world = World(seed=1, spec=SPEC)
    scenario(world)
    Operator(world, trouble, OperatorSettings())
    world.run(600.0, lambda: world.is_finished)
    world.run(world.now + 120.0)
    return world.transcript


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_the_transcript_is_as_reviewed(scenario: Scenario) -> None:
    told = "\n".join(live(scenario, Trouble())) + "\n"
    path = GOLDEN / f"{scenario.__name__}.txt"
    if REWRITE:
        path.write_text(told)
    assert told == path.read_text()


def test_an_operator_that_dies_again_and_again_changes_nothing_but_the_time() -> None:
    def essence(lines: list[str]) -> list[str]:
        """What became of children and status, in what order, without times and without the operator's own fate."""
        lines = [line[9:] for line in lines]
        return [line for line in lines if line.startswith(("create", "delete", "status"))]

    calm = live(a_trainer_is_killed, Trouble())
    # It dies at writes, so that every part of a decision is cut off once; events may be lost with it, nothing else.
    restless = live(a_trainer_is_killed, Trouble(death_at_write=0.3))
    assert any("operator dies" in line for line in restless)
    assert sorted(set(essence(restless))) == sorted(set(essence(calm)))
