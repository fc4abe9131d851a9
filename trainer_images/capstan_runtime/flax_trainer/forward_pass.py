"""What a model is told with its inputs, and what it says beside its outputs. Axes: B samples."""

# JAX leaves these parts of its interface untyped.
# mypy: disable-error-code="no-untyped-call,no-any-return"

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from capstan_runtime.flax_trainer import random
from capstan_runtime.flax_trainer.cuts import Cuts, Role
from capstan_runtime.flax_trainer.pipeline import Pipeline
from capstan_runtime.flax_trainer.recomputation import Keeps, without_gathered

Said = dict[str, jax.Array]


class Buffer(nnx.Variable[jax.Array]):
    """State that no gradient moves (`ParameterSpec.is_trained`). `leaf` is its name; `leaves.Structure` tells it."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One call of a model. Modules hand it on; a module with chances of its own hands on its part, `named`."""

    dtype: jnp.dtype
    """What is computed in."""
    keys_B: jax.Array | None = None
    """One key a sample, uint32 (`capstan_runtime.randomness`). None: not training, and nothing is random."""
    perturbation: jax.Array | None = None
    """Added to the inputs, or to the embeddings of tokens; fp32. None: nothing is."""
    conditions: jax.Array | None = None
    """[B, K] fp32: what the data says of each sample beside its input. None: nothing."""
    number: int | jax.Array | None = None
    """Of the layer that sees the call, from 0. None: it is outside of layers, or nothing is random."""
    is_apart: bool = False
    """The tokens have nothing to do with each other, and what one gets must not depend on the others by one bit."""
    losses: dict[str, jax.Array] = field(default_factory=dict)
    """What modules add to the loss, fp32 scalars, each as its share of the mean over the samples."""
    proposals: dict[str, jax.Array] = field(default_factory=dict)
    """What modules propose as next values of their buffers, by name."""
    keeps: Keeps | None = None
    """Which activations inside a block are kept for the backward pass; the others are computed again. None: all are."""
    gather_layer: Callable[[Any], Any] | None = None
    """Makes parameters of a layer, which are cut over the devices, whole. None: they are whole."""
    cuts: Cuts | None = None
    """How activations are cut over the devices of a replica. None: they are not."""
    pipeline: Pipeline | None = None
    """Makes stages of layers that are alike. None: all devices have all layers."""
    experts_over: str | None = None
    """The axis of the mesh over whose devices experts are divided. None: all devices have all of them."""
    measured: dict[str, jax.Array] = field(default_factory=dict)
    """What modules measure, fp32 [layers that do, ...], each a mean over the samples."""

    @property
    def is_training(self) -> bool:
        return self.keys_B is not None

    def named(self, name: str) -> "Pass":
        """The same call as a module called `name` sees it."""
        return self if self.keys_B is None else replace(self, keys_B=random.named(self.keys_B, name))

    def layer(self, number: int) -> "Pass":
        """The same call as layer `number` sees it."""
        return self if self.keys_B is None else replace(self, keys_B=random.at(self.keys_B, number), number=number)

    def cut(self, x: jax.Array, role: Role) -> jax.Array:
        """`x`, of which each device of a replica has what its role there says."""
        return x if self.cuts is None else self.cuts.cut(x, role)

    def split(self, x: jax.Array, sizes: Sequence[int], axis: int) -> list[jax.Array]:
        """What a layer of several matrices, one under the other, puts out along `axis`, in parts of these sizes."""
        if self.cuts is None:
            return jnp.split(x, list(itertools.accumulate(sizes))[:-1], axis=axis)
        return self.cuts.split(x, sizes, axis)

    def by_head(self, attend: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        """`attend`, of which each device of a replica does some heads."""
        return attend if self.cuts is None else self.cuts.by_head(attend)

    def add_loss(self, name: str, value: jax.Array) -> None:
        self.losses[name] = self.losses[name] + value if name in self.losses else value

    def measure(self, name: str, value: jax.Array) -> None:
        """Of the layer that sees the call."""
        self.measure_all(name, jax.lax.stop_gradient(value)[None])

    def measure_all(self, name: str, values: jax.Array) -> None:
        """Of layers that are one after the other, [layers, ...]."""
        others = self.measured.get(name)
        self.measured[name] = values if others is None else jnp.concatenate([others, values])

    def perturbed(self, x: jax.Array) -> jax.Array:
        """`x`, which is the inputs or the embeddings of tokens, with what is added to it, in the type to compute in."""
        return (x if self.perturbation is None else x + self.perturbation).astype(self.dtype)

    def propose(self, buffer: Buffer, value: jax.Array) -> None:
        """The buffer's next value as this micro-step would have it, fp32; the mean over all of them is taken. Proposed
        twice, the later one counts."""
        self.proposals[buffer.leaf] = value


def through_block(block: Callable[[jax.Array, Pass], jax.Array], x: jax.Array, here: Pass) -> jax.Array:
    """`block(x, here)`, of which the backward pass has what `here` keeps."""
    if here.keeps is None:
        return block(x, here)

    def run(x: jax.Array, keys_B: jax.Array | None) -> tuple[jax.Array, tuple[Said, Said, Said]]:
        inside = replace(here, keys_B=keys_B, losses={}, proposals={}, measured={})
        return block(x, inside), (inside.losses, inside.proposals, inside.measured)

    x, (losses, proposals, measured) = jax.checkpoint(run, policy=here.keeps)(x, here.keys_B)
    for name, value in losses.items():
        here.add_loss(name, value)
    here.proposals.update(proposals)
    for name, values in measured.items():
        here.measure_all(name, values)
    return x


def through_layers(
    layer: Callable[[jax.Array, Any, Pass, Any], jax.Array],
    x: jax.Array,
    stacked: Any,
    numbers: range,
    here: Pass,
    given: Any = None,
) -> jax.Array:
    """`x` through the layers `numbers` in a loop: `layer(x, parameters, here, given)` with each layer's slice of
    `stacked`, which holds all layers. A layer uses no other arrays.

    Every layer has its own keys. What it adds to the loss inside the loop reaches `here` as a sum, what it proposes and
    what it measures one layer after the other.
    """

    keeps = here.keeps if here.gather_layer is None else without_gathered(here.keeps)

    def stretch(
        x: jax.Array, keys_B: jax.Array | None, numbered: Any, given: Any
    ) -> tuple[jax.Array, tuple[Said, Said, Said]]:
        def run(x: jax.Array, numbered: tuple[jax.Array, Any]) -> tuple[jax.Array, tuple[Said, Said, Said]]:
            number, parameters = numbered
            if here.gather_layer is not None:
                parameters = here.gather_layer(parameters)
            own_keys_B = None if keys_B is None else random.at(keys_B, number)
            inside = replace(here, keys_B=own_keys_B, number=number, losses={}, proposals={}, measured={})
            return layer(x, parameters, inside, given), (inside.losses, inside.proposals, inside.measured)

        if keeps is not None:
            # Nothing outside the loop could be taken for what is computed again inside, so no barrier is needed.
            run = jax.checkpoint(run, policy=keeps, prevent_cse=False)
        return jax.lax.scan(run, x, numbered)

    if len(numbers) < len(jax.tree.leaves(stacked)[0]):
        stacked = jax.tree.map(lambda whole: whole[numbers.start : numbers.stop], stacked)
    each = jnp.arange(numbers.start, numbers.stop, dtype=jnp.uint32)
    through = stretch if here.pipeline is None else functools.partial(here.pipeline, stretch)
    x, (losses, proposals, measured) = through(x, here.keys_B, (each, stacked), given)
    for name, values in losses.items():
        here.add_loss(name, jnp.sum(values))
    for name, values in proposals.items():  # a loop over the layers may come in parts, first to last
        before = here.proposals.get(name)
        here.proposals[name] = values if before is None else jnp.concatenate([before, values])
    for name, values in measured.items():
        here.measure_all(name, values.reshape(-1, *values.shape[2:]))
    return x
