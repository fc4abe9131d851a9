"""Real trainers through several attempts: out of memory, another world, a poisoned step. The run stays the same run."""

from pathlib import Path
from typing import Any

import pytest

from capstan_runtime.contract.chaos import Fault, Injection
from tests.support.attempts import FRAMEWORKS, Attempted, attempt, samples_in_order, small_run

ADAMW = {"optimizer": {"adamw": {"learningRate": 0.01, "weightDecay": 0.1}}}


@pytest.fixture(scope="module", params=FRAMEWORKS)
def framework(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def undisturbed(framework: str, tmp_path_factory: pytest.TempPathFactory) -> list[Attempted]:
    run = small_run(tmp_path_factory.mktemp("undisturbed"), framework, **ADAMW)
    ranks = attempt(run, 2)
    assert [each.failure for each in ranks] == [None, None]
    return ranks


def losses(ranks: list[Attempted]) -> dict[int, float]:
    assert all(each.losses() == ranks[0].losses() for each in ranks), "loss and norm are global"
    return ranks[0].losses()


def test_out_of_memory_the_micro_batch_halves_and_the_run_stays_the_same(
    framework: str, undisturbed: list[Attempted], tmp_path: Path
) -> None:
    run = small_run(tmp_path, framework, **ADAMW)
    chaos: dict[str, Any] = {"chaos": [Injection(name="oom", fault=Fault.GPU_OUT_OF_MEMORY, step=13)]}
    first = attempt(run, 2, more=lambda rank: chaos if rank == 1 else {})
    assert (first[1].failure or "").startswith("GpuOutOfMemory: step 14, 2 micro-steps of 3 samples: ")
    assert (first[0].failure or "").startswith("PeerLost: ")
    again = attempt(run, 2, fence=2, floor_step=10, more=lambda rank: {"micro_splits": 2})
    assert [each.failure for each in again] == [None, None]
    assert {ids.shape for each in again for ids in each.ids} == {(6, 1)}, (
        "2 x 3 parts of one sample: 2 does not divide 3"
    )
    assert samples_in_order(again, 20) == samples_in_order(undisturbed, 30)[10:]
    whole = losses(undisturbed)
    assert losses(again) == pytest.approx({step: whole[step] for step in range(11, 31)}, rel=1e-5)


def test_a_world_of_2_then_1_then_2_is_one_run(framework: str, undisturbed: list[Attempted], tmp_path: Path) -> None:
    run = small_run(tmp_path, framework, **ADAMW)
    die: dict[str, Any] = {"chaos": [Injection(name="oom", fault=Fault.GPU_OUT_OF_MEMORY, step=11)]}
    attempt(run, 2, more=lambda rank: die)
    die = {"chaos": [Injection(name="oom", fault=Fault.GPU_OUT_OF_MEMORY, step=21)]}
    alone = attempt(run, 1, fence=2, floor_step=10, more=lambda rank: die)
    again = attempt(run, 2, fence=3, floor_step=20)
    assert [each.failure for each in again] == [None, None]
    order = samples_in_order(undisturbed, 30)
    assert samples_in_order(alone, 10) == order[10:20]
    assert samples_in_order(again, 10) == order[20:]
    found = {**{step: loss for step, loss in losses(alone).items() if step <= 20}, **losses(again)}
    whole = losses(undisturbed)
    assert found == pytest.approx({step: whole[step] for step in range(11, 31)}, rel=1e-5)


def test_a_poisoned_update_is_dropped_by_all_ranks_alike(framework: str, tmp_path: Path) -> None:
    run = small_run(tmp_path, framework, **ADAMW, numerical={"nonFinite": "ignore"})
    poison: dict[str, Any] = {"chaos": [Injection(name="nan", fault=Fault.NAN, step=13)]}
    ranks = attempt(run, 2, more=lambda rank: poison if rank == 1 else {})
    assert [each.failure for each in ranks] == [None, None]
    assert [each.note for each in ranks[0].progress if each.note] == [
        "step 14: the loss is nan; its update was dropped"
    ]
    curve = losses(ranks)
    assert sorted(set(range(1, 31)) - set(curve)) == [14]
    assert curve[15] < 1.05 * curve[13], "nothing was ruined"
