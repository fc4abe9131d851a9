"""Which devices have which part of the parameters and their state, where the devices of a replica share its matrices.

A matrix is cut by rows or by columns over "tensor" (`_CUTS`), or whole on every device. Where it is several, one under
the other (queries, keys and values; gate and up), a device has its part of each: rows are kept in the order in which
they lie on the devices, of which checkpoints know nothing.
"""

# JAX leaves these parts of its interface untyped.
# mypy: disable-error-code="no-untyped-call,no-any-return"

import bisect
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from capstan_runtime.contract.models import Model, Transformer
from capstan_runtime.engine import LocalTensor, TensorSource
from capstan_runtime.flax_trainer import pipeline
from capstan_runtime.flax_trainer.export import Index, Piece, Stretch, export_pieces, own_pieces
from capstan_runtime.flax_trainer.leaves import Leaf, replicate
from capstan_runtime.flax_trainer.mesh import EXPERT
from capstan_runtime.model_spec import kv_heads, read_part
from capstan_runtime.updates import StateKind

_AXIS = "tensor"
_ROWS, _COLUMNS = -2, -1
_CUTS = {
    "embed": _ROWS,
    "head": _ROWS,
    "layers.attention.qkv": _ROWS,
    "layers.attention.out": _COLUMNS,
    "layers.feed_forward.gate_up": _ROWS,
    "layers.feed_forward.down": _COLUMNS,
}
"""The layers whose weights are cut, and along which dimension. Norms, gains and routers are whole."""


@dataclass(frozen=True, slots=True)
class _Cut:
    dim: int
    """`_ROWS` or `_COLUMNS`."""
    parts: tuple[int, ...]
    """Rows of the matrices that lie one under the other."""


