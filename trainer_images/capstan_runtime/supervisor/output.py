"""The trainer's output: passed on as it is, its last lines kept."""

import os
import threading
from collections import deque

from capstan_runtime.supervisor.log import write_or_lose

_LINES_KEPT = 200
"""A hung trainer's main thread comes last in its dump, after up to a hundred others."""
_LONGEST_LINE = 2000
_CHUNK_BYTES = 65536
_TRACEBACK = "Traceback (most recent call last):"


class Output:
    """Copies a pipe to this process's stdout on a thread of its own: a reader of the log that stalls holds up the
    trainer's prints, but never the supervisor."""

    def __init__(self, descriptor: int) -> None:
        """Owns `descriptor`, the reading end."""
        self._descriptor = descriptor
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._copy, name="output", daemon=True)
        self._thread.start()

    def last_lines(self) -> list[str]:
        """The last lines so far, oldest first."""
        with self._lock:
            return list(self._lines)

    def forget(self) -> None:
        """What was printed until now is in the log and nowhere else."""
        with self._lock:
            self._lines.clear()

    def drain(self, patience_seconds: float) -> None:
        """Waits for what is still in the pipe; not for ever, because a grandchild may hold it open."""
        self._thread.join(patience_seconds)

    def _copy(self) -> None:
        rest = b""
        try:
            while chunk := os.read(self._descriptor, _CHUNK_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                self._keep(lines)
                rest = rest[-_LONGEST_LINE:]
                write_or_lose(1, chunk)
        finally:
            os.close(self._descriptor)
            self._keep([rest] if rest else [])

    def _keep(self, lines: list[bytes]) -> None:
        with self._lock:
            self._lines.extend(line[:_LONGEST_LINE].decode(errors="replace").rstrip("\r") for line in lines)


def exception_line(lines: list[str]) -> str | None:
    """The line that names the exception of the last traceback in `lines`; None when there is none."""
    if _TRACEBACK not in lines:
        return None
    start = len(lines) - 1 - lines[::-1].index(_TRACEBACK)
    for line in lines[start + 1 :]:
        if line and not line[0].isspace():
            return line
    return None
