"""Reading a checkpoint. Nothing is believed before its digest was checked; nothing is read twice to do so."""

import errno
import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import ValidationError

from capstan_runtime.checkpoint.digest import LEAF_BYTES, digest_of, name_of, unpack_digests
from capstan_runtime.checkpoint.layout import COMMIT, MANIFEST, SHARDS, SaveName
from capstan_runtime.checkpoint.manifest import (
    Chunk,
    Commit,
    Manifest,
    NotTiled,
    RankManifest,
    ShardFile,
    is_canonical,
    whole_tensors,
)
from capstan_runtime.checkpoint.safetensors import item_bytes, numpy_dtype
from capstan_runtime.contract.base import Record
from capstan_runtime.engine import Array
from capstan_runtime.errors import ConfigError, CorruptCheckpoint, StoreUnavailable

_LEAVES_HELD = 4
"""Verified leaves kept in memory, 16 MiB: many small tensors share a leaf."""

AnyRecord = TypeVar("AnyRecord", bound=Record)


class MissingTensor(KeyError):
    """The checkpoint has no tensor of that name."""


@dataclass(frozen=True, slots=True)
class VerifiedFile:
    """One shard file and the digests that its bytes must have."""

    path: Path
    size: int
    """In bytes."""
    leaves: tuple[bytes, ...]

    def read_leaf(self, index: int) -> bytes:
        """The bytes of leaf `index`, checked. Raises CorruptCheckpoint naming file, leaf, and both digests."""
        start = index * LEAF_BYTES
        wanted = min(LEAF_BYTES, self.size - start)
        with _reading(self.path), self.path.open("rb") as file:
            file.seek(start)
            data = file.read(wanted)
        found = digest_of(data)
        if found != self.leaves[index]:
            raise CorruptCheckpoint(
                f"{_shown(self.path)}: leaf {index} (bytes {start}-{start + wanted}) is {name_of(found)}, "
                f"committed was {name_of(self.leaves[index])}"
            )
        return data

    def verify(self) -> None:
        """Raises CorruptCheckpoint at the first wrong leaf."""
        for index in range(len(self.leaves)):
            self.read_leaf(index)


@dataclass(frozen=True, slots=True)
class OpenCheckpoint:
    """A committed checkpoint whose manifests verified and whose files have the right sizes."""

    folder: Path
    root: str
    manifest: Manifest
    files: tuple[VerifiedFile, ...]
    chunks: dict[str, tuple[tuple[VerifiedFile, Chunk], ...]]
    """By tensor, in order of `start`; they tile it."""

    def verify(self, share: int = 0, shares: int = 1) -> None:
        """Checks every byte of every `shares`-th file from `share` on; ranks divide the work so."""
        for file in self.files[share::shares]:
            file.verify()

    @property
    def size(self) -> int:
        """Bytes of all shard files."""
        return sum(file.size for file in self.files)

    def tensors(self) -> "VerifiedTensors":
        return VerifiedTensors(self)


class VerifiedTensors:
    """The `engine.TensorSource` of a checkpoint. A read verifies the leaves it touches. For one thread."""

    def __init__(self, checkpoint: OpenCheckpoint) -> None:
        self._checkpoint = checkpoint
        self._leaves: OrderedDict[tuple[Path, int], bytes] = OrderedDict()

    def names(self) -> Iterable[str]:
        return self._checkpoint.chunks.keys()

    def read(self, name: str) -> Array:
        """The whole tensor. Raises CorruptCheckpoint if a byte is wrong, MissingTensor if there is none."""
        if name not in self._checkpoint.chunks:
            raise MissingTensor(name)
        pieces = self._checkpoint.chunks[name]
        first = pieces[0][1]
        dtype = numpy_dtype(first.dtype)
        flat = np.empty(math.prod(first.shape), dtype)
        raw = flat.view(np.uint8)
        for file, chunk in pieces:
            start = chunk.start * dtype.itemsize
            self._copy(file, chunk.offset, raw[start : start + chunk.count * dtype.itemsize])
        return flat.reshape(first.shape)

    def _copy(self, file: VerifiedFile, offset: int, target: Array) -> None:
        """Fills `target` (uint8) with the file's bytes from `offset` on, leaf by leaf."""
        done = 0
        while done < target.size:
            index, skip = divmod(offset + done, LEAF_BYTES)
            piece = np.frombuffer(self._leaf(file, index), np.uint8)[skip : skip + target.size - done]
            target[done : done + piece.size] = piece
            done += piece.size

    def _leaf(self, file: VerifiedFile, index: int) -> bytes:
        key = (file.path, index)
        if key not in self._leaves:
            self._leaves[key] = file.read_leaf(index)
            if len(self._leaves) > _LEAVES_HELD:
                self._leaves.popitem(last=False)
        self._leaves.move_to_end(key)
        return self._leaves[key]


def read_manifest(folder: Path) -> tuple[str, Manifest]:
    """Root and manifest of the committed checkpoint in `folder`.

    COMMIT, MANIFEST.json and the folder's name must say the same, byte for byte in canonical form. Raises
    CorruptCheckpoint, StoreUnavailable, and ConfigError for what a later version of Capstan has written.
    """
    name = SaveName.parse(folder.name)
    if name is None:
        raise CorruptCheckpoint(f"{folder.name}: is not the name of a checkpoint, <step>.<fence>.<attempt>")
    note = _parse(Commit, folder / COMMIT, _read_file(folder / COMMIT), is_proven=False)
    data = _read_file(folder / MANIFEST)
    root = name_of(digest_of(data))
    if root != note.root:
        raise CorruptCheckpoint(f"{_shown(folder / MANIFEST)}: is {root}, committed was {note.root}")
    manifest = _parse(Manifest, folder / MANIFEST, data, is_proven=True)
    for record in (note, manifest):
        if SaveName(record.step, record.fence, record.attempt) != name:
            raise CorruptCheckpoint(f"{folder.name}: holds a checkpoint of step {record.step}, fence {record.fence}")
    if note.run != manifest.run or manifest.trainer.step != manifest.step:
        raise CorruptCheckpoint(f"{folder.name}: COMMIT and MANIFEST.json contradict each other")
    if manifest.digest.leaf_bytes != LEAF_BYTES:
        raise CorruptCheckpoint(f"{folder.name}: leaves of {manifest.digest.leaf_bytes} bytes; {LEAF_BYTES} expected")
    return root, manifest


