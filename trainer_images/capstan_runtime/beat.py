"""What the trainer's main thread is doing right now, where its supervisor can read it at any time: a shared page.

The trainer writes and nobody waits: not for a pipe, not for a reader. The page is still there, and still true, when the
process is stopped, hung or dead.
"""

import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from capstan_runtime.contract import env
from capstan_runtime.contract.state import Section

PAGE_BYTES = 64
_LAYOUT = struct.Struct("=q8sqq")
"""Nanoseconds of CLOCK_MONOTONIC, section in ASCII, optimizer steps done, and the same nanoseconds again. They are
written in this order, so that a writer that is interrupted halfway, for a microsecond or for ever, can be told."""
_SECTIONS = {section.encode(): section for section in Section}
_MOST_READS = 10_000
"""Some milliseconds: a writer may be off its core in the middle of a write."""


@dataclass(frozen=True, slots=True)
class Sign:
    """What a page said when it was read."""

    section: Section
    step: int
    """Optimizer steps done."""
    since_ns: int
    """When it was entered: `time.monotonic_ns()`, one clock for all processes of a machine."""


class Beat:
    """The trainer's side. `enter` costs about half a microsecond, with or without a supervisor to read it."""

    def __init__(self, descriptor: int | None = None) -> None:
        """`descriptor` is of a file of PAGE_BYTES; None: nobody reads. Raises OSError when it cannot be mapped."""
        self._page = mmap.mmap(-1 if descriptor is None else descriptor, PAGE_BYTES)
        self._write = _LAYOUT.pack_into

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Beat":
        number = environ.get(env.PAGE)
        return cls(int(number) if number is not None else None)

    def enter(self, section: Section, step: int) -> None:
        """From now on the main thread, which alone calls this, is in `section`, with `step` optimizer steps done."""
        now = time.monotonic_ns()
        self._write(self._page, 0, now, section.encode(), step, now)


def data_comes_nearer(environ: Mapping[str, str], section: Section = Section.DATA) -> Callable[[], None]:
    """What shows, each time it is called, that data is still being made ready or, in section EXCHANGE, waited for. Any
    thread may call it, of a spare too: on the pipe nobody hears that one before it has its membership, and what it says
    there would make it a trainer."""
    beat, lock = Beat.from_environ(environ), threading.Lock()

    def show() -> None:
        with lock:
            beat.enter(section, step=0)

    return show


class Page:
    """The supervisor's side: one page for one trainer, gone when both have let go of it."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("capstan-beat", os.MFD_CLOEXEC)
        """To be passed to the trainer as `env.PAGE`."""
        os.ftruncate(self.descriptor, PAGE_BYTES)
        self._page = mmap.mmap(self.descriptor, PAGE_BYTES, prot=mmap.PROT_READ)

    def read(self) -> Sign | None:
        """What the trainer wrote last; None: nothing yet, or nothing whole."""
        before = b""
        for _ in range(_MOST_READS):
            now = self._page[: _LAYOUT.size]
            since_ns, section, step, end_ns = _LAYOUT.unpack(now)
            # Twice the same: had a write begun before the middle of the first reading, the second would see its stamp.
            if now == before and since_ns == end_ns:
                known = _SECTIONS.get(section.rstrip(b"\0"))
                return Sign(known, step, since_ns) if known is not None else None
            before = now
        return None

    def close(self) -> None:
        self._page.close()
        os.close(self.descriptor)