class Partition:
    """How the leaves of a model are cut over the devices of `mesh`; not at all where nothing is parallel but data."""

    def __init__(self, leaves: Sequence[Leaf], mesh: Mesh, model: Model) -> None:
        self._mesh = mesh
        self._degree: int = mesh.shape.get(_AXIS, 1)
        self._has_stages, self._shares_experts = (mesh.shape.get(axis, 1) > 1 for axis in (pipeline.AXIS, EXPERT))
        self._cuts: dict[str, _Cut] = {}
        if model.transformer is not None and self._degree > 1:
            found = ((leaf.name, _cut_of(leaf, model.transformer, self._degree)) for leaf in leaves)
            self._cuts = {name: cut for name, cut in found if cut is not None}

    def specs(self, leaves: Sequence[Leaf], kind: StateKind | None = None) -> list[PartitionSpec]:
        """Of the parameters, or of their state of a kind."""
        return [self._spec_of(leaf, kind) for leaf in leaves]

    def manual_specs(self, leaves: Sequence[Leaf]) -> list[PartitionSpec]:
        """Of what `jax.shard_map` is told: which replica has what."""
        return [_spec([axis if axis == EXPERT else None for axis in self._axes(leaf)]) for leaf in leaves]

    def specs_within_replica(self, leaves: Sequence[Leaf]) -> list[PartitionSpec]:
        """What is left of `specs` inside `jax.shard_map`."""
        return [_spec([None if axis == EXPERT else axis for axis in spec]) for spec in self.specs(leaves)]

    def shared_over(self, leaf: Leaf) -> str | None:
        """The axis over replicas that share the experts of which it is. None: it is of no such."""
        return EXPERT if self._shares_experts and leaf.parameters[0].matrix_dims else None

    def place(self, leaf: Leaf, whole: np.ndarray, memory: str | None = None) -> jax.Array:
        """`whole`, parameters or their state, which every process has alike, in that kind of memory; None: the devices'
        own. Copies nothing between processes."""
        if whole.shape != leaf.shape:
            sharding = NamedSharding(self._mesh, _spec(self._axes(leaf)[: whole.ndim]), memory_kind=memory)
            return replicate(whole, sharding)
        order = self._order(leaf)
        if order is not None:
            whole = np.take(whole, order, axis=_ROWS)
        return replicate(whole, NamedSharding(self._mesh, self._spec_of(leaf, None), memory_kind=memory))

    def read(self, leaf: Leaf, source: TensorSource, kind: StateKind | None, memory: str | None = None) -> jax.Array:
        """The parameters, or their state of a kind, out of a checkpoint: rows that this process does not keep are not
        read, and others once, however many of its devices keep them. Raises as `read_part` does."""
        shape, name = (leaf.shape, None) if kind is None else (leaf.state_shape(kind), kind.name)
        sharding = NamedSharding(self._mesh, self._spec_of(leaf, kind), memory_kind=memory)
        indices = [index for index in sharding.addressable_devices_indices_map(shape).values() if index is not None]
        read = _Rows(source, [each for index in indices for each in self._stretches(leaf, shape, name, index)])

        def part(index: Index | None) -> np.ndarray:
            assert index is not None
            rows = [read.of(stretch) for stretch in self._stretches(leaf, shape, name, index)]
            flat = np.concatenate(rows) if len(rows) > 1 else rows[0]
            kept = [len(range(*each.indices(size))) for each, size in zip(index, shape, strict=True)]
            if shape == leaf.shape and self._is_cut(leaf, _COLUMNS):
                return flat.reshape(*kept[:-1], shape[-1])[..., index[-1]].astype(np.float32, copy=False)
            return flat.astype(np.float32, copy=False).reshape(kept)

        return jax.make_array_from_callback(shape, sharding, part)

    def export(
        self, values: Sequence[tuple[str | None, Sequence[Leaf], Sequence[jax.Array]]], rank: int
    ) -> Iterator[LocalTensor]:
        """This process's share of parameters and buffers (kind None) and of parameters' state. Collective."""
        stored = [
            (leaf, kind, array) for kind, leaves, arrays in values for leaf, array in zip(leaves, arrays, strict=True)
        ]
        by_columns = [each for each in stored if each[2].shape == each[0].shape and self._is_cut(each[0], _COLUMNS)]
        others = [each for each in stored if each[2].shape != each[0].shape or not self._is_cut(each[0], _COLUMNS)]
        yield from export_pieces([piece for each in others for piece in self._pieces(*each)], rank)
        # One by one, for each is there twice meanwhile; and all processes in the same order, for they exchange.
        for leaf, kind, array in by_columns:
            by_rows = NamedSharding(self._mesh, _spec(self._axes(leaf, _ROWS)))
            yield from export_pieces(list(self._pieces(leaf, kind, _moved(array, by_rows))), rank)

    def _pieces(self, leaf: Leaf, kind: str | None, array: jax.Array) -> Iterator[Piece]:
        return own_pieces(array, lambda index: list(self._stretches(leaf, array.shape, kind, index)))

    def _stretches(self, leaf: Leaf, shape: tuple[int, ...], kind: str | None, index: Index) -> Iterator[Stretch]:
        """What of which tensors is in the rows of `index` of an array of `shape`, first to last."""
        one = shape[leaf.stack :]
        layers, inside = (index[0], index[1:]) if leaf.stack else (slice(None), index)
        for parameter in leaf.parameters[layers]:
            for start, stop in self._ranges(leaf, one, inside):
                yield Stretch(parameter.tensor_name(kind), one, start, stop - start)

    def _ranges(self, leaf: Leaf, one: tuple[int, ...], index: Index) -> Iterator[tuple[int, int]]:
        """Where the rows of `index` are in the tensor of `one` parameter, flattened."""
        rows = np.arange(math.prod(one[:-1])).reshape(one[:-1])
        order = self._order(leaf)
        if order is not None and rows.ndim:
            rows = rows[..., order]
        wanted = rows[index[: rows.ndim]].reshape(-1)
        columns = one[-1] if one else 1
        for run in np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1):
            yield int(run[0]) * columns, (int(run[-1]) + 1) * columns

    def _spec_of(self, leaf: Leaf, kind: StateKind | None) -> PartitionSpec:
        if kind is not None and kind.per_parameter:
            return _spec(self._axes(leaf)[: leaf.stack])
        cut = self._cuts.get(leaf.name)
        return _spec(self._axes(leaf, None if cut is None else cut.dim))

    def _is_cut(self, leaf: Leaf, dim: int) -> bool:
        return leaf.name in self._cuts and self._cuts[leaf.name].dim == dim

    def _axes(self, leaf: Leaf, cut: int | None = None) -> list[str | None]:
        """What cuts each dimension: layers into stages, experts over the replicas that share them, and `cut`."""
        axes: list[str | None] = [None] * len(leaf.shape)
        if leaf.stack and self._has_stages:
            axes[0] = pipeline.AXIS
        if (over := self.shared_over(leaf)) is not None:
            axes[leaf.stack] = over
        if cut is not None:
            axes[cut] = _AXIS
        return axes

    def _order(self, leaf: Leaf) -> np.ndarray | None:
        """Which row of each matrix is where. None: each is in its place."""
        cut = self._cuts.get(leaf.name)
        if cut is None or len(cut.parts) < 2:
            return None
        parts = np.split(np.arange(sum(cut.parts)), np.cumsum(cut.parts)[:-1])
        return np.concatenate([part.reshape(self._degree, -1) for part in parts], axis=1).reshape(-1)


