"""A record of every request, each holding the hash of the one before it: what was taken out or changed later shows."""

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import orjson

from capstan_runtime.contract.serving import Audit
from capstan_runtime.serving.tensors import digest_of

Sink = Callable[[bytes], None]
"""Writes whole lines. May raise, and may block: requests do not notice."""

FIRST = "0" * 64
"""`previous` of a chain's first line."""
_WRITE_SECONDS = 0.1
"""Between two writes: a thread that woke for every line would take turns with the event loop."""


class AuditLog:
    """Lines wait in a bounded buffer for a thread that hashes and writes them. When there is no room, or the sink
    fails, they are dropped; the next line says how many."""

    def __init__(self, config: Audit, sink: Sink, origin: dict[str, Any], on_drop: Callable[[int], None]) -> None:
        """`origin` is the first line: whose requests these are. `on_drop` hears of lines lost, from any thread."""
        self._keeps_payload = config.payload
        self._sink = sink
        self._most = config.max_buffered
        self._on_drop = on_drop
        self._origin: dict[str, Any] | None = origin
        """None: it is written."""
        self._waiting: deque[dict[str, Any]] = deque()
        self._previous = FIRST
        self._dropped = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="audit", daemon=True)
        self._thread.start()

    def record(self, line: dict[str, Any]) -> None:
        """Returns at once. Of the arrays `input` and `output` in `line`, which must not change any more, hashes are
        written, and themselves only if the payload is kept."""
        if len(self._waiting) >= self._most:
            self._drop(1)
        else:
            self._waiting.append(line)

    def stop(self, patience_seconds: float) -> None:
        """Writes what waits, for at most so long."""
        self._stopping.set()
        self._thread.join(patience_seconds)

    def _drop(self, lines: int) -> None:
        with self._lock:
            self._dropped += lines
        self._on_drop(lines)

    def _work(self) -> None:
        while not self._stopping.wait(_WRITE_SECONDS):
            self._write_waiting()
        self._write_waiting()

    def _write_waiting(self) -> None:
        waiting = [self._waiting.popleft() for _ in range(len(self._waiting))]
        origin = [] if self._origin is None else [self._origin]
        if not waiting and not origin:
            return
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        previous = self._previous
        lines: list[bytes] = []
        try:
            for entry in [*origin, *waiting]:
                if dropped and not lines:
                    entry = {**entry, "dropped": dropped}
                line = self._line({"previous": previous, **entry})
                previous = hashlib.sha256(line).hexdigest()
                lines.append(line)
            self._sink(b"\n".join([*lines, b""]))
        except Exception:  # whatever the sink does, requests go on, and the count says what is missing
            with self._lock:
                self._dropped += dropped
            if waiting:
                self._drop(len(waiting))
            return
        self._previous = previous
        self._origin = None

    def _line(self, entry: dict[str, Any]) -> bytes:
        for name in ("input", "output"):
            array = entry.pop(name, None)
            if array is not None:
                entry[f"{name}_sha256"] = digest_of(array)
                if self._keeps_payload:
                    entry[name] = array
        return orjson.dumps(entry, option=orjson.OPT_SERIALIZE_NUMPY)


def first_break(lines: Iterable[bytes]) -> int | None:
    """Index of the first line, without its newline, that does not follow from the one before it; None: the chain is
    whole. It may go on: who cuts lines off its end leaves no trace in it."""
    previous = FIRST
    for index, line in enumerate(lines):
        try:
            entry = orjson.loads(line)
        except orjson.JSONDecodeError:
            return index
        if not isinstance(entry, dict) or entry.get("previous") != previous:
            return index
        previous = hashlib.sha256(line).hexdigest()
    return None
