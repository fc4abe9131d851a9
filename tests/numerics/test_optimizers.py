"""Every optimizer, wrapper and change of gradients, in both frameworks, against its paper in double precision.

The references know nothing of the product: hyper-parameters that a case does not give are the papers', written here
once more. Fifty steps take the same gradients everywhere, so that only arithmetic is compared.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from capstan_runtime.contract.training import AdaptiveClip
from capstan_runtime.deepspeed_trainer.optimizers import gradients as torch_gradients
from capstan_runtime.deepspeed_trainer.optimizers.state import make_state
from capstan_runtime.deepspeed_trainer.optimizers.updates import Updates
from capstan_runtime.flax_trainer.leaves import Leaf, Structure
from capstan_runtime.flax_trainer.optimizers import gradients as flax_gradients
from capstan_runtime.flax_trainer.optimizers.update import UpdatePlan
from capstan_runtime.model_spec import Normal, ParameterSpec, initial_parameter, parameter_table
from tests.support.engines import FLAX, TRANSFORMER, context_of, deepspeed

Document = dict[str, Any]
Arrays = dict[str, np.ndarray]
State = dict[str, Any]
Reference = Callable[[State, np.ndarray, int], np.ndarray]
"""What weights lose, over the learning rate: from what was kept ("" is 0), the gradient and the step's number."""
STEPS = 50
SPECS = parameter_table(context_of(FLAX, TRANSFORMER).run.model, context_of(FLAX, TRANSFORMER).data)


def adamw(kept: State, g: np.ndarray, t: int) -> np.ndarray:
    kept["m"] = 0.9 * kept.get("m", 0) + 0.1 * g
    kept["v"] = 0.999 * kept.get("v", 0) + 0.001 * g**2
    return kept["m"] / (1 - 0.9**t) / (np.sqrt(kept["v"] / (1 - 0.999**t)) + 1e-8)


def sgd(kept: State, g: np.ndarray, t: int) -> np.ndarray:
    kept["m"] = 0.9 * kept.get("m", 0) + g
    return kept["m"]


def nesterov(kept: State, g: np.ndarray, t: int) -> np.ndarray:
    kept["m"] = 0.9 * kept.get("m", 0) + g
    return g + 0.9 * kept["m"]


def plain(kept: State, g: np.ndarray, t: int) -> np.ndarray:
    return g


def adan(kept: State, g: np.ndarray, t: int) -> np.ndarray:
    d = g - kept.get("g", g)
    kept["g"] = g
    kept["m"] = 0.98 * kept.get("m", 0) + 0.02 * g
    kept["v"] = 0.92 * kept.get("v", 0) + 0.08 * d
    kept["n"] = 0.99 * kept.get("n", 0) + 0.01 * (g + 0.92 * d) ** 2
    up = kept["m"] / (1 - 0.98**t) + 0.92 * kept["v"] / (1 - 0.92**t)
    return up / (np.sqrt(kept["n"] / (1 - 0.99**t)) + 1e-8)


def lion(kept: State, g: np.ndarray, t: int) -> np.ndarray:
    m = kept.get("m", 0)
    kept["m"] = 0.99 * m + 0.01 * g
    return np.sign(0.9 * m + 0.1 * g)


def adabelief(kept: State, g: np.ndarray, t: int) -> np.ndarray:
    kept["m"] = 0.9 * kept.get("m", 0) + 0.1 * g
    kept["s"] = 0.999 * kept.get("s", 0) + 0.001 * (g - kept["m"]) ** 2 + 1e-16
    return kept["m"] / (1 - 0.9**t) / (np.sqrt(kept["s"] / (1 - 0.999**t)) + 1e-16)


def radam(kept: State, g: np.ndarray, t: int) -> np.ndarray:
    kept["m"] = 0.9 * kept.get("m", 0) + 0.1 * g
    kept["v"] = 0.999 * kept.get("v", 0) + 0.001 * g**2
    longest = 2 / (1 - 0.999) - 1
    length = longest - 2 * t * 0.999**t / (1 - 0.999**t)
    if length <= 5:
        return kept["m"] / (1 - 0.9**t)
    r = math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
    return r * kept["m"] / (1 - 0.9**t) * math.sqrt(1 - 0.999**t) / (np.sqrt(kept["v"]) + 1e-8)


