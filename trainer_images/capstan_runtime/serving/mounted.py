"""A Secret's files in a mounted folder, read again when the kubelet has swapped them."""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

LOOK_SECONDS = 1.0
"""Between two looks whether the folder has changed."""
_Look = tuple[tuple[str, int, int, int], ...]
_Read = TypeVar("_Read")


class Mounted(Generic[_Read]):
    """What was read from the folder, as it was a second ago or later. It is looked at only when somebody asks."""

    def __init__(
        self,
        folder: Path,
        read: Callable[[], _Read],
        clock: Callable[[], float],
        on_failure: Callable[[OSError], None],
    ) -> None:
        """`on_failure` is told once why a change could not be read. Raises OSError if the first reading fails."""
        self._folder = folder
        self._read = read
        self._clock = clock
        self._on_failure = on_failure
        self._told: str | None = None
        self._seen = self._look()
        self._value = read()
        self._look_at = clock() + LOOK_SECONDS

    def current(self) -> _Read:
        """What was read last. A change that cannot be read leaves it as it is, and is tried again."""
        now = self._clock()
        if now < self._look_at:
            return self._value
        self._look_at = now + LOOK_SECONDS
        try:
            seen = self._look()
            if seen != self._seen:
                self._value = self._read()
                self._seen = seen
            self._told = None
        except OSError as error:
            if str(error) != self._told:
                self._told = str(error)
                self._on_failure(error)
        return self._value

    def _look(self) -> _Look:
        """What changes when a file does: a Secret's files are links to a new folder then."""
        states = ((path.name, path.stat()) for path in visible_files(self._folder))
        return tuple((name, state.st_ino, state.st_mtime_ns, state.st_size) for name, state in states)


def visible_files(folder: Path) -> list[Path]:
    """In order of their names; those whose name begins with a dot are the kubelet's. Raises OSError."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
