"""How activations are cut over the devices of one replica: all that a model's code knows of parallelism (`Pass`).

Tensor parallelism (Megatron: Shoeybi et al., 1909.08053): heads and hidden units are divided, and what the devices add
to the residual stream is summed. Sequence parallelism (Ulysses: Jacobs et al., 2309.14509): outside of attention each
device has a stretch of every sequence, inside some of the heads; all-to-all exchanges lead from one to the other.

Axes: B batch, T time, D model width, N heads, H head width, F hidden units or other outputs of a layer that is cut.
"""

# JAX leaves these parts of its interface untyped.
# mypy: disable-error-code="no-untyped-call,no-any-return"

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from capstan_runtime.contract.parallelism import Parallelism
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.errors import ConfigError
from capstan_runtime.flax_trainer.mesh import on_each_device

Role = Literal["tokens", "units", "samples"]
"""Of an activation [B, T, …]: a stretch of each sequence, with all of its coordinates; that with some of them; some
sequences, whole."""

_HEADS = PartitionSpec(None, None, ("tensor", "sequence"))
_HEADS_OF_BIAS = PartitionSpec(None, ("tensor", "sequence"))


@dataclass(frozen=True, slots=True)
class Cuts:
    """Inside `jax.shard_map` over a mesh whose other axes are automatic."""

    sequence: int
    tensor: int
    samples: Any = None
    """What is said of the axis over samples: that nothing cuts it or, where stages divide what comes after the layers
    among them, nothing."""

    def cut(self, x: jax.Array, role: Role) -> jax.Array:
        """`x`, laid out as `role` says. What the devices do not divide stays whole."""
        if role == "samples":
            spec = PartitionSpec(self.samples if len(x) % self.sequence else "sequence")
        elif role == "tokens" or x.shape[2] % self.tensor:
            spec = PartitionSpec(self.samples, "sequence")
        else:
            spec = PartitionSpec(self.samples, "sequence", "tensor")
        return jax.lax.with_sharding_constraint(x, spec)

    def split(self, x: jax.Array, sizes: Sequence[int], axis: int) -> list[jax.Array]:
        """The parts of what a layer puts out along `axis`, when its rows are ordered as `partition.Partition` keeps
        them: each device's part of every part is on it."""
        axis %= x.ndim
        if any(size % self.tensor for size in sizes):  # and so the layer's rows are whole on every device
            return jnp.split(x, list(itertools.accumulate(sizes))[:-1], axis=axis)
        pieces = x.reshape(*x.shape[:axis], self.tensor, -1, *x.shape[axis + 1 :])
        pieces = self._by_tensor(pieces, axis)
        ends = list(itertools.accumulate(size // self.tensor for size in sizes))[:-1]
        parts = jnp.split(pieces, ends, axis=axis + 1)
        return [
            self._by_tensor(part.reshape(*x.shape[:axis], size, *x.shape[axis + 1 :]), axis)
            for part, size in zip(parts, sizes, strict=True)
        ]

    def by_head(self, attend: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        """`attend(q_BTNH, k_BTKH, v_BTKH, where)` with some of the heads on each device, and each of them whole there:
        nothing is left to the partitioner, which knows no flash kernels."""

        def attend_here(q_BTNH: jax.Array, k_BTKH: jax.Array, v_BTKH: jax.Array, where: Any) -> jax.Array:
            bias = () if where.bias is None else (where.bias,)

            def local(q: jax.Array, k: jax.Array, v: jax.Array, *bias: jax.Array) -> jax.Array:
                return attend(q, k, v, where._replace(rotary=None, bias=bias[0] if bias else None, taken=None))

            specs = (_HEADS,) * 3 + (_HEADS_OF_BIAS,) * len(bias)
            # From stretches of the sequences to heads here, and nowhere in what led to queries and keys.
            stretches = (self._by_tensor(each, 2) for each in (q_BTNH, k_BTKH, v_BTKH))
            return on_each_device(local, specs, _HEADS)(*stretches, *bias)

        return attend_here

    def _by_tensor(self, x: jax.Array, axis: int) -> jax.Array:
        """Cut along `axis` and, where it comes right after B and T, along T."""
        spec: list[str | None] = [None] * x.ndim
        spec[1], spec[axis] = "sequence" if axis == 2 else None, "tensor"
        return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def cuts_of(parallelism: Parallelism | None, data: DataSpec) -> Cuts | None:
    """None: a device has activations whole. Raises ConfigError if sequences cannot be cut evenly."""
    if parallelism is None:
        return None
    length = data.input_shape[0]
    if length % parallelism.sequence:
        raise ConfigError(
            f"spec.parallelism.sequence: {parallelism.sequence} does not divide the data's sequence length {length}; "
            "choose a divisor"
        )
    samples = None if parallelism.pipeline == 1 else PartitionSpec.UNCONSTRAINED
    return Cuts(parallelism.sequence, parallelism.tensor, samples)
