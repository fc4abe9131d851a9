"""What is kept and what goes: the laws of the rules, and that retention keeps to them in a store."""

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_runtime.checkpoint import readback as readback_module
from capstan_runtime.checkpoint import retention as retention_module
from capstan_runtime.checkpoint.candidates import list_candidates
from capstan_runtime.checkpoint.claims import write_claim
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.keeping import Held, kept
from capstan_runtime.checkpoint.layout import COMMIT, VERIFIED, SaveName, new_attempt
from capstan_runtime.checkpoint.manifest import Claim
from capstan_runtime.checkpoint.marks import is_pinned, mark_verified, pin, unpin, verified_at
from capstan_runtime.checkpoint.readback import Pace, forget
from capstan_runtime.checkpoint.reader import OpenCheckpoint, open_checkpoint
from capstan_runtime.checkpoint.retention import Retention as Keeper
from capstan_runtime.checkpoint.retention import Rules
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.checkpoint.writer import Save, commit, write_shards
from capstan_runtime.contract.saving import Best, Retention, VerifyLevel
from capstan_runtime.errors import ConfigError
from tests.support.checkpoints import RUN, arrays_of, as_store, facts_of, retention, save, share_of, steps_in

NOW = 10_000.0


def held(step: int, *, fence: int = 1, age: float = 1e6, proven: bool = True, **metrics: float) -> Held:
    return Held(SaveName(step, fence, "0123456789ab"), NOW - age, metrics, False, proven)


saves = st.lists(
    st.builds(
        Held,
        st.builds(SaveName, st.integers(1, 60), st.integers(1, 3), st.just("0123456789ab")),
        st.floats(0, 2 * NOW),
        st.dictionaries(st.sampled_from(["loss", "accuracy"]), st.floats() | st.integers(0, 3).map(float)),
        st.booleans(),
        st.booleans(),
    ),
    max_size=12,
    unique_by=lambda save: save.name,
)
rules = st.builds(
    Retention,
    last=st.integers(2, 5),
    every_steps=st.none() | st.integers(1, 20),
    best=st.none()
    | st.builds(
        Best, metric=st.sampled_from(["loss", "accuracy"]), mode=st.sampled_from(["min", "max"]), keep=st.integers(1, 3)
    ),
    newer_than_seconds=st.none() | st.integers(1, int(NOW)),
)


@given(saves, rules)
def test_the_newest_two_that_are_proven_always_stay_and_without_them_everything_does(
    found: list[Held], rule: Retention
) -> None:
    proven = sorted((save.name for save in found if save.is_proven), reverse=True)[:2]
    stay = kept(found, rule, NOW)
    assert stay >= set(proven)
    if len(proven) < 2:
        assert stay == {save.name for save in found}


@given(saves, rules)
def test_the_newest_and_the_pinned_stay_whatever_the_rules(found: list[Held], rule: Retention) -> None:
    stay = kept(found, rule, NOW)
    newest = sorted((save.name for save in found), reverse=True)
    assert stay >= {*newest[: rule.last], *(save.name for save in found if save.is_pinned)}
    assert stay <= set(newest)


@given(saves, rules, st.randoms(use_true_random=False))
def test_the_order_of_a_listing_does_not_matter(found: list[Held], rule: Retention, chance: object) -> None:
    shuffled = list(found)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    assert kept(shuffled, rule, NOW) == kept(found, rule, NOW)


@given(saves, rules)
def test_a_second_look_after_the_removal_removes_nothing_more(found: list[Held], rule: Retention) -> None:
    stay = kept(found, rule, NOW)
    assert kept([save for save in found if save.name in stay], rule, NOW) == stay


@given(saves, rules, st.floats(0, NOW), saves)
def test_what_has_been_let_go_is_never_wanted_again(
    found: list[Held], rule: Retention, later: float, more: list[Held]
) -> None:
    stay = kept(found, rule, NOW)
    newest = max((save.name.step for save in found), default=0)
    names = {save.name for save in found}
    after = [Held(SaveName(save.name.step + newest, 9, f"{i:012x}"), NOW, save.metrics) for i, save in enumerate(more)]
    assert kept([*found, *after], rule, NOW + later) & names <= stay


@given(saves, rules, rules)
def test_a_rule_that_is_added_only_keeps_more(found: list[Held], rule: Retention, other: Retention) -> None:
    for name in ("every_steps", "best", "newer_than_seconds"):
        less, more = (rule.model_copy(update={name: value}) for value in (None, getattr(other, name)))
        assert kept(found, less, NOW) <= kept(found, more, NOW)


