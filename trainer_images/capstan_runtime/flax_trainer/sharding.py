"""Fully sharded data parallelism: every leaf is cut evenly over all devices, and whole only while it is used.

Rajbhandari et al., 1910.02054 (ZeRO, stage 3); Zhao et al., 2304.11277 (FSDP). A leaf is flattened, padded with zeros
to a multiple of the devices, and each of them keeps one piece; where layers are stacked, each layer is cut by itself,
so that it can be gathered by itself. The derivative of gathering is the sum of all gradients, scattered: each device
gets the piece that belongs to its weights. Nothing here depends on the number of devices but where the cuts are.

Axes: L stacked layers, W devices, P elements of a piece.
"""

# JAX leaves these parts of its interface untyped.
# mypy: disable-error-code="no-untyped-call,no-any-return"

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from capstan_runtime.engine import LocalTensor, TensorSource
from capstan_runtime.flax_trainer.export import FETCHED_AHEAD, begin_fetch
from capstan_runtime.flax_trainer.leaves import Leaf, dotted
from capstan_runtime.flax_trainer.mesh import AXIS
from capstan_runtime.model_spec import read_part, tensor_name
from capstan_runtime.parallel.ahead import begun_ahead
from capstan_runtime.updates import StateKind


class FullSharding:
    """How the leaves of a model are cut over the devices of `mesh`: over its "data" and, where it has that axis,
    "sequence", whose parts XLA's partitioner joins before they are gathered."""

    axis = AXIS

    def __init__(self, leaves: Sequence[Leaf], mesh: Mesh) -> None:
        self._mesh = mesh
        self._axes = tuple(name for name in (AXIS, "sequence") if name in mesh.axis_names)
        self._layers = {leaf.name.partition(".")[2]: leaf.shape[1:] for leaf in leaves if leaf.stack}
        if len(self._layers) != sum(leaf.stack for leaf in leaves):
            raise AssertionError("two stacks have parameters of one name, and a layer could not tell their shapes")

    def spec(self, leaf: Leaf) -> PartitionSpec:
        """Of [L, W P], or of [W P]."""
        return PartitionSpec(*[None] * leaf.stack, self._axes)

    def manual_spec(self, leaf: Leaf) -> PartitionSpec:
        """Of it what `jax.shard_map` is told, which only knows of "data"."""
        return PartitionSpec(*[None] * leaf.stack, AXIS)

    def place(self, leaf: Leaf, whole: np.ndarray, memory: str | None = None) -> jax.Array:
        """`whole`, which every process has alike, in pieces, in that kind of memory; None: the devices' own. Copies
        nothing between processes."""
        flat = whole.reshape(*whole.shape[: leaf.stack], -1)

        def piece(start: int, stop: int) -> np.ndarray:
            return flat[..., start:stop]

        return self._from_pieces(leaf, piece, memory)

    def read(self, leaf: Leaf, source: TensorSource, kind: StateKind | None, memory: str | None = None) -> jax.Array:
        """The parameters, or their state of a kind, out of a checkpoint: only what this process keeps of them is read.
        Raises as `read_part` does."""
        name = None if kind is None else kind.name

        def piece(start: int, stop: int) -> np.ndarray:
            parts = [read_part(source, spec.tensor_name(name), spec.shape, start, stop) for spec in leaf.parameters]
            return np.stack(parts).astype(np.float32, copy=False).reshape(*leaf.shape[: leaf.stack], -1)

        return self._from_pieces(leaf, piece, memory)

    def export(self, values: Sequence[tuple[str | None, Sequence[Leaf], Sequence[jax.Array]]]) -> Iterator[LocalTensor]:
        """The pieces of this process."""
        stored = [
            (leaf, kind, shard)
            for kind, leaves, arrays in values
            for leaf, array in zip(leaves, arrays, strict=True)
            for shard in array.addressable_shards
        ]
        hosts = begun_ahead((shard.data for _, _, shard in stored), begin_fetch, FETCHED_AHEAD)
        for (leaf, kind, shard), host in zip(stored, hosts, strict=True):
            start = shard.index[-1].start or 0
            for spec, layer in zip(leaf.parameters, np.asarray(host).reshape(len(leaf.parameters), -1), strict=True):
                data = layer[: max(0, spec.size - start)]
                if data.size:
                    yield LocalTensor(tensor_name(spec.name, kind), spec.shape, start, data)

    def gather(self, leaf: Leaf, pieces: jax.Array) -> jax.Array:
        """The whole leaf of this device's piece, inside `shard_map`."""
        return self._whole(pieces, leaf.shape)

    def usable(self, leaves: Sequence[Leaf], pieces: Sequence[jax.Array]) -> list[jax.Array]:
        """What the model is assembled from: leaves that are whole, but stacks, whose layers are gathered one by one."""
        return [p if leaf.stack else self.gather(leaf, p) for leaf, p in zip(leaves, pieces, strict=True)]

    def gather_layer(self, parameters: Any) -> Any:
        """One layer's slice of a stack, a tree of pieces, with whole leaves in their place."""
        return jax.tree_util.tree_map_with_path(
            lambda path, piece: self._whole(piece, self._layers[dotted(path)]), parameters
        )

    def _whole(self, pieces: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        if len(self._axes) > 1:
            pieces = jax.lax.with_sharding_constraint(pieces, PartitionSpec())
        padded = jax.lax.all_gather(pieces, self.axis, axis=pieces.ndim - 1, tiled=True)
        stacked = shape[: pieces.ndim - 1]
        return padded[..., : math.prod(shape[len(stacked) :])].reshape(shape)

    def _from_pieces(self, leaf: Leaf, piece: Callable[[int, int], np.ndarray], memory: str | None) -> jax.Array:
        size = leaf.parameters[0].size
        devices = math.prod(self._mesh.shape[axis] for axis in self._axes)
        length = -(-size // devices) * devices

        def padded(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            start, stop, _ = index[-1].indices(length)
            values = np.zeros((*leaf.shape[: leaf.stack], stop - start), np.float32)
            if start < size:
                values[..., : size - start] = piece(start, min(stop, size))
            return values

        sharding = NamedSharding(self._mesh, self.spec(leaf), memory_kind=memory)
        return jax.make_array_from_callback((*leaf.shape[: leaf.stack], length), sharding, padded)
