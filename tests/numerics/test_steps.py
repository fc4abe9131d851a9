"""One optimizer step under conditions: split for want of memory, dropped for want of finite numbers, out of memory."""

import functools
import gzip
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from capstan_runtime.context import TrainContext
from capstan_runtime.engine import Batch
from capstan_runtime.errors import ConfigError, GpuOutOfMemory
from tests.support.engines import (
    ADAMW,
    FLAX,
    MLP,
    SGD,
    WholeTensors,
    batch_of,
    context_of,
    deepspeed,
    make_engine,
    train,
)
from tests.support.ranks import run_ranks

Document = dict[str, Any]
FRAMEWORKS = {"flax": FLAX, **{f"zero{stage}": deepspeed(stage) for stage in range(4)}}


def curve_of(rank: int, world: int, coordinator: str, framework: Document, splits: int) -> Any:
    """Losses and norms of ten steps, and what one evaluation gives."""
    context = context_of(framework, MLP, rank, world, coordinator, batch=24, micro_splits=splits)
    whole = context_of(framework, MLP, rank, world, coordinator, batch=24)
    batches = [in_parts(batch_of(whole, step), context) for step in range(10)]
    engine = make_engine(context)
    curve = [engine.train_step(batch, 1e-3).fetch() for batch in batches]
    sums = engine.evaluate(batches[:1])
    engine.close()
    return [(each["loss"], each["gradient_norm"]) for each in curve], (sums.loss, sums.correct, sums.count)


def in_parts(batch: Batch, context: TrainContext) -> Batch:
    """The same samples in the same order, in the micro-steps of `context`."""
    shape = (context.micro_steps, context.samples_per_micro_step)
    inputs = batch.inputs.reshape(*shape, *batch.inputs.shape[2:])
    assert batch.keys is not None
    keys = batch.keys.reshape(shape)
    return Batch(inputs, batch.targets.reshape(shape), batch.weights.reshape(shape), keys)


@pytest.mark.parametrize("framework", [FLAX, deepspeed(1), deepspeed(2)], ids=["flax", "zero1", "zero2"])
def test_smaller_micro_steps_make_the_same_run(framework: Document) -> None:
    whole, split = (run_ranks(curve_of, 2, framework, splits)[0] for splits in (1, 4))
    assert whole[0][-1][0] < whole[0][0][0]
    np.testing.assert_allclose(split[0], whole[0], rtol=1e-5)
    np.testing.assert_allclose(split[1], whole[1], rtol=1e-5)


