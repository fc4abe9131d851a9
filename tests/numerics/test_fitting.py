"""What a step will need is told before it is made, rightly, and without a trace in the run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capstan_runtime.context import TrainContext
from capstan_runtime.contract import env
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.data.plan import SamplePlan
from capstan_runtime.engine import Batch
from capstan_runtime.preparing import prepare
from capstan_runtime.reading import read_batch
from tests.numerics.test_state import bits, gather
from tests.support.attempts import attempt
from tests.support.engines import CNN, FLAX, MLP, TRANSFORMER, batch_of, context_of, deepspeed, make_engine, train
from tests.support.ranks import run_ranks
from tests.support.training_runs import Run

Document = dict[str, Any]
MUCH = 10**11
DROPOUT: Document = {"transformer": {**TRANSFORMER["transformer"], "dropout": {"rate": 0.1}}}


def life(rank: int, world: int, coordinator: str, framework: Document, model: Document, limits: list[int]) -> Any:
    """What each limit makes of a step, the curve after that, and all state at its end; how much weights and state take,
    and how often the first step compiled something."""
    from jax import monitoring

    context = context_of(framework, model, rank, world, coordinator, virtual_ranks=4 * world, batch=32 * world)
    engine: Any = make_engine(context)
    peaks = []
    for limit in limits:
        engine._device_memory = limit
        assert engine.memory_limit() == limit
        peaks.append(engine.step_memory(batch_of(context, 0)))
    compiled: list[str] = []
    monitoring.register_event_duration_secs_listener(lambda name, seconds, **_: compiled.append(name))
    curve = train(engine, context, 0, 1)
    compilations = sum("backend_compile" in name for name in compiled)
    curve += train(engine, context, 1, 4)
    state = gather(engine)
    engine.close()
    return peaks, curve, bits(state), sum(each.nbytes for each in state.values()), compilations


@pytest.mark.parametrize(
    ("framework", "model"),
    [
        pytest.param(FLAX, MLP, id="flax"),
        pytest.param({"flax": {"fsdp": {}}}, TRANSFORMER, id="flax, fsdp", marks=pytest.mark.full),
        pytest.param(deepspeed(0), CNN, id="zero0"),
        pytest.param(deepspeed(1), DROPOUT, id="zero1"),
        pytest.param(deepspeed(2), MLP, id="zero2", marks=pytest.mark.full),
        pytest.param(
            {"deepspeed": {"zeroStage": 2, "offload": {"optimizer": {"cpu": {}}}}},
            TRANSFORMER,
            id="zero2, offloaded",
            marks=pytest.mark.full,
        ),
    ],
)
def test_a_run_whose_steps_were_predicted_is_the_same_to_the_last_bit(framework: Document, model: Document) -> None:
    is_tried = "deepspeed" in framework
    limits = [MUCH, 20_000, MUCH] if is_tried else [MUCH, MUCH]
    for (peaks, *predicted, kept, compilations), (_, *plain, _, _) in zip(
        run_ranks(life, 2, framework, model, limits), run_ranks(life, 2, framework, model, []), strict=True
    ):
        assert predicted == plain
        first, *between, last = peaks
        assert between == ([None] if is_tried else [])
        assert first == pytest.approx(last, abs=4096), "but for what modules keep of their first pass"
        assert kept / 2 < first < MUCH
        assert is_tried or compilations == 0, "the program that was looked at is the one that runs"


def no_limit(rank: int, world: int, coordinator: str, framework: Document) -> Any:
    engine = make_engine(context_of(framework, MLP, rank, world, coordinator))
    engine._device_memory = MUCH  # type: ignore[attr-defined]
    limit = engine.memory_limit()
    engine.close()
    return limit


def test_at_stage_3_a_trial_would_be_a_step_and_nothing_is_predicted() -> None:
    assert run_ranks(no_limit, 1, deepspeed(3)) == [None]


def in_parts(batch: Batch, parts: int) -> Batch:
    """The same samples in so many times as many micro-steps."""
    cut = (None if each is None else each.reshape(parts * len(each), -1, *each.shape[2:]) for each in batch)
    return Batch._make(cut)


def needs(rank: int, world: int, coordinator: str, framework: Document, model: Document) -> list[int]:
    """Of a step of 32 samples in two micro-steps, in four, in eight and in sixteen."""
    context = context_of(framework, model, rank, world, coordinator, batch=32)
    engine: Any = make_engine(context)
    engine._device_memory = MUCH
    batch = batch_of(context, 0)
    found = [engine.step_memory(in_parts(batch, parts)) for parts in (1, 2, 4, 8)]
    engine.close()
    return found


def test_smaller_micro_steps_need_less() -> None:
    (found,) = run_ranks(needs, 1, deepspeed(0), TRANSFORMER)
    assert found == sorted(found, reverse=True)
    assert len(set(found)) == 4


@dataclass
class Limited(Run):
    """On devices with so much memory."""

    memory: int = MUCH

    def environ(self, **more: str) -> dict[str, str]:
        return super().environ(**{env.DEVICE_MEMORY: str(self.memory)}, **more)


# On CPUs XLA computes all micro-steps at once if it likes, so activations must be more than gradients.
WIDE: Document = {
    "model": {"mlp": {"hidden": [2000]}},
    "training": {"steps": 10, "logEverySteps": 1, "virtualRanks": 4, "globalBatchSize": 96},
}


def needs_of_run(rank: int, world: int, coordinator: str, run: Run) -> list[int]:
    """Of its first step with 24 samples in a micro-step, and with 12."""
    prepared = prepare(run.environ())
    member = Membership(fence=1, rank=rank, world=world, coordinator=coordinator)
    context = TrainContext(
        run=prepared.run, membership=member, data=prepared.dataset.spec, steps=10, environ=run.environ()
    )
    engine = make_engine(context)
    plan = SamplePlan(0, len(prepared.dataset.train), 96, 4)
    batch = read_batch(context, prepared.dataset, plan, 0)
    found = [engine.step_memory(in_parts(batch, parts)) for parts in (1, 2)]
    engine.close()
    return [each for each in found if each is not None]


@pytest.mark.parametrize(
    "framework", [FLAX, pytest.param(deepspeed(0), marks=pytest.mark.full)], ids=["flax", "deepspeed"]
)
def test_two_workers_begin_with_the_micro_steps_that_both_have_room_for(framework: Document, tmp_path: Path) -> None:
    document = {"framework": framework, **WIDE}
    roomy = Limited(tmp_path / "roomy", overrides=document)
    whole = attempt(roomy, 2)
    large, small = run_ranks(needs_of_run, 2, roomy)[0]
    ranks = attempt(Limited(tmp_path / "tight", overrides=document, memory=(large + small) // 2), 2)
    assert [each.failure for each in (*whole, *ranks)] == [None] * 4
    assert all(progress.micro_splits is None for each in whole for progress in each.progress)
    told = [[p.micro_splits for p in each.progress if p.micro_splits is not None] for each in ranks]
    assert told == [[2], [2]]
    (note,) = [progress.note for each in ranks for progress in each.progress if progress.note]
    assert note.startswith("a micro-step of 24 samples needs "), note
    found, expected = (each[0].losses() for each in (ranks, whole))
    assert list(found) == list(expected) == list(range(1, 11))
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)
