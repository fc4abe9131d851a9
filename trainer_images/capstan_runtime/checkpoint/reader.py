"""Opening a checkpoint: everything about it is proven but the tensors' bytes, which are as they are read."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from capstan_runtime.checkpoint.digest import LEAF_BYTES, digest_of, name_of, unname
from capstan_runtime.checkpoint.layout import COMMIT, MANIFEST, SHARDS, SaveName, rank_manifest_name, shard_name
from capstan_runtime.checkpoint.manifest import (
    Chunk,
    Commit,
    Manifest,
    RankManifest,
    ShardFile,
    is_canonical,
    logical_root,
)
from capstan_runtime.checkpoint.signing import require_signature
from capstan_runtime.checkpoint.store import Readable
from capstan_runtime.checkpoint.verified import StoredFile, VerifiedTensors, VerifyingReader, reading
from capstan_runtime.checkpoint.whole import Piece, WholeTensor, pieces_of, whole_tensors
from capstan_runtime.contract.base import Record
from capstan_runtime.contract.saving import VerifyLevel
from capstan_runtime.errors import ConfigError, CorruptCheckpoint

AnyRecord = TypeVar("AnyRecord", bound=Record)
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
_QUESTIONS_AT_ONCE = 8


class LaterFormat(ConfigError):
    """A later version of Capstan wrote this. It is no damage."""


@dataclass(frozen=True, slots=True)
class OpenCheckpoint:
    """A committed checkpoint whose manifests verified and whose files have the right sizes."""

    store: Readable
    name: SaveName
    root: str
    manifest: Manifest
    files: tuple[StoredFile, ...]
    whole: dict[str, WholeTensor]
    """By name; where each tensor's bytes are."""

    @property
    def size(self) -> int:
        """Bytes of all shard files."""
        return sum(file.size for file in self.files)

    def reader(self, level: VerifyLevel = "full") -> VerifyingReader:
        """One that hashes what the level says, and counts."""
        return VerifyingReader(self.store, self.files, level)

    def tensors(self, reader: VerifyingReader | None = None) -> VerifiedTensors:
        """The state, each byte checked as it is read."""
        return VerifiedTensors(reader or self.reader(), self.whole)

    def verify(self, level: VerifyLevel = "full", done: Callable[[int], None] = lambda count: None) -> None:
        """Reads and checks every byte, or those that `level` says; `done` hears how many have just been read, and may
        take its time. Raises CorruptCheckpoint, StoreUnavailable."""
        reader = self.reader(level)
        for index, file in enumerate(self.files):
            reader.read_pieces(index, [n for n in range(len(file.pieces)) if reader.hashes(index, n)], done)


def read_note(store: Readable, name: SaveName) -> Commit:
    """What COMMIT says. Raises CorruptCheckpoint, StoreUnavailable."""
    key = f"{name}/{COMMIT}"
    note = _parse(Commit, key, _get(store, key), is_proven=False)
    _require_name(note, name)
    return note


def _require_name(record: Commit | Manifest, name: SaveName) -> None:
    if SaveName(record.step, record.fence, record.attempt) != name:
        raise CorruptCheckpoint(f"{name}: holds a checkpoint of step {record.step}, fence {record.fence}")


def read_manifest(store: Readable, name: SaveName, public_key: str | None = None) -> tuple[str, Manifest]:
    """Root and manifest of the committed checkpoint `name`.

    COMMIT, MANIFEST.json and the checkpoint's name must say the same, byte for byte in canonical form. `public_key`,
    the text of a PEM: its owner must have signed the manifest, which is looked at before what the manifest says. Raises
    CorruptCheckpoint, NotSigned too, StoreUnavailable, and LaterFormat for what a later version of Capstan has written.
    """
    note = read_note(store, name)
    key = f"{name}/{MANIFEST}"
    data = _get(store, key)
    root = name_of(digest_of(data))
    if root != note.root:
        raise CorruptCheckpoint(f"{key}: is {root}, committed was {note.root}")
    if public_key is not None:
        require_signature(store, name, data, public_key)
    manifest = _parse(Manifest, key, data, is_proven=True)
    _require_name(manifest, name)
    if note.run != manifest.run or manifest.trainer.step != manifest.step:
        raise CorruptCheckpoint(f"{name}: COMMIT and MANIFEST.json contradict each other")
    if manifest.digest.leaf_bytes != LEAF_BYTES:
        raise CorruptCheckpoint(f"{name}: leaves of {manifest.digest.leaf_bytes} bytes; {LEAF_BYTES} expected")
    return root, manifest


def open_checkpoint(store: Readable, name: SaveName, public_key: str | None = None) -> OpenCheckpoint:
    """The checkpoint with everything verified but the tensors' bytes. Arguments and errors are `read_manifest`'s."""
    root, manifest = read_manifest(store, name, public_key)
    if len(manifest.ranks) != manifest.world:
        raise CorruptCheckpoint(f"{name}: lists {len(manifest.ranks)} of {manifest.world} ranks")
    ranks = _at_once(lambda rank: read_rank(store, name, manifest, rank), range(manifest.world))
    return assemble(store, name, root, manifest, ranks)


