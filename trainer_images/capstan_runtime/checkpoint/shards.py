"""A rank's part of a save as files in memory: laid out, filled, hashed.

A shard's bytes lie in memory exactly as they will lie in its file, header and all. So what is staged is what is hashed
is what is written, and the staging area can be read like a store.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from capstan_runtime.checkpoint.digest import LEAF_BYTES, digest_of, name_of, pack_digests
from capstan_runtime.checkpoint.layout import shard_name
from capstan_runtime.checkpoint.manifest import Chunk, ShardFile
from capstan_runtime.checkpoint.safetensors import dtype_name, header_bytes, in_file_order
from capstan_runtime.checkpoint.whole import piece_sizes
from capstan_runtime.engine import Array, LocalTensor

SHARD_BYTES = 256 * 1024 * 1024
"""Tensor bytes of one file at most. Bounds how many tensors are held before their file's header is known."""

Allocate = Callable[[int, int], memoryview]
"""Memory for shard number i of n bytes, writable; what it holds is of no interest."""


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor's run of elements in a shard."""

    tensor: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    count: int
    offset: int
    """First byte in the shard."""
    size: int
    """In bytes."""
    item_bytes: int


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of a rank, complete in memory."""

    index: int
    name: str
    data: memoryview
    header_size: int
    parts: tuple[Part, ...]
    """In the order of their bytes, without gaps."""


def hash_shard(shard: Shard) -> tuple[ShardFile, list[Chunk]]:
    """What the rank's manifest says about the shard: of the bytes in memory. Hashing what was read back from the store
    would only certify what the store made of them."""
    header = name_of(digest_of(shard.data[: shard.header_size]))
    file = ShardFile(name=shard.name, bytes=len(shard.data), header_bytes=shard.header_size, header=header)
    return file, [_hash_part(shard, part) for part in shard.parts]


def _hash_part(shard: Shard, part: Part) -> Chunk:
    digests = []
    at = part.offset
    for size in piece_sizes(part.start * part.item_bytes, part.size):
        digests.append(digest_of(shard.data[at : at + size]))
        at += size
    return _chunk(part, shard.index, pack_digests(digests))


def spans_of(shard: Shard) -> Iterator[memoryview]:
    """The shard's bytes in order, 4 MiB at a time."""
    return (shard.data[at : at + LEAF_BYTES] for at in range(0, len(shard.data), LEAF_BYTES))


def _chunk(part: Part, file: int, leaves: str) -> Chunk:
    return Chunk(
        tensor=part.tensor,
        dtype=part.dtype,
        shape=part.shape,
        start=part.start,
        count=part.count,
        file=file,
        offset=part.offset,
        leaves=leaves,
    )


def stage_shards(
    rank: int, tensors: Iterator[LocalTensor], allocate: Allocate, shard_bytes: int = SHARD_BYTES
) -> list[Shard]:
    """The rank's tensors, copied into memory from `allocate`.

    Iterates `tensors` to the end even when there is no memory, because that is collective; then raises OSError.
    """
    shards: list[Shard] = []
    failure: OSError | None = None
    for group in _grouped(tensors, shard_bytes):
        if failure is None:
            try:
                shards.append(_stage_shard(rank, len(shards), group, allocate))
            except OSError as error:
                failure = error
    if failure is not None:
        raise failure
    return shards


def _stage_shard(rank: int, index: int, group: list[LocalTensor], allocate: Allocate) -> Shard:
    ordered = in_file_order(group)
    header = header_bytes(ordered)
    data = allocate(index, len(header) + sum(tensor.data.nbytes for tensor in ordered))
    data[: len(header)] = header
    parts: list[Part] = []
    offset = len(header)
    for tensor in ordered:
        size = tensor.data.nbytes
        if size:
            np.copyto(np.frombuffer(data[offset : offset + size], np.uint8), _raw(tensor.data))
        parts.append(
            Part(
                tensor=tensor.name,
                dtype=dtype_name(tensor.data.dtype),
                shape=tensor.shape,
                start=tensor.start,
                count=tensor.data.size,
                offset=offset,
                size=size,
                item_bytes=tensor.data.itemsize,
            )
        )
        offset += size
    return Shard(index, shard_name(rank, index), data, len(header), tuple(parts))


def _raw(array: Array) -> Array:
    """The array's bytes; a copy only where it is not contiguous."""
    return np.ascontiguousarray(array).view(np.uint8)


def _grouped(tensors: Iterator[LocalTensor], shard_bytes: int) -> Iterator[list[LocalTensor]]:
    """Tensors file by file; one that is larger than a file is cut."""
    group: list[LocalTensor] = []
    group_bytes = 0
    for tensor in tensors:
        for piece in _cut(tensor, shard_bytes):
            if group and group_bytes + piece.data.nbytes > shard_bytes:
                yield group
                group, group_bytes = [], 0
            group.append(piece)
            group_bytes += piece.data.nbytes
    if group:
        yield group


def _cut(tensor: LocalTensor, shard_bytes: int) -> Iterator[LocalTensor]:
    """Pieces of at most `shard_bytes`, cut where leaves end if they hold a leaf at all."""
    size, width = tensor.data.size, tensor.data.itemsize
    if size == 0:
        if 0 in tensor.shape:
            yield tensor  # an empty tensor is still one of the state's names; an empty share of a tensor is nothing
        return
    most = max(1, shard_bytes // width)
    leaf = LEAF_BYTES // width
    at = 0
    while at < size:
        stop = at + most
        if stop < size and most >= leaf:
            stop -= (tensor.start + stop) % leaf
        yield LocalTensor(tensor.name, tensor.shape, tensor.start + at, tensor.data[at:stop])
        at = min(stop, size)
