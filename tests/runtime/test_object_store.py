"""What every store must do, tried on a folder and on a bucket of a real S3 server; and a run's life in the bucket."""

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.exceptions import GenericError

from capstan_runtime.checkpoint.candidates import list_candidates
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import COMMIT, MANIFEST, QUARANTINED, SHARDS, SaveName, new_attempt
from capstan_runtime.checkpoint.object_store import ObjectStore
from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.checkpoint.read_ahead import ReadAhead
from capstan_runtime.checkpoint.store import ObjectMissing, Store, StoreError
from capstan_runtime.contract.state import Quarantine
from capstan_runtime.errors import ConfigError
from tests.support.checkpoints import RUN, choose, retention, save, steps_in
from tests.support.s3_server import BUCKET, S3Server, s3_server

MIB = 1 << 20
NewStore = Callable[[], Store]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def bucket(server: S3Server) -> Store:
    """A store of its own below a prefix of its own."""
    return open_store(f"s3://{BUCKET}/jobs/{next(_NUMBERS)}/", server.environ())


_NUMBERS = itertools.count()


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return FolderStore(tmp_path / "not" / "yet" / "there")
    found: Store = request.getfixturevalue("bucket")
    return found


def test_a_store_in_which_nothing_was_put_is_empty(store: Store) -> None:
    assert store.children() == []
    assert store.children("a/b") == []
    assert store.size("a/b") is None
    with pytest.raises(ObjectMissing, match=r"^a/b: is missing$"):
        store.get("a/b")
    with pytest.raises(ObjectMissing, match=r"^a/b: is missing$"):
        store.read_into("a/b", 0, memoryview(bytearray(1)))
    store.remove("a/b")
    store.remove_all("a")
    store.settle("a")


def test_what_is_put_is_got_and_put_again_is_replaced(store: Store) -> None:
    store.put("a/b", [b"hello, ", memoryview(b"world")])
    assert (store.get("a/b"), store.size("a/b")) == (b"hello, world", 12)
    store.put("a/b", [])
    assert (store.get("a/b"), store.size("a/b")) == (b"", 0)


def test_children_are_the_names_directly_below(store: Store) -> None:
    for key in ("a/b/c", "a/b/d", "a/e", "ab/c", "f"):
        store.put(key, [b"x"])
    assert store.children() == ["a", "ab", "f"]
    assert store.children("a") == ["b", "e"]
    assert store.children("a/b") == ["c", "d"]
    assert store.children("a/e") == []
    assert store.size("a") is None


def test_what_is_removed_is_gone_and_nothing_else(store: Store) -> None:
    for key in ("a/b/c", "a/b/d", "a/e", "ab/c"):
        store.put(key, [b"x"])
    store.remove("a/e")
    store.remove_all("a/b")
    assert store.children("a") == []
    assert store.get("ab/c") == b"x"
    store.remove_all("ab")
    assert store.children("ab") == []


def test_ranges_are_read_and_none_goes_past_the_end(store: Store) -> None:
    data = bytes(range(256)) * 9000
    store.put("a/b", [data])
    for offset, count in ((0, 10), (MIB - 3, 7), (0, len(data)), (len(data) - 5, 5), (3, 2 * MIB), (7, 0)):
        target = bytearray(count)
        store.read_into("a/b", offset, memoryview(target))
        assert bytes(target) == data[offset : offset + count]
    for offset, count in ((len(data) - 5, 6), (len(data), 1), (len(data) + 9, 1), (0, len(data) + 1)):
        with pytest.raises(ObjectMissing, match=r"^a/b: ends at byte \d+, \d+ were expected$"):
            store.read_into("a/b", offset, memoryview(bytearray(count)))


