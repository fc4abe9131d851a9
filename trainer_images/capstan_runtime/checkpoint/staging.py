"""Memory into which a rank's state is copied while the loop waits, and from which it is then hashed and written.

The same memory serves one save after another: pages that were touched before are filled at the speed of memcpy, fresh
ones at a third of it. With a folder in memory that outlives the process, the newest complete save stays there while the
next is staged into the memory of the one before: at any time one of the two is whole.
"""

import contextlib
import errno
import mmap
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from capstan_runtime.checkpoint.layout import SHARDS, SaveName, rank_manifest_name, shard_name
from capstan_runtime.checkpoint.manifest import RankManifest, SaveFacts
from capstan_runtime.checkpoint.memory import HELD, Held, held_saves, write_held
from capstan_runtime.scratch import map_file

_SPARE = "spare"
"""Folder of memory that is ready and holds nothing."""


class StagingArea:
    """One rank's memory for saves, one at a time."""

    def __init__(
        self,
        folder: Path | None,
        run: str,
        rank: int,
        on_note: Callable[[str], None],
        scratch: Path | None = None,
    ) -> None:
        """`folder` is the pod's memory tier; None: there is none. `on_note` hears when it cannot be used. `scratch` is
        where memory is files instead, for a state that no memory holds twice; None: it is memory."""
        self._scratch = scratch
        self._tier = _Tier(folder, run, rank) if folder is not None else None
        self._on_note = on_note
        self._anonymous: dict[int, mmap.mmap] = {}
        self._is_in_tier = False
        self._lock = threading.Lock()
        """Held while memory is prepared for a later save."""

    def begin(self, name: SaveName) -> None:
        """Whatever the save before the last one left is given up, to make room for save `name`."""
        with self._lock:
            self._is_in_tier = False
            if self._tier is None:
                return
            try:
                self._tier.begin(name)
                self._is_in_tier = True
            except OSError as error:
                self._give_up(error)

    def allocate(self, index: int, size: int) -> memoryview:
        """Memory for shard `index`; holds whatever was there. Raises OSError when there is none."""
        if self._is_in_tier and self._tier is not None:
            try:
                return memoryview(self._tier.allocate(index, size))
            except OSError as error:
                self._is_in_tier = False
                self._give_up(error)
        if len(self._anonymous.get(index, b"")) != size:
            self._anonymous.pop(index, None)
            self._anonymous[index] = mmap.mmap(-1, size) if self._scratch is None else map_file(self._scratch, size)
        return memoryview(self._anonymous[index])

    def seal(self, facts: SaveFacts, manifest: RankManifest) -> Held | None:
        """The save is complete in the memory tier; None: it is not there. From the thread that hashed it."""
        if not self._is_in_tier or self._tier is None:
            return None
        try:
            return self._tier.seal(facts, manifest)
        except OSError as error:
            self._on_note(f"memory tier {self._tier.folder}: {error}; a restart reads this save from the store")
            return None

    def prepare(self) -> None:
        """Memory for the next save is at hand, its pages present. Any thread; meanwhile `begin` waits."""
        with self._lock:
            if self._is_in_tier and self._tier is not None:
                with contextlib.suppress(OSError):  # `begin` meets the same, and can say so
                    self._tier.prepare()

    def _give_up(self, error: OSError) -> None:
        """A tier that is full stays full: its memory goes back, and saves are staged in the trainer's own."""
        assert self._tier is not None
        tier, self._tier = self._tier, None
        self._on_note(f"memory tier {tier.folder}: {error}; from now on a restart reads the store")
        tier.clear()