STEPS = [held(step, loss=abs(step - 45), accuracy=0.5) for step in range(10, 101, 10)]


@pytest.mark.parametrize(
    ("rule", "steps"),
    [
        (Retention(last=2), [90, 100]),
        (Retention(last=3, every_steps=40), [40, 80, 90, 100]),
        (Retention(last=2, best=Best(metric="loss", mode="min", keep=3)), [30, 40, 50, 90, 100]),
        (Retention(last=2, best=Best(metric="loss", mode="max")), [90, 100]),
        (Retention(last=2, best=Best(metric="accuracy", mode="max")), [10, 90, 100]),
        (Retention(last=2, best=Best(metric="unheard_of", mode="max")), [90, 100]),
        (Retention(last=2, newer_than_seconds=3600), [90, 100]),
    ],
)
def test_each_rule_keeps_what_it_says(rule: Retention, steps: list[int]) -> None:
    assert {name.step for name in kept(STEPS, rule, NOW)} == set(steps)


def test_an_age_keeps_what_was_committed_within_it() -> None:
    found = [held(step, age=1000 - step) for step in range(100, 1000, 100)]
    assert {name.step for name in kept(found, Retention(last=2, newer_than_seconds=300), NOW)} == {700, 800, 900}


def test_a_broken_run_of_newer_ones_does_not_cost_the_older_proven_ones() -> None:
    found = [held(10), held(20), held(30, proven=False), held(40, proven=False), held(50, proven=False)]
    assert {name.step for name in kept(found, Retention(last=2), NOW)} == {10, 20, 40, 50}


def test_what_did_best_before_the_last_cut_of_pruning_is_no_best() -> None:
    found = [held(step, accuracy=1.0 - step / 100) for step in (10, 20, 30, 40, 50)]
    rule = Retention(last=2, best=Best(metric="accuracy", mode="max"))
    assert {name.step for name in kept(found, rule, NOW)} == {10, 40, 50}
    assert {name.step for name in kept(found, rule, NOW, judged_from=20)} == {20, 40, 50}


def test_a_step_done_twice_is_kept_once() -> None:
    found = [held(10), held(20), held(20, fence=2), held(30, fence=2), held(40, fence=2)]
    stay = kept(found, Retention(last=2, every_steps=20), NOW)
    assert {(name.step, name.fence) for name in stay} == {(20, 2), (30, 2), (40, 2)}


def on(place: Path | Store, keep: Retention, level: VerifyLevel = "full", fence: int = 9) -> Keeper:
    """One whose troubles and quarantines are failures of the test."""

    def fail(message: object) -> None:
        raise AssertionError(message)

    return Keeper(Rules(as_store(place), RUN, fence, keep, level), lambda _: None, fail, fail)


def committed_at(store: Path, step: int, at: float, **metrics: float) -> None:
    facts = facts_of(step, metrics=metrics).model_copy(update={"created_at": at})
    only = Save(FolderStore(store), facts, 0)
    write_shards(only, share_of(arrays_of(step), 0, 1))
    commit(only, deadline_seconds=1.0)


def test_each_rule_holds_in_a_store(tmp_path: Path) -> None:
    for step in range(10, 90, 10):
        committed_at(tmp_path, step, time.time() - (80 - step) * 100, accuracy=0.9 if step == 10 else 0.5)
    pin(FolderStore(tmp_path), name_of(tmp_path, 20))
    best = Best(metric="accuracy", mode="max")
    on(tmp_path, Retention(last=2, every_steps=50, best=best, newer_than_seconds=2500)).sweep()
    assert steps_in(tmp_path) == [80, 70, 60, 50, 20, 10]


def name_of(store: Path, step: int) -> SaveName:
    return next(each.name for each in list_candidates(FolderStore(store), RUN).candidates if each.name.step == step)


