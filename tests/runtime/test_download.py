"""Data in a bucket: copied once, checked to be what was listed, within its room."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import obstore
import pytest
from obstore.store import S3Store

from capstan_runtime.checkpoint.object_store import ObjectStore
from capstan_runtime.checkpoint.store import StoreError
from capstan_runtime.contract import env
from capstan_runtime.contract.data import Bucket, Data
from capstan_runtime.data.open import open_dataset
from capstan_runtime.download import Alive, Source, fetch, fetched
from capstan_runtime.errors import ConfigError, StoreUnavailable
from tests.support.s3_server import BUCKET, S3Server, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def bucket(server: S3Server) -> S3Store:
    return S3Store(
        BUCKET,
        endpoint=server.endpoint,
        access_key_id="test",
        secret_access_key="test",
        region="us-east-1",
        client_options={"allow_http": True},
    )


@pytest.fixture
def environ(server: S3Server, tmp_path: Path) -> dict[str, str]:
    return {**server.environ(), env.DATA_CACHE: str(tmp_path / "cache")}


def source(key: str, bucket: Bucket | None = None) -> Source:
    return Source("spec.data.arrays.path", f"s3://{BUCKET}/{key}", bucket)


def test_an_object_is_a_file_and_a_prefix_is_a_folder(bucket: S3Store, environ: dict[str, str]) -> None:
    large = os.urandom(40 << 20)
    obstore.put(bucket, "one/a/large.bin", large)
    obstore.put(bucket, "one/a/b/small.bin", b"small")
    obstore.put(bucket, "one/a/b/empty.bin", b"")
    obstore.put(bucket, "one/another", b"not below one/a")
    file = fetch(source("one/a/large.bin"), environ)
    assert (file.name, file.read_bytes() == large) == ("large.bin", True)
    folder = fetch(source("one/a/"), environ)
    assert {str(each.relative_to(folder)): each.stat().st_size for each in folder.rglob("*") if each.is_file()} == {
        "large.bin": 40 << 20,
        "b/small.bin": 5,
        "b/empty.bin": 0,
    }


def test_what_is_here_is_not_copied_again_and_what_has_changed_is_other_data(
    bucket: S3Store, environ: dict[str, str]
) -> None:
    obstore.put(bucket, "two/x.bin", b"first")
    beats: list[None] = []
    first = fetch(source("two/x.bin"), environ, lambda: beats.append(None))
    again = fetch(source("two/x.bin"), environ, lambda: beats.append(None))
    assert (first, len(beats)) == (again, 1)
    obstore.put(bucket, "two/x.bin", b"other")
    changed = fetch(source("two/x.bin"), environ)
    assert (first.read_bytes(), changed.read_bytes()) == (b"first", b"other")


def test_an_object_that_changes_between_its_listing_and_its_copy_is_not_taken(
    bucket: S3Store, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    obstore.put(bucket, "three/x.bin", b"first")
    listed = ObjectStore.objects

    def then_changed(store: ObjectStore, prefix: str, alive: Alive) -> object:
        found = listed(store, prefix, alive)
        obstore.put(bucket, "three/x.bin", b"other")
        return found

    monkeypatch.setattr(ObjectStore, "objects", then_changed)
    with pytest.raises(StoreUnavailable, match=r"^spec\.data\.arrays\.path: s3://.*three"):
        fetch(source("three/x.bin"), environ)
    assert [file for file in Path(environ[env.DATA_CACHE]).rglob("x.bin") if file.is_file()] == []


def test_a_copy_that_was_cut_off_goes_on_with_the_files_that_are_whole(
    bucket: S3Store, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        obstore.put(bucket, f"four/{name}", name.encode() * 10)
    piece = ObjectStore.piece
    asked: list[str] = []

    def cut_off_at_c(store: ObjectStore, stored: object, start: int, length: int) -> bytes:
        asked.append(stored.key)  # type: ignore[attr-defined]
        if asked.count("four/c") == 1 and stored.key == "four/c":  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return piece(store, stored, start, length)  # type: ignore[arg-type]

    monkeypatch.setattr(ObjectStore, "piece", cut_off_at_c)
    with pytest.raises(KeyboardInterrupt):
        fetch(source("four"), environ)
    asked.append("—")
    folder = fetch(source("four"), environ)
    assert asked[asked.index("—") + 1 :] == ["four/c"]
    assert {file.name: file.read_text() for file in folder.iterdir()} == {n: n * 10 for n in "abc"}


def test_what_does_not_fit_is_refused_before_a_byte_is_copied(bucket: S3Store, environ: dict[str, str]) -> None:
    obstore.put(bucket, "five/x.bin", bytes(2000))
    with pytest.raises(
        ConfigError, match=r"s3://checkpoints/five has 2,000 bytes, and bucket.cacheSize is 1KiB; raise"
    ):
        fetch(source("five", Bucket(cache_size="1KiB", endpoint=environ["AWS_ENDPOINT_URL"])), environ)
    with pytest.raises(ConfigError, match=r"s3://checkpoints/six is neither an object nor a prefix of any; correct it"):
        fetch(source("six"), environ)


def test_the_buckets_own_account_counts_and_not_that_of_the_checkpoints(
    bucket: S3Store, environ: dict[str, str]
) -> None:
    obstore.put(bucket, "seven/x.bin", b"x")
    own = {f"{env.DATA_ACCOUNT}{name}": environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    checkpoints = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_REGION": "mars",
        env.DATA_CACHE: environ[env.DATA_CACHE],
    }
    config = Bucket(endpoint=environ["AWS_ENDPOINT_URL"], region="us-east-1")
    assert fetch(source("seven/x.bin", config), {**checkpoints, **own}).read_bytes() == b"x"


def test_of_two_accounts_none_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[dict[str, str]] = []

    def open_nothing(url: str, environ: Mapping[str, str]) -> ObjectStore:
        opened.append({name: value for name, value in environ.items() if name.startswith("AWS_")})
        raise StoreError("not now")

    monkeypatch.setattr("capstan_runtime.download.open_bucket", open_nothing)
    checkpoints = {"AWS_ACCESS_KEY_ID": "theirs", "AWS_SECRET_ACCESS_KEY": "theirs", "AWS_SESSION_TOKEN": "theirs"}
    identity = {"AWS_ROLE_ARN": "theirs", "AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_REGION": "mars"}
    own = {"AWS_ACCESS_KEY_ID": "own", "AWS_SECRET_ACCESS_KEY": "own"}
    secret = {f"{env.DATA_ACCOUNT}{name}": value for name, value in own.items()}
    token = {"AWS_WEB_IDENTITY_TOKEN_FILE": "/token"}
    there = {**checkpoints, **identity, **token}
    for found in ({**there, **secret}, {**there, f"{env.DATA_ACCOUNT}AWS_ROLE_ARN": "own"}, there):
        with pytest.raises(StoreUnavailable, match="not now"):
            fetch(source("nine", Bucket(region="eu-west-1")), found)
    assert opened == [
        {**own, "AWS_REGION": "eu-west-1"},
        {**token, "AWS_ROLE_ARN": "own", "AWS_REGION": "eu-west-1"},
        {**checkpoints, **token, "AWS_ROLE_ARN": "theirs", "AWS_REGION": "eu-west-1"},
    ]


def test_a_run_trains_on_arrays_that_are_in_a_bucket(bucket: S3Store, environ: dict[str, str], tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", inputs=np.ones((20, 3), np.float32), labels=np.arange(20) % 2)
    obstore.put(bucket, "eight/data.npz", (tmp_path / "data.npz").read_bytes())
    data = Data.parse({"arrays": {"path": f"s3://{BUCKET}/eight/data.npz"}})
    there = open_dataset(fetched(data, environ), 0, environ)
    here = open_dataset(Data.parse({"arrays": {"path": str(tmp_path / "data.npz")}}), 0, {})
    assert there.spec == here.spec
    assert fetched(Data.parse({"digits": {}}), environ) == Data.parse({"digits": {}})


def test_who_waits_for_another_process_of_the_pod_to_copy_is_alive(bucket: S3Store, environ: dict[str, str]) -> None:
    obstore.put(bucket, "waits/x.bin", b"data")
    cache = Path(environ[env.DATA_CACHE])
    cache.mkdir()
    other = (cache / ".lock").open("w")
    fcntl.flock(other, fcntl.LOCK_EX)
    beats: list[bool] = []

    def alive() -> None:
        beats.append(other.closed)
        if len(beats) == 5:
            other.close()

    fetch(source("waits/x.bin"), environ, alive)
    assert beats[:5] == [False] * 5
