"""Sophia-G: its steps with a known Hessian, the targets that it draws, and what it takes for the Hessian's diagonal."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from capstan_runtime import randomness
from capstan_runtime.deepspeed_trainer.forward_pass import Pass
from capstan_runtime.deepspeed_trainer.models import build_model
from capstan_runtime.deepspeed_trainer.optimizers import gauss_newton as torch_gauss_newton
from capstan_runtime.flax_trainer.optimizers import gauss_newton as flax_gauss_newton
from tests.numerics.test_state import gather
from tests.support.engines import FLAX, MLP, TRANSFORMER, batch_of, context_of, deepspeed, make_engine, train
from tests.support.ranks import run_ranks

Document = dict[str, Any]
SOPHIA: Document = {"optimizer": {"sophia": {"learningRate": 3e-3, "hessianEverySteps": 3}}, "gradient_clip": None}


def numpy_targets(logits: np.ndarray, keys_B: np.ndarray) -> np.ndarray:
    chance = randomness.uniform(randomness.at(keys_B, randomness.site("hessian")), *logits.shape[1:])
    with np.errstate(divide="ignore"):
        return (logits - np.log(-np.log(chance))).argmax(-1)


def test_targets_are_drawn_with_the_model_s_probabilities_and_alike_in_both_frameworks() -> None:
    row = np.asarray([2.0, 0.0, -1.0, 1.0, -30.0], np.float32)
    logits = np.broadcast_to(row, (4000, 5, 5)).copy()
    keys = randomness.sample_keys(3, 5, np.arange(4000))
    drawn = np.asarray(flax_gauss_newton.sampled_targets(jnp.asarray(logits), jnp.asarray(keys)))
    by_torch = torch_gauss_newton.sampled_targets(torch.from_numpy(logits), torch.from_numpy(keys.astype(np.int64)))
    assert (drawn == by_torch.numpy()).all()
    assert (drawn == numpy_targets(logits, keys)).all()
    expected = np.exp(row) / np.exp(row).sum()
    counts = np.bincount(drawn.reshape(-1), minlength=5)
    deviations = np.sqrt(drawn.size * expected * (1 - expected))
    assert (np.abs(counts - drawn.size * expected) <= 5 * deviations + 1e-3).all(), counts


def steps_of(rank: int, world: int, coordinator: str, frameworks: list[Document], model: Document) -> Any:
    """For each framework: the state after one step, after four, and the curve of these."""
    from capstan_runtime.deepspeed_trainer import engine as deepspeed_engine

    answers = []
    for framework in frameworks:
        context = context_of(framework, model, rank, world, coordinator, virtual_ranks=4, **SOPHIA)
        engine: Any = make_engine(context)
        curve = train(engine, context, 0, 1)
        first = gather(engine)
        curve += train(engine, context, 1, 4)
        answers.append((first, gather(engine), curve))
        # A process joins one world only, so the stages share it.
        deepspeed_engine.World = lambda *_, joined=engine._world: joined  # type: ignore[assignment,misc]
    engine.close()
    return answers


def diagonal_by_torch(model: Document) -> dict[str, np.ndarray]:
    """Of the whole batch at once, with targets drawn by numpy."""
    context = context_of(deepspeed(0), model, virtual_ranks=4)
    module = build_model(context.run.model, context.data, 7)
    batch = batch_of(context, 0)
    assert batch.keys is not None
    inputs, keys = (array.reshape(-1, *array.shape[2:]) for array in (batch.inputs, batch.keys))
    logits = module(torch.from_numpy(inputs), Pass(torch.float32, torch.from_numpy(keys.astype(np.int64))))
    targets = torch.from_numpy(numpy_targets(logits.detach().numpy(), keys))
    torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten()).backward()
    return {
        name: (targets.numel() * parameter.grad.square()).numpy()
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("model", [MLP, pytest.param(TRANSFORMER, marks=pytest.mark.full)], ids=["mlp", "transformer"])
def test_the_diagonal_is_of_the_whole_batch_however_it_is_divided(model: Document) -> None:
    expected = diagonal_by_torch(model)
    worlds = [
        run_ranks(steps_of, 2, [FLAX], model)[0],
        run_ranks(steps_of, 2, [deepspeed(n) for n in range(3)], model)[0],
    ]
    runs = [answer for world in worlds for answer in world]
    assert len(runs) == 4
    reference = runs[0]
    for first, fourth, curve in runs:
        for name, diagonal in expected.items():
            found = first[f"optimizer/hessian/{name}"]
            np.testing.assert_allclose(found, 0.01 * diagonal, rtol=1e-3, atol=1e-6 * diagonal.max(), err_msg=name)
            again = fourth[f"optimizer/hessian/{name}"]
            assert not np.allclose(again, found, rtol=1e-3, atol=0), "step 4 takes another"
        np.testing.assert_allclose(curve, reference[2], rtol=1e-4)


def kept_hessian(rank: int, world: int, coordinator: str, framework: Document) -> Any:
    context = context_of(framework, MLP, rank, world, coordinator, non_finite="ignore", **SOPHIA)
    engine: Any = make_engine(context)
    train(engine, context, 0, 3)
    before = gather(engine)
    engine.poison_next_step()
    train(engine, context, 3, 4)
    after = gather(engine)
    train(engine, context, 4, 5)
    onwards = gather(engine)
    engine.close()
    return [{name: array for name, array in state.items() if "hessian" in name} for state in (before, after, onwards)]


@pytest.mark.parametrize(
    "framework",
    [pytest.param(FLAX, marks=pytest.mark.full), deepspeed(0), pytest.param(deepspeed(1), marks=pytest.mark.full)],
    ids=["flax", "zero0", "zero1"],
)
def test_an_update_that_is_dropped_takes_its_estimate_with_it(framework: Document) -> None:
    before, after, onwards = run_ranks(kept_hessian, 1, framework)[0]
    for name, array in before.items():
        assert array.tobytes() == after[name].tobytes() == onwards[name].tobytes(), name
