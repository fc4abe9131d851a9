"""Reversible layers: what they compute, that their gradients are right, and that no activations are kept."""

import gc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from capstan_runtime.deepspeed_trainer import forward_pass as torch_pass
from capstan_runtime.deepspeed_trainer.components import branches as torch_branches
from capstan_runtime.deepspeed_trainer.models import build_model
from capstan_runtime.flax_trainer import forward_pass as flax_pass
from capstan_runtime.flax_trainer.components import branches as flax_branches
from capstan_runtime.flax_trainer.leaves import Structure
from tests.support.decoders import BASE, KEYS_B, TOKENS_BT, close, flax_results, model_of, torch_results, weights_of
from tests.support.engines import FLAX, TOKENS, context_of, deepspeed, make_engine, train
from tests.support.numpy_decoder import NumpyDecoder
from tests.support.ranks import run_ranks

Document = dict[str, Any]
RANDOM_PARTS = {
    "reversible": {},
    "dropout": {"rate": 0.2},
    "stochasticDepth": {"rate": 0.3},
    "layerScale": {"initial": 0.5},
    "tokenDropout": {"keep": 0.5},
    "experts": {"count": 4, "capacityFactor": 0.8, "jitter": 0.1, "auxiliaryLoss": 0.1},
}
MORE_LAYERS = 4


def test_streams_are_numpy_s_and_gradients_alike_in_both_frameworks() -> None:
    model = model_of(RANDOM_PARTS)
    weights = weights_of(model)
    reference = NumpyDecoder(model.value, weights)
    expected = reference(TOKENS_BT, KEYS_B)
    torch_logits, torch_gradients = torch_results(model, weights, KEYS_B)
    flax_logits, flax_gradients = flax_results(model, weights, KEYS_B)
    close(torch_logits, expected, 1e-5)
    close(flax_logits, expected, 1e-5)
    for name, gradient in torch_gradients.items():
        assert np.abs(gradient).max() > 0, name
        close(flax_gradients[name], gradient, 1e-4, name)


def slope_of(logits: Any) -> Any:
    """Something to differentiate: other weights for each of the logits."""
    return np.cos(np.arange(np.prod(logits.shape))).reshape(logits.shape)


def test_torch_gradients_are_those_of_keeping_all_activations() -> None:
    model = model_of(RANDOM_PARTS)
    weights = weights_of(model)
    module = build_model(model, TOKENS, 0)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    tokens, keys_B = torch.from_numpy(TOKENS_BT), torch.from_numpy(KEYS_B.astype(np.int64))

    def kept(here: torch_pass.Pass) -> torch.Tensor:
        """The same layers, one after the other."""
        state = module.enter(
            torch_branches.drop_elements(module.config, module.embed(tokens, here.dtype), here.named("embed"))
        )
        for number, layer in enumerate(module.layers):
            inside = here.layer(number)
            some = number in range(1, len(module.layers) - 1)
            positions = module.positions
            where = (
                positions.some(tokens.shape[1], inside)
                if some
                else positions.all(tokens.shape[1], tokens.device, here.dtype)
            )
            state = layer(state, where, inside)
        return module.logits(module.leave(state, here.dtype))

    found = []
    for forward in (lambda here: module(tokens, here), kept):
        module.zero_grad()
        here = torch_pass.Pass(torch.float32, keys_B)
        logits = forward(here)
        loss = (logits * torch.from_numpy(slope_of(logits)).float()).sum() + sum(here.losses.values())
        loss.backward()
        found.append({name: parameter.grad.numpy().copy() for name, parameter in module.named_parameters()})
    for name, gradient in found[1].items():
        np.testing.assert_allclose(found[0][name], gradient, atol=1e-5 * np.abs(gradient).max(), err_msg=name)


