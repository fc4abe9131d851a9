"""Which checkpoint an attempt resumes from, and who may still write: the newest that verifies, the newest fence."""

import errno
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import pytest

from capstan_runtime.checkpoint.candidates import list_candidates, quarantine
from capstan_runtime.checkpoint.claims import newer_fence, newest_claim, write_claim
from capstan_runtime.checkpoint.digest import Buffer, digest_of, name_of
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import (
    COMMIT,
    MANIFEST,
    QUARANTINED,
    SHARDS,
    VERIFIED,
    SaveName,
    new_attempt,
)
from capstan_runtime.checkpoint.manifest import Claim, Commit, canonical_bytes
from capstan_runtime.checkpoint.marks import mark_verified, verified_at
from capstan_runtime.checkpoint.reader import OpenCheckpoint, open_checkpoint
from capstan_runtime.checkpoint.retention import remove_checkpoint
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.checkpoint.takeover import Newcomer, take_over
from capstan_runtime.checkpoint.writer import Superseded
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import Checkpoint, Quarantine
from capstan_runtime.errors import ConfigError, CorruptCheckpoint, StoreUnavailable
from tests.support.checkpoints import (
    RUN,
    LockedStore,
    choose,
    flip,
    folder_of,
    retention,
    save,
    steps_in,
)


def test_the_newest_that_verifies_is_chosen_and_the_broken_one_quarantined(tmp_path: Path) -> None:
    good, bad = save(tmp_path, 10), save(tmp_path, 20)
    shard = folder_of(tmp_path, bad.root) / SHARDS / "r1-0.safetensors"
    flip(shard, shard.stat().st_size - 1)
    quarantined: list[Quarantine] = []
    chosen = choose(tmp_path, quarantined=quarantined)
    assert chosen is not None
    assert chosen.root == good.root
    assert [(each.step, each.root) for each in quarantined] == [(20, bad.root)]
    assert re.search(rf"{SHARDS}/r1-0.safetensors: bytes \d+-{shard.stat().st_size} are blake3:", quarantined[0].reason)
    assert (shard.parent.parent / QUARANTINED).exists()
    again: list[Quarantine] = []
    chosen = choose(tmp_path, fence=3, quarantined=again)
    assert chosen is not None
    assert (chosen.root, again) == (good.root, [])


def test_however_many_are_broken_the_good_one_before_them_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("capstan_runtime.checkpoint.choose._MOST_PROPOSED", 2)
    good = save(tmp_path, 10)
    for step in (20, 30, 40):
        quarantine(FolderStore(tmp_path), SaveName.parse(folder_of(tmp_path, save(tmp_path, step).root).name), "broken")
    chosen = choose(tmp_path)
    assert chosen is not None
    assert chosen.root == good.root


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


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.EUCLEAN])
def test_a_folder_that_cannot_be_read_is_told_and_left_alone_but_never_taken_for_nothing(
    tmp_path: Path, number: int
) -> None:
    first = save(tmp_path, 10)
    newest = folder_of(tmp_path, save(tmp_path, 20).root).name
    told: list[Quarantine] = []
    locked = LockedStore(tmp_path, newest, number)
    chosen = choose(locked, quarantined=told)
    assert chosen is not None
    assert (chosen.root, [(each.step, each.root) for each in told]) == (first.root, [(20, "unknown")])
    assert told[0].reason.startswith(f"it cannot be read: [Errno {number}] {os.strerror(number)}")
    assert list(tmp_path.rglob(QUARANTINED)) == []
    save(tmp_path, 30, fence=2)
    save(tmp_path, 40, fence=2)
    retention(locked, 2, told, fence=2).sweep()
    assert (steps_in(locked), (tmp_path / newest / COMMIT).exists()) == ([40, 30], True)


