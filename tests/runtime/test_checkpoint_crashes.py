"""A writer may die, and the power may fail, between any two operations: readers see the last committed checkpoint."""

import shutil
from pathlib import Path

from capstan_runtime.checkpoint.disk import Disk
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import COMMIT, SaveName, new_attempt
from capstan_runtime.checkpoint.retention import remove_checkpoint
from capstan_runtime.contract.state import Quarantine
from tests.support.checkpoints import RUN, choose, folder_of, retention, save
from tests.support.crashing_disk import PowerCut, killed_before, operations_of, restore


def test_a_writer_killed_between_any_two_operations_leaves_the_last_commit_or_its_own(tmp_path: Path) -> None:
    store = tmp_path / "store"
    before = save(store, 10)
    attempt = new_attempt(RUN)

    def second_save(disk: Disk) -> None:
        save(store, 20, attempt=attempt, parent=before.root, disk=disk)

    scratch = tmp_path / "scratch"
    shutil.copytree(store, scratch)
    operations = operations_of(lambda disk: save(scratch, 20, attempt=attempt, parent=before.root, disk=disk))
    assert operations > 30
    after = max(path.name for path in scratch.iterdir() if path.name.startswith("0000"))
    outcomes = []
    for operation in range(operations):
        assert killed_before(operation, second_save)
        quarantined: list[Quarantine] = []
        is_committed = (store / after / COMMIT).exists()
        chosen = choose(store, quarantined=quarantined)
        assert chosen is not None
        chosen.verify()
        assert (chosen.manifest.step, quarantined) == (20 if is_committed else 10, [])
        outcomes.append(chosen.manifest.step)
        for name in (after, "claims"):
            shutil.rmtree(store / name, ignore_errors=True)
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {10, 20}


def test_after_a_power_cut_between_any_two_operations_the_last_durable_commit_is_read(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    cut = PowerCut(volume)
    first = save(volume / "jobs" / "uid", 10, disk=cut.disk())
    committed = len(cut.snapshots)
    second = save(volume / "jobs" / "uid", 20, parent=first.root, disk=cut.disk())

    def read_after_the_cut(snapshot: dict[str, bytes | None]) -> str | None:
        after = tmp_path / "after"
        restore(snapshot, after)
        quarantined: list[Quarantine] = []
        chosen = choose(after / "jobs" / "uid", quarantined=quarantined)
        assert quarantined == [], "what was not committed is no candidate, and no broken one"
        if chosen is not None:
            chosen.verify()
        shutil.rmtree(after)
        return chosen.root if chosen else None

    found = [read_after_the_cut(snapshot) for snapshot in cut.snapshots]
    roots = [None, first.root, second.root]
    assert found == sorted(found, key=roots.index), "a later cut never shows an older state"
    assert found[committed - 1] == first.root, "what commit() returned survives"
    assert found[-1] == second.root
    assert sum(map(len, cut.strays)) > 50
    for surely, strays in zip(found, cut.strays, strict=True):
        for snapshot in strays:
            assert roots.index(read_after_the_cut(snapshot)) >= roots.index(surely)


def test_a_removal_killed_between_any_two_operations_never_leaves_half_a_checkpoint(tmp_path: Path) -> None:
    store = tmp_path / "store"
    save(store, 10)
    old = folder_of(store, save(store, 5).root)
    shutil.copytree(store, tmp_path / "scratch")
    name = SaveName.parse(old.name)
    assert name is not None
    operations = operations_of(lambda disk: remove_checkpoint(FolderStore(tmp_path / "scratch", disk), name))
    for operation in range(operations):
        shutil.copytree(tmp_path / "store", tmp_path / f"try{operation}")
        tried = tmp_path / f"try{operation}"
        assert killed_before(operation, lambda disk, place=tried: remove_checkpoint(FolderStore(place, disk), name))
        quarantined: list[Quarantine] = []
        chosen = choose(tried, quarantined=quarantined)
        assert chosen is not None
        assert (chosen.manifest.step, quarantined) == (10, [])


def test_a_killed_removal_is_finished_by_the_next_attempt(tmp_path: Path) -> None:
    for step in (10, 20):
        save(tmp_path, step)
    old = folder_of(tmp_path, save(tmp_path, 5).root)
    name = SaveName.parse(old.name)
    assert name is not None
    assert killed_before(3, lambda disk: remove_checkpoint(FolderStore(tmp_path, disk), name))
    assert old.exists()
    retention(tmp_path, 2, [], fence=2).sweep()
    assert not old.exists()