def open_checkpoint(folder: Path) -> OpenCheckpoint:
    """The checkpoint with everything verified but the tensors' bytes. Raises CorruptCheckpoint, StoreUnavailable."""
    root, manifest = read_manifest(folder)
    ranks = []
    for index, entry in enumerate(manifest.ranks):
        path = folder / SHARDS / entry.name
        data = _read_file(path)
        if name_of(digest_of(data)) != entry.digest:
            raise CorruptCheckpoint(f"{_shown(path)}: is {name_of(digest_of(data))}, committed was {entry.digest}")
        rank = _parse(RankManifest, path, data, is_proven=True)
        if (rank.rank, rank.step, rank.fence, rank.attempt, rank.run) != (
            index,
            manifest.step,
            manifest.fence,
            manifest.attempt,
            manifest.run,
        ):
            raise CorruptCheckpoint(f"{_shown(path)}: belongs to another save")
        ranks.append(rank)
    if len(ranks) != manifest.world:
        raise CorruptCheckpoint(f"{folder.name}: shards of {len(ranks)} ranks, {manifest.world} expected")
    try:
        complete = whole_tensors(ranks) == manifest.tensors
    except NotTiled as error:
        raise CorruptCheckpoint(f"{folder.name}: {error}") from error
    if not complete:
        raise CorruptCheckpoint(f"{folder.name}: the shards do not make up the tensors that the manifest lists")
    return _assemble(folder, root, manifest, ranks)


def _assemble(folder: Path, root: str, manifest: Manifest, ranks: list[RankManifest]) -> OpenCheckpoint:
    files: list[VerifiedFile] = []
    chunks: dict[str, list[tuple[VerifiedFile, Chunk]]] = {tensor.name: [] for tensor in manifest.tensors}
    for rank in ranks:
        of_rank = [_verified_file(folder / SHARDS / file.name, file) for file in rank.files]
        for chunk in rank.chunks:
            end = chunk.offset + chunk.count * item_bytes(chunk.dtype)
            if chunk.file >= len(of_rank) or end > of_rank[chunk.file].size:
                raise CorruptCheckpoint(f"{folder.name}: {chunk.tensor} lies outside the files of rank {rank.rank}")
            chunks[chunk.tensor].append((of_rank[chunk.file], chunk))
        files.extend(of_rank)
    ordered = {name: tuple(sorted(pieces, key=lambda piece: piece[1].start)) for name, pieces in chunks.items()}
    return OpenCheckpoint(folder, root, manifest, tuple(files), ordered)


def _verified_file(path: Path, file: ShardFile) -> VerifiedFile:
    try:
        leaves = tuple(unpack_digests(file.leaves))
    except ValueError as error:
        raise CorruptCheckpoint(f"{_shown(path)}: its digests are not readable: {error}") from error
    if len(leaves) != math.ceil(file.bytes / LEAF_BYTES):
        raise CorruptCheckpoint(f"{_shown(path)}: {len(leaves)} digests for {file.bytes} bytes")
    with _reading(path):
        size = path.stat().st_size
    if size != file.bytes:
        raise CorruptCheckpoint(f"{_shown(path)}: has {size} bytes, committed were {file.bytes}")
    return VerifiedFile(path, file.bytes, leaves)


def _parse(kind: type[AnyRecord], path: Path, data: bytes, is_proven: bool) -> AnyRecord:
    """`is_proven`: a digest says that these bytes were committed. So if they make no sense, they are no damage."""
    try:
        record = kind.model_validate_json(data)
    except ValidationError as error:
        if is_proven:
            _refuse_other_formats(kind, path, data)
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise CorruptCheckpoint(f"{_shown(path)}: {where}: {first['msg']}") from error
    if not is_canonical(data):
        raise CorruptCheckpoint(f"{_shown(path)}: is not in canonical form")
    return record


def _refuse_other_formats(kind: type[Record], path: Path, data: bytes) -> None:
    """An older image must stop before a newer one's checkpoint: to quarantine it would throw good work away."""
    known: str = kind.model_fields["format"].default
    if f'"format":"{known}"'.encode() not in data:
        raise ConfigError(
            f"{_shown(path)}: its format is not {known}, the one that this version reads; "
            "use the image that wrote it, or a newer one"
        )


def _read_file(path: Path) -> bytes:
    with _reading(path):
        return path.read_bytes()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what the file system says into what it means for a checkpoint."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise CorruptCheckpoint(f"{_shown(path)}: is missing") from error
    except OSError as error:
        if error.errno == errno.EIO:
            raise CorruptCheckpoint(f"{_shown(path)}: the disk cannot read it: {error}") from error
        raise StoreUnavailable(f"checkpoint store: {error}") from error


def _shown(path: Path) -> str:
    """The path from the checkpoint's folder on."""
    parts = path.parts
    at = next((index for index, part in enumerate(parts) if SaveName.parse(part)), 0)
    return "/".join(parts[at:])
