"""From arrays on devices to what this process saves of them: every element once over all processes, in even shares."""

# JAX leaves these parts of its interface untyped.
# mypy: disable-error-code="no-untyped-call,no-any-return"

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from capstan_runtime.engine import LocalTensor
from capstan_runtime.parallel.ahead import begun_ahead
from capstan_runtime.parallel.tiling import tile_evenly

FETCHED_AHEAD = 2
"""Arrays on their way to the host while one is being saved: enough to keep the device's link busy."""

Index = tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Elements that are next to each other in a saved tensor."""

    name: str
    shape: tuple[int, ...]
    """Of the whole tensor."""
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Piece:
    """One device's part of an array, which the devices of other processes may have too."""

    data: jax.Array
    stretches: Sequence[Stretch]
    """What its elements are, in their order."""
    holders: tuple[int, ...]
    """The processes that have it, ascending."""


def own_pieces(array: jax.Array, stretches: Callable[[Index], Sequence[Stretch]]) -> Iterator[Piece]:
    """What this process's devices have of `array`, each part once; `stretches` says what a part is."""
    places: Mapping[Any, Any] = array.sharding.devices_indices_map(array.shape)
    holders: dict[str, set[int]] = {}
    for device, index in places.items():
        holders.setdefault(str(index), set()).add(device.process_index)
    seen = set()
    for shard in array.addressable_shards:
        if (key := str(shard.index)) not in seen:
            seen.add(key)
            yield Piece(shard.data, stretches(shard.index), tuple(sorted(holders[key])))


def export_pieces(pieces: Sequence[Piece], rank: int) -> Iterator[LocalTensor]:
    """This process's even share of what it has in common with others. Only pieces of that share leave the device."""
    shares = []
    by_holders: dict[tuple[int, ...], list[Piece]] = {}
    for piece in pieces:
        by_holders.setdefault(piece.holders, []).append(piece)
    for holders, together in by_holders.items():
        found = [(piece, *each) for piece in together for each in _with_offsets(piece)]
        sizes = [stretch.size for _, _, stretch in found]
        for part in tile_evenly(sizes, holders.index(rank), len(holders)):
            shares.append((*found[part.tensor], part))
    groups = [list(group) for _, group in itertools.groupby(shares, key=lambda share: id(share[0]))]
    hosts = begun_ahead((group[0][0].data for group in groups), begin_fetch, FETCHED_AHEAD)
    for group, host in zip(groups, hosts, strict=True):
        flat = np.asarray(host).reshape(-1)
        for _, offset, stretch, part in group:
            data = flat[offset + part.start : offset + part.stop]
            yield LocalTensor(stretch.name, stretch.shape, stretch.start + part.start, data)


def begin_fetch(data: jax.Array) -> jax.Array:
    """`data`, of one device, on its way to the host."""
    data.copy_to_host_async()
    return data


def _with_offsets(piece: Piece) -> Iterator[tuple[int, Stretch]]:
    """The stretches, each with where it begins in the piece."""
    offset = 0
    for stretch in piece.stretches:
        yield offset, stretch
        offset += stretch.size
