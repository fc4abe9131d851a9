"""File systems that stop a writer at any point: by death of the process, and by a power cut."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from capstan_runtime.checkpoint.disk import Disk


class TickingDisk(Disk):
    """Calls `tick` before every operation, and in the middle of every write."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick

    def create(self, path: Path) -> int:
        self._tick()
        return super().create(path)

    def append(self, descriptor: int, data: bytes | memoryview) -> None:
        self._tick()
        half = len(data) // 2
        super().append(descriptor, data[:half])
        self._tick()
        super().append(descriptor, data[half:])

    def sync(self, descriptor: int) -> None:
        self._tick()
        super().sync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self._tick()
        super().rename(source, target)

    def link(self, source: Path, target: Path) -> None:
        self._tick()
        super().link(source, target)

    def make_folder(self, path: Path) -> None:
        self._tick()
        super().make_folder(path)

    def sync_folder(self, path: Path) -> None:
        self._tick()
        super().sync_folder(path)

    def remove(self, path: Path) -> None:
        self._tick()
        super().remove(path)

    def remove_tree(self, path: Path) -> None:
        for each in sorted(path.rglob("*"), reverse=True):
            self._tick()
            each.rmdir() if each.is_dir() else each.unlink()
        self._tick()
        path.rmdir()


def operations_of(action: Callable[[Disk], object]) -> int:
    """How many ticks a run of `action` to its end has."""
    ticks = 0

    def count() -> None:
        nonlocal ticks
        ticks += 1

    action(TickingDisk(count))
    return ticks


def killed_before(operation: int, action: Callable[[Disk], object]) -> bool:
    """Runs `action` in a process that dies before its operation number `operation`; False if it ended before that."""
    child = os.fork()
    if child == 0:
        left = operation

        def die_in_time() -> None:
            nonlocal left
            if left == 0:
                os._exit(7)
            left -= 1

        try:
            action(TickingDisk(die_in_time))
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, 7), f"the action itself failed with {code}"
    return code == 7


@dataclass
class _File:
    written: bytes = b""
    synced: bytes = b""


class PowerCut:
    """What is left of a disk when the power fails after each operation, as far as POSIX allows.

    Bytes that were not fsynced are gone. Names that were not fsynced through their folder may be gone, and each of
    them may be there all the same, because a disk writes names in an order of its own.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.snapshots: list[dict[str, bytes | None]] = []
        """After each operation, if no name came through early: path below the root -> content, None for a folder."""
        self.strays: list[list[dict[str, bytes | None]]] = []
        """After each operation: the same once for each name that may have come through before the others."""
        self._inodes: dict[int, _File] = {}
        self._live: dict[str, int | None] = {}
        self._durable: dict[str, int | None] = {}
        self._open: dict[int, int] = {}
        self._next = 0

    def _below(self, path: Path) -> str:
        return str(path.relative_to(self.root))

    def _note(self) -> None:
        self.snapshots.append(self._reachable(self._durable))
        early = [name for name, inode in self._live.items() if self._durable.get(name, 0) != inode]
        self.strays.append([self._reachable({**self._durable, name: self._live[name]}) for name in early])

    def _reachable(self, names: dict[str, int | None]) -> dict[str, bytes | None]:
        reachable: dict[str, bytes | None] = {}
        for name in sorted(names):
            parent = str(Path(name).parent)
            if parent != "." and parent not in reachable:
                continue
            inode = names[name]
            reachable[name] = None if inode is None else self._inodes[inode].synced
        return reachable

    def disk(self) -> Disk:
        return _WatchedDisk(self)


class _WatchedDisk(Disk):
    def __init__(self, cut: PowerCut) -> None:
        self._cut = cut

    def create(self, path: Path) -> int:
        descriptor = super().create(path)
        cut = self._cut
        cut._next += 1
        cut._inodes[cut._next] = _File()
        cut._live[cut._below(path)] = cut._next
        cut._open[descriptor] = cut._next
        cut._note()
        return descriptor

    def append(self, descriptor: int, data: bytes | memoryview) -> None:
        super().append(descriptor, data)
        self._cut._inodes[self._cut._open[descriptor]].written += bytes(data)
        self._cut._note()

    def sync(self, descriptor: int) -> None:
        super().sync(descriptor)
        file = self._cut._inodes[self._cut._open[descriptor]]
        file.synced = file.written
        self._cut._note()

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        live = self._cut._live
        live[self._cut._below(target)] = live.pop(self._cut._below(source))
        self._cut._note()

    def link(self, source: Path, target: Path) -> None:
        super().link(source, target)
        live = self._cut._live
        live[self._cut._below(target)] = live[self._cut._below(source)]
        self._cut._note()

    def make_folder(self, path: Path) -> None:
        for folder in (path, *path.parents):
            if folder != self._cut.root and folder.is_relative_to(self._cut.root):
                self._cut._live.setdefault(self._cut._below(folder), None)
        self._cut._note()
        super().make_folder(path)

    def sync_folder(self, path: Path) -> None:
        super().sync_folder(path)
        cut = self._cut
        inside = {name for name in (*cut._live, *cut._durable) if cut.root / Path(name).parent == path}
        for name in inside:
            if name in cut._live:
                cut._durable[name] = cut._live[name]
            else:
                cut._durable.pop(name, None)
        cut._note()

    def remove(self, path: Path) -> None:
        super().remove(path)
        self._cut._live.pop(self._cut._below(path), None)
        self._cut._note()


def restore(snapshot: dict[str, bytes | None], root: Path) -> None:
    """Makes `root` what a machine finds after the power came back."""
    root.mkdir(parents=True)
    for name, content in sorted(snapshot.items()):
        if content is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(content)
