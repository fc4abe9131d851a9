"""Components of perceptrons and convolutional networks, in both frameworks, against a few lines of numpy."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from capstan_runtime import randomness
from capstan_runtime.contract.models import Cnn, Model
from capstan_runtime.contract.signature import Signature
from capstan_runtime.deepspeed_trainer import cnn as torch_cnn
from capstan_runtime.deepspeed_trainer import forward_pass as torch_pass
from capstan_runtime.deepspeed_trainer.components import conditions as torch_conditions
from capstan_runtime.deepspeed_trainer.components.fourier import FourierFeatures as TorchFourier
from capstan_runtime.deepspeed_trainer.components.gates import SqueezeExcitation as TorchGate
from capstan_runtime.errors import ConfigError
from capstan_runtime.flax_trainer import cnn as flax_cnn
from capstan_runtime.flax_trainer import forward_pass as flax_pass
from capstan_runtime.flax_trainer.components import conditions as flax_conditions
from capstan_runtime.flax_trainer.components.fourier import FourierFeatures as FlaxFourier
from capstan_runtime.flax_trainer.components.gates import SqueezeExcitation as FlaxGate
from capstan_runtime.model_signature import data_spec_of, require_servable

Array = np.ndarray
Weights = dict[str, Array]
CHANCE = np.random.default_rng(5)


def normal(*shape: int) -> Array:
    return CHANCE.normal(size=shape).astype(np.float32)


def with_flax(layer: nnx.Module, weights: Weights) -> nnx.Module:
    left = dict(weights)
    for path, variable in nnx.to_flat_state(nnx.state(layer)):
        variable[...] = jnp.asarray(left.pop(".".join(map(str, path))))
    assert not left
    return layer


def with_torch(layer: torch.nn.Module, weights: Weights) -> torch.nn.Module:
    layer.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return layer.requires_grad_(False)


def check(actual: Array, expected: Array) -> None:
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)


def test_squeeze_and_excitation() -> None:
    x = normal(3, 4, 5, 8)
    w = {
        "reduce.weight": normal(2, 8),
        "reduce.bias": normal(2),
        "expand.weight": normal(8, 2),
        "expand.bias": normal(8),
    }
    hidden = np.maximum(x.astype(np.float64).mean((1, 2)) @ w["reduce.weight"].T + w["reduce.bias"], 0)
    gate = 1 / (1 + np.exp(-(hidden @ w["expand.weight"].T + w["expand.bias"])))
    expected = x * gate[:, None, None]
    check(np.asarray(with_flax(FlaxGate(8, 2), w)(jnp.asarray(x))), expected)
    theirs = with_torch(TorchGate(8, 2), w)(torch.from_numpy(x).movedim(-1, 1))
    check(theirs.movedim(1, -1).numpy(), expected)


def test_fourier_features() -> None:
    x, w = normal(3, 5), {"weight": normal(7, 5) * 3}
    angles = 2 * np.pi * (x.astype(np.float64) @ w["weight"].T.astype(np.float64))
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    check(np.asarray(with_flax(FlaxFourier(5, 7), w)(jnp.asarray(x))), expected)
    check(with_torch(TorchFourier(5, 7), w)(torch.from_numpy(x)).numpy(), expected)


def modulated(x: Array, scale: Array, shift: Array) -> Array:
    """Each of these [B, C]; x is [B, …, C]."""
    stretched = (len(x), *[1] * (x.ndim - 2), -1)
    return x * (1 + scale.reshape(stretched)) + shift.reshape(stretched)


def standard(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    x = x.astype(np.float64)
    return (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)


CONDITIONS = normal(3, 2)


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (3, 6)], ids=["images", "vectors"])
def test_feature_wise_linear_modulation(shape: tuple[int, ...]) -> None:
    x, w = normal(*shape), {"modulation.made.weight": normal(12, 2), "modulation.made.bias": normal(12)}
    scale, shift = np.split(CONDITIONS @ w["modulation.made.weight"].T + w["modulation.made.bias"], 2, axis=-1)
    expected = modulated(x, scale, shift)
    check(np.asarray(with_flax(flax_conditions.Film(2, 6), w)(jnp.asarray(x), flax_here())), expected)
    theirs = with_torch(torch_conditions.Film(2, 6), w)(torch.from_numpy(x).movedim(-1, 1), torch_here())
    check(theirs.movedim(1, -1).numpy(), expected)


def test_adaptive_instance_normalisation() -> None:
    x, w = normal(3, 4, 5, 6), {"modulation.made.weight": normal(12, 2), "modulation.made.bias": normal(12)}
    scale, shift = np.split(CONDITIONS @ w["modulation.made.weight"].T + w["modulation.made.bias"], 2, axis=-1)
    expected = modulated(standard(x, (1, 2), 1e-3), scale, shift)
    check(np.asarray(with_flax(flax_conditions.AdaIn(2, 6, 1e-3), w)(jnp.asarray(x), flax_here())), expected)
    theirs = with_torch(torch_conditions.AdaIn(2, 6, 1e-3), w)(torch.from_numpy(x).movedim(-1, 1), torch_here())
    check(theirs.movedim(1, -1).numpy(), expected)


def test_adaptive_layer_normalisation_with_gates() -> None:
    x, w = normal(3, 4, 5, 6), {"modulation.made.weight": normal(20, 2), "modulation.made.bias": normal(20)}
    activated = CONDITIONS / (1 + np.exp(-CONDITIONS))
    shift, scale, gate = np.split(activated @ w["modulation.made.weight"].T + w["modulation.made.bias"], [6, 12], -1)
    expected = modulated(standard(x, (3,), 1e-3), scale, shift)
    ours, our_gate = with_flax(flax_conditions.AdaLnZero(2, 6, 8, 1e-3), w)(jnp.asarray(x), flax_here())
    theirs, their_gate = with_torch(torch_conditions.AdaLnZero(2, 6, 8, 1e-3), w)(
        torch.from_numpy(x).movedim(-1, 1), torch_here()
    )
    check(np.asarray(ours), expected)
    check(theirs.movedim(1, -1).numpy(), expected)
    check(np.asarray(our_gate)[:, 0, 0], gate)
    check(their_gate[..., 0, 0].numpy(), gate)


def flax_here() -> flax_pass.Pass:
    return flax_pass.Pass(jnp.dtype("float32"), conditions=jnp.asarray(CONDITIONS))


def torch_here() -> torch_pass.Pass:
    return torch_pass.Pass(torch.float32, conditions=torch.from_numpy(CONDITIONS))


RATE = 0.5
KEYS = np.arange(1, 7, dtype=np.uint32)


def block_outputs(framework: str, config: Cnn, x: Array, weights: Weights, keys: Array | None) -> Array:
    if framework == "flax":
        here = flax_pass.Pass(jnp.dtype("float32"), None if keys is None else jnp.asarray(keys))
        return np.asarray(with_flax(flax_cnn.ResidualBlock(config, 0), weights)(jnp.asarray(x), here))
    here = torch_pass.Pass(torch.float32, None if keys is None else torch.from_numpy(keys.astype(np.int64)))
    block = with_torch(torch_cnn.ResidualBlock(config, 0), weights)
    return block(torch.from_numpy(x).movedim(-1, 1), here).movedim(1, -1).numpy()


@pytest.mark.parametrize("framework", ["flax", "torch"])
def test_a_block_is_skipped_for_the_samples_that_chance_says_and_weighs_more_for_the_others(framework: str) -> None:
    x = np.abs(normal(6, 4, 4, 4)) + 20  # so that the last ReLU lets everything through
    weights = {
        **{f"{name}.conv.weight": normal(4, 4, 3, 3) for name in ("first", "second")},
        **{f"{name}.norm.weight": normal(4) for name in ("first", "second")},
        **{f"{name}.norm.bias": normal(4) for name in ("first", "second")},
        "layer_scale.weight": normal(4),
    }
    document = {"channels": [4], "groups": 2, "layerScale": {}, "stochasticDepth": {"rate": RATE}}
    config = Cnn.parse(document)
    added = block_outputs(framework, config, x, weights, None) - x
    unscaled = {**weights, "layer_scale.weight": np.ones(4, np.float32)}
    whole = block_outputs(framework, config, x, unscaled, None) - x
    np.testing.assert_allclose(added, whole * weights["layer_scale.weight"], rtol=1e-4, atol=1e-5)
    skips = randomness.uniform(randomness.at(KEYS, randomness.site("stochastic_depth")), 1, 1, 1) < RATE
    assert 0 < skips.sum() < len(KEYS)
    found = block_outputs(framework, config, x, weights, KEYS) - x
    np.testing.assert_allclose(found, np.where(skips, 0, added / (1 - RATE)), rtol=1e-4, atol=1e-5)


def test_stages_of_several_blocks_halve_the_image_once_each() -> None:
    assert Cnn.parse({"channels": [8, 16], "blocksPerStage": 2}).blocks == [
        (8, 8, 1),
        (8, 8, 1),
        (8, 16, 2),
        (16, 16, 1),
    ]
    assert Cnn.parse({"channels": [8, 8]}).blocks == [(8, 8, 1), (8, 8, 2)]


def test_a_model_that_takes_conditions_is_not_served_without() -> None:
    signature = Signature(
        model=Model.parse({"mlp": {"hidden": [4], "conditionalScaling": {"film": {}}}}),
        kind="vector",
        input_shape=(5,),
        outputs=3,
        condition=2,
    )
    assert data_spec_of(signature).condition == 2
    with pytest.raises(ConfigError) as caught:
        require_servable(signature)
    assert str(caught.value) == (
        "model: takes 2 numbers of data.arrays.condition with each sample, and requests have none; serve a model "
        "without conditionalScaling and adaptiveNorm"
    )