def test_a_store_whose_only_checkpoints_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    only = folder_of(tmp_path, save(tmp_path, 10).root).name
    for number in (errno.EACCES, errno.EIO):
        with pytest.raises(StoreUnavailable, match=rf"on rank 0: {tmp_path}/{only}: it cannot be read: "):
            choose(LockedStore(tmp_path, only, number))
    with pytest.raises(StoreUnavailable, match="Stale file handle"):
        choose(LockedStore(tmp_path, only, errno.ESTALE))
    assert choose(LockedStore(tmp_path, "elsewhere")) is not None
    save(tmp_path / "other", 10, run="another-uid")
    theirs = next(path.name for path in (tmp_path / "other").iterdir())
    assert choose(LockedStore(tmp_path / "other", theirs)) is None, "another run's is nobody's business"


def test_a_claim_or_a_mark_that_the_disk_cannot_read_is_as_good_as_none(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 10)
    choose(tmp_path, fence=2)
    choose(tmp_path, fence=3)
    newest = sorted((tmp_path / "claims").iterdir())[-1]

    class BadBlock(FolderStore):
        def get(self, key: str) -> bytes:
            if key.endswith((newest.name, VERIFIED)):
                raise OSError(errno.EIO, os.strerror(errno.EIO), key)
            return super().get(key)

    store = BadBlock(tmp_path)
    claim = newest_claim(store, RUN)
    assert claim is not None
    assert claim.fence == 2
    name = list_candidates(store, RUN).candidates[0].name
    mark_verified(store, name, checkpoint.root, at=1.0)
    assert verified_at(store, name, checkpoint.root) is None


def test_no_wrong_byte_of_a_claim_costs_a_checkpoint_or_the_run(tmp_path: Path) -> None:
    save(tmp_path, 10)
    choose(tmp_path, fence=2)
    newest = save(tmp_path, 20, fence=2)
    choose(tmp_path, fence=3)
    claim = sorted((tmp_path / "claims").iterdir())[-1]
    whole = claim.read_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        claim.write_bytes(damaged)
        listing = list_candidates(FolderStore(tmp_path), RUN)
        assert (listing.candidates[0].root, listing.stale) == (newest.root, ()), at
        assert newer_fence(FolderStore(tmp_path), RUN, 3) is None, at


def test_checkpoints_of_another_run_are_left_alone(tmp_path: Path) -> None:
    other = save(tmp_path, 50, run="another-uid")
    assert choose(tmp_path) is None
    store = FolderStore(tmp_path)
    names = [name for text in store.children() if (name := SaveName.parse(text)) is not None]
    assert [open_checkpoint(store, name).root for name in names] == [other.root]


def test_the_level_manifest_trusts_the_tensors_bytes(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, save(tmp_path, 10, world=1, shard_bytes=1 << 20).root)
    shard = folder / SHARDS / "r0-0.safetensors"
    flip(shard, shard.stat().st_size - 1)
    chosen = choose(tmp_path, verify="manifest")
    assert chosen is not None
    with pytest.raises(CorruptCheckpoint, match=r"r0-0.safetensors: bytes "):
        chosen.verify()


def test_ranks_that_see_different_stores_do_not_start(tmp_path: Path) -> None:
    save(tmp_path, 10)

    def with_another_rank(payload: bytes) -> list[bytes]:
        return [payload, b"blake3:ff" if payload.startswith(b"blake3:") else payload]

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
    claim = Claim(run=RUN, fence=2, attempt=new_attempt(RUN), resumed=seen.root, committed=(seen.root,))
    write_claim(FolderStore(tmp_path), claim)
    listing = list_candidates(FolderStore(tmp_path), RUN)
    assert [each.root for each in listing.candidates] == [seen.root]
    assert [open_checkpoint(FolderStore(tmp_path), name).root for name in listing.stale] == [late.root]


