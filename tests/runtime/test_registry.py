"""A model registry on the checkpoint store: versions that never change, stages that move in one piece."""

import itertools
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from semver import Version

from capstan_runtime.checkpoint.disk import Disk
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import COMMIT, PINNED, QUARANTINED, SaveName
from capstan_runtime.checkpoint.marks import is_pinned
from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.checkpoint.signing import NotSigned
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.checkpoint.writer import Save, commit, write_shards
from capstan_runtime.contract.registry import Bump
from capstan_runtime.errors import ConfigError, CorruptCheckpoint
from capstan_runtime.registry.entry import Code, Lineage, ModelEntry, Promotion, entry_key, promotion_key, sealed
from capstan_runtime.registry.registering import Candidate, Wanted, register
from capstan_runtime.registry.registry import NotRegistered, Registry, Taken
from capstan_runtime.registry.verifying import require_signed, verify_entry
from tests.runtime.test_signing import public_text, written
from tests.support.checkpoints import RUN, arrays_of, facts_of, flip, folder_of, retention, save, share_of, steps_in
from tests.support.crashing_disk import PowerCut, killed_before, operations_of, restore
from tests.support.s3_server import BUCKET, s3_server

IN_STORE = f"default/digits/{RUN}"


@pytest.fixture(scope="module")
def environ() -> Iterator[dict[str, str]]:
    with s3_server() as server:
        yield server.environ()


_NUMBERS = itertools.count()


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, str]]:
    """An empty store of each kind, and what opens it."""
    if request.param == "folder":
        return str(tmp_path / "store"), {}
    return f"s3://{BUCKET}/registry/{next(_NUMBERS)}", request.getfixturevalue("environ")


def opened(place: tuple[str, dict[str, str]]) -> tuple[Registry, Store]:
    """The registry, and the store of one run below it."""
    url, environ = place
    return Registry(open_store(url, environ), environ), open_store(f"{url}/{IN_STORE}", environ)


def in_folder(store: Path, disk: Disk | None = None) -> tuple[Registry, Store]:
    return Registry(FolderStore(store, disk), {}), FolderStore(store / IN_STORE, disk)


def wanted(version: str | None = None, bump: Bump | None = None, name: str = "digits") -> Wanted:
    return Wanted(name=name, version=version, bump=bump, by="a test")


def newest(run_store: Store) -> SaveName:
    return max(found for text in run_store.children() if (found := SaveName.parse(text)) is not None)


def registered(registry: Registry, run_store: Store, request: Wanted) -> ModelEntry:
    return register(registry, Candidate(run_store, IN_STORE, newest(run_store)), request)


def entry_of(version: str, uid: str = RUN, root: str = "blake3:00", name: str = "digits") -> ModelEntry:
    """One of a checkpoint that is nowhere."""
    return ModelEntry(
        name=name,
        version=version,
        root=root,
        logical="blake3:01",
        run=IN_STORE,
        checkpoint="000000000010.1.000000000000",
        step=10,
        framework="flax",
        size_bytes=1,
        parameters=1,
        metrics={},
        model=None,
        lineage=Lineage(job="default/digits", uid=uid, parent=None, data_fingerprint="blake3:02", seed=0),
        registered_at=1.0,
        registered_by="a test",
    )


def is_same_as(entry: ModelEntry) -> Callable[[ModelEntry], bool]:
    return lambda there: there.root == entry.root


def add(registry: Registry, entry: ModelEntry) -> ModelEntry:
    return registry.add(entry, is_same_as(entry))


def add_next(registry: Registry, bump: Bump, uid: str) -> ModelEntry:
    """Of a checkpoint of the run `uid`, whose root tells it."""
    root = f"blake3:{uid}"
    return registry.add_next(
        "digits", bump, lambda there: there.root == root, lambda version: (entry_of(version, uid, root), None)
    )


