"""Models as users write them: nothing in here knows of Capstan."""

# Calling a torch or an NNX module has no type.
# mypy: disable-error-code="no-any-return"

from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor, nn

MARK = 2**25 + 1
"""A count that fp32 does not hold."""


class TorchClassifier(nn.Module):
    """Images of [B, C, H, W]."""

    def __init__(self, channels: int, classes: int, width: int, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.GroupNorm(2, width)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(width, classes)
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("mark", torch.tensor([MARK]).expand(2))
        self.register_buffer("zero", torch.tensor(0.0), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(images)))
        return self.head(self.drop(x.mean(dim=(2, 3)))) * self.scale + self.zero


def torch_classifier(data: Any, width: int = 8, dropout: float = 0.0) -> nn.Module:
    return TorchClassifier(data.input_shape[-1], data.outputs, width, dropout)


class TorchDecoder(nn.Module):
    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 16)
        self.head = nn.Linear(16, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens))


def torch_decoder(data: Any) -> nn.Module:
    return TorchDecoder(data.outputs)


class FlaxClassifier(nnx.Module):
    """Images of [B, H, W, C]."""

    def __init__(self, channels: int, classes: int, width: int, dropout: float, rngs: nnx.Rngs) -> None:
        self.stem = nnx.Conv(channels, width, (3, 3), rngs=rngs)
        self.norm = nnx.GroupNorm(width, num_groups=2, rngs=rngs)
        self.drop = nnx.Dropout(dropout, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)
        self.scale = jnp.asarray(2.0)
        self.mark = nnx.Variable(jnp.asarray([MARK, MARK]))

    def __call__(self, images: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.stem(images)))
        return self.head(self.drop(x.mean(axis=(1, 2)))) * self.scale


def flax_classifier(data: Any, rngs: nnx.Rngs, width: int = 8, dropout: float = 0.0) -> nnx.Module:
    return FlaxClassifier(data.input_shape[-1], data.outputs, width, dropout, rngs)


class FlaxStatistics(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm = nnx.BatchNorm(64, rngs=rngs)
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.head(self.norm(images.reshape(len(images), -1)))


def torch_statistics(data: Any) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))


def flax_statistics(data: Any, rngs: nnx.Rngs) -> nnx.Module:
    return FlaxStatistics(rngs)


class TorchLate(nn.Module):
    """Changes a buffer, but not at once."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)
        self.calls = 0
        self.register_buffer("scale", torch.tensor(1.0))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 3:
            self.scale *= 0.9
        return self.head(images.flatten(1)) * self.scale


def torch_late(data: Any) -> nn.Module:
    return TorchLate()


def torch_complex(data: Any) -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    module.register_buffer("waves", torch.zeros(3, dtype=torch.complex64))
    return module


class FlaxComplex(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.waves = nnx.Variable(jnp.zeros(3, jnp.complex64))
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.head(images.reshape(len(images), -1))


def flax_complex(data: Any, rngs: nnx.Rngs) -> nnx.Module:
    return FlaxComplex(rngs)


def torch_frozen(data: Any) -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    module[1].bias.requires_grad_(False)
    return module


def torch_wrong_outputs(data: Any) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))


def flax_wrong_outputs(data: Any, rngs: nnx.Rngs) -> nnx.Module:
    return nnx.Sequential(lambda x: x.reshape(len(x), -1), nnx.Linear(64, 7, rngs=rngs))


def torch_wrong_inputs(data: Any) -> nn.Module:
    return nn.Linear(3, 10)


def flax_wrong_inputs(data: Any, rngs: nnx.Rngs) -> nnx.Module:
    return nnx.Linear(3, 10, rngs=rngs)


def of_no_framework(data: Any, **given: Any) -> object:
    return object()


def torch_unseeded(data: Any) -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    torch.nn.init.normal_(module[1].weight, generator=torch.Generator().manual_seed(torch.seed() % 2**31))
    return module


def torch_unseeded_buffer(data: Any) -> nn.Module:
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    module.register_buffer("frozen", torch.from_numpy(np.random.default_rng().normal(size=3)).bfloat16())
    return module


class FlaxFrozen(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.frozen = nnx.Variable(jnp.asarray(np.random.default_rng().normal(size=10)))
        self.head = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        return self.head(images.reshape(len(images), -1)) + self.frozen


def flax_unseeded_constant(data: Any, rngs: nnx.Rngs) -> nnx.Module:
    return FlaxFrozen(rngs)


NOT_CALLABLE = 3
