"""Every normalisation of both frameworks against a few lines of numpy in double precision."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from capstan_runtime.contract.models import Model
from capstan_runtime.contract.normalisation import CnnNorm, MlpNorm
from capstan_runtime.deepspeed_trainer import forward_pass as torch_pass
from capstan_runtime.deepspeed_trainer.components.normalisation import build_norm as build_torch
from capstan_runtime.flax_trainer import forward_pass as flax_pass
from capstan_runtime.flax_trainer.components.normalisation import build_norm as build_flax
from capstan_runtime.model_spec import parameter_table
from tests.support.engines import IMAGES

Array = np.ndarray
Weights = dict[str, Array]
Outcome = tuple[Array, dict[str, Array]]
"""Outputs, and proposed next values of buffers by name."""
CHANNELS = 8
EPSILON, MOMENTUM = 1e-3, 0.25
NORMS = {
    "group": {"group": {"groups": 4, "epsilon": EPSILON}},
    "batch": {"batch": {"epsilon": EPSILON, "momentum": MOMENTUM}},
    "layer": {"layer": {"epsilon": EPSILON}},
    "instance": {"instance": {"epsilon": EPSILON}},
    "rms": {"rms": {"epsilon": EPSILON}},
    "mix": {"mix": {"epsilon": EPSILON, "momentum": MOMENTUM}},
}


def softmax(x: Array) -> Array:
    return np.exp(x) / np.exp(x).sum()


def reference(kind: str, x: Array, w: Weights, is_training: bool) -> Outcome:
    """x is [B, …, C]."""
    x = x.astype(np.float64)
    positions = tuple(range(1, x.ndim - 1))
    count = x.size // x.shape[-1]
    batch = x.mean((0, *positions)), x.var((0, *positions))
    next_values = {
        "running_mean": (1 - MOMENTUM) * w.get("running_mean", 0) + MOMENTUM * batch[0],
        "running_var": (1 - MOMENTUM) * w.get("running_var", 0) + MOMENTUM * batch[1] * count / (count - 1),
    }
    if not is_training and "running_mean" in w:
        batch = w["running_mean"], w["running_var"]
    instance = x.mean(positions, keepdims=True), x.var(positions, keepdims=True)
    layer = x.mean((*positions, -1), keepdims=True), x.var((*positions, -1), keepdims=True)
    match kind:
        case "group":
            grouped = x.reshape(*x.shape[:-1], 4, -1)
            axes = (*positions, x.ndim)
            mean, variance = (
                np.repeat(each, 2, -1).reshape(len(x), *[1] * len(positions), -1)
                for each in (grouped.mean(axes, keepdims=True), grouped.var(axes, keepdims=True))
            )
        case "batch":
            mean, variance = batch
        case "layer":
            mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
        case "instance":
            mean, variance = instance
        case "rms":
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * w["weight"], {}
        case "mix":
            parts = [instance, layer, batch] if positions else [layer, batch]
            mean = sum(share * part[0] for share, part in zip(softmax(w["mean_weight"]), parts, strict=True))
            variance = sum(share * part[1] for share, part in zip(softmax(w["var_weight"]), parts, strict=True))
    outputs = (x - mean) / np.sqrt(variance + EPSILON) * w["weight"] + w["bias"]
    return outputs, next_values if is_training and kind in ("batch", "mix") else {}


def weights_of(kind: str, shape: tuple[int, ...]) -> Weights:
    """As the table of parameters names them, with other values."""
    chance = np.random.default_rng(1)
    architecture: dict[str, Any] = {"cnn": {"channels": [CHANNELS]}} if len(shape) == 4 else {"mlp": {"hidden": [8]}}
    next(iter(architecture.values()))["norm"] = NORMS[kind]
    prefix = "stem.norm." if len(shape) == 4 else "norms.0."
    return {
        spec.name.removeprefix(prefix): chance.uniform(0.5, 2, spec.shape).astype(np.float32)
        for spec in parameter_table(Model.parse(architecture), IMAGES)
        if spec.name.startswith(prefix)
    }


def by_flax(kind: str, x: Array, weights: Weights, is_training: bool) -> Outcome:
    choice = CnnNorm if x.ndim == 4 else MlpNorm
    layer = build_flax(choice.parse(NORMS[kind]).value, CHANNELS, has_positions=x.ndim == 4)
    left = dict(weights)
    for path, variable in nnx.to_flat_state(nnx.state(layer)):
        variable[...] = jnp.asarray(left.pop(".".join(path)))
        if isinstance(variable, flax_pass.Buffer):
            variable.set_metadata(leaf=path[-1])
    assert not left
    keys = jnp.zeros(len(x), jnp.uint32) if is_training else None
    here = flax_pass.Pass(jnp.dtype("float32"), keys)
    return np.asarray(layer(jnp.asarray(x), here)), {name: np.asarray(value) for name, value in here.proposals.items()}


def by_torch(kind: str, x: Array, weights: Weights, is_training: bool) -> Outcome:
    choice = CnnNorm if x.ndim == 4 else MlpNorm
    layer = build_torch(choice.parse(NORMS[kind]).value, CHANNELS, has_positions=x.ndim == 4)
    layer.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    here = torch_pass.Pass(torch.float32, torch.zeros(len(x), dtype=torch.int64) if is_training else None)
    outputs = layer(torch.from_numpy(x).movedim(-1, 1), here).movedim(1, -1).detach().numpy()
    names = {id(buffer): name for name, buffer in layer.named_buffers()}
    for name, buffer in layer.named_buffers():
        assert (buffer.numpy() == weights[name]).all(), "a module proposes, and changes nothing"
    return outputs, {names[key]: value.numpy() for key, value in here.proposals.items()}


@pytest.mark.parametrize("is_training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("shape", [(5, 4, 6, CHANNELS), (5, CHANNELS)], ids=["images", "vectors"])
@pytest.mark.parametrize("kind", NORMS)
def test_a_normalisation_is_what_its_paper_says(kind: str, shape: tuple[int, ...], is_training: bool) -> None:
    if kind == "instance" and len(shape) == 2:
        assert kind not in MlpNorm.model_fields, "an instance of one number has no statistics"
        return
    x = np.random.default_rng(0).normal(2, 3, shape).astype(np.float32)
    weights = weights_of(kind, shape)
    outputs, next_values = reference(kind, x, weights, is_training)
    for compute in (by_flax, by_torch):
        found, proposed = compute(kind, x, weights, is_training)
        np.testing.assert_allclose(found, outputs, rtol=2e-5, atol=2e-5, err_msg=compute.__name__)
        assert proposed.keys() == next_values.keys()
        for name, value in next_values.items():
            np.testing.assert_allclose(proposed[name], value, rtol=1e-5, err_msg=f"{compute.__name__} {name}")