def test_an_entry_says_what_the_checkpoint_is_where_it_is_and_where_it_comes_from(
    place: tuple[str, dict[str, str]],
) -> None:
    registry, run_store = opened(place)
    first = save(run_store, 10)
    second = save(run_store, 20, parent=first.root, metrics={"accuracy": 0.5})
    code = Code(package="0.2.0", image="registry.example.com/flax@sha256:ab")
    request = Wanted(
        "digits", "1.0.0", None, "ann@host", metrics={"f1": 0.25}, config={"seed": 7, "model": {"mlp": {}}}, code=code
    )
    entry = registered(registry, run_store, request)
    assert registry.entry("digits", "1.0.0") == entry
    assert entry == ModelEntry(
        name="digits",
        version="1.0.0",
        root=second.root,
        logical=str(second.logical),
        run=IN_STORE,
        checkpoint=str(newest(run_store)),
        step=20,
        framework="flax",
        size_bytes=entry.size_bytes,
        parameters=13 * 7 + 7,
        metrics={"loss": 1 / 21, "accuracy": 0.5, "f1": 0.25},
        model=None,
        lineage=Lineage(
            job="default/test",
            uid=RUN,
            parent=first.root,
            data_fingerprint="blake3:00",
            seed=0,
            config={"seed": 7, "model": {"mlp": {}}},
            code=code,
        ),
        registered_at=entry.registered_at,
        registered_by="ann@host",
    )
    assert entry.size_bytes > sum(array.nbytes for array in arrays_of(20).values())
    verify_entry(registry, entry, None)


def test_what_a_program_saved_that_told_no_loss_is_registered_without_one(tmp_path: Path) -> None:
    registry, run_store = in_folder(tmp_path)
    facts = facts_of(10, metrics={"accuracy": 0.5})
    facts = facts.model_copy(update={"trainer": facts.trainer.model_copy(update={"loss": None})})
    saved = Save(run_store, facts, 0)
    write_shards(saved, share_of(arrays_of(10), 0, 1))
    commit(saved, deadline_seconds=1.0)
    assert registered(registry, run_store, wanted("1.0.0")).metrics == {"accuracy": 0.5}
    assert registry.entry("digits", "1.0.0").metrics == {"accuracy": 0.5}


def test_a_version_never_changes_and_who_asks_for_it_again_hears_whose_it_is(
    place: tuple[str, dict[str, str]],
) -> None:
    registry, run_store = opened(place)
    save(run_store, 10)
    entry = registered(registry, run_store, wanted("1.0.0"))
    again = registered(registry, run_store, wanted("1.0.0"))
    assert again == entry, "the same checkpoint is registered already"
    save(run_store, 20, run="another-uid")
    with pytest.raises(Taken) as refused:
        registered(registry, run_store, wanted("1.0.0"))
    assert str(refused.value) == (
        f"version: digits 1.0.0 is registered already, from default/test step 10 as {entry.root[:23]}, and versions "
        "never change; choose another, such as 1.0.1"
    )
    assert not is_pinned(run_store, newest(run_store)), "who is refused leaves no pin behind"
    assert registry.entry("digits", "1.0.0") == entry


def test_versions_are_counted_up_and_ordered_by_semantic_precedence(tmp_path: Path) -> None:
    registry, _ = in_folder(tmp_path)
    for number, version in enumerate(("1.2.0", "1.10.0", "1.10.0-rc.2", "1.10.0-rc.10", "0.9.9")):
        add(registry, entry_of(version, uid=str(number), root=f"blake3:{number}"))
    assert registry.versions("digits") == ["1.10.0", "1.10.0-rc.10", "1.10.0-rc.2", "1.2.0", "0.9.9"]
    assert [registry.next_version("digits", bump) for bump in ("major", "minor", "patch")] == [
        "2.0.0",
        "1.11.0",
        "1.10.1",
    ]
    assert [registry.next_version("new", bump) for bump in ("major", "minor", "patch")] == ["1.0.0", "0.1.0", "0.0.1"]
    add(registry, entry_of("2.0.0-rc.1", uid="5", root="blake3:5"))
    assert registry.next_version("digits", "major") == "2.0.0", "the release that the candidate was for"


@settings(max_examples=15)
@given(st.lists(st.sampled_from(("major", "minor", "patch")), min_size=1, max_size=12))
def test_a_bumped_version_is_newer_than_all_before_it(
    tmp_path_factory: pytest.TempPathFactory, bumps: list[Bump]
) -> None:
    registry, _ = in_folder(tmp_path_factory.mktemp("store"))
    made = [add_next(registry, bump, str(number)).version for number, bump in enumerate(bumps)]
    assert made == sorted(made, key=Version.parse)
    assert registry.versions("digits") == made[::-1]


