"""The few things a writer does to a POSIX file system, one method each, so that tests can stop between any two."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from capstan_runtime.checkpoint.digest import Buffer
from capstan_runtime.checkpoint.layout import PART


class Disk:
    """A POSIX file system, local or network, on which `rename` within a folder is atomic."""

    def create(self, path: Path) -> int:
        """A descriptor of the new, empty file."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    def append(self, descriptor: int, data: Buffer) -> None:
        rest = memoryview(data)
        while len(rest):
            rest = rest[os.write(descriptor, rest) :]

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def link(self, source: Path, target: Path) -> None:
        """`target` is a second name of the file. Raises FileExistsError if there is a `target`: of two one wins."""
        os.link(source, target)

    def make_folder(self, path: Path) -> None:
        """`path`, and those above it that are missing; their names survive a power cut, `path`'s own may not."""
        missing = [folder for folder in path.parents if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            self.sync_folder(folder.parent)

    def sync_folder(self, path: Path) -> None:
        """Makes the names in `path` survive a power cut."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def remove_tree(self, path: Path) -> None:
        """Harmless when somebody else removes it at the same time."""
        shutil.rmtree(path, onerror=_unless_gone)


def _unless_gone(function: object, path: str, info: tuple[object, BaseException, object]) -> None:
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]


def write_synced(disk: Disk, path: Path, pieces: Iterable[Buffer]) -> None:
    """`path` holds exactly `pieces`, on disk; after an error there is none. The caller syncs the folder."""
    descriptor = disk.create(path)
    try:
        for piece in pieces:
            disk.append(descriptor, piece)
        disk.sync(descriptor)
    except BaseException:
        disk.remove(path)  # the disk may be full: what is of no use must not keep it so
        raise
    finally:
        os.close(descriptor)


def write_file(disk: Disk, path: Path, pieces: Iterable[Buffer]) -> None:
    """As `write_synced`, and until all of it is there, `path` is what it was: written beside, renamed."""
    part = path.with_name(path.name + PART)
    write_synced(disk, part, pieces)
    disk.rename(part, path)