def read_rank(store: Readable, name: SaveName, manifest: Manifest, rank: int) -> RankManifest:
    """What `rank` wrote for the checkpoint. Raises CorruptCheckpoint, StoreUnavailable."""
    entry = manifest.ranks[rank]
    if entry.name != rank_manifest_name(rank):
        raise CorruptCheckpoint(f"{name}: {entry.name!r} is not the name of rank {rank}'s manifest")
    key = f"{name}/{SHARDS}/{entry.name}"
    data = _get(store, key)
    if name_of(digest_of(data)) != entry.digest:
        raise CorruptCheckpoint(f"{key}: is {name_of(digest_of(data))}, committed was {entry.digest}")
    record = _parse(RankManifest, key, data, is_proven=True)
    found = (record.rank, record.world, SaveName(record.step, record.fence, record.attempt), record.run)
    if found != (rank, manifest.world, name, manifest.run):
        raise CorruptCheckpoint(f"{key}: belongs to another save")
    return record


def assemble(
    store: Readable, name: SaveName, root: str, manifest: Manifest, ranks: Sequence[RankManifest]
) -> OpenCheckpoint:
    """The checkpoint that the ranks' proven manifests make up. Raises CorruptCheckpoint unless every tensor is there
    once and whole and each file has its size, and StoreUnavailable."""
    try:
        whole = whole_tensors(ranks)
        _require_listed(whole, manifest)
        files = tuple(_stored_file(name, rank, index) for rank in ranks for index in range(len(rank.files)))
    except ValueError as error:
        raise CorruptCheckpoint(f"{name}: {error}") from error
    _at_once(lambda file: _require_size(store, file), files)
    return OpenCheckpoint(store, name, root, manifest, files, {tensor.name: tensor for tensor in whole})


def _require_size(store: Readable, file: StoredFile) -> None:
    with reading(file.key):
        size = store.size(file.key)
    if size is None:
        raise CorruptCheckpoint(f"{file.key}: is missing")
    if size != file.size:
        raise CorruptCheckpoint(f"{file.key}: has {size} bytes, committed were {file.size}")


def _at_once(ask: Callable[[Asked], Answer], each: Sequence[Asked]) -> list[Answer]:
    """Every answer, in order: one after the other, small questions to a bucket would take as long as the bytes."""
    if len(each) < 2:
        return [ask(one) for one in each]
    with ThreadPoolExecutor(min(len(each), _QUESTIONS_AT_ONCE), "checkpoint-opener") as pool:
        return list(pool.map(ask, each))


def _require_listed(whole: Sequence[WholeTensor], manifest: Manifest) -> None:
    """The manifest's tensors are those that the chunks make up. The digest of one that is cut within a leaf would have
    to be read; its pieces have digests of their own, by which its bytes are checked."""
    if len(whole) != len(manifest.tensors):
        raise ValueError(f"the shards hold {len(whole)} tensors, the manifest lists {len(manifest.tensors)}")
    for found, listed in zip(whole, manifest.tensors, strict=True):
        if (found.name, found.dtype, found.shape) != (listed.name, listed.dtype, listed.shape):
            raise ValueError(f"the shards hold {found.name}, the manifest lists {listed.name} of another form")
        if not found.is_split and found.entry(_nothing_to_read) != listed:
            raise ValueError(f"{listed.name}: the digests of its leaves do not make up the one that the manifest lists")
    if logical_root(manifest.tensors) != manifest.logical:
        raise ValueError("the logical digest is not that of the tensors")


def _nothing_to_read(name: str, offset: int, target: memoryview) -> None:
    raise AssertionError("a tensor none of whose leaves is split is not read")


def _stored_file(name: SaveName, rank: RankManifest, index: int) -> StoredFile:
    """Raises ValueError unless header and chunks fill the file without gaps."""
    file = rank.files[index]
    if file.name != shard_name(rank.rank, index):
        raise ValueError(f"{file.name!r} is not the name of shard {index} of rank {rank.rank}")
    pieces = [Piece(file.name, 0, file.header_bytes, unname(file.header))]
    chunks = (chunk for chunk in rank.chunks if chunk.file == index)
    for chunk in sorted(chunks, key=lambda chunk: (chunk.offset, chunk.count)):
        _append_chunk(pieces, file, chunk)
    end = pieces[-1].offset + pieces[-1].size
    if end != file.bytes:
        raise ValueError(f"{file.name}: its chunks end at byte {end} of {file.bytes}")
    return StoredFile(f"{name}/{SHARDS}/{file.name}", file.bytes, tuple(pieces))


def _append_chunk(pieces: list[Piece], file: ShardFile, chunk: Chunk) -> None:
    end = pieces[-1].offset + pieces[-1].size
    if chunk.offset != end:
        raise ValueError(f"{file.name}: {chunk.tensor} begins at byte {chunk.offset}, the chunk before ends at {end}")
    pieces += [piece for _, piece in pieces_of(file.name, chunk)]


def _get(store: Readable, key: str) -> bytes:
    with reading(key):
        return store.get(key)


def _parse(kind: type[AnyRecord], key: str, data: bytes, is_proven: bool) -> AnyRecord:
    """`is_proven`: a digest says that these bytes were committed. So if they make no sense, they are no damage."""
    try:
        record = kind.model_validate_json(data)
    except ValidationError as error:
        if is_proven:
            _refuse_other_formats(kind, key, data)
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "document"
        raise CorruptCheckpoint(f"{key}: {where}: {first['msg']}") from error
    if not is_canonical(data):
        raise CorruptCheckpoint(f"{key}: is not in canonical form")
    return record


def _refuse_other_formats(kind: type[Record], key: str, data: bytes) -> None:
    """An older image must stop before a newer one's checkpoint: to quarantine it would throw good work away."""
    known: str = kind.model_fields["format"].default
    if f'"format":"{known}"'.encode() not in data:
        raise LaterFormat(
            f"{key}: its format is not {known}, the one that this version reads; "
            "use the image that wrote it, or a newer one"
        )
