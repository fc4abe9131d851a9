"""Every layer of both frameworks against a few lines of numpy in double precision."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from capstan_runtime.contract.models import Transformer
from capstan_runtime.deepspeed_trainer import decoder as torch_decoder
from capstan_runtime.deepspeed_trainer import forward_pass as torch_pass
from capstan_runtime.deepspeed_trainer import layers as torch_layers
from capstan_runtime.deepspeed_trainer.components import positions as torch_positions
from capstan_runtime.flax_trainer import decoder as flax_decoder
from capstan_runtime.flax_trainer import forward_pass as flax_pass
from capstan_runtime.flax_trainer import layers as flax_layers
from capstan_runtime.flax_trainer.components import positions as flax_positions

Array = np.ndarray
Weights = dict[str, Array]
RANDOM = np.random.default_rng(0)
FLAX, TORCH = flax_pass.Pass(jnp.dtype("float32")), torch_pass.Pass(torch.float32)
DECODER = Transformer(layers=1, dim=24, heads=6, kv_heads=2, hidden_dim=40)


def normal(*shape: int) -> Array:
    return RANDOM.normal(size=shape).astype(np.float32)


def run_flax(layer: nnx.Module, weights: Weights, *inputs: Any) -> Array:
    for path, parameter in nnx.to_flat_state(nnx.state(layer, nnx.Param)):
        parameter[...] = jnp.asarray(weights.pop(".".join(path)))
    assert not weights
    return np.asarray(layer(*inputs))


def run_torch(layer: torch.nn.Module, weights: Weights, *inputs: Any) -> Array:
    layer.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    with torch.no_grad():
        return layer(*inputs).numpy()


def check(actual: Array, expected: Array) -> None:
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=2e-5)


def linear(x: Array, w: Weights) -> Array:
    return x.astype(np.float64) @ w["weight"].T.astype(np.float64) + w.get("bias", 0.0)


def rms_norm(x: Array, gain: Array, epsilon: float) -> Array:
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * gain


def convolution(x_bssc: Array, kernel: Array, stride: int) -> Array:
    o, _, k, _ = kernel.shape
    b, h, w, _ = x_bssc.shape
    padded = np.pad(x_bssc.astype(np.float64), ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    out = np.zeros((b, -(-h // stride), -(-w // stride), o))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            patch = padded[:, i * stride : i * stride + k, j * stride : j * stride + k]
            out[:, i, j] = np.einsum("bhwc,ochw->bo", patch, kernel)
    return out


def rotate(x_btnh: Array, theta: float) -> Array:
    _, t, _, h = x_btnh.shape
    angles = np.arange(t)[:, None] * theta ** (-np.arange(0, h, 2) / h)
    turn = np.exp(1j * angles)[None, :, None, :]
    turned = (x_btnh[..., : h // 2] + 1j * x_btnh[..., h // 2 :]) * turn
    return np.concatenate([turned.real, turned.imag], axis=-1)


def attention(x_btd: Array, w: Weights, config: Transformer) -> Array:
    b, t, d = x_btd.shape
    n, k, h = config.heads, config.kv_heads, d // config.heads
    heads = (x_btd.astype(np.float64) @ w["qkv.weight"].T).reshape(b, t, n + 2 * k, h)
    q, keys, v = heads[:, :, :n], heads[:, :, n : n + k], heads[:, :, n + k :]
    q, keys = rotate(q, config.rope_theta), rotate(keys, config.rope_theta)
    out = np.zeros((b, t, n, h))
    for head in range(n):
        group = head // (n // k)
        scores = np.einsum("bth,bsh->bts", q[:, :, head], keys[:, :, group]) / np.sqrt(h)
        scores[:, np.triu(np.ones((t, t), bool), 1)] = -np.inf
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        out[:, :, head] = (scores / scores.sum(-1, keepdims=True)) @ v[:, :, group]
    return out.reshape(b, t, d) @ w["out.weight"].T


def feed_forward(x_btd: Array, w: Weights) -> Array:
    gate, up = np.split(x_btd.astype(np.float64) @ w["gate_up.weight"].T, 2, axis=-1)
    return (gate / (1 + np.exp(-gate)) * up) @ w["down.weight"].T


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias: bool) -> None:
    x, w = normal(3, 5), {"weight": normal(7, 5), **({"bias": normal(7)} if bias else {})}
    expected = linear(x, w)
    check(run_flax(flax_layers.Linear(5, 7, bias=bias), dict(w), jnp.asarray(x)), expected)
    check(run_torch(torch_layers.Linear(5, 7, bias=bias), w, torch.from_numpy(x)), expected)


def test_embedding() -> None:
    ids, w = RANDOM.integers(0, 9, size=(2, 4)).astype(np.int32), {"weight": normal(9, 5)}
    expected = w["weight"][ids]
    check(run_flax(flax_layers.Embedding(9, 5), dict(w), jnp.asarray(ids), jnp.float32), expected)
    check(run_torch(torch_layers.Embedding(9, 5), w, torch.from_numpy(ids), torch.float32), expected)


def test_rms_norm() -> None:
    x, w = normal(2, 3, 8) * 4, {"weight": normal(8)}
    expected = rms_norm(x, w["weight"], 1e-3)
    check(run_flax(flax_layers.RmsNorm(8, 1e-3), dict(w), jnp.asarray(x)), expected)
    check(run_torch(torch_layers.RmsNorm(8, 1e-3), w, torch.from_numpy(x)), expected)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 2)])
@pytest.mark.parametrize("side", [8, 7])
def test_convolution(size: int, stride: int, side: int) -> None:
    x, w = normal(2, side, side, 3), {"weight": normal(5, 3, size, size)}
    expected = convolution(x, w["weight"], stride)
    check(run_flax(flax_layers.Kernel(3, 5, size), dict(w), jnp.asarray(x), stride), expected)
    actual = run_torch(torch_layers.Kernel(3, 5, size), w, torch.from_numpy(x).permute(0, 3, 1, 2), stride)
    check(actual.transpose(0, 2, 3, 1), expected)


def test_rotary_positions() -> None:
    x = normal(2, 5, 3, 8)
    expected = rotate(x, 100.0)
    check(np.asarray(flax_layers.rotate(jnp.asarray(x), flax_layers.rotary_table(jnp.arange(5), 8, 100.0))), expected)
    table = torch_layers.rotary_table(torch.arange(5), 8, 100.0)
    check(torch_layers.rotate(torch.from_numpy(x), table).numpy(), expected)


def test_rotary_scores_depend_on_distance_alone() -> None:
    x = np.broadcast_to(normal(1, 1, 1, 8), (1, 9, 1, 8))
    turned = np.asarray(flax_layers.rotate(jnp.asarray(x), flax_layers.rotary_table(jnp.arange(9), 8, 100.0)))[0, :, 0]
    scores = turned @ turned.T
    for distance in range(9):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-5)


def test_grouped_query_attention() -> None:
    x, w = normal(2, 5, 24), {"qkv.weight": normal(40, 24) / 4, "out.weight": normal(24, 24) / 4}
    expected = attention(x, w, DECODER)
    where = flax_positions.positions_of(DECODER, jnp.arange(5), FLAX.dtype)
    check(run_flax(flax_decoder.Attention(DECODER), dict(w), jnp.asarray(x), where, FLAX), expected)
    torch_where = torch_positions.PositionsOf(DECODER).at(torch.arange(5), torch.float32)
    check(run_torch(torch_decoder.Attention(DECODER), w, torch.from_numpy(x), torch_where), expected)


def test_swiglu() -> None:
    x, w = normal(2, 5, 24), {"gate_up.weight": normal(80, 24) / 4, "down.weight": normal(24, 40) / 4}
    expected = feed_forward(x, w)
    check(run_flax(flax_decoder.FeedForward(DECODER), dict(w), jnp.asarray(x), FLAX), expected)
    check(run_torch(torch_decoder.FeedForward(DECODER), w, torch.from_numpy(x), TORCH), expected)


def test_half_precision_comes_out_as_it_went_in() -> None:
    x = normal(2, 5, 24)
    weights = {"gate_up.weight": normal(80, 24) / 4, "down.weight": normal(24, 40) / 4}
    expected = feed_forward(x, weights)
    flax = run_flax(flax_decoder.FeedForward(DECODER), dict(weights), jnp.asarray(x, jnp.bfloat16), FLAX)
    layer = torch_decoder.FeedForward(DECODER)
    layer.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    with torch.no_grad():
        theirs = layer(torch.from_numpy(x).bfloat16(), TORCH)
    assert (str(flax.dtype), theirs.dtype) == ("bfloat16", torch.bfloat16)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(flax.astype(np.float64), expected, atol=0.02 * scale)
    np.testing.assert_allclose(theirs.double().numpy(), expected, atol=0.02 * scale)
