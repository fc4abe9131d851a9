"""Whole tensors out of the ranks' chunks: the proof that no element is missing, and the digests of what they make up.

A leaf of the whole tensor's 4 MiB grid is usually one piece of one chunk, and its digest is known. Where the shard of
one rank ends within a leaf, its digest is not; then its pieces, verified by their own digests, are read once more.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from capstan_runtime.checkpoint.digest import LEAF_BYTES, digest_of, name_of, unpack_digests
from capstan_runtime.checkpoint.manifest import Chunk, RankManifest, TensorEntry
from capstan_runtime.checkpoint.safetensors import item_bytes

ReadPiece = Callable[[str, int, memoryview], None]
"""Fills the buffer with a shard file's bytes from an offset on. Arguments: the file's name, the offset, the buffer."""


class NotTiled(ValueError):
    """Some element of a tensor is in no chunk, or in more than one."""


class WrongPiece(ValueError):
    """Bytes of a shard file are not those that were hashed. One line."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of one leaf that lie together in one file."""

    file: str
    offset: int
    """First byte in the file."""
    size: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class WholeTensor:
    """One tensor with all that it is made of."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    leaves: tuple[tuple[Piece, ...], ...]
    """In order; every leaf but the last has 4 MiB. More than one piece: shards end within the leaf."""

    def entry(self, read: ReadPiece) -> TensorEntry:
        """With its digest; reads split leaves and nothing else. Raises WrongPiece, and what `read` raises."""
        digests = [leaf[0].digest if len(leaf) == 1 else _joined(self.name, leaf, read) for leaf in self.leaves]
        return TensorEntry(
            name=self.name, dtype=self.dtype, shape=self.shape, digest=name_of(digest_of(b"".join(digests)))
        )

    @property
    def is_split(self) -> bool:
        """Whether its digest cannot be known without reading."""
        return any(len(leaf) > 1 for leaf in self.leaves)


def _joined(tensor: str, pieces: Sequence[Piece], read: ReadPiece) -> bytes:
    """The digest of a leaf in several pieces."""
    leaf = memoryview(bytearray(sum(piece.size for piece in pieces)))
    at = 0
    for piece in pieces:
        target = leaf[at : at + piece.size]
        read(piece.file, piece.offset, target)
        if digest_of(target) != piece.digest:
            raise WrongPiece(
                f"{piece.file}: the bytes of {tensor} from {piece.offset} on are not those that were saved"
            )
        at += piece.size
    return digest_of(leaf)


def piece_sizes(first_byte: int, size: int) -> list[int]:
    """Sizes of the pieces into which the grid of leaves cuts bytes [first_byte, first_byte + size) of a tensor."""
    cuts = [first_byte, *range((first_byte // LEAF_BYTES + 1) * LEAF_BYTES, first_byte + size, LEAF_BYTES)]
    return [end - start for start, end in zip(cuts, [*cuts[1:], first_byte + size], strict=True)] if size else []


def whole_tensors(ranks: Iterable[RankManifest]) -> tuple[WholeTensor, ...]:
    """The tensors that the chunks of all `ranks` make up, sorted by name.

    Raises NotTiled, naming tensor and element, unless every element of every tensor is in exactly one chunk.
    """
    chunks: dict[str, list[tuple[str, Chunk]]] = {}
    for rank in ranks:
        for chunk in rank.chunks:
            if chunk.file >= len(rank.files):
                raise NotTiled(f"{chunk.tensor}: rank {rank.rank} has no file {chunk.file}")
            chunks.setdefault(chunk.tensor, []).append((rank.files[chunk.file].name, chunk))
    return tuple(_whole_tensor(name, chunks[name]) for name in sorted(chunks))


def _whole_tensor(name: str, parts: list[tuple[str, Chunk]]) -> WholeTensor:
    entries = {(chunk.dtype, chunk.shape) for _, chunk in parts}
    if len(entries) > 1:
        raise NotTiled(f"{name}: ranks disagree about type and shape: {sorted(entries)}")
    dtype, shape = entries.pop()
    covered = 0
    leaves: dict[int, list[Piece]] = {}
    for file, chunk in sorted(parts, key=lambda part: (part[1].start, part[1].count)):
        if chunk.start != covered:
            problem = "saved twice" if chunk.start < covered else "saved by nobody"
            raise NotTiled(f"{name}: element {min(chunk.start, covered)} is {problem}")
        covered += chunk.count
        for leaf, piece in pieces_of(file, chunk):
            leaves.setdefault(leaf, []).append(piece)
    if covered != math.prod(shape):
        raise NotTiled(f"{name}: {covered} elements were saved of {math.prod(shape)}")
    return WholeTensor(name, dtype, shape, tuple(map(tuple, leaves.values())))


def pieces_of(file: str, chunk: Chunk) -> Iterable[tuple[int, Piece]]:
    """The chunk's pieces, each with the number of its leaf."""
    width = item_bytes(chunk.dtype)
    first_byte, byte_count = chunk.start * width, chunk.count * width
    pieces = (first_byte + byte_count - 1) // LEAF_BYTES - first_byte // LEAF_BYTES + 1 if byte_count else 0
    digests = unpack_digests(chunk.leaves)
    if len(digests) != pieces:  # before they are listed: a forged count would take all memory
        raise NotTiled(f"{chunk.tensor}: {len(digests)} digests for {pieces} pieces in {file}")
    at = 0
    for size, digest in zip(piece_sizes(first_byte, byte_count), digests, strict=True):
        yield (first_byte + at) // LEAF_BYTES, Piece(file, chunk.offset + at, size, digest)
        at += size
