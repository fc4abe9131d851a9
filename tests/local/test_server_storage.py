"""The store: what is acknowledged stays, what fails is undone, and the past can be looked at for a while."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest

from capstan_local.server import collection
from capstan_local.server.codec import index_entry, make_entry
from capstan_local.server.collection import Change, Entry, Gone
from capstan_local.server.resources import BUILTIN
from capstan_local.server.storage import StorageFailed, Store

CONFIG_MAPS = next(resource for resource in BUILTIN if resource.plural == "configmaps")
KEY = "configmaps"


def entry(
    store: Store, name: str, value: str = "", *, namespace: str = "default", owners: tuple[str, ...] = ()
) -> Entry:
    references = [{"apiVersion": "v1", "kind": "X", "name": "x", "uid": uid} for uid in owners]
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "ownerReferences": references}
    return make_entry(CONFIG_MAPS, {"metadata": metadata, "data": {"v": value}}, store.next_rv())


def load(storage_key: str, rv: int, body: bytes) -> Entry:
    assert storage_key == KEY
    return index_entry(CONFIG_MAPS, orjson.loads(body), rv, body)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    store = Store(tmp_path / "state.sqlite")
    store.open(load)
    yield store
    await store.close()


def contents(store: Store) -> dict[tuple[str, str], str]:
    return {found.key: found.load()["data"]["v"] for found in store.scan(KEY)}


async def test_objects_survive_a_restart_and_versions_keep_growing(tmp_path: Path) -> None:
    first = Store(tmp_path / "state.sqlite")
    first.open(load)
    await first.put(KEY, entry(first, "a", "1"))
    await first.put(KEY, entry(first, "b", "1", owners=("boss",)))
    await first.put(KEY, entry(first, "a", "2"))
    last = entry(first, "gone")
    await first.put(KEY, last)
    await first.delete(KEY, entry(first, "gone"))
    newest = first.rv
    await first.close()

    second = Store(tmp_path / "state.sqlite")
    second.open(load)
    assert contents(second) == {("default", "a"): "2", ("default", "b"): "1"}
    assert second.dependents == {"boss": {(KEY, ("default", "b"))}}
    assert second.uids == {"uid-a": (KEY, ("default", "a")), "uid-b": (KEY, ("default", "b"))}
    assert second.rv > newest
    with pytest.raises(Gone):
        second.changes_after(KEY, newest)
    await second.close()


async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.sqlite").write_text("not a database, but long enough to be looked at" * 50)
    with pytest.raises(OSError, match=r"state\.sqlite: file is not a database; move it away"):
        Store(tmp_path / "state.sqlite").open(load)


async def test_writes_of_one_moment_share_a_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    commit = store._commit

    def counted(rows: list, ceiling: int | None) -> None:
        groups.append(len(rows))
        commit(rows, ceiling)

    monkeypatch.setattr(store, "_commit", counted)
    await asyncio.gather(*(store.put(KEY, entry(store, f"n{at}")) for at in range(100)))
    assert sum(groups) == 100
    assert len(groups) <= 2


async def test_listeners_hear_in_order_and_only_of_what_is_on_disk(store: Store, tmp_path: Path) -> None:
    on_disk: list[tuple[str, bool]] = []

    def heard(change: Change) -> None:
        with sqlite3.connect(tmp_path / "state.sqlite") as reader:
            row = reader.execute("SELECT rv FROM objects WHERE name = ?", (change.entry.name,)).fetchone()
        on_disk.append((change.entry.name, row is not None and row[0] >= change.rv))

    stop = store.listen(KEY, heard)
    await asyncio.gather(*(store.put(KEY, entry(store, f"n{at}")) for at in range(5)))
    stop()
    await store.put(KEY, entry(store, "unheard"))
    assert on_disk == [(f"n{at}", True) for at in range(5)]


async def test_a_failed_commit_is_undone_and_told_to_every_writer(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.put(KEY, entry(store, "a", "old"))
    heard: list[Change] = []
    store.listen(KEY, heard.append)

    def broken(_rows: object, _ceiling: object) -> None:
        raise sqlite3.OperationalError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "_commit", broken)
        writes = [
            store.put(KEY, entry(store, "a", "new", owners=("boss",))),
            store.put(KEY, entry(store, "b", "new")),
            store.delete(KEY, entry(store, "b")),
        ]
        failures = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(failure) for failure in failures] == [StorageFailed] * 3
    assert "disk full" in str(failures[0])
    assert contents(store) == {("default", "a"): "old"}
    assert (store.dependents, store.uids) == ({}, {"uid-a": (KEY, ("default", "a"))})
    assert heard == []
    await store.put(KEY, entry(store, "a", "newer"))
    assert contents(store) == {("default", "a"): "newer"}
    assert [change.before and change.before.load()["data"]["v"] for change in heard] == ["old"]


async def test_the_past_is_rebuilt_from_the_window(store: Store) -> None:
    await store.put(KEY, entry(store, "a", "1"))
    await store.put(KEY, entry(store, "b", "1"))
    then = store.rv
    await store.put(KEY, entry(store, "a", "2"))
    await store.delete(KEY, entry(store, "b"))
    await store.put(KEY, entry(store, "c", "1"))
    past = {key: found.load()["data"]["v"] for key, found in store.scan_at(KEY, then).items()}
    assert past == {("default", "a"): "1", ("default", "b"): "1"}
    assert [(change.entry.name, change.deleted) for change in store.changes_after(KEY, then)] == [
        ("a", False),
        ("b", True),
        ("c", False),
    ]


async def test_the_window_is_bounded_by_count_and_by_bytes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection, "WINDOW_CHANGES", 3)
    for at in range(5):
        await store.put(KEY, entry(store, f"n{at}"))
    window = store.collection(KEY).window
    assert [change.entry.name for change in window] == ["n2", "n3", "n4"]
    oldest = window[0].rv
    assert [change.rv for change in store.changes_after(KEY, oldest - 1)] == [oldest, oldest + 1, oldest + 2]
    with pytest.raises(Gone, match="too old resource version"):
        store.changes_after(KEY, oldest - 2)
    with pytest.raises(Gone):
        store.scan_at(KEY, oldest - 2)
    monkeypatch.setattr(collection, "WINDOW_BYTES", 1)
    await store.put(KEY, entry(store, "last"))
    assert list(window) == []


async def test_one_namespace_is_scanned_in_order(store: Store) -> None:
    for namespace, name in (("b", "x"), ("a", "z"), ("a", "y"), ("ab", "w"), ("a", "y-1")):
        await store.put(KEY, entry(store, name, namespace=namespace))
    assert [found.key for found in store.scan(KEY, "a")] == [("a", "y"), ("a", "y-1"), ("a", "z")]
    assert [found.key[0] for found in store.scan(KEY)] == ["a", "a", "a", "ab", "b"]


async def test_a_closed_store_takes_no_more(tmp_path: Path) -> None:
    store = Store(tmp_path / "state.sqlite")
    store.open(load)
    waiting = store.put(KEY, entry(store, "a"))
    await store.close()
    await waiting
    with pytest.raises(StorageFailed, match="stopping"):
        store.put(KEY, entry(store, "b"))
