"""A folder for parsers that read files, in memory where there is such a place. It goes with the process."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory


@cache
def _folder() -> TemporaryDirectory[str]:
    shared_memory = Path("/dev/shm")
    return TemporaryDirectory(prefix="capstan-fuzz-", dir=shared_memory if shared_memory.is_dir() else None)


def scratch() -> Path:
    return Path(_folder().name)
