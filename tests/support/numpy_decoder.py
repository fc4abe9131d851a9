"""The decoder and its components in double precision numpy, a few lines each: what both frameworks are compared with.

Axes: B batch, T time, D model width, N query heads, K key and value heads, H head width.
"""

from collections.abc import Mapping

import numpy as np

from capstan_runtime.contract.decoder_components import Experts
from capstan_runtime.contract.models import Transformer
from capstan_runtime.randomness import Keys, at, site, uniform

Array = np.ndarray
Weights = Mapping[str, Array]


class NumpyDecoder:
    """`decoder(tokens, keys)`: logits [B, T, vocabulary]; with keys as in training, without as in evaluation."""

    def __init__(self, config: Transformer, weights: Weights) -> None:
        self.config = config
        self.losses, self.loads, self.dropped = 0.0, [], []
        """Of the calls so far: what experts add to the loss, and by layer, which share of all choices each expert is,
        and which share finds it full."""
        self.weights = {name: value.astype(np.float64) for name, value in weights.items()}

    def __call__(self, tokens_BT: Array, keys_B: Keys | None) -> Array:
        config = self.config
        x = self.drop_elements(self.weights["embed.weight"][tokens_BT], named(keys_B, "embed"))
        first = second = x
        for layer in range(config.layers):
            keys = None if keys_B is None else at(keys_B, layer)
            if config.reversible is None:
                x = x + self.branch("attention", x, layer, keys)
                x = x + self.branch("feed_forward", x, layer, keys)
            else:
                first = first + self.branch("attention", second, layer, keys)
                second = second + self.branch("feed_forward", first, layer, keys)
                x = (first + second) / 2
        return rms_norm(x, self.weights["norm.weight"], config.norm_epsilon) @ self.weights["head.weight"].T

    def branch(self, name: str, x: Array, layer: int, keys_B: Keys | None) -> Array:
        """What a branch of a layer adds to `x`."""
        taken, keys = self.taken(x, layer, keys_B), named(keys_B, name)
        prefix = f"layers.{layer}."
        w = {key.removeprefix(prefix): value for key, value in self.weights.items() if key.startswith(prefix)}
        some = np.take_along_axis(x, taken[..., None], axis=1)
        normal = rms_norm(some, w[f"{name}_norm.weight"], self.config.norm_epsilon)
        compute = self.attention if name == "attention" else self.feed_forward
        delta = compute(normal, taken, w, keys) * w.get(f"{name}_scale.weight", 1.0)
        added = np.zeros_like(x)
        delta = self.drop_branch(self.drop_elements(delta, keys), layer, keys)
        np.put_along_axis(added, taken[..., None], delta, axis=1)
        return added

    def taken(self, x: Array, layer: int, keys_B: Keys | None) -> Array:
        """Which tokens a layer takes, [B, T]: all, or between the first layer and the last those of the least draws."""
        batch, length, _ = x.shape
        if self.config.token_dropout is None or keys_B is None or layer in (0, self.config.layers - 1):
            return np.broadcast_to(np.arange(length), (batch, length))
        draws = uniform(named(keys_B, "token_dropout"), length)
        return np.sort(np.argsort(draws, kind="stable")[:, : round(self.config.token_dropout.keep * length)])

    def attention(self, x: Array, positions_BT: Array, w: Weights, keys_B: Keys | None) -> Array:
        config, (batch, length, dim) = self.config, x.shape
        n, k, h = config.heads, config.kv_heads or config.heads, dim // config.heads
        heads = (x @ w["attention.qkv.weight"].T).reshape(batch, length, n + 2 * k, h)
        q, keys, v = heads[:, :, :n], heads[:, :, n : n + k], heads[:, :, n + k :]
        if config.alibi is None:
            q, keys = (rotate(each, positions_BT, config.rope_theta) for each in (q, keys))
        keys, v = (np.repeat(each, n // k, axis=2) for each in (keys, v))
        distances = positions_BT[:, :, None] - positions_BT[:, None, :]
        scores = np.einsum("btnh,bsnh->bnts", q, keys) / np.sqrt(h)
        if config.alibi is not None:
            scores = scores - np.asarray(slopes(n))[:, None, None] * distances[:, None]
        scores = np.exp(np.where(distances[:, None] < 0, -np.inf, scores))
        mixed = np.einsum("bnts,bsnh->btnh", scores / scores.sum(-1, keepdims=True), v)
        return mixed.reshape(batch, length, dim) @ w["attention.out.weight"].T

    def feed_forward(self, x: Array, positions_BT: Array, w: Weights, keys_B: Keys | None) -> Array:
        if self.config.experts is not None:
            return self.mixture(self.config.experts, x, w, keys_B)
        gate, up = np.split(x @ w["feed_forward.gate_up.weight"].T, 2, axis=-1)
        units, adaptive = gate * sigmoid(gate) * up, self.config.adaptive_dropout
        if adaptive is not None:
            kept_share = sigmoid(adaptive.scale * gate + adaptive.shift)
            draws = None if keys_B is None else uniform(named(keys_B, "adaptive_dropout"), *gate.shape[1:])
            units = units * (kept_share if draws is None else draws < kept_share)
        return units @ w["feed_forward.down.weight"].T

    def mixture(self, experts: Experts, x: Array, w: Weights, keys_B: Keys | None) -> Array:
        """Token by token, as one would say it."""
        (batch, length, _), seen, k = x.shape, x, experts.top_k
        if experts.jitter is not None and keys_B is not None:
            seen = x * (1 + experts.jitter * (2 * uniform(named(keys_B, "jitter"), *x.shape[1:]) - 1))
        logits = seen @ w["feed_forward.router.weight"].T
        shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        chosen = np.argsort(-shares, axis=-1, kind="stable")[..., :k]
        factor = experts.capacity_factor if keys_B is not None else experts.eval_capacity_factor
        capacity = length if experts.dropless else min(length, int(np.ceil(factor * length * k / experts.count)))
        y, dropped = np.zeros_like(x), 0
        for sample in range(batch):
            room = [capacity] * experts.count
            for choice, token in np.ndindex(k, length):
                expert = chosen[sample, token, choice]
                if not room[expert]:
                    dropped += 1
                    continue
                room[expert] -= 1
                gate, up = np.split(w["feed_forward.gate_up.weight"][expert] @ x[sample, token], 2)
                made = w["feed_forward.down.weight"][expert] @ (gate * sigmoid(gate) * up)
                of_all = shares[sample, token, chosen[sample, token]].sum() if k > 1 else 1.0
                y[sample, token] += shares[sample, token, expert] / of_all * made
        load = np.stack([(chosen == expert).mean((1, 2)) for expert in range(experts.count)], axis=-1)
        self.losses += experts.auxiliary_loss * experts.count * (load * shares.mean(1)).sum(-1).mean()
        self.losses += experts.z_loss * (np.log(np.exp(logits).sum(-1)) ** 2).mean()
        self.loads.append(load.mean(0))
        self.dropped.append(dropped / chosen.size)
        return y

    def drop_elements(self, x: Array, keys_B: Keys | None) -> Array:
        _, length, dim = x.shape
        if self.config.dropout is not None:
            x = drop(x, named(keys_B, "dropout"), self.config.dropout.rate, length, dim)
        if self.config.temporal_dropout is not None:
            x = drop(x, named(keys_B, "temporal_dropout"), self.config.temporal_dropout.rate, 1, dim)
        return x

    def drop_branch(self, x: Array, layer: int, keys_B: Keys | None) -> Array:
        if self.config.stochastic_depth is None:
            return x
        rate = self.config.stochastic_depth.rate * (layer + 1) / self.config.layers
        return drop(x, named(keys_B, "stochastic_depth"), rate, 1, 1)


def named(keys_B: Keys | None, name: str) -> Keys | None:
    return None if keys_B is None else at(keys_B, site(name))


def drop(x: Array, keys_B: Keys | None, rate: float, *shape: int) -> Array:
    return x if keys_B is None else np.where(uniform(keys_B, *shape) >= np.float32(rate), x / (1 - rate), 0.0)


def slopes(heads: int) -> list[float]:
    """The recursion of the paper's code: the power of two below, then every second slope of the one above."""
    if heads & (heads - 1) == 0:
        return [2 ** (-8 * (head + 1) / heads) for head in range(heads)]
    below = 1 << (heads.bit_length() - 1)
    return slopes(below) + slopes(2 * below)[0::2][: heads - below]


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def rms_norm(x: Array, gain: Array, epsilon: float) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * gain


def rotate(x_btnh: Array, positions_BT: Array, theta: float) -> Array:
    half = x_btnh.shape[-1] // 2
    turn = np.exp(1j * positions_BT[:, :, None, None] * theta ** (-np.arange(half) / half))
    turned = (x_btnh[..., :half] + 1j * x_btnh[..., half:]) * turn
    return np.concatenate([turned.real, turned.imag], axis=-1)