class _Rows:
    """Rows of a checkpoint's tensors. JAX asks for those of one device after the other, many of them for several."""

    def __init__(self, source: TensorSource, wanted: Sequence[Stretch]) -> None:
        """Reads what is `wanted`: once, and at once where it touches. Raises as `read_part` does."""
        self._read: dict[str, list[tuple[int, np.ndarray]]] = {}
        for name, alike in itertools.groupby(sorted(wanted, key=_place), lambda each: each.name):
            stretches = list(alike)
            shape = stretches[0].shape
            self._read[name] = [
                (start, read_part(source, name, shape, start, stop)) for start, stop in _joined(stretches)
            ]

    def of(self, stretch: Stretch) -> np.ndarray:
        """One-dimensional, of one that was wanted."""
        starts = [start for start, _ in self._read[stretch.name]]
        start, rows = self._read[stretch.name][bisect.bisect_right(starts, stretch.start) - 1]
        return rows[stretch.start - start :][: stretch.size]


def _place(stretch: Stretch) -> tuple[str, int]:
    return stretch.name, stretch.start


def _joined(stretches: Sequence[Stretch]) -> list[tuple[int, int]]:
    """Starts and stops of what they cover of one tensor, in whose order they are: no two touch."""
    runs: list[tuple[int, int]] = []
    for stretch in stretches:
        start, stop = stretch.start, stretch.start + stretch.size
        if runs and start <= runs[-1][1]:
            start, stop = runs[-1][0], max(stop, runs.pop()[1])
        runs.append((start, stop))
    return runs


def _spec(axes: Sequence[Any]) -> PartitionSpec:
    """The least that says so."""
    kept = list(axes)
    while kept and kept[-1] is None:
        kept.pop()
    return PartitionSpec(*kept)


def _cut_of(leaf: Leaf, config: Transformer, degree: int) -> _Cut | None:
    """None: every device has all of it."""
    name, dim = _cut_layer(leaf.name)
    if dim is None or leaf.shape[dim] % degree:
        return None
    head_dim, rows = config.dim // config.heads, leaf.shape[_ROWS]
    if name == "layers.attention.qkv":
        if config.heads % degree or kv_heads(config) % degree:
            return None
        return _Cut(_ROWS, (config.heads * head_dim, kv_heads(config) * head_dim, kv_heads(config) * head_dim))
    if name == "layers.feed_forward.gate_up":
        return None if rows // 2 % degree else _Cut(_ROWS, (rows // 2, rows // 2))
    return _Cut(dim, (rows,))


def _cut_layer(name: str) -> tuple[str, int | None]:
    """The layer whose leaf is called `name`, and along which dimension that leaf is cut; None: along none. Of two
    matrices in the place of one (`low_rank`), that is one of the two."""
    layer = name.removesuffix(".weight")
    for factor, dim in ((".first", _COLUMNS), (".second", _ROWS)):
        if layer.endswith(factor):
            layer = layer.removesuffix(factor)
            return layer, dim if _CUTS.get(layer) == dim else None
    return layer, _CUTS.get(layer)


@functools.partial(jax.jit, static_argnums=1)
def _moved(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    """`array`, cut otherwise."""
    return jax.lax.with_sharding_constraint(array, sharding)