def test_the_loss_is_a_metric_like_any_other(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save(tmp_path, step)  # its loss is 1 / (step + 1)
    on(tmp_path, Retention(last=2, best=Best(metric="loss", mode="max"))).sweep()
    assert steps_in(tmp_path) == [40, 30, 10]


def test_what_was_read_back_once_is_not_read_again_by_the_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    real = retention_module.read_back

    def counted(opened: OpenCheckpoint, *rest: Any) -> None:
        read.append(opened.name.step)
        real(opened, *rest)

    monkeypatch.setattr(retention_module, "read_back", counted)
    for step in (10, 20, 30):
        save(tmp_path, step)
    on(tmp_path, Retention(last=3)).sweep()
    assert read == [30, 20]
    on(tmp_path, Retention(last=3), fence=10).sweep()
    assert read == [30, 20]
    save(tmp_path, 40, fence=10)
    on(tmp_path, Retention(last=3), fence=10).sweep()
    assert read == [30, 20, 40]
    assert steps_in(tmp_path) == [40, 30, 20]


def test_what_was_resumed_from_counts_as_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(retention_module, "read_back")
    keeper = on(tmp_path, Retention(last=2))
    for step in (10, 20, 30):
        keeper.note_verified(save(tmp_path, step).root)
    keeper.sweep()
    assert (steps_in(tmp_path), len(list(tmp_path.glob(f"*/{VERIFIED}")))) == ([30, 20], 2)


@pytest.mark.parametrize(("level", "marked"), [("full", 2), ("sampled", 0), ("manifest", 0)])
def test_only_who_has_read_every_byte_says_so(level: VerifyLevel, marked: int, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)
    on(tmp_path, Retention(last=2), level).sweep()
    assert (steps_in(tmp_path), len(list(tmp_path.glob(f"*/{VERIFIED}")))) == ([30, 20], marked)


def test_a_pin_that_is_set_while_retention_looks_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)

    def kept_and_pinned(*arguments: Any) -> frozenset[SaveName]:
        pin(FolderStore(tmp_path), name_of(tmp_path, 10))
        return kept(*arguments)

    monkeypatch.setattr(retention_module, "kept", kept_and_pinned)
    on(tmp_path, Retention(last=2)).sweep()
    assert steps_in(tmp_path) == [30, 20, 10]


def in_use_by(in_use: Callable[[], Collection[str]], store: Path, troubles: list[str] | None = None) -> Keeper:
    rules = Rules(FolderStore(store), RUN, 9, Retention(last=2), "full", in_use=in_use)
    return Keeper(rules, lambda _: None, lambda _: None, (troubles if troubles is not None else []).append)


def test_what_is_served_stays_until_it_is_not_any_more(tmp_path: Path) -> None:
    roots = {step: save(tmp_path, step).root for step in (10, 20, 30, 40)}
    served = {roots[10], "blake3:" + "0" * 64}
    keeper = in_use_by(lambda: served, tmp_path)
    keeper.sweep()
    assert steps_in(tmp_path) == [40, 30, 10]
    served.clear()
    keeper.sweep()
    assert steps_in(tmp_path) == [40, 30]


def test_what_comes_to_be_served_while_retention_looks_stays(tmp_path: Path) -> None:
    first = save(tmp_path, 10).root
    for step in (20, 30):
        save(tmp_path, step)
    answers = iter([(), (first,)])
    in_use_by(lambda: next(answers), tmp_path).sweep()
    assert steps_in(tmp_path) == [30, 20, 10]


def test_nothing_is_removed_while_nobody_can_tell_what_is_served(tmp_path: Path) -> None:
    def cannot_tell() -> Collection[str]:
        raise OSError(9, "Bad file descriptor")

    for step in (10, 20, 30):
        save(tmp_path, step)
    troubles: list[str] = []
    keeper = in_use_by(cannot_tell, tmp_path, troubles)
    keeper.begin()
    assert keeper.wait(20)
    assert troubles == ["checkpoints are not read back, old ones are not removed: [Errno 9] Bad file descriptor"]
    assert steps_in(tmp_path) == [30, 20, 10]


def test_a_removal_that_the_store_refuses_is_told_and_tried_again(tmp_path: Path) -> None:
    class Stubborn(FolderStore):
        refusals = 1

        def remove(self, key: str) -> None:
            if self.refusals:
                self.refusals -= 1
                raise OSError(13, "not now")
            super().remove(key)

    store = Stubborn(tmp_path)
    for step in (10, 20, 30):
        save(store, step)
    troubles: list[str] = []
    keeper = Keeper(Rules(store, RUN, 9, Retention(last=2), "full"), lambda _: None, lambda _: None, troubles.append)
    keeper.begin()
    keeper.wait(20)
    assert troubles == ["checkpoints are not read back, old ones are not removed: [Errno 13] not now"]
    assert steps_in(tmp_path) == [30, 20, 10]
    keeper.begin()
    keeper.wait(20)
    assert steps_in(tmp_path) == [30, 20]


