"""What a pod's memory holds when its trainer dies at any moment: a whole save, and its checkpoint's root."""

import os
from pathlib import Path
from typing import Any

import pytest

from capstan_runtime.checkpoint import memory as memory_module
from capstan_runtime.checkpoint.digest import digest_of, name_of
from capstan_runtime.checkpoint.disk import Disk
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import SHARDS, new_attempt
from capstan_runtime.checkpoint.manifest import RankManifest, canonical_bytes
from capstan_runtime.checkpoint.memory import HELD, Held, held_saves
from capstan_runtime.checkpoint.saver import Identity, Saver
from capstan_runtime.checkpoint.shards import stage_shards
from capstan_runtime.checkpoint.staging import StagingArea
from capstan_runtime.checkpoint.whole import whole_tensors
from capstan_runtime.checkpoint.writer import Save, build_manifest, manifest_of
from capstan_runtime.contract.state import Checkpoint
from tests.support.checkpoints import RUN, arrays_of, facts_of, flip, share_of, trainer_state
from tests.support.rank_threads import Exchange, run_rank_threads

ATTEMPT = new_attempt(RUN)


def hold(area: StagingArea, step: int, fence: int = 1, attempt: str = ATTEMPT) -> Held:
    save = Save(FolderStore(Path("/nowhere")), facts_of(step, fence, attempt=attempt), 0)
    area.begin(save.name)
    shards = stage_shards(0, share_of(arrays_of(step), 0, 1), area.allocate, 64)
    held = area.seal(save.facts, manifest_of(save, shards))
    assert held is not None
    return held


def area_in(folder: Path) -> StagingArea:
    return StagingArea(folder, RUN, 0, pytest.fail)


def test_the_root_put_together_from_the_memories_is_the_one_that_was_committed(tmp_path: Path) -> None:
    world, attempt = 3, new_attempt(RUN)
    staged: list[list[Checkpoint]] = [[] for _ in range(world)]

    def main(rank: int, exchange: Exchange) -> Checkpoint:
        identity = Identity(FolderStore(tmp_path / "store"), "default/test", RUN, "flax", 1, attempt, rank, world)
        area = StagingArea(tmp_path / str(rank), RUN, rank, pytest.fail)
        saver = Saver(identity, None, exchange, 10.0, area, staged[rank].append, pytest.fail)
        for step in (1, 2):
            checkpoint = saver.save(trainer_state(step), share_of(arrays_of(step), rank, world), {"loss": 1.0})
        return checkpoint

    committed: list[Any] = run_rank_threads(world, main)
    held = [held_saves(tmp_path / str(rank), RUN)[0] for rank in range(world)]
    folders = [tmp_path / str(rank) / str(each.name) for rank, each in enumerate(held)]
    ranks = [
        (each.manifest, RankManifest.model_validate_json((folder / SHARDS / each.manifest.name).read_bytes()))
        for each, folder in zip(held, folders, strict=True)
    ]

    def read(file: str, offset: int, target: memoryview) -> None:
        owner = int(file[1 : file.index("-")])
        data = (folders[owner] / SHARDS / file).read_bytes()
        target[:] = data[offset : offset + len(target)]

    manifest = build_manifest(held[0].facts, ranks, read)
    assert name_of(digest_of(canonical_bytes(manifest))) == committed[0].root
    assert (manifest.logical, manifest.parent is None) == (committed[0].logical, False)
    for rank in range(world):
        assert [(part.step, part.root) for part in staged[rank]][-1] == (2, held[rank].manifest.digest)
        assert staged[rank][-1].at == held[rank].facts.created_at


def test_the_record_says_which_save_and_has_the_digest_of_its_manifest(tmp_path: Path) -> None:
    held = hold(area_in(tmp_path), 7, fence=3)
    assert held_saves(tmp_path, RUN) == [held]
    assert (held.name.step, held.name.fence, held.name.attempt, held.rank) == (7, 3, ATTEMPT, 0)
    assert held.facts == facts_of(7, 3, attempt=ATTEMPT)
    data = (tmp_path / str(held.name) / SHARDS / "r0.json").read_bytes()
    assert held.manifest.digest == name_of(digest_of(data))


