"""Pruned weights, in both frameworks, against the papers' algorithms with masks that are kept, in double precision."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from capstan_runtime.contract.compression import Compression, Prune
from capstan_runtime.deepspeed_trainer.optimizers import pruning as by_torch_alone
from capstan_runtime.errors import ConfigError
from capstan_runtime.flax_trainer.leaves import Leaf
from capstan_runtime.flax_trainer.optimizers import pruning as by_flax_alone
from capstan_runtime.model_spec import Normal, ParameterSpec, initial_parameter, parameter_table
from capstan_runtime.pruning import is_pruned, pruned_share, pruning_numbers, require_last_cut
from tests.numerics.test_optimizers import SPECS, STEPS, Arrays, adamw, by_flax, by_torch, compare, gradient_of, rate_of
from tests.support.engines import (
    CNN,
    FLAX,
    MLP,
    TOKENS,
    TRANSFORMER,
    WholeTensors,
    context_of,
    deepspeed,
    make_engine,
    train,
)
from tests.support.ranks import run_ranks

TWO_OF_FOUR = {"nm": {"keep": 2, "of": 4}}
PRUNED = [spec.name for spec in SPECS if is_pruned(spec)]
Mask = Callable[[np.ndarray, int], np.ndarray]
"""Where weights stay, of those that a step has made; every one of its bits that was 0 before stays 0."""


def smallest(sparsity: float, begin: int, end: int, every: int) -> Mask:
    """Zhu and Gupta, 1710.01878, section 3, with an initial sparsity of 0."""

    def stays(w: np.ndarray, step: int) -> np.ndarray:
        if step <= begin or (step - begin) % every:
            return np.ones_like(w, bool)
        share = sparsity if step >= end else sparsity - sparsity * (1 - (step - begin) / (end - begin)) ** 3
        gone = np.argsort(np.abs(w), axis=None, kind="stable")[: int(share * w.size)]
        mask = np.ones(w.size, bool)
        mask[gone] = False
        return mask.reshape(w.shape)

    return stays


def neighbours(n: int, m: int, begin: int) -> Mask:
    def stays(w: np.ndarray, step: int) -> np.ndarray:
        mask = np.ones_like(w, bool)
        if step > begin:
            for row, start in itertools.product(range(w.shape[0]), range(0, w.shape[1], m)):
                group = np.abs(w[row, start : start + m])
                mask[row, start : start + m][np.argsort(-group, kind="stable")[n:]] = False
        return mask

    return stays


def by_reference(stays: Mask) -> Arrays:
    curves = {}
    for spec in SPECS:
        w: Any = initial_parameter(spec, 7).astype(np.float64)
        mask, kept, curve = np.ones_like(w, bool), {}, []
        for step in range(1, STEPS + 1):
            w = w * (1 - rate_of(step) * 0.01) if spec.decays else w
            w = w - rate_of(step) * adamw(kept, gradient_of(spec, step).astype(np.float64), step)
            if spec.name in PRUNED:
                mask &= stays(w * mask, step)
                w = w * mask
            curve.append(w)
        curves[spec.name] = np.stack(curve)
    return curves


CASES: dict[str, tuple[dict[str, Any], Mask]] = {
    "magnitude": (
        {"magnitude": {"sparsity": 0.7, "beginStep": 3, "endStep": 33, "everySteps": 5}},
        smallest(0.7, 3, 33, 5),
    ),
    "2:4": ({"nm": {"keep": 2, "of": 4, "beginStep": 4}}, neighbours(2, 4, 4)),
    "3:5, which divides nothing": ({"nm": {"keep": 3, "of": 5}}, neighbours(3, 5, 0)),
}


@pytest.mark.parametrize("case", CASES)
def test_fifty_pruned_steps_are_those_of_the_paper_in_both_frameworks(case: str) -> None:
    document, mask = CASES[case]
    expected = by_reference(mask)
    optimizer = {"adamw": {"learningRate": 0.01}}
    options = {"gradient_clip": None, "compression": {"prune": document}}
    shares = [float((expected[name][-1] == 0).mean()) for name in PRUNED]
    assert min(shares) > 0.3, "much is pruned"
    for run in (by_flax, by_torch):
        curves, _ = run(optimizer, options)
        compare(curves, expected, 5e-6)
        for name in PRUNED:
            np.testing.assert_array_equal(curves[name] == 0, expected[name] == 0, err_msg=name)


def test_all_but_embeddings_output_gains_and_biases_is_pruned() -> None:
    assert [
        f"layers.{layer}.{name}.weight"
        for layer in range(3)
        for name in ("attention.qkv", "attention.out", "feed_forward.gate_up", "feed_forward.down")
    ] == PRUNED
    experts = {"transformer": {**TRANSFORMER["transformer"], "experts": {"count": 4, "topK": 2}}}
    table = parameter_table(context_of(FLAX, experts).run.model, TOKENS)
    assert [spec.name for spec in table if is_pruned(spec)] == PRUNED
    for model, expected in ((MLP, ["layers.0.weight"]), (CNN, ["stem.conv.weight", "blocks.0.first.conv.weight"])):
        context = context_of(FLAX, model)
        names = [spec.name for spec in parameter_table(context.run.model, context.data) if is_pruned(spec)]
        assert names[: len(expected)] == expected
        assert not any(name.startswith("head") for name in names)


def test_kernels_are_cut_along_their_input_channels_alike() -> None:
    """2:4 as sparse tensor cores take it: of four input channels at one place of the kernel, two."""
    prune = Prune.parse({"nm": {"keep": 2, "of": 4}})
    kernel = np.random.default_rng(5).normal(size=(3, 6, 3, 3)).astype(np.float32)
    expected = kernel.copy()
    for o, y, x in itertools.product(range(3), range(3), range(3)):
        for start in (0, 4):
            group = expected[o, start : start + 4, y, x]
            group[np.argsort(-np.abs(group), kind="stable")[2:]] = 0.0
    numbers = pruning_numbers(prune, 1)
    at = {name: jnp.float32(value) for name, value in numbers.items()}
    flax = by_flax_alone.with_pruned(prune, at, jnp.asarray(kernel), jnp.asarray(kernel), 0)
    np.testing.assert_array_equal(np.asarray(flax), expected)
    parameter = torch.nn.Parameter(torch.from_numpy(kernel.copy()))
    parameter.grad = torch.zeros_like(parameter)
    spec = ParameterSpec("stem.conv.weight", kernel.shape, Normal(1.0), decays=True)
    pruning = by_torch_alone.Pruning(prune, [(parameter, spec)], numbers)
    pruning.before()
    pruning.after()
    np.testing.assert_array_equal(parameter.detach().numpy(), expected)


def test_the_share_grows_by_the_papers_cubic_from_cut_to_cut_and_is_all_at_the_end() -> None:
    prune = Prune.parse({"magnitude": {"sparsity": 0.8, "beginStep": 10, "endStep": 50, "everySteps": 20}})
    shares = [pruned_share(prune, step) for step in range(1, 101)]
    assert shares[:29] == [0.0] * 29
    assert shares[29:49] == [0.8 * (1 - 0.5**3)] * 20
    assert shares[49:] == [0.8] * 51
    cuts = [step for step in range(1, 101) if pruning_numbers(prune, step)["cuts"]]
    assert cuts == [30, 50, 70, 90]
    assert [pruning_numbers(prune, step)["keeps_zeros"] for step in (30, 31)] == [0.0, 1.0]


@pytest.mark.parametrize("document", [{"magnitude": {"sparsity": 0.5, "endStep": 1, "everySteps": 1}}, TWO_OF_FOUR])
def test_experts_are_pruned_matrix_by_matrix_alike(document: dict[str, Any]) -> None:
    prune = Prune.parse(document)
    # Of two layers, three experts each; a whole that is cut at once would empty the small ones.
    sizes = 10.0 ** np.arange(6).reshape(2, 3, 1, 1)
    weights = (np.random.default_rng(5).normal(size=(2, 3, 6, 8)) * sizes).astype(np.float32)
    expected = weights.copy()
    for matrix in expected.reshape(6, 6, 8):
        for group in matrix.reshape(12, 4) if "nm" in document else matrix.reshape(1, 48):
            group[np.argsort(np.abs(group), kind="stable")[: group.size // 2]] = 0.0
    specs = tuple(
        ParameterSpec(f"layers.{layer}.feed_forward.down.weight", (3, 6, 8), Normal(1.0), decays=True, unit_dims=2)
        for layer in range(2)
    )
    numbers = pruning_numbers(prune, 1)
    at = {name: jnp.float32(value) for name, value in numbers.items()}
    leaf = Leaf(specs, weights.shape, "layers.feed_forward.down.weight")
    flax = by_flax_alone.with_pruned(prune, at, jnp.asarray(weights), jnp.asarray(weights), leaf.matrix_stack)
    np.testing.assert_array_equal(np.asarray(flax), expected)
    parameters = [torch.nn.Parameter(torch.from_numpy(layer.copy())) for layer in weights]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    pruning = by_torch_alone.Pruning(prune, list(zip(parameters, specs, strict=True)), numbers)
    pruning.before()
    pruning.after()
    np.testing.assert_array_equal(np.stack([parameter.detach().numpy() for parameter in parameters]), expected)
    assert pruning.sparsity() == 0.5


def pruned_run(rank: int, world: int, coordinator: str, framework: dict[str, Any]) -> Any:
    """The sparsity that an engine speaks of, and this rank's part of its state, a step after the last cut."""
    model = {"mlp": {"hidden": [24, 16], "conditionalScaling": {"film": {}}}}
    prune = {"magnitude": {"sparsity": 0.3, "endStep": 3, "everySteps": 1}}
    context = context_of(framework, model, rank, world, coordinator, compression={"prune": prune})
    engine = make_engine(context)
    train(engine, context, 0, 4)
    answer = engine.sparsity(), [replace(part, data=part.data.copy()) for part in engine.export_state()]
    engine.close()
    return answer


