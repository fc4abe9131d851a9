"""The memory that a state is copied into: laid out as files, used again, and never a reason to stop training."""

import errno
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load

from capstan_runtime.checkpoint.digest import LEAF_BYTES
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import new_attempt
from capstan_runtime.checkpoint.memory import held_saves
from capstan_runtime.checkpoint.saver import Identity, Saver
from capstan_runtime.checkpoint.shards import Shard, stage_shards
from capstan_runtime.checkpoint.staging import StagingArea
from capstan_runtime.checkpoint.writer import Save, manifest_of
from capstan_runtime.engine import LocalTensor
from tests.support.checkpoints import RUN, arrays_of, facts_of, share_of, steps_in, trainer_state

ATTEMPT = new_attempt(RUN)


def stage(area: StagingArea, step: int, *, seal: bool = True, shard_bytes: int = 64) -> list[Shard]:
    save = Save(FolderStore(Path("/nowhere")), facts_of(step, attempt=ATTEMPT), 0)
    area.begin(save.name)
    shards = stage_shards(0, share_of(arrays_of(step), 0, 1), area.allocate, shard_bytes)
    if seal:
        area.seal(save.facts, manifest_of(save, shards))
    return shards


def held_steps(folder: Path) -> list[int]:
    return [held.facts.step for held in held_saves(folder, RUN)]


def area_in(folder: Path | None, notes: list[str] | None = None) -> StagingArea:
    return StagingArea(folder, RUN, 0, pytest.fail if notes is None else notes.append)


def inodes(folder: Path, step: int) -> list[int]:
    save = next(path for path in folder.iterdir() if path.name.startswith(f"{step:012d}"))
    return [path.stat().st_ino for path in sorted(save.glob("shards/*.safetensors"))]


def test_staged_memory_is_what_any_safetensors_reader_reads() -> None:
    shards = stage(area_in(None), 3, shard_bytes=1 << 20)
    assert [shard.name for shard in shards] == ["r0-0.safetensors"]
    loaded = load(bytes(shards[0].data))
    assert {name: (array.dtype, array.shape, array.tobytes()) for name, array in loaded.items()} == {
        name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays_of(3).items()
    }


