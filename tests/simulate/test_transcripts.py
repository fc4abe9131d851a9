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
from tests.simulate.pods import Pod
from tests.simulate.world import World
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
    world.at(15.0, lambda: world.trainers.kill(newest(world, 1), 137, FailureClass.CRASH, "SIGKILL"))


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
    world.spec = merged(world.spec, {"recovery": {"noProgressAttempts": 10}})
    for at in (8.0, 13.0, 23.0, 32.0):
        world.at(at, lambda: world.trainers.kill(newest(world, 0), 139, FailureClass.CRASH, "SIGSEGV"))


def pods_die_while_they_start(world: World) -> None:
    world.crashing_start_ups = 1000


def the_newest_checkpoint_is_corrupt(world: World) -> None:
    def strike() -> None:
        world.trainers.corrupt.add(world.trainers.checkpoints[-1].root)
        world.note(f"! checkpoint {world.trainers.checkpoints[-1].step} rots on the disk")
        world.trainers.kill(newest(world, 1), 137, FailureClass.CRASH, "SIGKILL")

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


ELASTIC = {"workers": {"max": 4, "min": 1}, "training": {"virtualRanks": 8}}


def a_lost_node_shrinks_the_world_until_another_takes_its_pod(world: World) -> None:
    world.spec = merged(world.spec, ELASTIC)
    world.at(8.0, lambda: world.lose_node("node-3"))
    world.full_nodes.add("spare")

    def relieve() -> None:
        world.note("! the spare node has room")
        world.full_nodes.discard("spare")

    world.at(28.0, relieve)


def a_gpu_runs_out_of_memory(world: World) -> None:
    world.spec = merged(world.spec, {"training": {"virtualRanks": 8}})
    world.trainers.most_samples = 2


def a_gpu_cannot_hold_a_single_sample(world: World) -> None:
    world.spec = merged(world.spec, {"training": {"virtualRanks": 16}, "recovery": {"budgets": {"gpuOutOfMemory": 10}}})
    world.trainers.most_samples = 0


def two_batches_make_the_loss_infinite(world: World) -> None:
    world.spec = merged(world.spec, {"recovery": {"numerical": {"nonFinite": "rewind", "skipSteps": 5}}})
    world.trainers.bad_batches |= {57, 61, 130}


def a_rank_is_stopped_by_a_signal(world: World) -> None:
    world.at(11.0, lambda: world.trainers.freeze(newest(world, 1)))


def a_gpu_fault_keeps_pods_away_from_its_node(world: World) -> None:
    world.spec = merged(world.spec, ELASTIC)
    world.at(9.0, lambda: world.trainers.kill(newest(world, 2), 74, FailureClass.GPU_FAULT))


def too_few_nodes_at_the_start(world: World) -> None:
    world.spec = merged(world.spec, ELASTIC)
    world.full_nodes |= {"node-2", "node-3", "spare"}

    def relieve() -> None:
        world.note("! node-2 has room")
        world.full_nodes.discard("node-2")

    world.at(10.0, relieve)
    world.at(16.0, lambda: world.full_nodes.discard("node-3"))


def the_job_is_made_smaller_and_larger(world: World) -> None:
    world.spec = merged(world.spec, ELASTIC | {"workers": {"max": 2, "min": 1}})

    def change(most: int) -> None:
        world.note(f"! spec.workers.max: {most}")
        world.change_spec(merged(world.spec, {"workers": {"max": most}}))

    world.at(7.0, lambda: change(4))
    world.at(17.0, lambda: change(1))


def no_checkpoint_verifies_any_more(world: World) -> None:
    def strike() -> None:
        world.trainers.corrupt |= {checkpoint.root for checkpoint in world.trainers.checkpoints}
        world.note("! all checkpoints rot on the disk")
        world.trainers.kill(newest(world, 1), 137, FailureClass.CRASH, "SIGKILL")

    world.at(17.0, strike)


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
    a_lost_node_shrinks_the_world_until_another_takes_its_pod,
    a_gpu_runs_out_of_memory,
    a_gpu_cannot_hold_a_single_sample,
    two_batches_make_the_loss_infinite,
    a_rank_is_stopped_by_a_signal,
    a_gpu_fault_keeps_pods_away_from_its_node,
    too_few_nodes_at_the_start,
    the_job_is_made_smaller_and_larger,
    no_checkpoint_verifies_any_more,
)


def live(scenario: Scenario, trouble: Trouble) -> list[str]:
    """The transcript of a whole life, of two workers unless the scenario has more, and of two minutes after it."""
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
