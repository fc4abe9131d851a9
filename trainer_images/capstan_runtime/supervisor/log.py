"""Writing to the pod's log, which may be full, gone, or not read by anybody. PID 1 must neither wait for it nor die of
it."""

import asyncio
import contextlib
import os
import queue
import threading

_LINES_HELD = 200
_POLL_SECONDS = 0.01


class Log:
    """The lines of the pod's first process itself, on stderr."""

    def __init__(self, speaker: str = "supervisor") -> None:
        self._speaker = speaker
        self._lines: queue.Queue[str] = queue.Queue(_LINES_HELD)
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def say(self, line: str) -> None:
        """Returns at once. When nobody reads the log, lines beyond the first 200 are lost."""
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(f"{self._speaker}: {line}\n")

    async def flush(self, patience_seconds: float) -> None:
        """Waits until all lines are written, at most `patience_seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience_seconds):
                while self._lines.unfinished_tasks:
                    await asyncio.sleep(_POLL_SECONDS)

    def _write(self) -> None:
        while True:
            write_or_lose(2, self._lines.get().encode(errors="replace"))
            self._lines.task_done()


def write_or_lose(descriptor: int, data: bytes) -> None:
    """Writes all of `data`, or as much as the log takes: a full disk costs its lines, not the training."""
    rest = memoryview(data)
    with contextlib.suppress(OSError):
        while len(rest):
            rest = rest[os.write(descriptor, rest) :]