def diffgrad(kept: State, g: np.ndarray, t: int) -> np.ndarray:
    friction = 1 / (1 + np.exp(-np.abs(kept.get("g", 0) - g)))
    kept["g"] = g
    return friction * adamw(kept, g, t)


def yogi(kept: State, g: np.ndarray, t: int) -> np.ndarray:
    kept["m"] = 0.9 * kept.get("m", 0) + 0.1 * g
    v = kept.get("v", 1e-6)
    kept["v"] = v - 0.001 * np.sign(v - g**2) * g**2
    return kept["m"] / (1 - 0.9**t) / (np.sqrt(kept["v"] / (1 - 0.999**t)) + 1e-3)


def novograd(kept: State, g: np.ndarray, t: int) -> np.ndarray:
    square = (g**2).sum()
    kept["v"] = 0.98 * kept["v"] + 0.02 * square if "v" in kept else square
    kept["m"] = 0.95 * kept.get("m", 0) + g / (np.sqrt(kept["v"]) + 1e-8)
    return kept["m"]


CASES: dict[str, tuple[Reference, Document, float]] = {
    "adamw": (adamw, {"adamw": {}}, 0.01),
    "sgd": (sgd, {"sgd": {}}, 0.0),
    "sgd, Nesterov": (nesterov, {"sgd": {"nesterov": True}}, 0.0),
    "sgd, no momentum": (plain, {"sgd": {"momentum": 0.0, "weightDecay": 0.1}}, 0.1),
    "adan": (adan, {"adan": {}}, 0.02),
    "lion": (lion, {"lion": {"weightDecay": 0.1}}, 0.1),
    "adabelief": (adabelief, {"adabelief": {"weightDecay": 0.1}}, 0.1),
    "radam": (radam, {"radam": {"weightDecay": 0.1}}, 0.1),
    "diffgrad": (diffgrad, {"diffgrad": {"weightDecay": 0.1}}, 0.1),
    "yogi": (yogi, {"yogi": {"weightDecay": 0.1}}, 0.1),
    "novograd": (novograd, {"novograd": {"weightDecay": 0.1}}, 0.1),
}
"""The paper, the document, and the weight decay that it then has."""


@functools.cache
def gradient_of(spec: ParameterSpec, step: int) -> np.ndarray:
    """Of one parameter in step `step` (from 1), fp32: a trend, and noise about it, whose size differs by element."""
    random = np.random.default_rng([len(spec.name), spec.size, sum(spec.name.encode())])
    trend, size = random.normal(size=spec.shape), random.lognormal(-3, 1, size=spec.shape)
    noise = np.random.default_rng([step, spec.size, sum(spec.name.encode())]).normal(size=spec.shape)
    return ((trend + noise) * size).astype(np.float32)


def rate_of(step: int) -> float:
    return 0.01 * min(1.0, step / 5)


def by_reference(reference: Reference, decay: float) -> Arrays:
    """Weights after every step, [STEPS, *shape] each."""
    curves = {}
    for spec in SPECS:
        w: Any = initial_parameter(spec, 7).astype(np.float64)
        kept: State = {}
        curve = []
        for step in range(1, STEPS + 1):
            if spec.decays:
                w = w * (1 - rate_of(step) * decay)
            w = w - rate_of(step) * reference(kept, gradient_of(spec, step).astype(np.float64), step)
            curve.append(w)
        curves[spec.name] = np.stack(curve)
    return curves