def test_flax_gradients_are_those_of_keeping_all_activations() -> None:
    model = model_of({**RANDOM_PARTS, "tokenDropout": None, "layers": 3})
    weights = weights_of(model)
    structure = Structure(model, TOKENS)
    values = [
        jnp.asarray(np.stack([weights[spec.name] for spec in leaf.parameters]).reshape(leaf.shape))
        for leaf in structure.leaves
    ]

    def kept(module: Any, here: flax_pass.Pass) -> jax.Array:
        x_BTD = flax_branches.drop_elements(
            module.config, module.embed(jnp.asarray(TOKENS_BT), here.dtype), here.named("embed")
        )
        graph, stacked = nnx.split(module.layers)
        where = module.positions(jnp.arange(TOKENS_BT.shape[1]), here.dtype)
        state = flax_pass.through_layers(
            lambda state, parameters, inside, where: nnx.merge(graph, parameters)(state, where, inside),
            module.enter(x_BTD),
            stacked,
            range(3),
            here,
            where,
        )
        return module.logits(module.leave(state, here.dtype))

    def loss_by(forward: Any) -> Any:
        def loss(values: list[jax.Array]) -> jax.Array:
            here = flax_pass.Pass(jnp.dtype("float32"), jnp.asarray(KEYS_B))
            logits = forward(structure.assemble(values), here)
            return jnp.sum(logits * slope_of(logits)) + sum(here.losses.values())

        return jax.jit(jax.grad(loss))(values)

    found, expected = loss_by(lambda module, here: module(jnp.asarray(TOKENS_BT), here)), loss_by(kept)
    for leaf, ours, theirs in zip(structure.leaves, found, expected, strict=True):
        atol = 1e-5 * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, atol=atol, err_msg=leaf.parameters[0].name)


def flax_temporary_bytes(components: Document, layers: int) -> int:
    """Of a compiled step: what it needs beside weights, batch and gradients."""
    structure = Structure(model_of({**components, "layers": layers}), TOKENS)

    def loss(values: list[jax.Array], tokens: jax.Array, keys_B: jax.Array) -> jax.Array:
        return jnp.sum(structure.assemble(values)(tokens, flax_pass.Pass(jnp.dtype("float32"), keys_B)))

    values = [jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for leaf in structure.leaves]
    tokens, keys = jax.ShapeDtypeStruct((16, 32), jnp.int32), jax.ShapeDtypeStruct((16,), jnp.uint32)
    return jax.jit(jax.grad(loss)).lower(values, tokens, keys).compile().memory_analysis().temp_size_in_bytes


def torch_kept_bytes(components: Document, layers: int) -> int:
    """Of all tensors but weights when the forward pass is over, whether autograd keeps them or Python."""
    module = build_model(model_of({**components, "layers": layers}), TOKENS, 0)
    others = {id(each) for each in gc.get_objects() if type(each) is torch.Tensor}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    keys_B = torch.arange(16)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = module(torch.zeros((16, 32), dtype=torch.int32), torch_pass.Pass(torch.float32, keys_B))
    for each in gc.get_objects():
        if type(each) is torch.Tensor and id(each) not in others:
            note(each)
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    assert logits.requires_grad
    return sum(size for pointer, size in kept.items() if pointer not in weights)


@pytest.mark.parametrize("bytes_of", [flax_temporary_bytes, torch_kept_bytes])
def test_memory_for_activations_does_not_grow_with_the_depth(bytes_of: Any) -> None:
    usual, reversible = (
        bytes_of(components, 2 + MORE_LAYERS) - bytes_of(components, 2)
        for components in ({"dropout": {"rate": 0.1}}, {"dropout": {"rate": 0.1}, "reversible": {}})
    )
    inputs_of_layers = MORE_LAYERS * 16 * 32 * 24 * 4
    assert usual > 5 * inputs_of_layers
    assert reversible < inputs_of_layers / 8


def losses(rank: int, world: int, coordinator: str, framework: Document) -> Any:
    model = {"transformer": {**BASE, "reversible": {}, "dropout": {"rate": 0.1}}}
    context = context_of(framework, model, rank, world, coordinator)
    engine = make_engine(context)
    curve = train(engine, context, 0, 20)
    engine.close()
    return curve


@pytest.mark.full
def test_twenty_steps_have_the_same_losses_in_both_frameworks_and_stages() -> None:
    (flax_curve,) = run_ranks(losses, 1, FLAX)
    assert flax_curve[-1][0] < flax_curve[0][0] - 0.1, "nothing was learnt: the comparison would be empty"
    for stage in range(3):
        (torch_curve,) = run_ranks(losses, 1, deepspeed(stage))
        np.testing.assert_allclose(flax_curve, torch_curve, rtol=1e-3)