def test_of_many_who_put_a_new_object_exactly_one_wins(store: Store) -> None:
    answers: list[tuple[bytes, bool]] = []

    def put(content: bytes) -> None:
        answers.append((content, store.put_new("a/COMMIT", content)))

    threads = [threading.Thread(target=put, args=(str(number).encode(),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 8
    assert [content for content, has_won in answers if has_won] == [store.get("a/COMMIT")]
    assert store.children("a") == ["COMMIT"]


@pytest.mark.parametrize("size", [5 * MIB, 40 * MIB])
def test_an_object_whose_writing_fails_is_not_there(store: Store, server: S3Server, size: int) -> None:
    seen: list[int] = []

    def pieces() -> Iterator[bytes]:
        for _ in range(size // MIB):
            yield bytes(MIB)
        seen.extend([store.size("a/b") or 0, server.unfinished_uploads()])
        raise TimeoutError("not written in time")

    with pytest.raises(TimeoutError, match=r"^not written in time$"):
        store.put("a/b", pieces())
    assert (store.size("a/b"), store.children("a")) == (None, [])
    if isinstance(store, ObjectStore):
        assert seen == [0, 1 if size > 16 * MIB else 0], (
            "a large object goes up in parts, and is not seen until the end"
        )
    assert server.unfinished_uploads() == 0


def test_a_large_object_goes_up_in_parts(store: Store) -> None:
    piece = bytearray(3 * MIB)

    def pieces() -> Iterator[memoryview]:
        for number in range(12):
            piece[:] = bytes([number]) * len(piece)
            yield memoryview(piece)  # the same memory each time

    store.put("a/b", pieces())
    assert store.size("a/b") == 36 * MIB
    target = bytearray(36 * MIB)
    store.read_into("a/b", 0, memoryview(target))
    assert [target[at] for at in range(0, len(target), 3 * MIB)] == list(range(12))


class CountingStore(FolderStore):
    """One that tells how often it was read from."""

    reads = 0

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        self.reads += 1
        super().read_into(key, offset, target)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """A store with one object `k`, and its content."""
    folder, data = tmp_path_factory.mktemp("noise"), os.urandom(3 * MIB + 17)
    FolderStore(folder).put("k", [data])
    return folder, data


@settings(max_examples=60)
@given(reads=st.lists(st.tuples(st.integers(0, 3 * MIB + 17), st.integers(0, 200_000)), max_size=12))
def test_reading_ahead_changes_nothing_but_the_number_of_requests(
    noise: tuple[Path, bytes], reads: list[tuple[int, int]]
) -> None:
    folder, data = noise
    store = CountingStore(folder)
    ahead = ReadAhead(store)
    for offset, count in reads:
        target = bytearray(min(count, len(data) - offset))
        ahead.read_into("k", len(data), offset, memoryview(target))
        assert bytes(target) == data[offset : offset + count]
    store.reads = 0
    for offset in range(0, 3 * MIB // 4, 1000):
        ahead.read_into("k", len(data), offset, memoryview(bytearray(1000)))
    assert store.reads <= 1, "small neighbours come with one request"
    with pytest.raises(ObjectMissing):
        ahead.read_into("k", len(data), len(data) - 1, memoryview(bytearray(2)))


@pytest.mark.parametrize("key", ["../b", "a/../../b", "/etc/passwd", "a//b", "."])
def test_no_key_leads_out_of_a_folder(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="is no key of a store"):
        FolderStore(tmp_path / "store").get(key)


@pytest.mark.parametrize(
    ("place", "kind"), [("/a/b", "/a/b"), ("a/b", "a/b"), ("file:///a%20b/c", "/a b/c"), ("C:x", "C:x")]
)
def test_a_place_without_a_bucket_is_a_folder(place: str, kind: str) -> None:
    found = open_store(place, {})
    assert (type(found), found.place) == (FolderStore, kind)


@pytest.mark.parametrize("url", ["s3://bucket/a/b", "gs://bucket/a", "az://container/a"])
def test_a_url_is_a_bucket_and_nothing_is_asked_of_it_yet(url: str) -> None:
    environ = {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_ACCOUNT_KEY": "a2V5"}
    found = open_store(url, environ)
    assert (type(found), found.place) == (ObjectStore, url)


@pytest.mark.parametrize("place", ["ftp://host/a", "s3:///a", "file://host/a"])
def test_other_places_are_refused_in_one_line(place: str) -> None:
    with pytest.raises(ConfigError, match=r"^checkpoint store: .* is not supported; give a folder, or s3://[^\n]*$"):
        open_store(place, {})


@pytest.mark.parametrize(
    ("url", "answer", "variables"),
    [
        ("s3://b/x", "PUT http://169.254.169.254/latest/api/token in 2 ms", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACC"),
        ("gs://b/x", "GET http://169.254.169.254/computeMetadata/v1/instance", "GOOGLE_SERVICE_ACCOUNT or "),
    ],
)
def test_without_credentials_the_message_says_what_to_set(
    url: str, answer: str, variables: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise GenericError(f"Generic error: Error performing {answer} - 403 Forbidden")

    monkeypatch.setattr("obstore.list_with_delimiter", refuse)
    with pytest.raises(StoreError, match=rf"^{url}: no credentials: set {variables}[^\n]*{answer}[^\n]*$"):
        open_store(url, {"AWS_REGION": "us-east-1"}).children()
    with pytest.raises(ConfigError, match=r"^checkpoint store: az://b/x: no credentials: set AZURE_STORAGE_ACCOUNT"):
        open_store("az://b/x", {})


def test_a_bucket_that_is_not_there_or_does_not_answer_is_a_store_error(server: S3Server) -> None:
    nowhere = open_store("s3://no-such-bucket/a", server.environ())
    with pytest.raises(StoreError, match=r"^s3://no-such-bucket/a: [^\n]*NoSuchBucket|404"):
        nowhere.put("a", [b"x"])
    dead = open_store(f"s3://{BUCKET}/a", {**server.environ(), "AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    with pytest.raises(StoreError, match=rf"^s3://{BUCKET}/a: [^\n]*$"):
        dead.children()


def test_a_run_in_a_bucket_saves_chooses_quarantines_and_keeps(bucket: Store) -> None:
    roots = {step: save(bucket, step, metrics={"loss": 1 / step}).root for step in (10, 20, 30, 40, 50)}
    newest = list_candidates(bucket, RUN).candidates[0].name
    key = f"{newest}/{SHARDS}/r1-0.safetensors"
    data = bytearray(bucket.get(key))
    data[-1] ^= 0x40
    bucket.put(key, [data])
    quarantined: list[Quarantine] = []
    chosen = choose(bucket, quarantined=quarantined)
    assert chosen is not None
    assert (chosen.root, [(each.step, each.root) for each in quarantined]) == (roots[40], [(50, roots[50])])
    assert bucket.size(f"{newest}/{QUARANTINED}") is not None
    later: list[Quarantine] = []
    retention(bucket, 2, later).sweep()
    assert (steps_in(bucket), later) == ([40, 30], [])
    assert {SaveName.parse(name) for name in bucket.children() if name != "claims"} == {
        newest,
        *(each.name for each in list_candidates(bucket, RUN).candidates),
    }


def test_a_writer_killed_while_it_uploads_leaves_nothing_that_a_reader_picks(server: S3Server) -> None:
    url = f"s3://{BUCKET}/killed"
    store = open_store(url, server.environ())
    before = save(store, 10)
    name = SaveName(20, 1, new_attempt(RUN))
    key = f"{name}/{SHARDS}/r0-0.safetensors"

    child = os.spawnve(
        os.P_NOWAIT, sys.executable, [sys.executable, "-c", _UPLOAD, url, key], {**os.environ, **server.environ()}
    )
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert server.unfinished_uploads() == 1, "it was killed in the middle"
    assert store.children(str(name)) == []
    quarantined: list[Quarantine] = []
    chosen = choose(store, quarantined=quarantined)
    assert chosen is not None
    assert (chosen.root, quarantined) == (before.root, [])
    assert list_candidates(store, RUN).torn == ()
    with pytest.raises(ObjectMissing):
        store.get(f"{name}/{COMMIT}")


@pytest.mark.parametrize("is_first", [True, False])
def test_a_commit_that_arrives_after_its_process_has_died_changes_nothing(store: Store, is_first: bool) -> None:
    """The request was on its way; meanwhile the next attempt has begun, and swept up what looked torn."""
    before = None if is_first else save(store, 10).root
    save(store, 20)
    name = list_candidates(store, RUN).candidates[0].name
    on_its_way = store.get(f"{name}/{COMMIT}")
    store.remove(f"{name}/{COMMIT}")
    told: list[Quarantine] = []

    def resumed_at(fence: int) -> str | None:
        chosen = choose(store, fence=fence, quarantined=told)
        retention(store, 2, told, fence=fence).sweep()
        return chosen.root if chosen else None

    assert resumed_at(fence=2) == before
    assert store.children(str(name)) == []
    store.put_new(f"{name}/{COMMIT}", on_its_way)
    assert list_candidates(store, RUN).stale == (name,)
    assert resumed_at(fence=3) == before
    assert (store.children(str(name)), told) == ([], [])


@pytest.mark.parametrize("is_claimed", [True, False])
def test_a_commit_that_has_lost_its_manifest_is_reported(store: Store, is_claimed: bool) -> None:
    good, _ = save(store, 10), save(store, 20)
    name = list_candidates(store, RUN).candidates[0].name
    if is_claimed:
        choose(store, fence=2)
    store.remove(f"{name}/{MANIFEST}")
    told: list[Quarantine] = []
    for fence in (3, 4):
        chosen = choose(store, fence=fence, quarantined=told)
        assert chosen is not None
        assert chosen.root == good.root
        store.remove(f"{name}/{QUARANTINED}")  # as if the mark could not be made
    assert [(each.step, each.reason) for each in told] == 2 * [(20, f"{name}/{MANIFEST}: is missing")]


_UPLOAD = """
import os, signal, sys
from capstan_runtime.checkpoint.open import open_store

def pieces():
    for number in range(80):
        if number == 60:
            os.kill(os.getpid(), signal.SIGKILL)
        yield bytes(1 << 20)

open_store(sys.argv[1], os.environ).put(sys.argv[2], pieces())
"""