@pytest.mark.parametrize("framework", [FLAX, deepspeed(0)], ids=["flax", "deepspeed"])
def test_a_condition_is_learnt_beside_pruning_and_what_is_said_of_zeros_is_counted(framework: dict[str, Any]) -> None:
    said, parts = zip(*run_ranks(pruned_run, 2, framework), strict=True)
    weights = WholeTensors(itertools.chain(*parts))
    for layer in range(2):
        assert (weights.read(f"params/films.{layer}.modulation.made.weight") != 0).all()
    # Of 1,536 and of 384 weights 0.3 are no whole number: the plan is not what comes of it.
    assert [int((weights.read(f"params/layers.{layer}.weight") == 0).sum()) for layer in range(2)] == [460, 115]
    assert said == (575 / 1920, 575 / 1920)


def test_a_run_that_ends_before_its_last_cut_is_refused() -> None:
    compression = Compression.parse({"prune": {"magnitude": {"sparsity": 0.5, "endStep": 200}}})
    training = context_of(FLAX, MLP).run.training
    epochs = training.model_copy(update={"steps": None, "epochs": 5})
    require_last_cut(None, epochs, 1)
    require_last_cut(compression, epochs, 200)
    with pytest.raises(
        ConfigError,
        match=r"^spec\.compression\.prune: makes its last cut at step 200, after the last of spec\.training\.epochs 5, "
        r"199 steps; lower it$",
    ):
        require_last_cut(compression, epochs, 199)