def test_a_checkpoint_is_one_version_however_often_it_is_asked_for_and_another_of_its_run_is_another(
    place: tuple[str, dict[str, str]],
) -> None:
    registry, run_store = opened(place)
    save(run_store, 10)
    first = registered(registry, run_store, wanted(bump="minor"))
    assert registered(registry, run_store, wanted(bump="minor")) == first
    save(run_store, 20)
    assert registered(registry, run_store, wanted(bump="minor")).step == 20
    assert registry.versions("digits") == ["0.2.0", "0.1.0"]
    with pytest.raises(Taken, match=r"^version: digits 0\.1\.0 is registered already, from default/test step 10 as"):
        registered(registry, run_store, wanted("0.1.0"))


def at_once(*actions: Callable[[], object]) -> list[object]:
    """What each action came to, the exception if it raised one; they begin together."""
    gate = threading.Barrier(len(actions))
    results: list[object] = [None] * len(actions)

    def act(number: int) -> None:
        gate.wait()
        try:
            results[number] = actions[number]()
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=act, args=(number,)) for number in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_of_eight_that_register_one_version_at_once_exactly_one_wins(place: tuple[str, dict[str, str]]) -> None:
    url, environ = place

    def action(number: int) -> Callable[[], object]:
        registry = Registry(open_store(url, environ), environ)  # each as another process would
        return lambda: add(registry, entry_of("1.0.0", uid=str(number), root=f"blake3:{number}"))

    results = at_once(*(action(number) for number in range(8)))
    winners = [each for each in results if isinstance(each, ModelEntry)]
    assert len(winners) == 1
    assert [type(each) for each in results if each not in winners] == [Taken] * 7
    assert Registry(open_store(url, environ), environ).entry("digits", "1.0.0") == winners[0]


def test_eight_runs_that_count_up_at_once_get_eight_versions(place: tuple[str, dict[str, str]]) -> None:
    url, environ = place

    def action(number: int) -> Callable[[], object]:
        registry = Registry(open_store(url, environ), environ)
        return lambda: add_next(registry, "patch", str(number))

    results = at_once(*(action(number) for number in range(8)))
    versions = sorted(each.version for each in results if isinstance(each, ModelEntry))
    assert versions == [f"0.0.{number}" for number in range(1, 9)]


def test_promotions_that_meet_are_put_one_after_the_other_and_all_are_in_the_history(
    place: tuple[str, dict[str, str]],
) -> None:
    url, environ = place
    registry = Registry(open_store(url, environ), environ)
    versions = [f"1.{number}.0" for number in range(6)]
    for version in versions:
        add(registry, entry_of(version, uid=version, root=f"blake3:{version}"))
    results = at_once(
        *(
            lambda version=version: Registry(open_store(url, environ), environ).promote(
                "digits", version, "production", "a test"
            )
            for version in versions
        )
    )
    history = registry.history("digits", "production")
    assert sorted(results, key=lambda each: each.number, reverse=True) == history
    assert [each.number for each in history] == [6, 5, 4, 3, 2, 1]
    assert [each.previous for each in history] == [*(each.version for each in history[1:]), None]


def test_a_stage_moves_back_too_and_who_expected_another_version_is_refused(tmp_path: Path) -> None:
    registry, _ = in_folder(tmp_path)
    for version in ("1.0.0", "1.1.0"):
        add(registry, entry_of(version, uid=version, root=f"blake3:{version}"))
    with pytest.raises(NotRegistered, match=r"^stage: digits has no production \(stages: none\); promote a version"):
        registry.promoted("digits", "production")
    first = registry.promote("digits", "1.0.0", "production", "ann")
    assert registry.promote("digits", "1.0.0", "production", "bob") == first, "nothing moves"
    registry.promote("digits", "1.1.0", "production", "ann", expected="1.0.0")
    with pytest.raises(Taken, match=r"^stage: digits production is 1\.1\.0, not 1\.0\.0 as was expected; look at"):
        registry.promote("digits", "1.1.0", "production", "bob", expected="1.0.0")
    back = registry.promote("digits", "1.0.0", "production", "bob")
    assert (back.number, back.version, back.previous, back.root) == (3, "1.0.0", "1.1.0", "blake3:1.0.0")
    assert {stage: one.version for stage, one in registry.stages("digits").items()} == {"production": "1.0.0"}
    with pytest.raises(NotRegistered) as missing:
        registry.promote("digits", "9.0.0", "production", "bob")
    assert (
        str(missing.value)
        == "version: digits has no version 9.0.0 (versions: 1.1.0, 1.0.0); choose one, or register it"
    )


