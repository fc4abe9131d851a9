"""Writing a checkpoint. Every rank writes its shards; rank 0 proves that nothing is missing and commits.

Order on disk, each step synced before the next: shard files, the rank's manifest, MANIFEST.json, COMMIT. A process may
die between any two: until COMMIT is there, readers see the checkpoint before.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from capstan_runtime.checkpoint.claims import newer_fence
from capstan_runtime.checkpoint.digest import Buffer, cut_into_leaves, digest_of, name_of, pack_digests
from capstan_runtime.checkpoint.disk import Disk, write_file
from capstan_runtime.checkpoint.layout import COMMIT, MANIFEST, SHARDS, SaveName, rank_manifest_name, shard_name
from capstan_runtime.checkpoint.manifest import (
    Chunk,
    Commit,
    Manifest,
    NotTiled,
    RankEntry,
    RankManifest,
    ShardFile,
    TrainerState,
    canonical_bytes,
    whole_tensors,
)
from capstan_runtime.checkpoint.safetensors import bytes_of, dtype_name, header_bytes, in_file_order
from capstan_runtime.contract.state import Checkpoint
from capstan_runtime.engine import LocalTensor

SHARD_BYTES = 512 * 1024 * 1024
"""Tensor bytes of one file at most. Bounds what a writer holds back until a file's header is known."""
_POLL_SECONDS = 0.02


class SaveFailed(Exception):
    """A save did not happen. The checkpoint before it is as good as ever. One line for the user."""


class Superseded(SaveFailed):
    """A newer attempt has taken over the store: this process is a leftover and may not commit."""


@dataclass(frozen=True, slots=True)
class Save:
    """One save as one rank sees it."""

    store: Path
    job: str
    run: str
    """The job's uid."""
    framework: str
    name: SaveName
    """The same on every rank."""
    rank: int
    world: int

    @property
    def folder(self) -> Path:
        return self.store / str(self.name)

    @property
    def shards(self) -> Path:
        return self.folder / SHARDS


