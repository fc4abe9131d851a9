"""How much the caches of this machine hold."""

import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def last_level_bytes(cpus: Path = _CPUS) -> int | None:
    """Of the last level of cache of all cores that the process may use, those that share one counted once; None: the
    kernel does not say.

    A virtual machine sees the cache of its host, which it may have to share.
    """
    found: dict[tuple[int, str], int] = {}
    for number in os.sched_getaffinity(0):
        for index in (cpus / f"cpu{number}" / "cache").glob("index*"):
            try:
                if (index / "type").read_text().strip() == "Instruction":
                    continue
                level = int((index / "level").read_text())
                shared = (index / "shared_cpu_list").read_text().strip()
                found[level, shared] = _size((index / "size").read_text().strip())
            except (OSError, ValueError, KeyError):
                continue
    if not found:
        return None
    last = max(level for level, _ in found)
    return sum(size for (level, _), size in found.items() if level == last)


def _size(text: str) -> int:
    """
    >>> _size("32768K")
    33554432
    """
    return int(text[:-1]) * _UNITS[text[-1]] if text[-1] in _UNITS else int(text)
