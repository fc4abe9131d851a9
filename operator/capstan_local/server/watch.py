"""Watches: a stream of the changes of one collection, from a resource version on."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

import orjson

from capstan_local.server.codec import dumps, head, render
from capstan_local.server.collection import Change, Entry, Gone
from capstan_local.server.errors import Cause, bad_request, forbidden_value, gone, invalid
from capstan_local.server.listing import parse_rv
from capstan_local.server.representation import Representation, partial, table_of
from capstan_local.server.resources import Resource
from capstan_local.server.selectors import Selection
from capstan_local.server.storage import Store

_BOOKMARK_SECONDS = 60.0
_DEFAULT_TIMEOUT_SECONDS = 1800.0
# A watcher that is so far behind is dropped, as in kube-apiserver; it comes back with its last resource version.
_MOST_UNREAD = 20_000
# Changes sent in one write: enough to amortise it, few enough to keep the loop responsive.
_MOST_PER_WRITE = 256
_PARTS = 3  # the pieces of which an event is made


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """The query of a watch, parsed. `rv` None: unset."""

    selection: Selection
    rv: int | None
    bookmarks: bool
    send_initial: bool | None
    timeout_seconds: float


def watch_options(resource: Resource, namespace: str, query: dict[str, str]) -> WatchOptions:
    """Raises ApiError 400 or 422."""
    rv = query.get("resourceVersion", "")
    try:
        timeout = float(query.get("timeoutSeconds") or _DEFAULT_TIMEOUT_SECONDS)
    except ValueError:
        raise bad_request(f'timeoutSeconds: Invalid value: "{query["timeoutSeconds"]}": must be an integer') from None
    initial = query.get("sendInitialEvents")
    options = WatchOptions(
        selection=Selection(resource, namespace, query.get("labelSelector", ""), query.get("fieldSelector", "")),
        rv=parse_rv(rv) if rv else None,
        bookmarks=query.get("allowWatchBookmarks") in ("true", "1", "True"),
        send_initial=None if initial is None else initial in ("true", "1", "True"),
        timeout_seconds=timeout,
    )
    match = query.get("resourceVersionMatch", "")
    causes: list[Cause] = []
    if options.send_initial is not None and match != "NotOlderThan":
        why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        causes.append(forbidden_value("resourceVersionMatch", why))
    if options.send_initial is None and match:
        why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        causes.append(forbidden_value("resourceVersionMatch", why))
    if causes:
        raise invalid("ListOptions", "meta.k8s.io", "", causes)
    return options


class Watch:
    """One client's watch. `open` registers it, `frames` yields what to send until it ends, `close` unregisters it."""

    def __init__(self, store: Store, resource: Resource, options: WatchOptions, form: Representation) -> None:
        self._store = store
        self.resource = resource
        self._options = options
        self._form = form
        self._unread: deque[Change] = deque()
        self._wake = asyncio.Event()
        self._overrun = False
        self._stopped = False
        self._sent_header = False
        self._told_rv = 0
        self._first: list[Entry] = []
        self._stop_listening: Callable[[], None] = _nothing

    def open(self) -> None:
        """Decide where to start and hear everything from there. Raises ApiError 410."""
        options, storage_key = self._options, self.resource.storage_key
        from_now = options.rv is None or options.rv == 0 or bool(options.send_initial)
        if from_now:
            self._told_rv = self._store.rv
            if options.send_initial is not False:
                self._first = [
                    entry
                    for entry in self._store.scan(storage_key, options.selection.namespace)
                    if self._selects(entry)
                ]
        else:
            self._told_rv = options.rv or 0
            try:
                self._unread.extend(self._store.changes_after(storage_key, self._told_rv))
            except Gone as error:
                raise gone(str(error)) from None
        self._stop_listening = self._store.listen(storage_key, self._hear)

    def close(self) -> None:
        self._stop_listening()

    def stop(self) -> None:
        """End the stream: the server is stopping or the resource is no longer served."""
        self._stopped = True
        self._wake.set()

    def _hear(self, change: Change) -> None:
        if len(self._unread) >= _MOST_UNREAD:
            self._overrun = True
        else:
            self._unread.append(change)
        self._wake.set()

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Chunks of newline-ended events."""
        for at in range(0, len(self._first), _MOST_PER_WRITE):
            parts: list[bytes] = []
            for entry in self._first[at : at + _MOST_PER_WRITE]:
                parts += self._frame("ADDED", entry)
            yield b"".join(parts)
        self._first = []
        if self._options.send_initial and self._options.bookmarks:
            yield self._bookmark(initial_end=True)
        deadline = time.monotonic() + self._options.timeout_seconds
        next_bookmark = time.monotonic() + _BOOKMARK_SECONDS
        while not (self._stopped or self._overrun):
            chunk = self._drain()
            if chunk:
                yield chunk
                continue
            now = time.monotonic()
            if now >= deadline:
                break
            if self._options.bookmarks and now >= next_bookmark:
                next_bookmark = now + _BOOKMARK_SECONDS
                yield self._bookmark(initial_end=False)
                continue
            self._wake.clear()
            until = min(deadline, next_bookmark) if self._options.bookmarks else deadline
            try:
                async with asyncio.timeout(until - now):
                    await self._wake.wait()
            except TimeoutError:
                continue  # the loop looks again at which of the two times has come
        if self._options.bookmarks and not (self._stopped or self._overrun):
            yield self._bookmark(initial_end=False)

    def _drain(self) -> bytes:
        """The events of what is unread and selected, up to a bound; empty when there is none."""
        parts: list[bytes] = []
        while self._unread and len(parts) < _PARTS * _MOST_PER_WRITE:
            change = self._unread.popleft()
            if change.rv <= self._told_rv:
                continue
            self._told_rv = change.rv
            kind = self._kind_of(change)
            if kind == "DELETED" and not change.deleted and change.before is not None:
                # It left the selection: the client gets the last state it was shown, at the version of the change.
                parts += self._frame(kind, change.before, rv=change.rv)
            elif kind:
                parts += self._frame(kind, change.entry)
        return b"".join(parts)

    def _kind_of(self, change: Change) -> str:
        """The type of event this client sees; "" when it sees none."""
        was = change.before is not None and self._selects(change.before)
        if change.deleted:
            return "DELETED" if was else ""
        is_now = self._selects(change.entry)
        if is_now:
            return "MODIFIED" if was else "ADDED"
        return "DELETED" if was else ""

    def _selects(self, entry: Entry) -> bool:
        return self._options.selection.matches(entry.namespace, entry.name, entry.labels, entry.fields)

    def _frame(self, kind: str, entry: Entry, rv: int | None = None) -> tuple[bytes, bytes, bytes]:
        """The pieces of one event; the object is the stored bytes themselves, shared with everybody."""
        if self._form.shape == "object":
            return _wrap(kind, self._body(entry, rv))
        obj = orjson.loads(self._body(entry, rv))
        if self._form.shape == "metadata":
            return _wrap(kind, dumps(partial(obj, self._form.version)))
        table = table_of(self.resource, [obj], self._form)
        table["metadata"]["resourceVersion"] = obj["metadata"]["resourceVersion"]
        if self._sent_header:
            table["columnDefinitions"] = None
        self._sent_header = True
        return _wrap(kind, dumps(table))

    def _body(self, entry: Entry, rv: int | None) -> bytes:
        body = render(self.resource, entry)
        if rv is None:
            return body
        obj = orjson.loads(body)
        obj["metadata"]["resourceVersion"] = str(rv)
        return dumps(obj)

    def _bookmark(self, *, initial_end: bool) -> bytes:
        return b"".join(_wrap("BOOKMARK", self._bookmark_object(initial_end=initial_end)))

    def _bookmark_object(self, *, initial_end: bool) -> bytes:
        if not self._unread:
            self._told_rv = max(self._told_rv, self._store.committed_rv)
        metadata: dict[str, Any] = {"resourceVersion": str(self._told_rv), "creationTimestamp": None}
        if initial_end:
            metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
        if self._form.shape == "object":
            start = head(self.resource.kind, self.resource.api_version)
            return start + b'"metadata":' + dumps(metadata) + b"}"
        if self._form.shape == "metadata":
            return dumps(partial({"metadata": metadata}, self._form.version))
        table = {"kind": "Table", "apiVersion": f"meta.k8s.io/{self._form.version}", "metadata": metadata}
        return dumps({**table, "columnDefinitions": None, "rows": []})


def _nothing() -> None:
    """What ends a watch that has not begun to listen."""


def _wrap(kind: str, body: bytes) -> tuple[bytes, bytes, bytes]:
    return b'{"type":"%s","object":' % kind.encode(), body, b"}\n"


def error_frame(status: dict[str, Any]) -> bytes:
    """The ERROR event that ends a watch."""
    return b"".join(_wrap("ERROR", dumps(status)))