def by_flax(optimizer: Document, options: Document) -> tuple[Arrays, Arrays]:
    """Weights after every step, and the state after the last, named as in a checkpoint."""
    run = context_of(FLAX, TRANSFORMER, optimizer=optimizer, **options).run
    leaves = Structure(run.model, context_of(FLAX, TRANSFORMER).data).leaves
    plan = UpdatePlan(
        run.optimizer, run.training, leaves, prune=run.compression.prune if run.compression is not None else None
    )
    parameters = [jnp.asarray(leaf.initial_value(7)) for leaf in leaves]
    state = [[jnp.asarray(leaf.initial_state(kind, 7)) for leaf in leaves] for kind in plan.kinds]
    update = jax.jit(plan.apply)
    curves: dict[str, list[np.ndarray]] = {spec.name: [] for spec in SPECS}
    for step in range(1, STEPS + 1):
        gradients = [
            np.stack([gradient_of(spec, step) for spec in leaf.parameters]).reshape(leaf.shape) for leaf in leaves
        ]
        parameters, state, _ = update(parameters, state, gradients, plan.numbers(rate_of(step), step, 1.0))
        for leaf, value in zip(leaves, parameters, strict=True):
            for spec, part in zip(leaf.parameters, np.reshape(value, (-1, *spec_shape(leaf))), strict=True):
                curves[spec.name].append(part)
    kept = {
        f"{kind.name}/{spec.name}": part
        for kind, arrays in zip(plan.kinds, state, strict=True)
        for leaf, value in zip(leaves, arrays, strict=True)
        for spec, part in zip(leaf.parameters, np.asarray(value).reshape(len(leaf.parameters), -1), strict=True)
    }
    return {name: np.stack(curve) for name, curve in curves.items()}, kept


def spec_shape(leaf: Any) -> tuple[int, ...]:
    shape: tuple[int, ...] = leaf.parameters[0].shape
    return shape


def by_torch(optimizer: Document, options: Document) -> tuple[Arrays, Arrays]:
    """As `by_flax`."""
    run = context_of(deepspeed(0), TRANSFORMER, optimizer=optimizer, **options).run
    parameters = {spec.name: torch.nn.Parameter(torch.from_numpy(initial_parameter(spec, 7))) for spec in SPECS}
    updates = Updates(run, parameters, SPECS, 0, torch.device("cpu"), parameters)
    state = {name: make_state(updates.optimizer, value, updates.kinds, 0) for name, value in parameters.items()}
    curves: dict[str, list[np.ndarray]] = {spec.name: [] for spec in SPECS}
    for step in range(1, STEPS + 1):
        updates.begin(step, rate_of(step))
        updates.optimizer.zero_grad()
        # As a loss whose gradient is known, so that hooks on gradients see it.
        losses = [(parameters[spec.name] * torch.from_numpy(gradient_of(spec, step))).sum() for spec in SPECS]
        torch.stack(losses).sum().backward()
        updates.optimizer.step()
        for name, parameter in parameters.items():
            curves[name].append(parameter.detach().numpy().copy())
    kept = {
        f"{kind.name}/{name}": tensor.numpy().reshape(-1)
        for name, kinds in state.items()
        for kind, tensor in kinds.items()
    }
    return {name: np.stack(curve) for name, curve in curves.items()}, kept


def compare(actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], tolerance: float) -> None:
    """By the largest way that any weight of a parameter has gone."""
    assert set(actual) == set(expected)
    for spec in SPECS:
        first = initial_parameter(spec, 7)
        way = np.abs(expected[spec.name] - first).max()
        assert way > 1e-3, spec.name
        rounding = STEPS / 2 * np.finfo(np.float32).eps * np.abs(expected[spec.name]).max()  # half a digit a step
        atol = tolerance * way + rounding
        np.testing.assert_allclose(actual[spec.name], expected[spec.name], rtol=0, atol=atol, err_msg=spec.name)


def with_rate(document: Document) -> Document:
    ((name, fields),) = document.items()
    return {name: {"learningRate": 0.01, **fields}}


@pytest.mark.parametrize("case", CASES)
def test_fifty_steps_are_those_of_the_paper_in_both_frameworks(case: str) -> None:
    reference, document, decay = CASES[case]
    expected = by_reference(reference, decay)
    (flax, flax_state), (torch_, torch_state) = (
        each(with_rate(document), {"gradient_clip": None}) for each in (by_flax, by_torch)
    )
    compare(flax, expected, 5e-6)
    compare(torch_, expected, 5e-6)
    assert set(flax_state) == set(torch_state)
    for name, kept in flax_state.items():
        np.testing.assert_allclose(kept, torch_state[name], rtol=1e-5, atol=1e-6 * np.abs(kept).max(), err_msg=name)


UNIT_AXES = {1: (0,), 2: (1,)}


