"""Where checkpoints are kept: a space of named objects, in a folder or in a bucket.

A key is a path without a leading slash, `000000000120.3.5f0c2ea91b77/shards/r0-0.safetensors`. An object is there as a
whole or not at all. Everything above this module speaks of keys, never of paths or URLs.
"""

import errno
from collections.abc import Iterable
from typing import Protocol

from capstan_runtime.checkpoint.digest import Buffer


class ObjectMissing(Exception):
    """There is no object of that key, or it ends before the bytes that were asked for. The message names the key."""


class StoreError(OSError):
    """The store does not answer as it should. One line; everything that a backend raises becomes this or an OSError."""


_DAMAGE = (errno.EIO, errno.EUCLEAN, errno.EBADMSG)


def is_damage(error: OSError) -> bool:
    """Whether the disk, or the file system's own checks, find one object broken. It says nothing about the others."""
    return error.errno in _DAMAGE


def is_of_one_folder(error: BaseException | None) -> bool:
    """Whether one file or folder cannot be read, by damage or because its mode locks us out, or an error that came of
    that; of the store as a whole it says nothing."""
    cause = error if isinstance(error, OSError) else getattr(error, "__cause__", None)
    return isinstance(cause, OSError) and (is_damage(cause) or cause.errno == errno.EACCES)


class Readable(Protocol):
    """Objects that can be read. Any thread may call any method. Every call ends within a deadline of the backend's."""

    @property
    def place(self) -> str:
        """The folder or URL, for messages."""
        ...

    def get(self, key: str) -> bytes:
        """The whole object. Raises ObjectMissing, OSError."""
        ...

    def read_into(self, key: str, offset: int, target: memoryview) -> None:
        """Fills `target` with the object's bytes from `offset` on. Raises ObjectMissing, OSError."""
        ...

    def size(self, key: str) -> int | None:
        """In bytes; None: there is no such object. Raises OSError."""
        ...


class Store(Readable, Protocol):
    """One run's objects."""

    @property
    def lag_seconds(self) -> float:
        """How long it may take until one node sees what another wrote."""
        ...

    def put(self, key: str, pieces: Iterable[Buffer]) -> None:
        """The object holds exactly `pieces`, durably; until then there is none, or the one before. Raises OSError."""
        ...

    def put_new(self, key: str, data: bytes) -> bool:
        """False, and nothing done, when there already is such an object: of two writers one wins. Raises OSError."""
        ...

    def settle(self, prefix: str) -> None:
        """The names of all objects put below `prefix` so far survive a power cut. Raises OSError."""
        ...

    def children(self, prefix: str = "") -> list[str]:
        """Names directly below `prefix`, sorted: of objects, and the first parts of longer keys. Raises OSError."""
        ...

    def remove(self, key: str) -> None:
        """There is no such object any more; harmless if there was none. Raises OSError."""
        ...

    def remove_all(self, prefix: str) -> None:
        """Nothing is left below `prefix`. Raises OSError."""
        ...