def test_what_is_registered_outlives_retention_and_what_is_not_does_not(tmp_path: Path) -> None:
    registry, run_store = in_folder(tmp_path)
    place = tmp_path / IN_STORE
    save(place, 10)
    registered(registry, run_store, wanted("1.0.0"))
    for step in (20, 30, 40):
        save(place, step)
    retention(place, 2, []).sweep()
    assert steps_in(place) == [40, 30, 10]
    verify_entry(registry, registry.entry("digits", "1.0.0"), None)


def test_a_torn_or_broken_or_quarantined_checkpoint_is_not_registered(tmp_path: Path) -> None:
    registry, run_store = in_folder(tmp_path)
    place = tmp_path / IN_STORE
    folder = folder_of(place, save(place, 10).root)
    flip(folder / "shards" / "r0-0.safetensors", -1)
    with pytest.raises(CorruptCheckpoint, match=r"shards/r0-0\.safetensors: bytes"):
        registered(registry, run_store, wanted("1.0.0"))
    (folder / QUARANTINED).write_text("{}")
    with pytest.raises(CorruptCheckpoint, match="is quarantined; register one that is whole"):
        registered(registry, run_store, wanted("1.0.0"))
    (folder / COMMIT).unlink()
    with pytest.raises(ConfigError, match="is not committed; register one that is"):
        registered(registry, run_store, wanted("1.0.0"))
    assert registry.names() == []