def write_shards(save: Save, tensors: Iterator[LocalTensor], disk: Disk, shard_bytes: int = SHARD_BYTES) -> None:
    """This rank's part is on disk and named in its rank manifest.

    Iterates `tensors` to the end even after a failure, because that is collective. Raises SaveFailed.
    """
    files: list[ShardFile] = []
    chunks: list[Chunk] = []
    failure: OSError | None = None
    try:
        disk.make_folder(save.shards)
    except OSError as error:
        failure = error
    for group in _grouped(tensors, shard_bytes):
        if failure is not None:
            continue
        try:
            files.append(_write_shard(save, len(files), group, chunks, disk))
        except OSError as error:
            failure = error
    if failure is None:
        try:
            _write_rank_manifest(save, files, chunks, disk)
        except OSError as error:
            failure = error
    if failure is not None:
        raise SaveFailed(f"step {save.name.step}, rank {save.rank}: {failure}") from failure


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
    if tensor.data.size == 0:
        if 0 in tensor.shape:
            yield tensor  # an empty tensor is still one of the state's names; an empty share of a tensor is nothing
        return
    elements = max(1, shard_bytes // tensor.data.dtype.itemsize)
    for at in range(0, tensor.data.size, elements):
        yield LocalTensor(tensor.name, tensor.shape, tensor.start + at, tensor.data[at : at + elements])


def _write_shard(save: Save, index: int, group: list[LocalTensor], chunks: list[Chunk], disk: Disk) -> ShardFile:
    """Writes one file and appends what it holds to `chunks`. Each leaf is hashed from memory before it is written:
    hashing what was read back would only certify what the disk made of it."""
    ordered = in_file_order(group)
    header = header_bytes(ordered)
    buffers: list[Buffer] = [header, *(bytes_of(np.ascontiguousarray(tensor.data)) for tensor in ordered)]
    size = sum(len(buffer) for buffer in buffers)
    digests: list[bytes] = []

    def hashed_leaves() -> Iterator[Buffer]:
        for leaf in cut_into_leaves(buffers):
            digests.append(digest_of(leaf))
            yield leaf

    path = save.shards / shard_name(save.rank, index)
    write_file(disk, path, hashed_leaves())
    offset = len(header)
    for tensor in ordered:
        chunks.append(
            Chunk(
                tensor=tensor.name,
                dtype=dtype_name(tensor.data.dtype),
                shape=tensor.shape,
                start=tensor.start,
                count=tensor.data.size,
                file=index,
                offset=offset,
            )
        )
        offset += tensor.data.nbytes
    return ShardFile(name=path.name, bytes=size, leaves=pack_digests(digests))


def _write_rank_manifest(save: Save, files: list[ShardFile], chunks: list[Chunk], disk: Disk) -> None:
    disk.sync_folder(save.shards)
    manifest = RankManifest(
        run=save.run,
        step=save.name.step,
        fence=save.name.fence,
        attempt=save.name.attempt,
        rank=save.rank,
        world=save.world,
        files=tuple(files),
        chunks=tuple(chunks),
    )
    write_file(disk, save.shards / rank_manifest_name(save.rank), [canonical_bytes(manifest)])
    disk.sync_folder(save.shards)


def commit(
    save: Save,
    trainer: TrainerState,
    parent: str | None,
    deadline_seconds: float,
    disk: Disk,
    now: Callable[[], float] = time.time,
) -> Checkpoint:
    """The checkpoint, once every rank's part is there and nothing is missing. Called by rank 0 alone.

    Waits at most `deadline_seconds` for the other ranks. Raises SaveFailed, naming late ranks or untiled tensors, and
    Superseded when a newer attempt has claimed the store.
    """
    try:
        entries, ranks = _wait_for_ranks(save, deadline_seconds)
        manifest = Manifest(
            job=save.job,
            run=save.run,
            step=save.name.step,
            fence=save.name.fence,
            attempt=save.name.attempt,
            world=save.world,
            parent=parent,
            created_at=now(),
            ranks=entries,
            tensors=whole_tensors(ranks),
            trainer=trainer,
            framework=save.framework,
        )
        return _publish(save, manifest, disk)
    except NotTiled as error:
        raise SaveFailed(f"step {save.name.step}: {error}") from error
    except OSError as error:
        raise SaveFailed(f"step {save.name.step}: {error}") from error


def _wait_for_ranks(save: Save, deadline_seconds: float) -> tuple[tuple[RankEntry, ...], list[RankManifest]]:
    """What each rank wrote, in rank order. Waits by listing: a network file system shows new names late."""
    give_up_at = time.monotonic() + deadline_seconds
    wanted = {rank_manifest_name(rank): rank for rank in range(save.world)}
    while missing := wanted.keys() - {path.name for path in save.shards.iterdir()}:
        if time.monotonic() > give_up_at:
            late = ", ".join(str(wanted[name]) for name in sorted(missing))
            raise SaveFailed(f"step {save.name.step}: no shards from rank {late} within {deadline_seconds:g} s")
        time.sleep(_POLL_SECONDS)
    entries, ranks = [], []
    for name, rank in wanted.items():
        data = (save.shards / name).read_bytes()
        ranks.append(_checked_rank(save, rank, data))
        entries.append(RankEntry(name=name, digest=name_of(digest_of(data))))
    return tuple(entries), ranks


def _checked_rank(save: Save, rank: int, data: bytes) -> RankManifest:
    try:
        manifest = RankManifest.model_validate_json(data)
    except ValidationError as error:
        raise SaveFailed(f"step {save.name.step}: the manifest of rank {rank} is not readable: {error}") from error
    found = (manifest.run, manifest.step, manifest.fence, manifest.attempt, manifest.rank, manifest.world)
    if found != (save.run, save.name.step, save.name.fence, save.name.attempt, rank, save.world):
        raise SaveFailed(f"step {save.name.step}: the manifest of rank {rank} belongs to another save: {found}")
    for file in manifest.files:
        size = (save.shards / file.name).stat().st_size
        if size != file.bytes:
            raise SaveFailed(f"step {save.name.step}: {file.name} has {size} bytes on disk, {file.bytes} were written")
    return manifest


def _publish(save: Save, manifest: Manifest, disk: Disk) -> Checkpoint:
    newer = newer_fence(save.store, save.run, save.name.fence)
    if newer is not None:
        raise Superseded(f"step {save.name.step}: fence {newer} has taken over; fence {save.name.fence} may not commit")
    data = canonical_bytes(manifest)
    root = name_of(digest_of(data))
    write_file(disk, save.folder / MANIFEST, [data])
    disk.sync_folder(save.folder)
    note = Commit(root=root, run=save.run, step=manifest.step, fence=manifest.fence, attempt=manifest.attempt)
    write_file(disk, save.folder / COMMIT, [canonical_bytes(note)])
    disk.sync_folder(save.folder)
    return Checkpoint(step=manifest.step, root=root, at=manifest.created_at)