def test_the_most_recently_made_comes_first_even_if_it_went_back_to_an_older_step(tmp_path: Path) -> None:
    hold(area_in(tmp_path), 120, fence=3)
    hold(area_in(tmp_path), 110, fence=4, attempt=new_attempt(RUN))
    assert [held.facts.step for held in held_saves(tmp_path, RUN)] == [110, 120]


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_a_trainer_killed_between_any_two_operations_of_staging_leaves_the_save_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the process would do after its last operation, it does not do; what it did, is there."""
    outcomes: list[list[int]] = []
    is_through = False
    while not is_through:
        last = len(outcomes)
        folder = tmp_path / str(last)
        area = area_in(folder)
        hold(area, 1)
        hold(area, 2)
        operations = 0

        def counted(function: Any, limit: int = last) -> Any:
            def call(*args: Any, **keywords: Any) -> Any:
                nonlocal operations
                operations += 1
                if operations > limit:
                    raise Killed
                return function(*args, **keywords)

            return call

        with monkeypatch.context() as patch:
            for owner, name in ((Path, "rename"), (Path, "unlink"), (Path, "mkdir"), (os, "posix_fallocate")):
                patch.setattr(owner, name, counted(getattr(owner, name)))
            for name in ("create", "append", "rename", "sync"):
                patch.setattr(Disk, name, counted(getattr(Disk, name)))
            try:
                hold(area, 3)
                is_through = True
            except Killed:
                pass
        for held in held_saves(folder, RUN):
            require_intact(folder, held)
        outcomes.append([held.facts.step for held in held_saves(folder, RUN)])
        hold(area_in(folder), 4)
        steps = [held.facts.step for held in held_saves(folder, RUN)]
        assert steps == [4, outcomes[-1][0]], "the next trainer goes on from there"
    assert sorted(outcomes, key=[[2, 1], [2], [3, 2]].index) == outcomes
    assert [outcomes.count(each) > 0 for each in ([2, 1], [2], [3, 2])] == [True] * 3
    assert len(outcomes) > 10


def require_intact(folder: Path, held: Held) -> None:
    shards = folder / str(held.name) / SHARDS
    manifest = RankManifest.model_validate_json((shards / held.manifest.name).read_bytes())
    for whole in whole_tensors([manifest]):
        for piece in (piece for leaf in whole.leaves for piece in leaf):
            data = (shards / piece.file).read_bytes()[piece.offset : piece.offset + piece.size]
            assert digest_of(data) == piece.digest


@pytest.mark.parametrize("damage", ["no record", "no manifest", "manifest", "file missing", "file short", "record"])
def test_what_is_not_whole_is_not_held(tmp_path: Path, damage: str) -> None:
    area = area_in(tmp_path)
    held = [hold(area, step) for step in (1, 2)]
    folder = tmp_path / str(held[1].name)
    shard = next(folder.glob("shards/*.safetensors"))
    match damage:
        case "no record":
            (folder / HELD).unlink()
        case "no manifest":
            (folder / SHARDS / "r0.json").unlink()
        case "manifest":
            flip(folder / SHARDS / "r0.json", 10)
        case "file missing":
            shard.unlink()
        case "file short":
            shard.write_bytes(shard.read_bytes()[:-1])
        case "record":
            (folder / HELD).write_bytes(b"{}")
    assert held_saves(tmp_path, RUN) == [held[0]]


def test_another_run_holds_nothing_here_and_neither_does_a_folder_that_is_not_there(tmp_path: Path) -> None:
    hold(area_in(tmp_path), 1)
    assert held_saves(tmp_path, "another run") == []
    assert held_saves(tmp_path / "nowhere", RUN) == []


def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write_file = memory_module.write_file
    monkeypatch.setattr(
        memory_module,
        "write_file",
        lambda disk, path, pieces: (written.append(path.name), write_file(disk, path, pieces)),
    )
    hold(area_in(tmp_path), 1)
    assert written == [HELD, "r0.json"]