def everything_by_reference() -> tuple[Arrays, Arrays]:
    """Plain descent on centralised and twice clipped gradients, with slow weights and an average of both."""
    w = {spec.name: initial_parameter(spec, 7).astype(np.float64) for spec in SPECS}
    slow, ema = dict(w), dict(w)
    shares = []
    curves: dict[str, list[np.ndarray]] = {spec.name: [] for spec in SPECS}
    for t in range(1, STEPS + 1):
        gs = {spec.name: gradient_of(spec, t).astype(np.float64) for spec in SPECS}
        gs = {name: g - g.mean(1, keepdims=True) if g.ndim > 1 else g for name, g in gs.items()}
        norm = math.sqrt(sum((g**2).sum() for g in gs.values()))
        for name, g in gs.items():
            g = g * min(1.0, 3.0 / (norm + 1e-6))
            if name != "head.weight":
                norms = [np.sqrt((x**2).sum(UNIT_AXES[g.ndim], keepdims=True)) for x in (w[name], g)]
                factors = np.minimum(1.0, 1.2 * np.maximum(norms[0], 0.1) / norms[1])
                shares.append((factors < 1).mean())
                g = g * factors
            w[name] = w[name] - rate_of(t) * g
            if t % 5 == 0:
                slow[name] = w[name] = slow[name] + 0.8 * (w[name] - slow[name])
            decay = min(0.9, (1 + t) / (10 + t))
            ema[name] = decay * ema[name] + (1 - decay) * w[name]
            curves[name].append(w[name])
    assert 0.05 < np.mean(shares) < 0.95, "some units are clipped, some are not"
    kept = {
        f"{kind}/{name}": x.ravel() for kind, of in (("slow_weights", slow), ("ema", ema)) for name, x in of.items()
    }
    return {name: np.stack(curve) for name, curve in curves.items()}, kept


def test_gradients_are_centralised_and_clipped_and_weights_slowed_and_averaged_in_both_frameworks() -> None:
    expected, expected_state = everything_by_reference()
    training = {
        "centralizeGradients": {},
        "adaptiveClip": {"factor": 1.2, "epsilon": 0.1},
        "lookahead": {"steps": 5, "alpha": 0.8},
        "ema": {"decay": 0.9},
    }
    for run in (by_flax, by_torch):
        curves, kept = run({"sgd": {"learningRate": 0.01, "momentum": 0}}, {"gradient_clip": 3.0, "training": training})
        compare(curves, expected, 5e-6)
        assert set(kept) == set(expected_state)
        for name, state in kept.items():
            np.testing.assert_allclose(state, expected_state[name], rtol=0, atol=3e-6, err_msg=name)


def test_several_matrices_in_one_parameter_and_stacked_layers_stay_apart() -> None:
    random = np.random.default_rng(5)
    spec = ParameterSpec("layers.0.experts.weight", (3, 4, 5), Normal(1.0), decays=True, unit_dims=2)
    weights, gradient = (random.normal(size=(2, *spec.shape)).astype(np.float32) for _ in range(2))
    leaf = Leaf((spec, spec), (2, *spec.shape), "layers.experts.weight")
    config = AdaptiveClip(factor=0.9)
    expected = gradient - gradient.mean(-1, keepdims=True)
    norms = [np.linalg.norm(each, axis=-1, keepdims=True) for each in (weights, expected)]
    clipped = expected * np.minimum(1, 0.9 * norms[0] / norms[1])
    by_flax = flax_gradients.centralized(jnp.asarray(gradient), leaf)
    np.testing.assert_allclose(by_flax, expected, atol=1e-6)
    by_flax = flax_gradients.clipped_by_unit(config, jnp.asarray(weights), by_flax, leaf)
    np.testing.assert_allclose(by_flax, clipped, atol=1e-6)
    for layer in range(2):
        parameter = torch.nn.Parameter(torch.from_numpy(weights[layer].copy()))
        torch_gradients.centralize_gradients({spec.name: parameter}, [spec])
        (parameter * torch.from_numpy(gradient[layer])).sum().backward()
        torch_gradients.clip_by_unit(config, [(parameter, spec)])
        assert parameter.grad is not None
        np.testing.assert_allclose(parameter.grad, clipped[layer], atol=1e-6)