def test_what_is_committed_and_told_before_the_claim_is_written_counts(tmp_path: Path) -> None:
    """The older process found no claim after its commit, so it has told of it; the operator will ask for its step."""
    before = save(tmp_path, 10, fence=1)
    told: list[Checkpoint] = []

    class Overtaken(FolderStore):
        def put(self, key: str, pieces: Iterable[Buffer]) -> None:
            if not told:
                told.append(save(tmp_path, 20, fence=1))
            super().put(key, pieces)

    chosen = choose(Overtaken(tmp_path), fence=2)
    assert chosen is not None
    assert chosen.root == told[0].root
    claim = newest_claim(FolderStore(tmp_path), RUN)
    assert claim is not None
    assert (claim.resumed, claim.committed) == (told[0].root, (told[0].root, before.root))
    assert list_candidates(FolderStore(tmp_path), RUN).stale == ()


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """As another version of the writer would have written it, with a COMMIT that fits."""
    document = json.loads((folder / MANIFEST).read_bytes())
    change(document)
    data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    (folder / MANIFEST).write_bytes(data)
    note = Commit.model_validate_json((folder / COMMIT).read_bytes())
    (folder / COMMIT).write_bytes(canonical_bytes(note.model_copy(update={"root": name_of(digest_of(data))})))


@pytest.mark.parametrize("name", ["..", ".", "", "r0\0.json", "x" * 300, "r1.json"])
def test_a_manifest_that_sends_the_reader_elsewhere_is_passed_over(name: str, tmp_path: Path) -> None:
    save(tmp_path, 10)
    folder = folder_of(tmp_path, save(tmp_path, 20).root)
    rewrite_manifest(folder, lambda document: document["ranks"][0].update(name=name))
    quarantined: list[Quarantine] = []
    chosen = choose(tmp_path, quarantined=quarantined)
    assert chosen is not None
    assert (chosen.manifest.step, [each.step for each in quarantined]) == (10, [20])
    assert "is not the name of rank 0's manifest" in quarantined[0].reason


