"""fp16: the loss is scaled, overflows are skipped by all alike, and the scale is part of a run's state."""

import functools
import math
from typing import Any

import jax
import numpy as np
import pytest

from capstan_runtime.contract.training import LossScale
from capstan_runtime.flax_trainer.loss_scaling import as_array, as_state, next_state
from capstan_runtime.loss_scaling import SCALE_NAME, ScaleState
from tests.numerics.test_state import Tensors, bits, gather
from tests.support.engines import FLAX, MLP, Saved, batch_of, context_of, deepspeed, make_engine
from tests.support.ranks import run_ranks

Document = dict[str, Any]
FRAMEWORKS = {"flax": FLAX, **{f"zero{stage}": deepspeed(stage) for stage in (1, 2, 3)}}
SCALING: Document = {"lossScale": {"initial": 2.0**24, "growthInterval": 4}}
"""So large that the first steps overflow, and so often larger that later ones do, too."""
STEPS, SAVED_AFTER = 24, 12


def test_the_scale_moves_alike_on_the_device_and_on_the_host() -> None:
    config = LossScale(initial=2.0**126, growth_factor=1.9, backoff_factor=0.4, growth_interval=3)
    on_device = jax.jit(functools.partial(next_state, config))
    state, array = ScaleState(config.initial), as_array(ScaleState(config.initial))
    chance = np.random.default_rng(5)
    seen = set()
    for is_finite in [*[True] * 6, *(chance.random(400) < 0.5)]:
        state = state.after(config, bool(is_finite))
        array = np.asarray(on_device(array, is_finite))
        assert as_state(array) == state
        seen.add(state.scale)
    assert max(seen) > 2.0**126
    assert min(seen) == 1.0
    assert state.skipped_steps > 100


def overflowing(rank: int, world: int, coordinator: str, framework: Document, saved: Tensors | None) -> Any:
    """Results of all steps or, from `saved` on, of those after it; what is exported then; and the state before and
    after the first step that was skipped."""
    context = context_of(framework, MLP, rank, world, coordinator, precision="fp16", training=SCALING)
    engine = make_engine(context)
    if saved is not None:
        engine.import_state(Saved(saved))
    results, middle, around = [], None, None
    for step in range(SAVED_AFTER if saved is not None else 0, STEPS):
        before = gather(engine) if step == 0 else None
        results.append(dict(engine.train_step(batch_of(context, step), 3e-3).fetch()))
        if before is not None:
            around = before, gather(engine)
        if step + 1 == SAVED_AFTER:
            middle = gather(engine)
    engine.close()
    return results, middle, around


@functools.cache
def run_of(name: str) -> Any:
    ranks = run_ranks(overflowing, 2, FRAMEWORKS[name], None)
    assert repr(ranks[0][0]) == repr(ranks[1][0]), "all ranks skip, and say, the same"
    return ranks[0]


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_overflows_are_skipped_and_the_run_learns_as_in_full_precision(name: str) -> None:
    results, _, (before, after) = run_of(name)
    skipped = [not math.isfinite(result["gradient_norm"]) for result in results]
    assert skipped[0]
    assert any(skipped[8:]), "no scale that had grown was too large: the test would miss how it comes down"
    assert not all(skipped[8:])
    assert [result["skipped_steps"] for result in results] == np.cumsum(skipped).tolist()
    assert all(math.isfinite(result["loss"]) for result in results)
    changed = {key for key in before if before[key].tobytes() != after[key].tobytes()}
    assert changed == {"optimizer/step", SCALE_NAME, "loss_scale/skipped_steps"}
    assert after[SCALE_NAME] == SCALING["lossScale"]["initial"] / 2
    assert results[-1]["loss"] < results[0]["loss"] - 0.1


@pytest.mark.parametrize("name", [name for name in FRAMEWORKS if name != "flax"])
def test_losses_are_those_of_the_other_framework(name: str) -> None:
    # As long as they skip the same steps: what is as large as fp16 can be overflows in one and is rounded down in the
    # other.
    ours, theirs = run_of(name)[0], run_of("flax")[0]
    alike = [one["loss_scale"] == other["loss_scale"] for one, other in zip(ours, theirs, strict=True)]
    count = [*alike, False].index(False)
    assert count > 10
    np.testing.assert_allclose(
        [each["loss"] for each in ours[:count]], [each["loss"] for each in theirs[:count]], rtol=5e-3
    )


@pytest.mark.parametrize("name", ["flax", "zero1", "zero3"])
def test_a_resumed_run_is_the_same_to_the_last_bit(name: str) -> None:
    results, saved, _ = run_of(name)
    onwards, _, _ = run_ranks(overflowing, 2, FRAMEWORKS[name], saved)[0]
    assert repr(onwards) == repr(results[SAVED_AFTER:])


def taken_over(rank: int, world: int, coordinator: str, framework: Document, saved: Tensors) -> Any:
    engine = make_engine(context_of(framework, MLP, rank, world, coordinator, precision="fp16", training=SCALING))
    engine.import_state(Saved(saved))
    state = gather(engine)
    engine.close()
    return state


def test_the_other_framework_takes_the_scale_over() -> None:
    for first, second in (("flax", "zero1"), ("zero3", "flax")):
        _, saved, _ = run_of(first)
        assert saved[SCALE_NAME] < SCALING["lossScale"]["initial"]
        (state,) = run_ranks(taken_over, 1, FRAMEWORKS[second], saved)
        assert bits(state) == bits(saved)


def test_a_checkpoint_of_a_run_that_scaled_nothing_begins_with_the_first_scale() -> None:
    _, saved, _ = run_of("flax")
    without = {name: array for name, array in saved.items() if not name.startswith("loss_scale/")}
    (state,) = run_ranks(taken_over, 1, FLAX, without)
    assert state[SCALE_NAME] == SCALING["lossScale"]["initial"]
    assert bits(state).items() >= bits(without).items()
