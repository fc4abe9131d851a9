"""What real trainers record of their steps."""

from pathlib import Path
from typing import Any

import pytest

from capstan_runtime.contract.benchmark import TrainingRecord
from capstan_runtime.model_spec import parameter_table
from tests.support.attempts import attempt, small_run
from tests.support.engines import FLAX, MLP, context_of, deepspeed, make_engine
from tests.support.ranks import run_ranks


@pytest.mark.parametrize("framework", ["flax", "deepspeed"])
def test_both_trainers_record_their_steps(framework: str, tmp_path: Path) -> None:
    run = small_run(tmp_path, framework, record=True, training={"steps": 6, "logEverySteps": 2})
    ranks = attempt(run, 2)
    assert [each.failure for each in ranks] == [None, None]
    for rank in (0, 1):
        record = TrainingRecord.model_validate_json((run.store / f"record.1.r{rank}.json").read_bytes())
        assert (record.rank, record.world, record.steps, record.is_complete) == (rank, 2, (1, 2, 4, 6), True)
        assert record.parameters == (6 + 1) * 4 + (4 + 1) * 3
        assert record.metrics == [each.metrics for each in ranks[rank].progress if each.metrics][-1]


def count(rank: int, world: int, coordinator: str, framework: dict[str, Any]) -> int:
    return int(make_engine(context_of(framework, MLP, rank, world, coordinator)).parameters)


@pytest.mark.parametrize("framework", [FLAX, deepspeed(3)], ids=["flax", "deepspeed that divides parameters"])
def test_parameters_are_counted_whole_on_every_rank(framework: dict[str, Any]) -> None:
    context = context_of(framework, MLP)
    whole = sum(spec.size for spec in parameter_table(context.run.model, context.data))
    assert run_ranks(count, 2, framework) == [whole, whole]
