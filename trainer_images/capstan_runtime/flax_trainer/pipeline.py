"""Layers in stages, one behind the other, that work on different micro-batches at the same time.

GPipe (Huang et al., 1811.06965), written as one program for all devices: what every stage has before it is one array
with an axis over the stages, cut over the mesh. In a tick each device runs its stage, and turning that axis by one
hands on what they made: the compiler makes a message from each stage to the next of it (GSPMD, 2105.04663, section
3.3). With M micro-batches there are M + S - 1 ticks; before its first micro-batch and after its last one a stage
computes what nobody takes.

Axes: S stages, M micro-batches, B samples of all micro-batches, b samples of one, L layers, l layers of one stage.
"""

# JAX leaves these parts of its interface untyped.
# mypy: disable-error-code="no-untyped-call,no-any-return"

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from capstan_runtime.contract.parallelism import Parallelism

AXIS = "pipeline"
"""Of the mesh."""

Stretch = Callable[[jax.Array, jax.Array | None, Any, Any], tuple[jax.Array, Any]]
"""`stretch(x, keys_B, numbered, given)`: samples through layers one after the other, where `numbered` has their numbers
and their parameters, [layers, …], and `given` is for all of them; and what each layer says, [layers, …], a mean over
the samples."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """How a batch goes through the layers. Samples of a micro-batch lie M apart: so every device that has a part of
    the batch has a part of each micro-batch."""

    stages: int
    micro_batches: int

    def __call__(
        self, stretch: Stretch, x_B: jax.Array, keys_B: jax.Array | None, numbered_L: Any, given: Any
    ) -> tuple[jax.Array, Any]:
        """What `stretch` gives for all samples and layers. Of the activations of a tick only the stages' inputs are
        kept for the backward pass."""
        stages, micro_batches = self.stages, self.micro_batches
        ticks = micro_batches + stages - 1
        numbered_S = jax.tree.map(lambda all_L: all_L.reshape(stages, -1, *all_L.shape[1:]), numbered_L)
        x_Mb, keys_Mb = self._parted(x_B), None if keys_B is None else self._parted(keys_B)
        run_stages = jax.checkpoint(_at_each_stage(stretch), prevent_cse=False)

        def tick(carried: tuple[jax.Array, Any], timed: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
            (state_Sb, said_Sl), (number, fresh_b) = carried, timed
            number_S = number - jnp.arange(stages)
            is_due_S = (number_S >= 0) & (number_S < micro_batches)
            keys_Sb = None if keys_Mb is None else keys_Mb[jnp.clip(number_S, 0, micro_batches - 1)]
            state_Sb = _cut(jnp.roll(state_Sb, 1, axis=0).at[0].set(fresh_b))
            state_Sb, more_Sl = run_stages(state_Sb, keys_Sb, numbered_S, given)

            def added(sums: jax.Array, more: jax.Array) -> jax.Array:
                return sums + jnp.where(is_due_S.reshape(-1, *[1] * (more.ndim - 1)), more, 0)

            return (state_Sb, jax.tree.map(added, said_Sl, more_Sl)), state_Sb[-1]

        nothing_b = jnp.zeros_like(x_Mb[0])
        fresh = jnp.concatenate([x_Mb, jnp.broadcast_to(nothing_b, (stages - 1, *nothing_b.shape))])
        state_Sb = jnp.zeros((stages, *nothing_b.shape), x_B.dtype)
        first_keys_Sb = None if keys_Mb is None else jnp.broadcast_to(keys_Mb[0], (stages, *keys_Mb[0].shape))
        said = jax.eval_shape(run_stages, state_Sb, first_keys_Sb, numbered_S, given)[1]
        silence = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), said)
        (_, said_Sl), made = jax.lax.scan(tick, (state_Sb, silence), (jnp.arange(ticks), _whole(fresh)))
        said_L = jax.tree.map(lambda sums: sums.reshape(-1, *sums.shape[2:]) / micro_batches, said_Sl)
        return self._joined(_whole(made)[stages - 1 :]), said_L

    def _parted(self, all_B: jax.Array) -> jax.Array:
        return all_B.reshape(-1, self.micro_batches, *all_B.shape[1:]).swapaxes(0, 1)

    def _joined(self, parts_Mb: jax.Array) -> jax.Array:
        """What comes after the layers is divided over the devices of the stages, by the sample."""
        all_B = parts_Mb.swapaxes(0, 1).reshape(-1, *parts_Mb.shape[2:])
        return _cut(all_B) if len(all_B) % self.stages == 0 else all_B


def stages_of(parallelism: Parallelism | None) -> int:
    """1: every device has all layers."""
    return 1 if parallelism is None else parallelism.pipeline


def in_one(batch: Any) -> Any:
    """A batch [M, b, …] as one of [1, M b, …], in the order that `Pipeline` takes samples in."""
    return jax.tree.map(lambda each: each.swapaxes(0, 1).reshape(1, -1, *each.shape[2:]), batch)


def _at_each_stage(stretch: Stretch) -> Stretch:
    """`stretch` on the devices of each stage with what it has of axis S. Nothing inside is left to the partitioner on
    account of that axis: it would gather what experts exchange."""

    def own(x_1b: jax.Array, keys_1b: jax.Array | None, numbered_1: Any, given: Any) -> Any:
        x_b, keys_b, numbered = jax.tree.map(lambda each: each[0], (x_1b, keys_1b, numbered_1))
        return jax.tree.map(lambda each: each[None], stretch(x_b, keys_b, numbered, given))

    cut = PartitionSpec(AXIS)
    in_specs = (cut, cut, cut, PartitionSpec())
    return jax.shard_map(own, in_specs=in_specs, out_specs=cut, axis_names={AXIS}, check_vma=False)


def _cut(array: jax.Array) -> jax.Array:
    """Along its first axis over the stages."""
    return _constrained(array, AXIS)


def _whole(array: jax.Array) -> jax.Array:
    """On every stage, and so are its gradients: a loop takes slices of it."""
    return _constrained(array, None)


def _constrained(array: jax.Array, first: str | None) -> jax.Array:
    rest = [PartitionSpec.UNCONSTRAINED] * (array.ndim - 1)
    return jax.lax.with_sharding_constraint(array, PartitionSpec(first, *rest))
