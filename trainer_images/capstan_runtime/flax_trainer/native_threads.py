"""Processor time of the threads that Python knows nothing of: on CPUs, those in which XLA computes."""

import contextlib
import threading
import time
from pathlib import Path

_THREADS = Path("/proc/self/task")


def native_threads_seconds() -> float:
    """Of all of them that live, so far. Linux. Threads of Python's, which read data or save, do not count."""
    ours = {thread.native_id for thread in threading.enumerate()}
    seconds = 0.0
    for entry in _THREADS.iterdir():
        if (thread := int(entry.name)) not in ours:
            with contextlib.suppress(OSError):  # it has ended
                seconds += time.clock_gettime(_clock_of(thread))
    return seconds


def _clock_of(thread: int) -> int:
    """The kernel's clock of the time that a thread was scheduled: clock_gettime(2), CPUCLOCK_PERTHREAD."""
    return ~thread << 3 | 6
