"""One collection of objects in memory: the live ones, and a bounded window of the changes that led to them."""

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

Key = tuple[str, str]  # (namespace, name); namespace "" for cluster-scoped objects

WINDOW_CHANGES = 4096
WINDOW_BYTES = 16 << 20


class Gone(Exception):
    """The changes since this resource version are no longer known."""

    def __init__(self, rv: int, oldest: int) -> None:
        super().__init__(f"too old resource version: {rv} ({oldest})")


class Entry:
    """One object at one resource version; never changed after it is made.

    `body` is the object as JSON. `labels`, `fields` and `owners` (uids) are what selectors and garbage collection need.
    `views` holds what was derived from the body for other versions or newer schemas (codec.render).
    """

    __slots__ = ("body", "deleting", "fields", "labels", "name", "namespace", "owners", "rv", "uid", "views")

    def __init__(
        self,
        namespace: str,
        name: str,
        uid: str,
        rv: int,
        body: bytes,
        labels: dict[str, str],
        fields: dict[str, str],
        owners: tuple[str, ...],
        deleting: bool,
    ) -> None:
        self.namespace = namespace
        self.name = name
        self.uid = uid
        self.rv = rv
        self.body = body
        self.labels = labels
        self.fields = fields
        self.owners = owners
        self.deleting = deleting
        self.views: dict[Any, bytes] | None = None

    @property
    def key(self) -> Key:
        return (self.namespace, self.name)

    def load(self) -> dict[str, Any]:
        """A fresh copy of the object."""
        loaded: dict[str, Any] = orjson.loads(self.body)
        return loaded


class Change:
    """One step of a collection: `entry` is the object after it (of a deletion its last state), `before` that before."""

    __slots__ = ("before", "deleted", "entry")

    def __init__(self, entry: Entry, before: Entry | None, deleted: bool) -> None:
        self.entry = entry
        self.before = before
        self.deleted = deleted

    @property
    def rv(self) -> int:
        return self.entry.rv


Listener = Callable[[Change], None]


@dataclass(slots=True)
class Collection:
    """All objects of one storage key, and the changes that led to them."""

    entries: dict[Key, Entry] = field(default_factory=dict)
    keys: list[Key] = field(default_factory=list)  # sorted
    window: deque[Change] = field(default_factory=deque)
    window_bytes: int = 0
    window_start: int = 0  # every change with a greater rv is in the window
    listeners: dict[int, Listener] = field(default_factory=dict)

    def apply(self, change: Change) -> None:
        key = change.entry.key
        if change.deleted:
            del self.entries[key]
            del self.keys[bisect_left(self.keys, key)]
        else:
            if key not in self.entries:
                insort(self.keys, key)
            self.entries[key] = change.entry
        self.window.append(change)
        self.window_bytes += len(change.entry.body)

    def undo(self, change: Change) -> None:
        """Take back the newest change."""
        key = change.entry.key
        if change.before is None:
            del self.entries[key]
            del self.keys[bisect_left(self.keys, key)]
        else:
            if key not in self.entries:
                insort(self.keys, key)
            self.entries[key] = change.before
        self.window.pop()
        self.window_bytes -= len(change.entry.body)

    def trim(self, committed_rv: int) -> None:
        """Forget the oldest committed changes beyond the bounds of the window."""
        while self.window and (len(self.window) > WINDOW_CHANGES or self.window_bytes > WINDOW_BYTES):
            oldest = self.window[0]
            if oldest.rv > committed_rv:
                return
            self.window.popleft()
            self.window_bytes -= len(oldest.entry.body)
            self.window_start = oldest.rv

    def keys_in(self, namespace: str) -> list[Key]:
        """Sorted keys of one namespace, or of all for ""."""
        if not namespace:
            return self.keys
        first = bisect_left(self.keys, (namespace, ""))
        return self.keys[first : bisect_right(self.keys, (namespace, "\U0010ffff"))]
