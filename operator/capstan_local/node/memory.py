"""Volumes in memory: folders of the machine's tmpfs for emptyDir volumes of medium Memory.

They live as long as their pod and this node's process: what stops the node is, to its pods, the machine going down.
"""

import hashlib
import logging
import os
import shutil
import stat
from pathlib import Path

log = logging.getLogger(__name__)

TMPFS = Path("/dev/shm")  # nosec B108  # ours alone below: a folder of mode 0700, whose owner is checked
LEAST_FREE_BYTES = 16 << 20
"""What must be free for a volume that names no sizeLimit."""


class NoMemory(Exception):
    """The volume cannot be in memory; the message says why."""


class MemoryVolumes:
    """`<tmpfs>/local-node-<user>-<home>/<pod uid>/<volume>`, for the node at `home`."""

    def __init__(self, home: Path, tmpfs: Path = TMPFS) -> None:
        mark = hashlib.sha256(str(home).encode()).hexdigest()[:12]
        self._home = home
        self._tmpfs = tmpfs
        self._prefix = f"local-node-{os.getuid()}-"
        self.root = tmpfs / f"{self._prefix}{mark}"

    def sweep(self) -> None:
        """Removes what this node's earlier lives left, and what nodes left whose home is gone."""
        self.close()
        for root in self._tmpfs.glob(f"{self._prefix}*"):
            home = root / "home"
            if _is_own_folder(root) and home.is_symlink() and not home.exists():
                _remove(root)

    def make(self, uid: str, name: str, size_limit: int | None) -> Path:
        """The folder of one volume, made if missing. Raises NoMemory when there is no tmpfs, or no room in it.

        `size_limit`: bytes the volume may hold, which must be free when it is made; afterwards nobody counts.
        """
        folder = self.root / uid / name
        if folder.is_dir():
            return folder
        wanted = size_limit or LEAST_FREE_BYTES
        try:
            free = shutil.disk_usage(self._tmpfs).free
            if free < wanted:
                raise NoMemory(f"{self._tmpfs} has {free >> 20} MiB free, {wanted >> 20} MiB are asked for")
            self.root.mkdir(mode=0o700, exist_ok=True)
            if not _is_own_folder(self.root):
                raise NoMemory(f"{self.root} belongs to another user")
            home = self.root / "home"
            if not home.is_symlink():
                home.symlink_to(self._home)  # by this a later node sees whether anybody may still want the folder
            folder.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise NoMemory(f"{error.filename or self._tmpfs}: {error.strerror}") from error
        return folder

    def remove(self, uid: str) -> None:
        """Frees the memory of a pod's volumes."""
        _remove(self.root / uid)

    def close(self) -> None:
        """Frees everything."""
        if _is_own_folder(self.root):
            _remove(self.root)


def _is_own_folder(path: Path) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _remove(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("could not remove %s, which takes up memory: %s", path, error)
