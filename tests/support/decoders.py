"""One small batch for decoders with components, and what each framework makes of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from capstan_runtime.contract.models import Model
from capstan_runtime.deepspeed_trainer import forward_pass as torch_pass
from capstan_runtime.deepspeed_trainer import objective as torch_objective
from capstan_runtime.deepspeed_trainer.models import build_model
from capstan_runtime.flax_trainer import forward_pass as flax_pass
from capstan_runtime.flax_trainer import objective as flax_objective
from capstan_runtime.flax_trainer.leaves import Structure
from capstan_runtime.model_spec import initial_parameter, parameter_table
from tests.support.engines import TOKENS

Array = np.ndarray
Document = dict[str, Any]
BASE = {"layers": 4, "dim": 24, "heads": 6, "kvHeads": 3, "hiddenDim": 32}
RANDOM = np.random.default_rng(5)
TOKENS_BT = RANDOM.integers(0, TOKENS.outputs, (3, *TOKENS.input_shape)).astype(np.int32)
TARGETS_BT = RANDOM.integers(0, TOKENS.outputs, TOKENS_BT.shape).astype(np.int32)
KEYS_B = RANDOM.integers(0, 2**32, len(TOKENS_BT), dtype=np.uint32)


def model_of(components: Document) -> Model:
    return Model.parse({"transformer": {**BASE, **components}})


def weights_of(model: Model) -> dict[str, Array]:
    """Ten times as large as they begin: then every component shows in the outputs."""
    table = parameter_table(model, TOKENS)
    return {spec.name: initial_parameter(spec, 3) * (10 if len(spec.shape) > 1 else 1) for spec in table}


def flax_results(model: Model, weights: dict[str, Array], keys: Array | None) -> tuple[Array, dict[str, Array]]:
    """Logits, and the loss's gradient by parameter."""
    structure = Structure(model, TOKENS)
    values = [
        jnp.asarray(np.stack([weights[spec.name] for spec in leaf.parameters]).reshape(leaf.shape))
        for leaf in structure.leaves
    ]

    def loss(values: list[jax.Array], keys_B: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        here = flax_pass.Pass(jnp.dtype("float32"), keys_B)
        logits = structure.assemble(values)(jnp.asarray(TOKENS_BT), here)
        mean = flax_objective.cross_entropy(logits, jnp.asarray(TARGETS_BT)).mean()
        return sum(here.losses.values(), mean), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(values, None if keys is None else jnp.asarray(keys))
    by_name: dict[str, Array] = {}
    for leaf, gradient in zip(structure.leaves, gradients, strict=True):
        parts = np.asarray(gradient).reshape(len(leaf.parameters), *leaf.parameters[0].shape)
        by_name.update(zip((spec.name for spec in leaf.parameters), parts, strict=True))
    return np.asarray(logits), by_name


def torch_results(model: Model, weights: dict[str, Array], keys: Array | None) -> tuple[Array, dict[str, Array]]:
    module = build_model(model, TOKENS, 0)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    here = torch_pass.Pass(torch.float32, None if keys is None else torch.from_numpy(keys.astype(np.int64)))
    logits = module(torch.from_numpy(TOKENS_BT), here)
    mean = torch_objective.cross_entropy(logits, torch.from_numpy(TARGETS_BT)).mean()
    sum(here.losses.values(), mean).backward()
    return logits.detach().numpy(), {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}


def close(found: Array, expected: Array, tolerance: float, what: str = "") -> None:
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max(), err_msg=what)