def test_a_changed_bit_anywhere_in_a_version_is_found(tmp_path: Path) -> None:
    store = tmp_path / "store"
    registry, run_store = in_folder(store)
    folder = folder_of(store / IN_STORE, save(store / IN_STORE, 10).root)
    registered(registry, run_store, wanted("1.0.0"))
    entry = store / entry_key("digits", "1.0.0")
    covered = [
        path
        for path in (entry, *folder.rglob("*"))
        if path.is_file() and path.name not in (PINNED,)  # a pin's content says nothing
    ]
    assert len(covered) == 7
    for path in covered:
        good = path.read_bytes()
        for at in {0, len(good) // 2, len(good) - 1}:
            flip(path, at)
            with pytest.raises(CorruptCheckpoint):
                verify_entry(registry, registry.entry("digits", "1.0.0"), None)
            path.write_bytes(good)
    verify_entry(registry, registry.entry("digits", "1.0.0"), None)


def test_an_entry_or_a_promotion_under_another_name_is_no_such(tmp_path: Path) -> None:
    registry, _ = in_folder(tmp_path)
    add(registry, entry_of("1.0.0"))
    registry.promote("digits", "1.0.0", "staging", "a test")
    shutil.copy(tmp_path / entry_key("digits", "1.0.0"), tmp_path / entry_key("digits", "2.0.0"))
    with pytest.raises(CorruptCheckpoint, match=r"holds the entry of digits 1\.0\.0"):
        registry.entry("digits", "2.0.0")
    (tmp_path / "_models/digits/stages/production").mkdir()
    shutil.copy(tmp_path / promotion_key("digits", "staging", 1), tmp_path / promotion_key("digits", "production", 1))
    with pytest.raises(CorruptCheckpoint, match="holds promotion 1 of digits staging"):
        registry.promoted("digits", "production")


def test_an_entry_that_leads_out_of_the_store_is_refused(tmp_path: Path) -> None:
    registry, _ = in_folder(tmp_path)
    for run in ("../elsewhere", "/etc", "default/../../etc", ""):
        entry = entry_of("1.0.0").model_copy(update={"run": run})
        with pytest.raises(CorruptCheckpoint, match="is no folder of a run"):
            verify_entry(registry, entry, None)


def test_a_signed_entry_is_told_from_one_that_is_not_and_from_another_keys(tmp_path: Path) -> None:
    registry, run_store = in_folder(tmp_path / "store")
    save(tmp_path / "store" / IN_STORE, 10)
    ours, theirs = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    key = written(ours, tmp_path / "private.pem")
    signed = registered(registry, run_store, Wanted("digits", "1.0.0", None, "a test", signing_key=key))
    plain = registered(registry, run_store, wanted("1.0.1"))
    require_signed(registry, signed, public_text(ours))
    with pytest.raises(NotSigned, match=r"versions/1\.0\.0: does not carry a signature of this key$"):
        require_signed(registry, signed, public_text(theirs))
    with pytest.raises(NotSigned, match=r"versions/1\.0\.1: is not signed$"):
        require_signed(registry, plain, public_text(ours))


def test_an_entry_of_a_later_format_is_no_damage(tmp_path: Path) -> None:
    registry, _ = in_folder(tmp_path)
    add(registry, entry_of("1.0.0"))

    class LaterEntry(ModelEntry):
        licence: str = "Apache-2.0"

    later = LaterEntry(**entry_of("1.1.0", uid="other").model_dump())
    FolderStore(tmp_path).put_new(entry_key("digits", "1.1.0"), sealed(later))
    with pytest.raises(ConfigError, match=r"licence: .*: a later version of Capstan registered it; use that"):
        registry.entry("digits", "1.1.0")


def test_registering_killed_between_any_two_operations_leaves_no_version_or_a_whole_one(tmp_path: Path) -> None:
    """And done again it comes to the same, whatever was left."""
    store = tmp_path / "store"
    save(store / IN_STORE, 10)
    untouched = tmp_path / "untouched"
    shutil.copytree(store, untouched)

    def act(disk: Disk) -> None:
        registry, run_store = in_folder(store, disk)
        registered(registry, run_store, wanted("1.0.0"))
        registry.promote("digits", "1.0.0", "production", "a test")

    operations = operations_of(act)
    assert operations > 20
    seen = set()
    for operation in range(operations):
        shutil.rmtree(store)
        shutil.copytree(untouched, store)
        assert killed_before(operation, act)
        registry, run_store = in_folder(store)
        versions, stages = registry.versions("digits"), registry.stages("digits")
        seen.add((len(versions), len(stages)))
        assert set(stages) <= ({"production"} if versions else set()), "a stage never leads to what is not there"
        for version in versions:
            assert is_pinned(run_store, newest(run_store)), "no version whose checkpoint retention may take"
            verify_entry(registry, registry.entry("digits", version), None)
        act(Disk())
        assert registry.versions("digits") == ["1.0.0"]
        assert [each.version for each in registry.history("digits", "production")] == ["1.0.0"]
    assert seen == {(0, 0), (1, 0), (1, 1)}


def test_after_a_power_cut_a_version_that_was_told_of_is_there_and_its_pin_too(tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    cut = PowerCut(volume)
    save(volume / IN_STORE, 10, disk=cut.disk())
    registry, run_store = in_folder(volume, cut.disk())
    before = len(cut.snapshots)
    registered(registry, run_store, wanted("1.0.0"))
    told = len(cut.snapshots) - 1
    registry.promote("digits", "1.0.0", "production", "a test")
    seen = []
    for at in range(before, len(cut.snapshots)):
        for snapshot in (cut.snapshots[at], *cut.strays[at]):
            after = tmp_path / "after"
            restore(snapshot, after)
            found, run = in_folder(after)
            versions = found.versions("digits")
            for version in versions:
                assert is_pinned(run, newest(run)), "no version whose checkpoint retention may take"
                verify_entry(found, found.entry("digits", version), None)
            assert versions or not found.stages("digits")
            assert versions or at < told, "who was told of it relies on it"
            seen.append((versions, list(found.stages("digits"))))
            shutil.rmtree(after)
    assert seen[-1] == (["1.0.0"], ["production"])
    assert ([], []) in seen


def test_a_promotion_says_who_moved_what_and_when(tmp_path: Path) -> None:
    registry, _ = in_folder(tmp_path)
    add(registry, entry_of("1.0.0"))
    made = registry.promote("digits", "1.0.0", "staging", "ann@host")
    assert made == Promotion(
        name="digits",
        stage="staging",
        number=1,
        version="1.0.0",
        root="blake3:00",
        previous=None,
        at=made.at,
        by="ann@host",
    )
    assert abs(made.at - (tmp_path / promotion_key("digits", "staging", 1)).stat().st_mtime) < 60
