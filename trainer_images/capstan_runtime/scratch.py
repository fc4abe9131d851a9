"""Memory that is a file on the node's disk, for runs whose state is larger than the host's memory."""

import mmap
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from capstan_runtime.contract import env


def scratch_folder(environ: Mapping[str, str]) -> Path | None:
    """Where the run may keep state on a disk; None: it is to keep it in memory."""
    return Path(environ[env.SCRATCH]) if environ.get(env.SCRATCH) else None


def map_file(folder: Path, size: int) -> mmap.mmap:
    """`size` bytes of zeros whose memory is a file without a name in `folder`: it goes with the process, however that
    ends. Raises OSError, and takes no room, if there is too little: to write where there is none would end the process
    with SIGBUS."""
    with tempfile.TemporaryFile(dir=folder) as file:
        free = os.fstatvfs(file.fileno())
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            os.ftruncate(file.fileno(), 0)
            left = free.f_bavail * free.f_frsize
            raise OSError(error.errno, f"{error.strerror}: {size:,} bytes, and {folder} has {left:,} left") from None
        return mmap.mmap(file.fileno(), size)
