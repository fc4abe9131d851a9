"""A store of checkpoints: what is written is read back, what is wrong is found, what is old goes."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from capstan_runtime.checkpoint.candidates import list_candidates
from capstan_runtime.checkpoint.coverage import Coverage
from capstan_runtime.checkpoint.digest import LEAF_BYTES, digest_of, name_of, pack_digests
from capstan_runtime.checkpoint.disk import Disk
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import COMMIT, MANIFEST, SHARDS, SaveName, new_attempt
from capstan_runtime.checkpoint.manifest import Commit, Manifest, RankManifest, canonical_bytes
from capstan_runtime.checkpoint.reader import OpenCheckpoint, open_checkpoint
from capstan_runtime.checkpoint.retention import Retention, Rules
from capstan_runtime.checkpoint.verified import MissingTensor
from capstan_runtime.checkpoint.writer import Save, SaveFailed, commit, write_shards
from capstan_runtime.contract import saving
from capstan_runtime.contract.saving import VerifyLevel
from capstan_runtime.contract.state import Checkpoint, Quarantine
from capstan_runtime.engine import LocalTensor
from capstan_runtime.errors import CorruptCheckpoint
from tests.support.checkpoints import (
    RUN,
    arrays_of,
    facts_of,
    flip,
    folder_of,
    retention,
    save,
    share_of,
    steps_in,
)


def opened(place: Path, root: str) -> OpenCheckpoint:
    store = FolderStore(place)
    return open_checkpoint(
        store, next(each.name for each in list_candidates(store, RUN).candidates if each.root == root)
    )


def read_all(place: Path, root: str) -> dict[str, np.ndarray]:
    tensors = opened(place, root).tensors()
    return {name: tensors.read(name) for name in tensors.names()}


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_any_number_of_ranks_saves_the_same_tensors(tmp_path: Path, world: int) -> None:
    checkpoint = save(tmp_path, 12, world=world)
    logical = opened(tmp_path, checkpoint.root).manifest.logical
    assert checkpoint == Checkpoint(step=12, root=checkpoint.root, at=1012.0, logical=logical)
    assert_same(read_all(tmp_path, checkpoint.root), arrays_of(12))


def test_a_tensor_larger_than_a_file_and_than_a_leaf_is_read_back(tmp_path: Path) -> None:
    arrays = {"big": np.arange(3 * LEAF_BYTES // 4 + 17, dtype=np.float32), "small": np.ones(3, np.float64)}
    checkpoint = save(tmp_path, 1, arrays=arrays, shard_bytes=2 * LEAF_BYTES)
    assert_same(read_all(tmp_path, checkpoint.root), arrays)


def test_any_safetensors_reader_opens_the_shards(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, save(tmp_path, 3, world=1, shard_bytes=1 << 20).root)
    assert_same(load_file(folder / SHARDS / "r0-0.safetensors"), arrays_of(3))


def test_pieces_in_a_shard_are_named_by_their_offset(tmp_path: Path) -> None:
    arrays = {"w": np.arange(10, dtype=np.float32)}
    folder = folder_of(tmp_path, save(tmp_path, 3, arrays=arrays, world=2).root)
    assert_same(load_file(folder / SHARDS / "r0-0.safetensors"), {"w@0": arrays["w"][:5]})
    assert_same(load_file(folder / SHARDS / "r1-0.safetensors"), {"w@5": arrays["w"][5:]})


def test_the_root_depends_on_every_byte_and_on_nothing_else(tmp_path: Path) -> None:
    roots = []
    for number, step in enumerate((4, 4, 5)):
        store = tmp_path / str(number)
        roots.append(save(store, step, attempt="0" * 12).root)
    assert roots[0] == roots[1] != roots[2]


def test_the_logical_digest_does_not_depend_on_who_saved_what(tmp_path: Path) -> None:
    arrays = {**arrays_of(7), "big": np.random.default_rng(0).random(3 * LEAF_BYTES // 8 + 17)}
    logical = {
        save(tmp_path / str(world), 7, arrays=arrays, world=world, shard_bytes=LEAF_BYTES + 8 * world).logical
        for world in (1, 2, 3, 5)
    }
    assert len(logical) == 1
    other = {**arrays, "params/bias": arrays["params/bias"] + np.float16(1)}
    assert save(tmp_path / "other", 7, arrays=other, shard_bytes=1 << 30).logical not in logical


def a_save(place: Path, rank: int = 0, world: int = 1, attempt: str | None = None, disk: Disk | None = None) -> Save:
    return Save(FolderStore(place, disk), facts_of(1, world=world, attempt=attempt), rank)


def test_a_tensor_that_nobody_saved_completely_is_not_committed(tmp_path: Path) -> None:
    write = a_save(tmp_path)
    write_shards(write, iter([LocalTensor("w", (10,), 0, np.zeros(4, np.float32))]))
    with pytest.raises(SaveFailed, match=r"^step 1: w: 4 elements were saved of 10$"):
        commit(write, 1.0)
    assert write.store.size(f"{write.name}/{COMMIT}") is None


def test_a_tensor_that_two_ranks_saved_is_not_committed(tmp_path: Path) -> None:
    attempt = new_attempt(RUN)
    for rank in range(2):
        each = a_save(tmp_path, rank, 2, attempt)
        write_shards(each, iter([LocalTensor("w", (4,), 0, np.zeros(4, np.float32))]))
    with pytest.raises(SaveFailed, match=r"^step 1: w: element 0 is saved twice$"):
        commit(a_save(tmp_path, 0, 2, attempt), 1.0)


def test_a_rank_that_does_not_write_is_named_at_the_deadline(tmp_path: Path) -> None:
    write = a_save(tmp_path, 0, 3)
    write_shards(write, share_of(arrays_of(1), 0, 3))
    with pytest.raises(SaveFailed, match=r"^step 1: no shards from rank 1, 2 within 0.1 s$"):
        commit(write, 0.1)


def test_a_folder_that_cannot_be_looked_into_is_not_called_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderStore(tmp_path)
    store.put("a/b/c", [b"x"])
    scan = os.scandir

    def failing(path: Path) -> Any:
        if Path(path).name == "b":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", failing)
    with pytest.raises(OSError, match="Input/output error"):
        store.settle("a")


def test_the_newest_are_kept_and_the_rest_removed(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        save(tmp_path, step)
    quarantined: list[Quarantine] = []
    retention(tmp_path, 3, quarantined).sweep()
    assert (steps_in(tmp_path), quarantined) == ([50, 40, 30], [])


def test_a_commit_is_reported_at_once_and_again_when_it_was_read_back(tmp_path: Path) -> None:
    told: list[Checkpoint] = []
    rules = Rules(FolderStore(tmp_path), RUN, 1, saving.Retention(last=2), "full")
    keeper = Retention(rules, told.append, lambda _: None, lambda _: None)
    for step in (10, 20, 30, 40):
        keeper.after_commit(save(tmp_path, step))
    keeper.wait(20)
    assert told[-1].verified_at is not None
    assert [each.step for each in told] == sorted(each.step for each in told), "never an older one after a newer"
    assert [each.step for each in told if each.verified_at is None] == [10, 20, 30, 40]
    assert steps_in(tmp_path) == [40, 30]


def test_the_two_newest_that_verify_are_never_removed(tmp_path: Path) -> None:
    roots = {step: save(tmp_path, step).root for step in (10, 20, 30, 40, 50)}
    for step in (50, 40):
        flip(folder_of(tmp_path, roots[step]) / SHARDS / "r0-0.safetensors", 100)
    quarantined: list[Quarantine] = []
    retention(tmp_path, 2, quarantined).sweep()
    assert steps_in(tmp_path) == [30, 20]
    assert [each.step for each in quarantined] == [50, 40]


def test_nothing_is_removed_while_fewer_than_two_verify(tmp_path: Path) -> None:
    roots = {step: save(tmp_path, step).root for step in (10, 20, 30)}
    for step in (30, 20):
        flip(folder_of(tmp_path, roots[step]) / SHARDS / "r0-0.safetensors", 100)
    retention(tmp_path, 2, []).sweep()
    assert steps_in(tmp_path) == [10]
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("0000")]) == 3


def test_remains_of_dead_attempts_go_before_the_first_save(tmp_path: Path) -> None:
    torn = tmp_path / str(SaveName(20, 3, new_attempt(RUN)))
    (torn / SHARDS).mkdir(parents=True)
    keeper = retention(tmp_path, 2, [])
    keeper.begin()
    keeper.wait(20)
    assert not torn.exists()


def test_torn_saves_of_older_fences_go_and_of_other_runs_stay(tmp_path: Path) -> None:
    save(tmp_path, 10)
    mine, theirs = SaveName(20, 3, new_attempt(RUN)), SaveName(20, 3, new_attempt("another-uid"))
    current = SaveName(30, 9, new_attempt(RUN))
    for name in (mine, theirs, current):
        (tmp_path / str(name) / SHARDS).mkdir(parents=True)
        (tmp_path / str(name) / SHARDS / "r0-0.safetensors.part").write_bytes(b"torn")
    retention(tmp_path, 2, []).sweep()
    left = {path.name for path in tmp_path.iterdir()}
    assert str(mine) not in left
    assert {str(theirs), str(current)} <= left


class FullDisk(Disk):
    """Takes `room` bytes more, then says that it is full."""

    def __init__(self, room: int) -> None:
        self.room = room

    def append(self, descriptor: int, data: bytes | memoryview) -> None:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().append(descriptor, data)


@pytest.mark.parametrize("room", [0, 500, 900])
def test_a_full_disk_fails_the_save_and_what_did_not_fit_takes_no_room(tmp_path: Path, room: int) -> None:
    save(tmp_path, 10)
    write = a_save(tmp_path, disk=FullDisk(room))
    tensors = share_of(arrays_of(20), 0, 1)
    with pytest.raises(SaveFailed, match="No space left on device"):
        write_shards(write, tensors, 256)
    assert next(tensors, None) is None, "exporting is collective: it must be iterated to its end"
    assert steps_in(tmp_path) == [10]
    assert list(tmp_path.rglob("*.part")) == []


def test_a_read_verifies_only_the_leaves_it_touches(tmp_path: Path) -> None:
    elements = 3 * LEAF_BYTES // 4
    arrays = {"w": np.arange(elements, dtype=np.float32)}
    folder = folder_of(tmp_path, save(tmp_path, 1, arrays=arrays, world=1, shard_bytes=1 << 30).root)
    shard = folder / SHARDS / "r0-0.safetensors"
    flip(shard, shard.stat().st_size - 1)
    store = FolderStore(tmp_path)
    checkpoint = open_checkpoint(store, list_candidates(store, RUN).candidates[0].name)
    reader = checkpoint.reader()
    tensors = checkpoint.tensors(reader)
    good = 2 * LEAF_BYTES // 4
    np.testing.assert_array_equal(tensors.read_range("w", 5, good), arrays["w"][5:good])
    header = checkpoint.files[0].pieces[0].size
    assert reader.tally.bytes == header + 2 * LEAF_BYTES
    with pytest.raises(CorruptCheckpoint, match=rf"bytes {header + 2 * LEAF_BYTES}-{header + 3 * LEAF_BYTES} are "):
        tensors.read_range("w", good, good + 1)


@settings(max_examples=60)
@given(data=st.data())
def test_any_range_of_a_tensor_is_read_right_however_it_was_sharded(wide: tuple[Path, np.ndarray], data: Any) -> None:
    place, array = wide
    world = data.draw(st.sampled_from((1, 2, 3)))
    level: VerifyLevel = data.draw(st.sampled_from(("full", "sampled", "manifest")))
    start = data.draw(st.integers(0, array.size))
    stop = data.draw(st.integers(start, array.size))
    store = FolderStore(place / str(world))
    checkpoint = open_checkpoint(store, list_candidates(store, RUN).candidates[0].name)
    found = checkpoint.tensors(checkpoint.reader(level)).read_range("w", start, stop)
    np.testing.assert_array_equal(found, array.reshape(-1)[start:stop])


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A tensor of six leaves and a bit, saved by worlds of several sizes, and where."""
    place = tmp_path_factory.mktemp("wide")
    array = np.random.default_rng(0).random((6 * LEAF_BYTES // 8 + 5, 1))
    for world in (1, 2, 3):
        save(place / str(world), 1, arrays={"w": array}, world=world, shard_bytes=(world + 1) * LEAF_BYTES + 8)
    return place, array


def test_ranges_that_a_tensor_does_not_have_are_refused(tmp_path: Path) -> None:
    tensors = opened(tmp_path, save(tmp_path, 3).root).tensors()
    assert tensors.shape("params/kernel") == (13, 7)
    with pytest.raises(ValueError, match=r"^params/bias: elements 5 to 8 of 7$"):
        tensors.read_range("params/bias", 5, 8)
    with pytest.raises(MissingTensor):
        tensors.read("params/other")


def test_a_sample_is_a_part_of_every_file_and_its_header(tmp_path: Path) -> None:
    arrays = {"w": np.zeros(40 * LEAF_BYTES, np.uint8)}
    checkpoint = opened(tmp_path, save(tmp_path, 1, arrays=arrays, world=2, shard_bytes=16 * LEAF_BYTES).root)
    reader = checkpoint.reader("sampled")
    hashed = [[n for n in range(len(file.pieces)) if reader.hashes(i, n)] for i, file in enumerate(checkpoint.files)]
    assert len(hashed) == 4
    assert all(numbers[0] == 0 and 2 <= len(numbers) <= 3 for numbers in hashed)


def test_coverages_of_ranks_add_up() -> None:
    one, other = Coverage([2, 3]), Coverage([2, 3])
    one.add(0, 1)
    one.add(1, 2)
    other.add(0, 0)
    one.add_packed([other.packed(), b""])
    assert one.missing() == [(1, 0), (1, 1)]
    with pytest.raises(ValueError, match="a coverage of 4 pieces, 5 expected"):
        one.add_packed([Coverage([2, 2]).packed()])


def remade(place: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The only save in `place` with rank 0's manifest changed, and every digest above it made to fit."""
    folder = next(path for path in place.iterdir() if path.name.startswith("0000"))
    rank = json.loads((folder / SHARDS / "r0.json").read_bytes())
    change(rank)
    data = canonical_bytes(RankManifest.parse(rank))
    (folder / SHARDS / "r0.json").write_bytes(data)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["ranks"][0]["digest"] = name_of(digest_of(data))
    data = canonical_bytes(Manifest.parse(manifest))
    (folder / MANIFEST).write_bytes(data)
    note = json.loads((folder / COMMIT).read_bytes())
    (folder / COMMIT).write_bytes(canonical_bytes(Commit.parse({**note, "root": name_of(digest_of(data))})))


def _shift(rank: dict[str, Any]) -> None:
    rank["chunks"][0]["offset"] += 1


def _lengthen(rank: dict[str, Any]) -> None:
    rank["files"][0]["bytes"] += 1


def _escape(rank: dict[str, Any]) -> None:
    rank["files"][0]["name"] = "../../../../etc/passwd"


def _forget_digests(rank: dict[str, Any]) -> None:
    rank["chunks"][0]["leaves"] = ""


def _other_digest(rank: dict[str, Any]) -> None:
    rank["chunks"][0]["leaves"] = pack_digests([digest_of(b"other")])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_shift, r"begins at byte \d+, the chunk before ends at \d+"),
        (_lengthen, r"its chunks end at byte \d+ of \d+"),
        (_escape, r"'../../../../etc/passwd' is not the name of shard 0 of rank 0"),
        (_forget_digests, "0 digests for 1 pieces"),
        (_other_digest, "the digests of its leaves do not make up the one that the manifest lists"),
    ],
)
def test_shards_that_are_not_laid_out_as_they_must_be_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    save(tmp_path, 3, world=1, shard_bytes=1 << 20)
    remade(tmp_path, change)
    store = FolderStore(tmp_path)
    with pytest.raises(CorruptCheckpoint, match=problem):
        open_checkpoint(store, list_candidates(store, RUN).candidates[0].name)
