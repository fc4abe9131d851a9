"""The objects: live ones in memory as serialised bytes, every change in SQLite before it is acknowledged.

Changes are applied to memory at once and committed in groups by one thread: while a group is being committed, the next
one gathers. Watchers and writers hear of a change only after its commit. Should a commit fail, the changes that were
waiting are undone and their writers get the error.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from capstan_local.server.collection import Change, Collection, Entry, Gone, Key, Listener

# Resource versions are handed out below a persisted ceiling, and a start begins at the ceiling: a version that somebody
# saw just before a crash is never given to another object.
_CEILING_STEP = 10_000
# How long a commit waits for another process that has the database open (a second server, a backup).
_BUSY_SECONDS = 5.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
  storage_key TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, rv INTEGER NOT NULL, body BLOB NOT NULL,
  PRIMARY KEY (storage_key, namespace, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


class StorageFailed(Exception):
    """A change could not be committed and was undone."""


GlobalListener = Callable[[str, Change], None]  # (storage key, change)


@dataclass(slots=True)
class _Staged:
    collection: Collection
    storage_key: str
    change: Change
    done: "asyncio.Future[None]"


class Store:
    """Every collection. All methods but `open` and `close` must be called on the event loop's thread."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._connection: sqlite3.Connection | None = None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._collections: dict[str, Collection] = {}
        self._staged: list[_Staged] = []
        self._flusher: asyncio.Task[None] | None = None
        self._ceiling = 0
        self.rv = 0  # the newest resource version given out
        self.committed_rv = 0  # the newest one that is on disk and told to watchers
        self.dependents: dict[str, set[tuple[str, Key]]] = {}  # owner uid -> (storage key, key)
        self.uids: dict[str, tuple[str, Key]] = {}
        self.global_listeners: list[GlobalListener] = []

    # ---- life

    def open(self, entry_of: Callable[[str, int, bytes], Entry]) -> None:
        """Open or create the database and load it. `entry_of(storage_key, rv, body)` builds entries; it is called with
        CustomResourceDefinitions first. Raises OSError when the file is no database."""
        connection = self._connection = _connected(self._database)
        row = connection.execute("SELECT value FROM meta WHERE key = 'rv_ceiling'").fetchone()
        self.rv = self.committed_rv = int(row[0]) if row else 1
        first = "storage_key != 'customresourcedefinitions.apiextensions.k8s.io'"
        rows = connection.execute(f"SELECT storage_key, rv, body FROM objects ORDER BY {first}")  # nosec B608  # a constant
        for storage_key, rv, body in rows:
            collection = self.collection(storage_key)
            entry = entry_of(storage_key, rv, body)
            collection.entries[entry.key] = entry
            self._index(storage_key, None, entry)
        for collection in self._collections.values():
            collection.keys = sorted(collection.entries)
        self._ceiling = self.rv + _CEILING_STEP
        self._commit([], self._ceiling)

    async def close(self) -> None:
        """Commit what is waiting, then close the database."""
        while self._flusher is not None:
            await self._flusher
        self._executor.shutdown()
        if self._connection is not None:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._connection.close()
            self._connection = None

    # ---- reading

    def collection(self, storage_key: str) -> Collection:
        found = self._collections.get(storage_key)
        if found is None:
            found = self._collections[storage_key] = Collection(window_start=self.rv)
        return found

    def get(self, storage_key: str, namespace: str, name: str) -> Entry | None:
        return self.collection(storage_key).entries.get((namespace, name))

    def everything(self) -> Iterator[tuple[str, Entry]]:
        """Every object with its storage key."""
        return ((key, entry) for key, found in self._collections.items() for entry in list(found.entries.values()))

    def scan(self, storage_key: str, namespace: str = "") -> Iterator[Entry]:
        """Entries in key order."""
        collection = self.collection(storage_key)
        entries = collection.entries
        return (entries[key] for key in collection.keys_in(namespace))

    def scan_at(self, storage_key: str, rv: int) -> dict[Key, Entry]:
        """The collection as it was at `rv`. Raises Gone when that is too long ago."""
        collection = self.collection(storage_key)
        if rv < collection.window_start:
            raise Gone(rv, collection.window_start)
        entries = dict(collection.entries)
        for change in reversed(collection.window):
            if change.rv <= rv:
                break
            if change.before is None:
                del entries[change.entry.key]
            else:
                entries[change.entry.key] = change.before
        return entries

    def changes_after(self, storage_key: str, rv: int) -> list[Change]:
        """Committed changes with a greater resource version. Raises Gone."""
        collection = self.collection(storage_key)
        if rv < collection.window_start:
            raise Gone(rv, collection.window_start)
        newer: list[Change] = []
        for change in reversed(collection.window):
            if change.rv <= rv:
                break
            if change.rv <= self.committed_rv:
                newer.append(change)
        newer.reverse()
        return newer

    def listen(self, storage_key: str, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every change from now on, after its commit; the result ends that."""
        listeners = self.collection(storage_key).listeners
        token = id(listener)
        listeners[token] = listener

        def stop() -> None:
            listeners.pop(token, None)

        return stop

    # ---- writing

    def next_rv(self) -> int:
        self.rv += 1
        return self.rv

    def put(self, storage_key: str, entry: Entry) -> "asyncio.Future[None]":
        """Create or replace; the future is done when the change is on disk. Raises StorageFailed through it."""
        before = self.get(storage_key, entry.namespace, entry.name)
        return self._stage(storage_key, Change(entry, before, deleted=False))

    def delete(self, storage_key: str, last: Entry) -> "asyncio.Future[None]":
        """Remove the object of `last`, which is its last state at the resource version of the deletion."""
        before = self.get(storage_key, last.namespace, last.name)
        if before is None:
            raise LookupError(f"{storage_key} {last.namespace}/{last.name} does not exist")
        return self._stage(storage_key, Change(last, before, deleted=True))

    def _stage(self, storage_key: str, change: Change) -> "asyncio.Future[None]":
        if self._connection is None:
            raise StorageFailed("the server is stopping")
        collection = self.collection(storage_key)
        collection.apply(change)
        self._index(storage_key, change.before, None if change.deleted else change.entry)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._staged.append(_Staged(collection, storage_key, change, done))
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush(), name="storage-flush")
        return done

    def _index(self, storage_key: str, before: Entry | None, after: Entry | None) -> None:
        if before is not None:
            where = (storage_key, before.key)
            if after is None or after.uid != before.uid:
                self.uids.pop(before.uid, None)
            for owner in before.owners:
                dependents = self.dependents.get(owner)
                if dependents is not None:
                    dependents.discard(where)
                    if not dependents:
                        del self.dependents[owner]
        if after is not None:
            where = (storage_key, after.key)
            self.uids[after.uid] = where
            for owner in after.owners:
                self.dependents.setdefault(owner, set()).add(where)

    async def _flush(self) -> None:
        """Commit staged changes group by group until none is left."""
        loop = asyncio.get_running_loop()
        try:
            while self._staged:
                group, self._staged = self._staged, []
                rows = [
                    (
                        item.storage_key,
                        item.change.deleted,
                        item.change.entry.key,
                        item.change.rv,
                        item.change.entry.body,
                    )
                    for item in group
                ]
                ceiling = self.rv + _CEILING_STEP if self.rv + _CEILING_STEP // 2 > self._ceiling else None
                try:
                    await loop.run_in_executor(self._executor, self._commit, rows, ceiling)
                except Exception as error:
                    self._fail(group, error)  # whatever it was, the writers of this group hear of it
                else:
                    self._ceiling = ceiling or self._ceiling
                    self._publish(group)
        finally:
            self._flusher = None

    def _publish(self, group: list[_Staged]) -> None:
        for item in group:
            self.committed_rv = item.change.rv
            for listener in tuple(item.collection.listeners.values()):
                listener(item.change)
            for global_listener in self.global_listeners:
                global_listener(item.storage_key, item.change)
            item.collection.trim(self.committed_rv)
            if not item.done.done():
                item.done.set_result(None)

    def _fail(self, group: list[_Staged], error: Exception) -> None:
        """Undo the failed group and everything staged on top of it, newest first."""
        undone = group + self._staged
        self._staged = []
        for item in reversed(undone):
            item.collection.undo(item.change)
            self._index(item.storage_key, None if item.change.deleted else item.change.entry, item.change.before)
            if not item.done.done():
                item.done.set_exception(StorageFailed(f"cannot write {self._database}: {error}"))

    def _commit(self, rows: Iterable[tuple[str, bool, Key, int, bytes]], ceiling: int | None) -> None:
        connection = self._connection
        if connection is None:
            raise sqlite3.ProgrammingError("the database is closed")
        connection.execute("BEGIN IMMEDIATE")
        try:
            if ceiling is not None:
                connection.execute("INSERT OR REPLACE INTO meta VALUES ('rv_ceiling', ?)", (str(ceiling),))
            for storage_key, deleted, (namespace, name), rv, body in rows:
                if deleted:
                    connection.execute(
                        "DELETE FROM objects WHERE storage_key = ? AND namespace = ? AND name = ?",
                        (storage_key, namespace, name),
                    )
                else:
                    connection.execute(
                        "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?)",
                        (storage_key, namespace, name, rv, body),
                    )
            connection.execute("COMMIT")
        except BaseException:
            connection.rollback()
            raise


def _connected(database: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(database, check_same_thread=False, timeout=_BUSY_SECONDS, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        # Safe against the death of this process at any moment; the last writes before a power cut may be lost.
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.executescript(_SCHEMA)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise OSError(f"{database}: {error}; move it away to start afresh") from error
    return connection
