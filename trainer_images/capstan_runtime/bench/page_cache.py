"""Files that shall be read from the disk, and not from the memory in which the kernel still has them."""

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)


def forget_pages(folder: Path) -> float:
    """The kernel is asked to let go of all files below `folder`; the share of their bytes that it kept in memory.

    They are synced first, because only what is on the disk can be let go. This needs no privileges, and is advice: a
    file system that is memory itself keeps everything. What disks, their controllers and file servers hold in memory of
    their own nobody can reach from here.
    """
    for path in _files(folder):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return share_in_memory(folder)


def share_in_memory(folder: Path) -> float:
    """Of the bytes of all files below `folder`, those that a read would find in memory: 0 to 1. 0 without files."""
    pages = resident = 0
    for path in _files(folder):
        if path.stat().st_size:
            states = _page_states(path)
            pages += len(states)
            resident += sum(state & 1 for state in states)
    return resident / pages if pages else 0.0


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _page_states(path: Path) -> bytes:
    """mincore(2) of the whole file: one byte for each page, whose lowest bit says that it is in memory."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        # ACCESS_COPY, because ctypes tells the address of writable memory only. Nothing is written.
        start = ctypes.c_char.from_buffer(mapped)
        states = ctypes.create_string_buffer(-(-len(mapped) // mmap.PAGESIZE))
        failed = _LIBC.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), states)
        del start  # the mapping cannot be closed while somebody points into it
        if failed:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    return states.raw
