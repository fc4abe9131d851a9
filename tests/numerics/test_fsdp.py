"""Fully sharded parameters: the same run as with replicated ones, in a part of the memory, and the same checkpoints."""

from typing import Any

import numpy as np
import pytest

from capstan_runtime.flax_trainer.leaves import Structure
from tests.numerics.test_state import Tensors, bits, gather
from tests.support.engines import FLAX, MLP, TRANSFORMER, Saved, batch_of, context_of, deepspeed, make_engine, train
from tests.support.ranks import run_ranks

Document = dict[str, Any]
FSDP: Document = {"flax": {"fsdp": {}}}
STEPS = 20
OPTIONS: Document = {"virtual_ranks": 6, "batch": 12}


def life(rank: int, world: int, coordinator: str, framework: Document, model: Document, options: Document) -> Any:
    """A curve, what is exported in its middle, an evaluation, and the bytes that this process's devices keep."""
    context = context_of(framework, model, rank, world, coordinator, **options)
    engine: Any = make_engine(context)
    curve = train(engine, context, 0, 3)
    saved = gather(engine)
    curve += train(engine, context, 3, STEPS)
    evaluated = engine.evaluate([batch_of(context, 0)])
    kept = [*engine._parameters, *(array for arrays in engine._state for array in arrays)]
    engine.close()
    return curve, saved, (evaluated.loss, evaluated.correct), sum(array.addressable_data(0).nbytes for array in kept)


@pytest.mark.parametrize(
    ("model", "world"),
    [
        pytest.param(TRANSFORMER, 3, id="transformer on 3", marks=pytest.mark.full),
        pytest.param(MLP, 2, id="mlp on 2"),
    ],
)
def test_a_sharded_run_is_the_replicated_one_in_a_part_of_the_memory(model: Document, world: int) -> None:
    replicated = run_ranks(life, world, FLAX, model, OPTIONS)
    sharded = run_ranks(life, world, FSDP, model, OPTIONS)
    leaves = Structure(context_of(FLAX, model).run.model, context_of(FLAX, model).data).leaves
    padding = 3 * 4 * sum(len(leaf.parameters) for leaf in leaves)  # an element at most, in weights and two moments
    for (curve, saved, evaluated, kept), (exact, exactly_saved, exactly, everything) in zip(
        sharded, replicated, strict=True
    ):
        assert curve[-1][0] < curve[0][0] - 0.1
        np.testing.assert_allclose(curve, exact, rtol=1e-5)
        np.testing.assert_allclose(evaluated, exactly, rtol=1e-5)
        assert set(saved) == set(exactly_saved)
        assert everything / world <= kept <= everything / world + padding


def onwards(rank: int, world: int, coordinator: str, framework: Document, saved: Tensors) -> Any:
    """What is exported right after importing `saved`, and the curve from there."""
    context = context_of(framework, TRANSFORMER, rank, world, coordinator, **OPTIONS)
    engine = make_engine(context)
    engine.import_state(Saved(saved))
    state = gather(engine)
    curve = train(engine, context, 3, 8)
    engine.close()
    return bits(state), curve


@pytest.mark.full
def test_any_world_and_framework_takes_a_sharded_run_over_and_gives_it_back() -> None:
    curve, saved, *_ = run_ranks(life, 2, FSDP, TRANSFORMER, OPTIONS)[0]
    again = run_ranks(onwards, 2, FSDP, saved)[0]
    assert again == (bits(saved), curve[3:8]), "in the same world, to the last bit"
    for framework, world in ((FSDP, 3), (FLAX, 1), (deepspeed(3), 2)):
        state, found = run_ranks(onwards, world, framework, saved)[0]
        assert state == bits(saved)
        np.testing.assert_allclose(found, curve[3:8], rtol=1e-4)
