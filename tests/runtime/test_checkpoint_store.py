"""A store of checkpoints: what is written is read back, what is wrong is found, what is old goes."""

import errno
import math
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from capstan_runtime.checkpoint.candidates import list_candidates
from capstan_runtime.checkpoint.claims import newest_claim, write_claim
from capstan_runtime.checkpoint.digest import LEAF_BYTES, cut_into_leaves
from capstan_runtime.checkpoint.disk import Disk
from capstan_runtime.checkpoint.layout import COMMIT, QUARANTINED, SHARDS, SaveName, new_attempt
from capstan_runtime.checkpoint.manifest import Claim
from capstan_runtime.checkpoint.reader import OpenCheckpoint, open_checkpoint
from capstan_runtime.checkpoint.retention import Retention, Rules, remove_checkpoint
from capstan_runtime.checkpoint.saver import Identity, Saver
from capstan_runtime.checkpoint.writer import Save, SaveFailed, Superseded, commit, write_shards
from capstan_runtime.contract.state import Checkpoint, Quarantine
from capstan_runtime.engine import LocalTensor
from capstan_runtime.errors import CorruptCheckpoint, StoreUnavailable
from tests.support.checkpoints import RUN, arrays_of, choose, folder_of, save, share_of, trainer_state


def read_all(folder: Path) -> dict[str, np.ndarray]:
    tensors = open_checkpoint(folder).tensors()
    return {name: tensors.read(name) for name in tensors.names()}


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


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


def test_the_newest_that_verifies_is_chosen_and_the_broken_one_quarantined(tmp_path: Path) -> None:
    good, bad = save(tmp_path, 10), save(tmp_path, 20)
    shard = folder_of(tmp_path, bad.root) / SHARDS / "r1-0.safetensors"
    flip(shard, shard.stat().st_size - 1)
    quarantined: list[Quarantine] = []
    chosen = choose(tmp_path, quarantined=quarantined)
    assert chosen is not None
    assert chosen.root == good.root
    assert [(each.step, each.root) for each in quarantined] == [(20, bad.root)]
    size = shard.stat().st_size
    assert f"{SHARDS}/r1-0.safetensors: leaf 0 (bytes 0-{size}) is blake3:" in quarantined[0].reason
    assert (shard.parent.parent / QUARANTINED).exists()
    again: list[Quarantine] = []
    chosen = choose(tmp_path, fence=3, quarantined=again)
    assert chosen is not None
    assert (chosen.root, again) == (good.root, [])


def test_at_equal_steps_the_newer_fence_wins(tmp_path: Path) -> None:
    save(tmp_path, 10, fence=1)
    newer = save(tmp_path, 10, fence=2)
    chosen = choose(tmp_path, fence=3)
    assert chosen is not None
    assert chosen.root == newer.root


def test_when_no_checkpoint_verifies_the_run_halts(tmp_path: Path) -> None:
    for step in (10, 20):
        flip(folder_of(tmp_path, save(tmp_path, step).root) / "MANIFEST.json", 40)
    with pytest.raises(CorruptCheckpoint, match=r"^none of 2 committed checkpoints verifies, newest 000000000020\."):
        choose(tmp_path)
    with pytest.raises(CorruptCheckpoint, match=r"^none of 2 committed checkpoints verifies"):
        choose(tmp_path, fence=3)


def test_an_empty_store_is_a_start_from_step_0_unless_something_was_committed(tmp_path: Path) -> None:
    assert choose(tmp_path / "absent") is None
    with pytest.raises(CorruptCheckpoint, match="holds no checkpoint of this run, but step 30 was committed"):
        choose(tmp_path / "absent", floor_step=30)


def test_checkpoints_of_another_run_are_left_alone(tmp_path: Path) -> None:
    other = save(tmp_path, 50, run="another-uid")
    assert choose(tmp_path) is None
    assert open_checkpoint(next(path for path in tmp_path.iterdir() if path.name.startswith("0000"))).root == other.root


def test_verify_manifest_does_not_read_the_tensors_but_reading_them_does(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, save(tmp_path, 10, world=1, shard_bytes=1 << 20).root)
    shard = folder / SHARDS / "r0-0.safetensors"
    flip(shard, shard.stat().st_size - 1)
    chosen = choose(tmp_path, verify="manifest")
    assert chosen is not None
    with pytest.raises(CorruptCheckpoint, match=r"r0-0.safetensors: leaf 0 "):
        chosen.tensors().read("params/kernel")


def test_ranks_that_see_different_stores_do_not_start(tmp_path: Path) -> None:
    save(tmp_path, 10)

    def with_another_rank(payload: bytes) -> list[bytes]:
        return [payload, payload.replace(b'"root": "blake3:', b'"root": "blake3:ff')]

    with pytest.raises(StoreUnavailable, match="is not the same on every rank"):
        choose(tmp_path, exchange=with_another_rank)


