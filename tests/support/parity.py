"""One forward and backward pass of a model in each framework, from the same weights and with the same chance."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from capstan_runtime.deepspeed_trainer import forward_pass as torch_pass
from capstan_runtime.deepspeed_trainer.models import build_model
from capstan_runtime.flax_trainer import forward_pass as flax_pass
from capstan_runtime.flax_trainer.leaves import Structure
from capstan_runtime.flax_trainer.objective import cross_entropy
from tests.support.engines import FLAX, batch_of, context_of, deepspeed

Document = dict[str, Any]
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Computed:
    """Of one micro-step."""

    logits: np.ndarray
    gradients: Arrays
    """Of the mean cross-entropy, by name of parameter."""
    proposals: Arrays
    """By name of buffer."""


def by_flax(model: Document, *, is_training: bool) -> Computed:
    context = context_of(FLAX, model)
    batch = batch_of(context, 0)
    structure = Structure(context.run.model, context.data)
    values = [jnp.asarray(leaf.initial_value(context.run.training.seed)) for leaf in structure.everything]
    keys_B = jnp.asarray(batch.keys[0]) if is_training else None
    conditions_BK = None if batch.conditions is None else jnp.asarray(batch.conditions[0])

    def loss(parameters: list[jax.Array], buffers: list[jax.Array]) -> tuple[jax.Array, Any]:
        here = flax_pass.Pass(jnp.dtype("float32"), keys_B, conditions=conditions_BK)
        logits = structure.assemble([*parameters, *buffers])(batch.inputs[0], here)
        return cross_entropy(logits, batch.targets[0]).mean(), (logits, here.proposals)

    split = len(structure.leaves)
    gradients, (logits, proposals) = jax.jit(jax.grad(loss, has_aux=True))(values[:split], values[split:])
    by_name = {}
    for leaf, gradient in zip(structure.leaves, gradients, strict=True):
        parts = np.asarray(gradient).reshape(len(leaf.parameters), *leaf.parameters[0].shape)
        by_name.update(zip((spec.name for spec in leaf.parameters), parts, strict=True))
    return Computed(np.asarray(logits), by_name, {name: np.asarray(value) for name, value in proposals.items()})


def by_torch(model: Document, *, is_training: bool) -> Computed:
    context = context_of(deepspeed(0), model)
    batch = batch_of(context, 0)
    module = build_model(context.run.model, context.data, context.run.training.seed)
    keys_B = torch.from_numpy(batch.keys[0].astype(np.int64)) if is_training else None
    conditions_BK = None if batch.conditions is None else torch.from_numpy(batch.conditions[0])
    here = torch_pass.Pass(torch.float32, keys_B, conditions=conditions_BK)
    logits = module(torch.from_numpy(batch.inputs[0]), here)
    targets = torch.from_numpy(batch.targets[0]).long()
    torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten()).backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}
    names = {id(buffer): name for name, buffer in module.named_buffers()}
    proposals = {names[key]: value.numpy() for key, value in here.proposals.items()}
    return Computed(logits.detach().numpy(), gradients, proposals)


def require_parity(model: Document, *, is_training: bool, still: Callable[[str], bool] = lambda name: False) -> None:
    """Logits to 1e-5, gradients and proposals to 1e-4 of the largest, the same in both.

    `still`: which parameters have no gradient but for rounding; every other has one.
    """
    flax, theirs = by_flax(model, is_training=is_training), by_torch(model, is_training=is_training)
    np.testing.assert_allclose(flax.logits, theirs.logits, rtol=1e-5, atol=1e-5 * np.abs(theirs.logits).max())
    rounding = 1e-6 * max(np.abs(gradient).max() for gradient in theirs.gradients.values())
    for ours, others in ((flax.gradients, theirs.gradients), (flax.proposals, theirs.proposals)):
        assert set(ours) == set(others)
        for name, value in others.items():
            scale = np.abs(value).max()
            assert (scale <= rounding) == still(name), name
            np.testing.assert_allclose(ours[name], value, atol=max(1e-4 * scale, rounding), err_msg=name)