def test_a_late_commit_is_swept_up_only_below_what_the_operator_has_seen(tmp_path: Path) -> None:
    counted = save(tmp_path, 10)
    late = [save(tmp_path, step) for step in (20, 30, 40)]
    names = [name_of(tmp_path, step) for step in (20, 30, 40)]
    claim = Claim(run=RUN, fence=2, attempt=new_attempt(RUN), resumed=counted.root, committed=(counted.root,))
    write_claim(FolderStore(tmp_path), claim)
    troubles: list[str] = []
    rules = Rules(FolderStore(tmp_path), RUN, 2, Retention(last=2), "full", floor_step=30)
    keeper = Keeper(rules, lambda _: None, lambda _: None, troubles.append)
    for _ in range(2):
        keeper.sweep()
    assert list_candidates(FolderStore(tmp_path), RUN).stale == tuple(names[1:])
    assert [open_checkpoint(FolderStore(tmp_path), name).root for name in names[1:]] == [each.root for each in late[1:]]
    assert troubles == [
        f"{name} was committed, but shown too late to go on from; it is left where it is" for name in names[1:]
    ]


def test_a_torn_save_of_the_step_that_the_operator_has_seen_stays_until_that_is_shown(tmp_path: Path) -> None:
    save(tmp_path, 10)
    torn = [save(tmp_path, step) and name_of(tmp_path, step) for step in (20, 30)]
    for name in torn:
        (tmp_path / str(name) / COMMIT).unlink()
    keeper = retention(tmp_path, 5, [], fence=2, floor_step=20)
    keeper.sweep()
    assert list_candidates(FolderStore(tmp_path), RUN).torn == (torn[0],)
    save(tmp_path, 20, fence=2)
    keeper.sweep()
    assert list_candidates(FolderStore(tmp_path), RUN).torn == ()


def test_what_a_later_version_wrote_stops_a_sweep_and_not_the_next(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)
    troubles: list[str] = []
    store = FolderStore(tmp_path)
    keeper = Keeper(Rules(store, RUN, 9, Retention(last=2), "full"), lambda _: None, lambda _: None, troubles.append)
    later = ConfigError("r0.json: its format is not capstan-shards/2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retention_module, "open_checkpoint", lambda *_: (_ for _ in ()).throw(later))
        keeper.begin()
        keeper.wait(20)
    assert troubles == [f"checkpoints are not read back, old ones are not removed: {later}"]
    keeper.begin()
    keeper.wait(20)
    assert steps_in(tmp_path) == [30, 20]


def test_reading_rests_as_long_as_it_works_until_it_must_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rested = [0.0], []
    pace = Pace()
    monkeypatch.setattr(readback_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(pace._hurry, "wait", rested.append)
    pace.begin()
    for busy in (0.25, 0.5, 60.0):
        clock[0] += busy
        pace.rest(1 << 20)
    assert rested == [0.25, 0.5, 2.0]


def test_one_that_hurries_does_not_rest() -> None:
    pace = Pace()
    pace._rested_at -= 3600
    pace.hurry()
    pace.rest()


def test_to_forget_what_is_not_there_or_is_no_file_harms_nothing(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put("a/b", [b"bytes"])
    for key in ("a/b", "a", "missing"):
        forget(store, key)
    assert store.get("a/b") == b"bytes"


def test_marks_come_and_go_and_a_damaged_one_says_nothing(tmp_path: Path) -> None:
    save(tmp_path, 10)
    store, name = FolderStore(tmp_path), name_of(tmp_path, 10)
    assert (is_pinned(store, name), verified_at(store, name, "blake3:aa")) == (False, None)
    pin(store, name)
    mark_verified(store, name, "blake3:aa", 12.5)
    assert (is_pinned(store, name), verified_at(store, name, "blake3:aa")) == (True, 12.5)
    assert verified_at(store, name, "blake3:bb") is None
    endless, deep = b'{"root":"blake3:aa","at":1' + b"0" * 400 + b"}", b"[" * 100_000
    not_there = (b'{"root":"blake3:aa"}', b'{"root":"blake3:aa","at":"x"}')
    for damaged in (b"", b"[]", b"null", *not_there, b"\xff", endless, deep):
        store.put(f"{name}/{VERIFIED}", [damaged])
        assert verified_at(store, name, "blake3:aa") is None
    unpin(store, name)
    assert not is_pinned(store, name)
