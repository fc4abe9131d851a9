"""Wakes an event loop at a time, to about 0.1 ms.

Timers of event loops are as coarse as epoll_wait, whole milliseconds, and libuv's, which truncates its clock besides:
too late for a schedule that must be kept within 1 ms. The kernel's timerfd is a descriptor that becomes readable on
time. Python has it from 3.13 on (`os.timerfd_create`); until that is the oldest supported, libc is asked.
"""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from contextlib import suppress

_CLOCK_MONOTONIC = 1  # that of time.monotonic
_TFD_TIMER_ABSTIME = 1
_BILLION = 1_000_000_000
_libc = ctypes.CDLL(None, use_errno=True)


class _Setting(ctypes.Structure):
    """struct itimerspec: interval, then value; each in seconds and nanoseconds."""

    _fields_ = [("interval", ctypes.c_long * 2), ("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class Alarm:
    """Calls `ring` in the running loop at the time of the last `set`. Close it."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ring = ring
        self._descriptor: int = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed; load is made on Linux only")
        self._setting = _Setting()
        self._reference = ctypes.byref(self._setting)
        self._loop.add_reader(self._descriptor, self._expired)

    def set(self, at: float) -> None:
        """At `time.monotonic() == at`; at once when that has passed."""
        nanoseconds = max(1, int(at * _BILLION))  # 0 would disarm it
        self._setting.seconds, self._setting.nanoseconds = divmod(nanoseconds, _BILLION)
        if _libc.timerfd_settime(self._descriptor, _TFD_TIMER_ABSTIME, self._reference, None) < 0:
            raise OSError(ctypes.get_errno(), f"timerfd_settime to {at} failed at {time.monotonic()}")

    def close(self) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _expired(self) -> None:
        with suppress(BlockingIOError):  # set anew since the loop saw it
            os.read(self._descriptor, 8)
            self._ring()
