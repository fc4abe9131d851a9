"""Which part of each parameter a rank has that computes a part of a model, and where it is in the whole.

A parameter is seen as a matrix: the last dimension numbers columns, all others rows. A part is some rows of all columns
or some columns of all rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from capstan_runtime.contract.models import Model, Transformer
from capstan_runtime.engine import Array, TensorSource
from capstan_runtime.model_spec import ParameterSpec, feed_forward_width, kv_heads, read_part, read_tensor
from capstan_runtime.parallel.layout import Layout

Stretch = tuple[int, int]
"""From the first to behind the last."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A part of a parameter, or all of it."""

    whole: ParameterSpec
    shape: tuple[int, ...]
    rows: tuple[Stretch, ...]
    """Those that it has, ascending; one stretch if it has not all columns."""
    columns: Stretch

    @classmethod
    def all_of(cls, whole: ParameterSpec) -> "Shard":
        width = whole.shape[-1] if whole.shape else 1
        return cls(whole, whole.shape, ((0, whole.size // max(1, width)),), (0, width))

    @property
    def width(self) -> int:
        """Columns that it has."""
        return self.columns[1] - self.columns[0]

    @property
    def is_whole(self) -> bool:
        return self == Shard.all_of(self.whole)

    @property
    def is_cut_by_columns(self) -> bool:
        return self.columns != Shard.all_of(self.whole).columns

    @property
    def part(self) -> ParameterSpec:
        """What it is by itself."""
        return replace(self.whole, shape=self.shape)

    def of(self, tensor: Array) -> Array:
        """The part, of its shape, of the whole `tensor`."""
        if self.is_whole:
            return tensor
        matrix = tensor.reshape(-1, self.whole.shape[-1])
        picked = np.concatenate([matrix[start:stop, slice(*self.columns)] for start, stop in self.rows])
        return picked.reshape(self.shape)

    def stretches(self, start: int, stop: int) -> Iterator[tuple[Stretch, int]]:
        """Elements [start, stop) of the flattened part, in stretches of which each is one in the whole as well; and
        where there that begins. Of a part of the rows."""
        columns, begin = self.whole.shape[-1], 0
        for first, last in self.rows:
            end = begin + (last - first) * columns
            low, high = max(start, begin), min(stop, end)
            if low < high:
                yield (low, high), first * columns + low - begin
            begin = end

    def read(self, source: TensorSource, name: str) -> Array:
        """The part of the tensor `name` of a checkpoint. Raises as `read_tensor`."""
        if self.is_whole:
            return read_tensor(source, name, self.whole.shape)
        return self.read_range(source, name, 0, self.part.size).reshape(self.shape)

    def read_range(self, source: TensorSource, name: str, start: int, stop: int) -> Array:
        """Elements [start, stop) of the flattened part. Raises as `read_tensor`."""
        if self.is_whole:
            return read_part(source, name, self.whole.shape, start, stop)
        if not self.is_cut_by_columns:
            found = [
                read_part(source, name, self.whole.shape, place, place + high - low)
                for (low, high), place in self.stretches(start, stop)
            ]
            return found[0] if len(found) == 1 else np.concatenate(found)
        # Whole rows: what is read is verified, and that goes by larger pieces than the columns of one.
        columns, width, offset = self.whole.shape[-1], self.width, self.rows[0][0]
        first, last = start // width, -(-stop // width)
        place = (offset + first) * columns, (offset + last) * columns
        rows = read_part(source, name, self.whole.shape, *place).reshape(-1, columns)
        return rows[:, slice(*self.columns)].reshape(-1)[start - first * width : stop - first * width]


def shards_of(model: Model, table: Sequence[ParameterSpec], layout: Layout, rank: int) -> dict[str, Shard]:
    """The part that `rank` has of each parameter of `table`, by name.

    Cut over the tensor axis are the matrices of a layer's two branches: heads, and units of the feed-forward layer.
    Embedding, head, router and norms are everywhere. Experts are shared out over neighbours along the data axis.
    """
    config = model.value
    assert isinstance(config, Transformer)
    place = _Place(
        layout.coordinate(rank, "tensor"),
        layout.size("tensor"),
        layout.coordinate(rank, "data") % layout.expert,
        layout.expert,
    )
    return {spec.name: _shard_of(config, spec, place) for spec in table}


class _Place(NamedTuple):
    """Of a rank along the axes that cut parameters."""

    tensor: int
    tensors: int
    expert: int
    experts: int


def _shard_of(config: Transformer, spec: ParameterSpec, place: _Place) -> Shard:
    match spec.name.split(".")[2:]:
        case ["attention", "qkv", "weight"]:
            head_dim, heads = config.dim // config.heads, (config.heads, kv_heads(config), kv_heads(config))
            return _cut_by_rows(spec, [count * head_dim for count in heads], place)
        case ["feed_forward", "gate_up", "weight"]:
            return _cut_by_rows(spec, [feed_forward_width(config)] * 2, place)
        case ["attention", "out", "weight"] | ["feed_forward", "down", "weight"]:
            return _cut_by_columns(spec, place)
        case _:
            return Shard.all_of(spec)


def _cut_by_rows(spec: ParameterSpec, parts: Sequence[int], place: _Place) -> Shard:
    """The even share of each of the parts that a matrix is made of; of experts also an even share of the matrices."""
    first, last = _matrices(spec, place)
    rows: list[Stretch] = []
    begin = sum(parts) * first
    for part in [*parts] * (last - first):
        low, high = _share(part, place.tensor, place.tensors)
        if rows and rows[-1][1] == begin + low:
            rows[-1] = rows[-1][0], begin + high
        else:
            rows.append((begin + low, begin + high))
        begin += part
    units = spec.shape[-2] // place.tensors
    shape = (last - first, units, spec.shape[-1])[-len(spec.shape) :]
    return Shard(spec, shape, tuple(rows), (0, spec.shape[-1]))


def _cut_by_columns(spec: ParameterSpec, place: _Place) -> Shard:
    first, last = _matrices(spec, place)
    units, width = spec.shape[-2:]
    columns = _share(width, place.tensor, place.tensors)
    shape = (last - first, units, columns[1] - columns[0])[-len(spec.shape) :]
    return Shard(spec, shape, ((first * units, last * units),), columns)


def _matrices(spec: ParameterSpec, place: _Place) -> Stretch:
    """Those of a parameter that this rank has: of several, which are experts, an even share."""
    return _share(spec.shape[0], place.expert, place.experts) if spec.matrix_dims else (0, 1)


def _share(count: int, position: int, size: int) -> Stretch:
    return count * position // size, count * (position + 1) // size
