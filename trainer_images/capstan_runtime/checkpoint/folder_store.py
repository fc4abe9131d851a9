"""A store in a folder: a local disk, or a volume that all workers mount."""

import errno
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from capstan_runtime.checkpoint.digest import Buffer
from capstan_runtime.checkpoint.disk import Disk, write_file, write_synced
from capstan_runtime.checkpoint.layout import PART
from capstan_runtime.checkpoint.store import ObjectMissing

_NO_SUCH_FILE = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
"""What file systems without hard links answer: buckets mounted through FUSE, FAT, some SMB servers."""

_LAG_SECONDS = 65.0
"""NFS believes what it knows of a folder for up to 60 s (`acdirmax`), and so do gcsfuse and others by default."""


def _raise_unless_gone(error: OSError) -> None:
    """For `os.walk`, which leaves out what it cannot read: that would not be synced, and nobody would know."""
    if not isinstance(error, FileNotFoundError):
        raise error


class FolderStore:
    """The `Store` in a folder, which need not be there yet. An object is a file; what ends in `.part` is none.

    Its deadlines are the mount's: a call to a network file system that is mounted `hard` waits for the server.
    """

    def __init__(self, folder: Path, disk: Disk | None = None) -> None:
        self._folder = folder
        self._disk = disk or Disk()

    @property
    def place(self) -> str:
        """The folder."""
        return str(self._folder)

    @property
    def lag_seconds(self) -> float:
        """See `Store.lag_seconds`. Nobody tells us what is mounted here: it may be a network file system."""
        return _LAG_SECONDS

    def put(self, key: str, pieces: Iterable[Buffer]) -> None:
        """See `Store.put`. The bytes are on disk; the name is after `settle`."""
        path = self._path(key)
        self._make_room(path)
        write_file(self._disk, path, pieces)

    def put_new(self, key: str, data: bytes) -> bool:
        """See `Store.put_new`. Where the file system has no hard links, two writers at one moment may both win."""
        path = self._path(key)
        if path.exists():
            return False
        part = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PART}")
        self._make_room(path)
        write_synced(self._disk, part, [data])
        try:
            self._disk.link(part, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._disk.rename(part, path)
        finally:
            self._disk.remove(part)
        return True

    def _make_room(self, path: Path) -> None:
        if not path.parent.is_dir():
            self._disk.make_folder(path.parent)

    def settle(self, prefix: str) -> None:
        """See `Store.settle`. The folders above are synced too: whoever made them may have died before doing so."""
        path = self._path(prefix)
        if not path.is_dir():
            return
        inside = [Path(folder) for folder, _, _ in os.walk(path, topdown=False, onerror=_raise_unless_gone)]
        above = [folder for folder in path.parents if folder.is_relative_to(self._folder)]
        for folder in (*inside, *above):
            self._disk.sync_folder(folder)

    def get(self, key: str) -> bytes:
        """See `Store.get`."""
        try:
            return self._path(key).read_bytes()
        except _NO_SUCH_FILE as error:
            raise ObjectMissing(f"{key}: is missing") from error

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        """See `Store.read_into`."""
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        except _NO_SUCH_FILE as error:
            raise ObjectMissing(f"{key}: is missing") from error
        try:
            done = 0
            while done < len(target):
                count = os.preadv(descriptor, [target[done:]], offset + done)
                if count == 0:
                    raise ObjectMissing(f"{key}: ends at byte {offset + done}, {offset + len(target)} were expected")
                done += count
        except IsADirectoryError as error:
            raise ObjectMissing(f"{key}: is missing") from error
        finally:
            os.close(descriptor)

    def size(self, key: str) -> int | None:
        """See `Store.size`."""
        path = self._path(key)
        try:
            return path.stat().st_size if path.is_file() else None
        except _NO_SUCH_FILE:
            return None

    def children(self, prefix: str = "") -> list[str]:
        """See `Store.children`. Empty folders are listed too: a writer that died early leaves them."""
        try:
            names = [path.name for path in self._path(prefix).iterdir()]
        except _NO_SUCH_FILE:
            return []
        return sorted(name for name in names if not name.endswith(PART))

    def remove(self, key: str) -> None:
        """See `Store.remove`. On disk when this returns: what is removed next must not go before it."""
        path = self._path(key)
        try:
            self._disk.remove(path)
            self._disk.sync_folder(path.parent)
        except (FileNotFoundError, NotADirectoryError):
            return

    def remove_all(self, prefix: str) -> None:
        """See `Store.remove_all`. The folder goes too."""
        path = self._path(prefix)
        if path.is_dir():
            self._disk.remove_tree(path)

    def _path(self, key: str) -> Path:
        """Raises ValueError for what would lead out of the folder."""
        if key and any(part in ("", ".", "..") for part in key.split("/")):
            raise ValueError(f"{key!r} is no key of a store")
        return self._folder / key
