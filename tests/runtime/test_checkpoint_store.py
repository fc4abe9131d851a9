"""A store of checkpoints: what is written is read back, what is wrong is found, what is old goes."""

import errno
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from capstan_runtime.checkpoint.candidates import list_candidates
from capstan_runtime.checkpoint.digest import LEAF_BYTES, cut_into_leaves
from capstan_runtime.checkpoint.disk import Disk
from capstan_runtime.checkpoint.layout import COMMIT, SHARDS, SaveName, new_attempt
from capstan_runtime.checkpoint.reader import open_checkpoint
from capstan_runtime.checkpoint.retention import Retention, Rules
from capstan_runtime.checkpoint.saver import Identity, Saver
from capstan_runtime.checkpoint.writer import Save, SaveFailed, commit, write_shards
from capstan_runtime.contract.state import Checkpoint, Quarantine
from capstan_runtime.engine import LocalTensor
from capstan_runtime.errors import CorruptCheckpoint
from tests.support.checkpoints import (
    RUN,
    arrays_of,
    flip,
    folder_of,
    retention,
    save,
    share_of,
    steps_in,
    trainer_state,
)


def read_all(folder: Path) -> dict[str, np.ndarray]:
    tensors = open_checkpoint(folder).tensors()
    return {name: tensors.read(name) for name in tensors.names()}


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_any_number_of_ranks_saves_the_same_tensors(tmp_path: Path, world: int) -> None:
    checkpoint = save(tmp_path, 12, world=world)
    assert checkpoint == Checkpoint(step=12, root=checkpoint.root, at=1012.0)
    assert_same(read_all(folder_of(tmp_path, checkpoint.root)), arrays_of(12))


def test_a_tensor_larger_than_a_file_and_than_a_leaf_is_read_back(tmp_path: Path) -> None:
    arrays = {"big": np.arange(3 * LEAF_BYTES // 4 + 17, dtype=np.float32), "small": np.ones(3, np.float64)}
    checkpoint = save(tmp_path, 1, arrays=arrays, shard_bytes=2 * LEAF_BYTES)
    assert_same(read_all(folder_of(tmp_path, checkpoint.root)), arrays)


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


def test_leaves_are_cut_at_the_same_places_however_the_buffers_lie() -> None:
    data = bytes(range(256)) * 3
    whole = [bytes(leaf) for leaf in cut_into_leaves([data], 100)]
    pieces = [data[:1], data[1:99], b"", data[99:350], data[350:]]
    assert [bytes(leaf) for leaf in cut_into_leaves(pieces, 100)] == whole
    assert [len(leaf) for leaf in whole] == [100] * 7 + [68]


def test_a_tensor_that_nobody_saved_completely_is_not_committed(tmp_path: Path) -> None:
    write = Save(tmp_path, "default/test", RUN, "flax", SaveName(1, 1, new_attempt(RUN)), 0, 1)
    write_shards(write, iter([LocalTensor("w", (10,), 0, np.zeros(4, np.float32))]), Disk())
    with pytest.raises(SaveFailed, match=r"^step 1: w: 4 elements were saved of 10$"):
        commit(write, trainer_state(1), None, 1.0, Disk())
    assert not (write.folder / COMMIT).exists()


def test_a_tensor_that_two_ranks_saved_is_not_committed(tmp_path: Path) -> None:
    name = SaveName(1, 1, new_attempt(RUN))
    for rank in range(2):
        write = Save(tmp_path, "default/test", RUN, "flax", name, rank, 2)
        write_shards(write, iter([LocalTensor("w", (4,), 0, np.zeros(4, np.float32))]), Disk())
    with pytest.raises(SaveFailed, match=r"^step 1: w: element 0 is saved twice$"):
        commit(Save(tmp_path, "default/test", RUN, "flax", name, 0, 2), trainer_state(1), None, 1.0, Disk())


def test_a_rank_that_does_not_write_is_named_at_the_deadline(tmp_path: Path) -> None:
    write = Save(tmp_path, "default/test", RUN, "flax", SaveName(1, 1, new_attempt(RUN)), 0, 3)
    write_shards(write, share_of(arrays_of(1), 0, 3), Disk())
    with pytest.raises(SaveFailed, match=r"^step 1: no shards from rank 1, 2 within 0.1 s$"):
        commit(write, trainer_state(1), None, 0.1, Disk())


def test_the_newest_are_kept_and_the_rest_removed(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        save(tmp_path, step)
    quarantined: list[Quarantine] = []
    retention(tmp_path, 3, quarantined).sweep()
    assert (steps_in(tmp_path), quarantined) == ([50, 40, 30], [])


def test_a_commit_is_reported_at_once_and_again_when_it_was_read_back(tmp_path: Path) -> None:
    told: list[Checkpoint] = []
    rules = Rules(tmp_path, RUN, 1, 2, "full")
    keeper = Retention(rules, told.append, lambda _: None, lambda _: None, Disk())
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


@pytest.mark.parametrize("room", [0, 500, 2000])
def test_a_full_disk_fails_the_save_cleans_up_and_leaves_the_last_checkpoint(tmp_path: Path, room: int) -> None:
    good = save(tmp_path, 10)
    identity = Identity(tmp_path, "default/test", RUN, "flax", 1, new_attempt(RUN), 0, 1)
    disk = FullDisk(room)
    saver = Saver(identity, good.root, lambda payload: [payload], 1.0, disk)
    tensors = share_of(arrays_of(20), 0, 1)
    with pytest.raises(SaveFailed, match="No space left on device"):
        saver.save(trainer_state(20), tensors)
    assert next(tensors, None) is None, "exporting is collective: it must be iterated to its end"
    assert steps_in(tmp_path) == [10]
    assert len(list_candidates(tmp_path, RUN).torn) == 0
    disk.room = 1 << 20
    later = saver.save(trainer_state(30), share_of(arrays_of(30), 0, 1))
    assert open_checkpoint(folder_of(tmp_path, later.root)).manifest.parent == good.root


def test_a_read_verifies_only_the_leaves_it_touches(tmp_path: Path) -> None:
    elements = LEAF_BYTES // 4
    arrays = {name: np.full(elements, number, np.float32) for number, name in enumerate(("a", "b", "c"))}
    folder = folder_of(tmp_path, save(tmp_path, 1, arrays=arrays, world=1, shard_bytes=1 << 30).root)
    shard = folder / SHARDS / "r0-0.safetensors"
    flip(shard, shard.stat().st_size - 1)
    tensors = open_checkpoint(folder).tensors()
    np.testing.assert_array_equal(tensors.read("a"), arrays["a"])
    with pytest.raises(CorruptCheckpoint, match=f"leaf {math.ceil(shard.stat().st_size / LEAF_BYTES) - 1} "):
        tensors.read("c")