@pytest.mark.parametrize(
    ("forged", "problem"),
    [
        ({"count": 10**15, "shape": [10**15]}, "1 digests for 1907348633 pieces"),
        ({"start": 10**60, "count": 10**60}, "is saved by nobody"),
        ({"dtype": "F17"}, "'F17' is no type of a tensor"),
    ],
)
def test_a_manifest_of_what_cannot_be_is_passed_over_and_takes_no_memory(
    forged: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    save(tmp_path, 10)
    folder = folder_of(tmp_path, save(tmp_path, 20).root)
    path = folder / SHARDS / "r0.json"
    rank = json.loads(path.read_bytes())
    rank["chunks"][0].update(forged)
    data = json.dumps(rank, sort_keys=True, separators=(",", ":")).encode()
    path.write_bytes(data)
    rewrite_manifest(folder, lambda document: document["ranks"][0].update(digest=name_of(digest_of(data))))
    quarantined: list[Quarantine] = []
    chosen = choose(tmp_path, quarantined=quarantined)
    assert chosen is not None
    assert (chosen.manifest.step, [each.step for each in quarantined]) == (10, [20])
    assert problem in quarantined[0].reason


def test_a_manifest_written_before_an_optional_field_was_added_is_whole(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, save(tmp_path, 10).root)
    rewrite_manifest(folder, lambda document: document.pop("digest"))
    quarantined: list[Quarantine] = []
    chosen = choose(tmp_path, quarantined=quarantined)
    assert chosen is not None
    assert (chosen.manifest.step, quarantined) == (10, [])


def test_a_later_format_halts_the_run_and_is_not_called_damage(tmp_path: Path) -> None:
    save(tmp_path, 10)
    later = folder_of(tmp_path, save(tmp_path, 20).root)
    rewrite_manifest(later, lambda document: document.update(format="capstan-checkpoint/3", signature="new"))
    listing = list_candidates(FolderStore(tmp_path), RUN)
    assert [(each.name.step, each.root) for each in (*listing.candidates, *listing.later)] == [
        (10, listing.candidates[0].root),
        (20, None),
    ], "it is listed all the same"
    with pytest.raises(ConfigError, match=r"MANIFEST.json: its format is not capstan-checkpoint/2, the one that this"):
        choose(tmp_path)
    assert not (later / QUARANTINED).exists()


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

    def opened(store: Store, name: SaveName, _: str | None) -> OpenCheckpoint:
        remove_checkpoint(store, name)
        return open_checkpoint(store, name)

    monkeypatch.setattr("capstan_runtime.checkpoint.choose.open_checkpoint", opened)
    with pytest.raises(StoreUnavailable, match="it was removed while it was read"):
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
    reason = "it was committed, but the store has not shown it for 0.2 s"
    assert quarantined == [Quarantine(step=20, root="unknown", reason=reason)]


class LateStore(FolderStore):
    """A network file system on a node that does not see one save, or its COMMIT alone, until `shows`."""

    def __init__(self, path: Path, late: str, hides: Literal["all", "COMMIT"] = "all") -> None:
        super().__init__(path)
        self._late = late
        self._hides = hides
        self.shows = False

    def children(self, prefix: str = "") -> list[str]:
        found = super().children(prefix)
        if self.shows:
            return found
        if self._hides == "all":
            return [] if prefix.startswith(self._late) else [name for name in found if name != self._late]
        return [name for name in found if (prefix, name) != (self._late, COMMIT)]

    def size(self, key: str) -> int | None:
        return None if not self.shows and key == f"{self._late}/{COMMIT}" else super().size(key)


@pytest.mark.parametrize("hides", ["all", "COMMIT"])
def test_what_the_operator_has_seen_outlives_an_attempt_that_does_not_see_it(
    hides: Literal["all", "COMMIT"], tmp_path: Path
) -> None:
    before, newest = save(tmp_path, 10), save(tmp_path, 20)
    store = LateStore(tmp_path, folder_of(tmp_path, newest.root).name, hides)
    chosen = choose(store, fence=2, floor_step=20, floor_root=newest.root)
    assert chosen is not None
    assert chosen.root == before.root, "it was waited for, but not for ever"
    swept = retention(store, 5, [], fence=2, floor_step=20)
    swept.sweep()
    store.shows = True
    swept.sweep()
    resumed = choose(store, fence=3, floor_step=20, floor_root=newest.root)
    assert resumed is not None
    assert resumed.root == newest.root


def test_what_the_operator_has_seen_counts_though_a_claim_left_it_out(tmp_path: Path) -> None:
    before, newest = save(tmp_path, 10), save(tmp_path, 20)
    claim = Claim(run=RUN, fence=2, attempt=new_attempt(RUN), resumed=before.root, committed=(before.root,))
    write_claim(FolderStore(tmp_path), claim)
    chosen = choose(tmp_path, fence=3, floor_step=20, floor_root=newest.root)
    assert chosen is not None
    assert chosen.root == newest.root
    assert steps_in(tmp_path) == [20, 10]


def test_the_newest_seen_is_waited_for_though_another_save_of_its_step_is_there(tmp_path: Path) -> None:
    save(tmp_path, 20, fence=1)
    newest = save(tmp_path, 20, fence=2)
    store = LateStore(tmp_path, folder_of(tmp_path, newest.root).name)
    late = threading.Timer(0.3, setattr, (store, "shows", True))
    late.start()
    chosen = choose(store, fence=3, floor_step=20, floor_root=newest.root, visible_seconds=20)
    late.join()
    assert chosen is not None
    assert chosen.root == newest.root


def test_a_save_in_memory_that_is_newer_leaves_the_newest_seen_in_the_claim(tmp_path: Path) -> None:
    newest = save(tmp_path, 20)
    store = LateStore(tmp_path, folder_of(tmp_path, newest.root).name)
    membership = Membership(fence=2, rank=0, world=1, coordinator="127.0.0.1:1", floor_step=20, floor_root=newest.root)
    newcomer = Newcomer(store, RUN, membership, new_attempt(RUN), pytest.fail, visible_seconds=20)
    taken = take_over(newcomer, [SaveName(25, 1, new_attempt(RUN))])
    assert (taken.listing.candidates, taken.claim.committed) == ((), (newest.root,))


def test_the_newest_claim_lists_what_counted_and_older_ones_go(tmp_path: Path) -> None:
    first = save(tmp_path, 10, fence=1)
    for fence in (2, 3, 4):
        choose(tmp_path, fence=fence)
    claim = newest_claim(FolderStore(tmp_path), RUN)
    assert claim is not None
    assert (claim.fence, claim.resumed, claim.committed) == (4, first.root, (first.root,))
    assert len(list((tmp_path / "claims").iterdir())) == 2