def test_a_commit_of_an_attempt_that_was_replaced_does_not_count(tmp_path: Path) -> None:
    seen = save(tmp_path, 10, fence=1)
    chosen = choose(tmp_path, fence=2)
    assert chosen is not None
    with pytest.raises(Superseded, match="fence 2 has taken over; fence 1 may not commit"):
        save(tmp_path, 99, fence=1)
    shutil.rmtree(tmp_path / "claims")  # as if the old process had looked just before the claim was written
    late = save(tmp_path, 99, fence=1)
    write_claim(
        tmp_path, Claim(run=RUN, fence=2, attempt=new_attempt(RUN), resumed=seen.root, committed=(seen.root,)), Disk()
    )
    listing = list_candidates(tmp_path, RUN)
    assert [each.root for each in listing.candidates] == [seen.root]
    assert [open_checkpoint(folder).root for folder in listing.stale] == [late.root]


def after_the_first_exchange(action: Callable[[], object]) -> Callable[[bytes], list[bytes]]:
    """An exchange of a world of one that, once candidates have been proposed, lets `action` happen elsewhere."""
    turns = iter((action,))

    def exchange(payload: bytes) -> list[bytes]:
        next(turns, lambda: None)()
        return [payload]

    return exchange


def test_an_older_attempt_neither_adds_nor_removes_while_a_newer_one_verifies(tmp_path: Path) -> None:
    roots = [save(tmp_path, step, fence=1).root for step in (10, 20, 30)]

    def live_on() -> None:
        with pytest.raises(Superseded, match="fence 2 has taken over; fence 1 may not commit"):
            save(tmp_path, 40, fence=1)
        with pytest.raises(StoreUnavailable, match="fence 2 has taken over; fence 1 may not remove anything"):
            retention(tmp_path, 2, [], fence=1).sweep()

    chosen = choose(tmp_path, fence=2, exchange=after_the_first_exchange(live_on))
    assert chosen is not None
    assert chosen.root == roots[-1]
    assert steps_in(tmp_path) == [30, 20, 10]


def test_an_attempt_that_has_been_superseded_does_not_start(tmp_path: Path) -> None:
    save(tmp_path, 10)
    choose(tmp_path, fence=5)
    with pytest.raises(StoreUnavailable, match="fence 5 has taken over; fence 4 may not train"):
        choose(tmp_path, fence=4)


def test_a_checkpoint_removed_while_it_is_verified_is_not_called_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path, save(tmp_path, 10).root)
    quarantined: list[Quarantine] = []

    def opened(folder: Path) -> OpenCheckpoint:
        remove_checkpoint(folder, Disk())
        return open_checkpoint(folder)

    monkeypatch.setattr("capstan_runtime.checkpoint.choose.open_checkpoint", opened)
    with pytest.raises(StoreUnavailable, match="was removed while it was read"):
        choose(tmp_path, quarantined=quarantined)
    assert (folder.exists(), quarantined) == (False, [])


def test_what_is_copied_back_after_a_halt_counts_again(tmp_path: Path) -> None:
    checkpoint = save(tmp_path / "store", 10)
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    (folder_of(tmp_path / "store", checkpoint.root) / "MANIFEST.json").write_bytes(b"{}")
    with pytest.raises(CorruptCheckpoint):
        choose(tmp_path / "store", fence=2, floor_step=10)
    shutil.rmtree(tmp_path / "store" / next((tmp_path / "copy").iterdir()).name)
    with pytest.raises(CorruptCheckpoint):
        choose(tmp_path / "store", fence=3, floor_step=10)
    shutil.copytree(tmp_path / "copy", tmp_path / "store", dirs_exist_ok=True)
    chosen = choose(tmp_path / "store", fence=4, floor_step=10)
    assert chosen is not None
    assert chosen.root == checkpoint.root


def test_the_newest_checkpoint_that_was_ever_seen_is_waited_for(tmp_path: Path) -> None:
    save(tmp_path, 10)
    late = threading.Timer(0.3, lambda: save(tmp_path, 20))
    late.start()
    quarantined: list[Quarantine] = []
    chosen = choose(tmp_path, floor_step=20, quarantined=quarantined, visible_seconds=20)
    late.join()
    assert chosen is not None
    assert (chosen.manifest.step, quarantined) == (20, [])


def test_steps_that_a_vanished_checkpoint_takes_along_are_told(tmp_path: Path) -> None:
    save(tmp_path, 10)
    quarantined: list[Quarantine] = []
    chosen = choose(tmp_path, floor_step=20, quarantined=quarantined)
    assert chosen is not None
    assert chosen.manifest.step == 10
    reason = "it was committed, but the store does not hold it any more"
    assert quarantined == [Quarantine(step=20, root="unknown", reason=reason)]


def test_the_newest_claim_lists_what_counted_and_older_ones_go(tmp_path: Path) -> None:
    first = save(tmp_path, 10, fence=1)
    for fence in (2, 3, 4):
        choose(tmp_path, fence=fence)
    claim = newest_claim(tmp_path, RUN)
    assert claim is not None
    assert (claim.fence, claim.resumed, claim.committed) == (4, first.root, (first.root,))
    assert len(list((tmp_path / "claims").iterdir())) == 2


def retention(store: Path, keep_last: int, quarantined: list[Quarantine], fence: int = 9) -> Retention:
    def fail(message: str) -> None:
        raise AssertionError(message)

    rules = Rules(store, RUN, fence, keep_last, "full")
    return Retention(rules, lambda _: None, quarantined.append, fail, Disk())


def steps_in(store: Path) -> list[int]:
    return [each.name.step for each in list_candidates(store, RUN).candidates if each.problem is None]


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