class _Tier:
    """A folder in memory (tmpfs) with at most two saves."""

    def __init__(self, folder: Path, run: str, rank: int) -> None:
        self.folder = folder
        self._rank = rank
        self._current: Path | None = None
        self._newest = next((folder / str(held.name) for held in held_saves(folder, run)), None)
        """The newest complete save. It stays until there is a newer one."""
        self._holds_two = True
        """As far as known. A folder that has room for one save holds none while that one is overwritten."""
        self._unused: list[Path] = []
        """Shard files of an older save, to be overwritten one after the other."""
        self._maps: dict[int, mmap.mmap] = {}
        """By inode. A page that was once mapped need not be faulted in again."""

    def begin(self, name: SaveName) -> None:
        """Keeps the newest complete save and takes the memory of another. Raises OSError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        target = self.folder / str(name)
        if not self._holds_two:
            self._newest = None
        others = [folder for folder in self._saves() if folder not in (self._newest, target)]
        source = next((folder for folder in (target, *others) if folder.exists()), None)
        for folder in others:
            if folder != source:
                self._remove(folder)
        if source is None:
            (target / SHARDS).mkdir(parents=True)
        else:
            _strip(source)
            source.rename(target)
            (target / SHARDS).mkdir(exist_ok=True)
        self._current = target
        self._unused = _shard_files(target)

    def allocate(self, index: int, size: int) -> mmap.mmap:
        """Raises OSError: ENOSPC when not even the memory of the other save would do."""
        assert self._current is not None
        path = self._current / SHARDS / shard_name(self._rank, index)
        if self._unused:
            self._unused.pop(0).rename(path)
        try:
            return self._mapped(path, size)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
        self._holds_two, self._newest = False, None
        for folder in self._saves():
            if folder != self._current:
                self._remove(folder)
        return self._mapped(path, size)

    def seal(self, facts: SaveFacts, manifest: RankManifest) -> Held:
        assert self._current is not None
        for path in self._unused:
            self._forget(path)
            path.unlink()
        self._unused = []
        held = write_held(self._current, facts, manifest, rank_manifest_name(manifest.rank))
        self._newest = self._current
        return held

    def prepare(self) -> None:
        """As much memory as the current save has, unless there is another save to overwrite, or no room."""
        has_other = any(folder != self._current for folder in self._saves())
        if self._current is None or has_other or not self._holds_two:
            return
        spare = self.folder / _SPARE
        (spare / SHARDS).mkdir(parents=True)
        try:
            for path in _shard_files(self._current):
                self._mapped(spare / SHARDS / path.name, path.stat().st_size)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            self._holds_two = False
            self._remove(spare)

    def clear(self) -> None:
        """Nothing is left in the folder but what others put there; what is still mapped goes with its mapping."""
        self._maps.clear()
        with contextlib.suppress(OSError):  # why it cannot be used has been said
            for folder in self._saves():
                shutil.rmtree(folder, ignore_errors=True)

    def _saves(self) -> list[Path]:
        """Of any run, whole or torn, and the spare one."""
        return [
            path
            for path in sorted(self.folder.iterdir())
            if SaveName.parse(path.name) is not None or path.name == _SPARE
        ]

    def _mapped(self, path: Path, size: int) -> mmap.mmap:
        """All pages of the file exist: to write where there is none would end the process with SIGBUS."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            inode = os.fstat(descriptor).st_ino
            mapping = self._maps.get(inode)
            if mapping is None or len(mapping) != size:
                self._maps.pop(inode, None)
                os.ftruncate(descriptor, size)
                os.posix_fallocate(descriptor, 0, size)
                mapping = mmap.mmap(descriptor, size, mmap.MAP_SHARED | mmap.MAP_POPULATE)
                self._maps[inode] = mapping
            return mapping
        finally:
            os.close(descriptor)

    def _remove(self, folder: Path) -> None:
        for path in _shard_files(folder):
            self._forget(path)
        shutil.rmtree(folder)

    def _forget(self, path: Path) -> None:
        self._maps.pop(path.stat().st_ino, None)


def _shard_files(folder: Path) -> list[Path]:
    """By number."""
    found = (folder / SHARDS).glob("*.safetensors")
    return sorted(found, key=lambda path: (len(path.name), path.name))


def _strip(folder: Path) -> None:
    """The save is incomplete from now on."""
    for path in (*(folder / SHARDS).glob("*.json*"), *folder.glob(f"{HELD}*")):
        path.unlink()