@pytest.mark.parametrize(("samples", "splits", "parts"), [(6, 1, 1), (6, 2, 2), (6, 4, 6), (7, 2, 7), (1, 1, 1)])
def test_parts_are_equal_and_at_least_as_many_as_asked(samples: int, splits: int, parts: int) -> None:
    context = context_of(FLAX, MLP, batch=2 * samples, virtual_ranks=2, micro_splits=splits)
    assert (context.micro_steps, context.samples_per_micro_step) == (2 * parts, samples // parts)


def test_less_than_a_sample_is_refused() -> None:
    context = context_of(FLAX, MLP, batch=8, virtual_ranks=2, micro_splits=8)
    message = r"^spec\.training\.globalBatchSize: a virtual rank has 4 samples a step, .* in 8 micro-steps"
    with pytest.raises(ConfigError, match=message):
        _ = context.samples_per_micro_step


def state_of(engine: Any) -> dict[str, np.ndarray]:
    whole = WholeTensors(engine.export_state())
    return {name: whole.read(name).copy() for name in whole.names()}


def poisoned(rank: int, world: int, coordinator: str, framework: Document, optimizer: Document, policy: str) -> Any:
    """The state before and after a step that was poisoned, its result, and the two steps after it."""
    context = context_of(framework, MLP, rank, world, coordinator, optimizer=optimizer, non_finite=policy)
    engine = make_engine(context)
    train(engine, context, 0, 3)
    before = state_of(engine)
    engine.poison_next_step()
    (result,) = train(engine, context, 3, 4)
    after = state_of(engine)
    onwards = train(engine, context, 4, 6)
    engine.close()
    return before, result, after, onwards


OPTIMIZERS = {"AdamW": ADAMW, "SGD": SGD}


@functools.cache
def ignored(framework: str, optimizer: str) -> Any:
    (answer,) = run_ranks(poisoned, 1, FRAMEWORKS[framework], OPTIMIZERS[optimizer], "ignore")
    return answer


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_dropped_update_changes_nothing_but_the_count_of_steps(framework: str, optimizer: str) -> None:
    before, result, after, onwards = ignored(framework, optimizer)
    assert not np.isfinite(result).any()
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert changed == {"optimizer/step"}
    assert (before["optimizer/step"], after["optimizer/step"]) == (3, 4)
    assert np.isfinite(onwards).all()


def test_all_go_on_alike_after_a_dropped_update() -> None:
    curves = [ignored(framework, "AdamW")[3] for framework in FRAMEWORKS]
    for curve in curves[1:]:
        np.testing.assert_allclose(curve, curves[0], rtol=1e-4)


@pytest.mark.parametrize("framework", FRAMEWORKS.values(), ids=FRAMEWORKS)
def test_a_poisoned_step_is_noticed_whatever_the_policy(framework: Document) -> None:
    # From ZeRO stage 1 on DeepSpeed drops such an update without a word.
    ((_, (loss, norm), _, _),) = run_ranks(poisoned, 1, framework, ADAMW, "halt")
    assert not np.isfinite(loss)
    assert not np.isfinite(norm)


def exhausted(rank: int, world: int, coordinator: str, framework: Document) -> str:
    engine = make_engine(context_of(framework, MLP, rank, world, coordinator))
    with pytest.raises(GpuOutOfMemory) as caught:
        engine.exhaust_memory()
    return str(caught.value)


@pytest.mark.parametrize("framework", [FLAX, deepspeed(1)], ids=["flax", "deepspeed"])
def test_a_failed_allocation_is_out_of_memory_and_says_how_much_was_asked_for(framework: Document) -> None:
    (message,) = run_ranks(exhausted, 1, framework)
    assert str(1 << 56) in message


def busy(rank: int, world: int, coordinator: str, framework: Document) -> list[float | None]:
    context = context_of(framework, MLP, rank, world, coordinator)
    engine = make_engine(context)
    readings = []
    for step in range(4):
        readings.append(engine.busy_seconds())
        train(engine, context, step, step + 1)
    engine.close()
    return readings


KNOWN = {"flax": (FLAX, 2), "zero0": (deepspeed(0), 2), "zero1": (deepspeed(1), 2), "zero3 alone": (deepspeed(3), 1)}


@pytest.mark.parametrize(("framework", "world"), KNOWN.values(), ids=KNOWN)
def test_busy_time_grows_with_every_step(framework: Document, world: int) -> None:
    for readings in run_ranks(busy, world, framework):
        assert all(later > earlier for earlier, later in itertools.pairwise(readings))


def test_busy_time_is_not_claimed_where_ranks_wait_in_the_middle_of_a_step() -> None:
    assert run_ranks(busy, 2, deepspeed(3)) == [[None] * 4] * 2


TRACES = {"flax": "**/*.xplane.pb", "zero1": "trace.json.gz"}
"""By framework: what a trace leaves in its folder."""


def traced(rank: int, world: int, coordinator: str, framework: Document, folder: str) -> None:
    context = context_of(framework, MLP, rank, world, coordinator)
    engine = make_engine(context)
    train(engine, context, 0, 1)
    end = engine.trace(Path(folder))
    train(engine, context, 1, 2)
    end()
    train(engine, context, 2, 3)
    engine.close()


@pytest.mark.parametrize("framework", TRACES)
def test_steps_that_are_traced_are_found_in_the_folder(framework: str, tmp_path: Path) -> None:
    run_ranks(traced, 1, FRAMEWORKS[framework], str(tmp_path))
    (trace,) = tmp_path.glob(TRACES[framework])
    data = trace.read_bytes()
    text = gzip.decompress(data) if trace.suffix == ".gz" else data
    assert {"flax": b"train_step", "zero1": b"aten::addmm"}[framework] in text, "what a step does"