def test_what_no_memory_holds_is_staged_on_a_disk_and_leaves_nothing_there(tmp_path: Path) -> None:
    def in_memory() -> int:
        found = re.findall(r"Rss(?:Anon|Shmem):\s+(\d+) kB", Path("/proc/self/status").read_text())
        return 1024 * sum(map(int, found))

    size = 64 << 20
    areas = [StagingArea(None, RUN, 0, pytest.fail, scratch) for scratch in (None, tmp_path)]
    for area, taken in zip(areas, (size, 0), strict=True):
        before = in_memory()
        memory = area.allocate(0, size)
        memory[:] = bytes(1) * size
        assert in_memory() - before == pytest.approx(taken, abs=size / 8)
        assert area.allocate(0, size).obj is memory.obj
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_larger_than_a_file_is_cut_where_its_leaves_end() -> None:
    floats = LEAF_BYTES // 4
    whole = np.zeros(4 * floats, np.float32)
    tensors = iter([LocalTensor("w", whole.shape, 10, whole[10:])])
    shards = stage_shards(0, tensors, lambda index, size: memoryview(bytearray(size)), 3 * LEAF_BYTES // 2)
    parts = [part for shard in shards for part in shard.parts]
    assert [part.start for part in parts] == [10, floats, 2 * floats, 3 * floats]
    assert parts[-1].start + parts[-1].count == 4 * floats


def test_memory_of_the_process_is_used_again_by_the_next_save() -> None:
    area = area_in(None)
    before = [mmap_of(shard) for shard in stage(area, 1)]
    after = [mmap_of(shard) for shard in stage(area, 2)]
    assert len(before) > 1
    assert [id(each) for each in before] == [id(each) for each in after]


def mmap_of(shard: Shard) -> object:
    assert isinstance(shard.data.obj, mmap.mmap)
    return shard.data.obj


def test_two_saves_stay_in_the_folder_and_take_turns_in_its_memory(tmp_path: Path) -> None:
    area = area_in(tmp_path)
    used = []
    for step in (1, 2, 3, 4):
        stage(area, step)
        area.prepare()
        used.append(inodes(tmp_path, step))
        assert held_steps(tmp_path) == [step, step - 1][: min(step, 2)]
    assert used[0] == used[2]
    assert used[1] == used[3]
    assert sorted(path.name[:12] for path in tmp_path.iterdir()) == ["000000000003", "000000000004"]


def test_memory_for_the_second_save_is_there_before_it_comes(tmp_path: Path) -> None:
    area = area_in(tmp_path)
    stage(area, 1)
    area.prepare()
    assert held_steps(tmp_path) == [1], "what is at hand is no save"
    ready = sorted(path.stat().st_ino for path in tmp_path.glob("spare/shards/*"))
    stage(area, 2)
    assert (sorted(inodes(tmp_path, 2)), len(ready)) == (ready, len(inodes(tmp_path, 1)))


def test_a_state_that_changes_its_size_is_staged_all_the_same(tmp_path: Path) -> None:
    area = area_in(tmp_path)
    for step, shard_bytes in enumerate((64, 1 << 20, 32, 64, 1 << 20), start=1):
        shards = stage(area, step, shard_bytes=shard_bytes)
        folder = next(path for path in tmp_path.iterdir() if path.name.startswith(f"{step:012d}"))
        files = {path.name: path.read_bytes() for path in folder.glob("shards/*.safetensors")}
        assert files == {shard.name: bytes(shard.data) for shard in shards}
    assert held_steps(tmp_path) == [5, 4]


def test_what_is_torn_or_of_another_run_is_cleaned_away_and_strangers_are_left_alone(tmp_path: Path) -> None:
    for name in (f"{1:012d}.1.{new_attempt('another run')}", f"{2:012d}.1.{ATTEMPT}", "spare"):
        (tmp_path / name / "shards").mkdir(parents=True)
        (tmp_path / name / "shards" / "r0-0.safetensors").write_bytes(b"torn")
    (tmp_path / "notes.txt").write_text("somebody's")
    area = area_in(tmp_path)
    stage(area, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{5:012d}.1.{ATTEMPT}", "notes.txt"]
    assert held_steps(tmp_path) == [5]


class Room:
    """Lets files of at most `left` bytes be made, whatever the disk would say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, size: int) -> None:
        self._folder = folder
        self._size = size
        monkeypatch.setattr(os, "posix_fallocate", self._allocate)

    def _allocate(self, descriptor: int, offset: int, size: int) -> None:
        used = sum(path.stat().st_size for path in self._folder.rglob("*.safetensors"))
        if used > self._size:
            raise OSError(errno.ENOSPC, "No space left on device")


def size_of_one_save() -> int:
    return sum(len(shard.data) for shard in stage(area_in(None), 1))


def test_with_room_for_one_save_only_the_folder_holds_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Room(monkeypatch, tmp_path, 3 * size_of_one_save() // 2)
    area = area_in(tmp_path)
    used = []
    for step in (1, 2, 3):
        stage(area, step)
        area.prepare()
        used.append(inodes(tmp_path, step))
        assert held_steps(tmp_path) == [step]
    assert used[0] == used[1] == used[2]


def test_a_full_folder_is_given_up_with_a_note_and_saves_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, store = tmp_path / "memory", tmp_path / "store"
    Room(monkeypatch, memory, size_of_one_save() // 2)
    notes: list[str] = []
    staged: list[int] = []
    identity = Identity(FolderStore(store), "default/test", RUN, "flax", 1, ATTEMPT, 0, 1)
    area = area_in(memory, notes)
    saver = Saver(
        identity, None, lambda payload: [payload], 10, area, lambda part: staged.append(part.step), pytest.fail
    )
    for step in (1, 2):
        saver.save(trainer_state(step), share_of(arrays_of(step), 0, 1))
    assert steps_in(store) == [2, 1]
    assert notes == [
        f"memory tier {memory}: [Errno {errno.ENOSPC}] No space left on device; from now on a restart reads the store"
    ]
    assert (staged, list(memory.iterdir())) == ([], []), "no memory is kept that nobody can use"


def test_a_folder_that_cannot_be_used_is_given_up_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "memory").write_text("no folder")
    notes: list[str] = []
    area = area_in(tmp_path / "memory", notes)
    assert len(stage(area, 1)) == len(stage(area, 2)) > 1
    assert len(notes) == 1
    assert notes[0].startswith(f"memory tier {tmp_path / 'memory'}: [Errno {errno.EEXIST}]")


def test_all_pages_are_there_before_they_are_written(tmp_path: Path) -> None:
    """A hole in a full tmpfs would end the process with SIGBUS when it is filled."""
    stage(area_in(tmp_path), 1, seal=False)
    files = list(tmp_path.rglob("*.safetensors"))
    assert len(files) > 1
    assert all(path.stat().st_blocks * 512 >= path.stat().st_size for path in files)


def test_tensors_are_exported_to_the_end_when_there_is_no_memory() -> None:
    exported: list[str] = []

    def tensors() -> Iterator[LocalTensor]:
        for tensor in share_of(arrays_of(1), 0, 1):
            yield tensor
            exported.append(tensor.name)

    def allocate(index: int, size: int) -> memoryview:
        raise OSError(errno.ENOMEM, "no memory")

    with pytest.raises(OSError, match="no memory"):
        stage_shards(0, tensors(), allocate, 32)
    assert len(exported) == len(arrays_of(1))
