"""Where a tracker that writes files has them: in the folder of the run's checkpoints or, where that is in a bucket, in
a copy that is uploaded."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from capstan_runtime.checkpoint.open import folder_of
from capstan_runtime.checkpoint.store import ObjectMissing, Store
from capstan_runtime.contract import env

_UPLOAD_SECONDS = 30.0
"""Between two uploads of a file that grows: what a killed pod loses, and what a bucket's requests cost."""


class Place(Protocol):
    """One tracker's folder."""

    path: Path
    """It is there."""
    lasting: str
    """Where it will be found: a folder or, in a bucket, a URL."""

    def fetch(self, name: str) -> None:
        """The file of that name is what earlier attempts left; there is none if they left none. Raises OSError."""
        ...

    def keep(self, at_once: bool = False) -> None:
        """What is in the folder will outlive this pod: soon or, `at_once`, when this returns. Raises OSError."""
        ...


def open_place(environ: Mapping[str, str], store: Store, below: str) -> Place:
    """The folder `below`, beside the checkpoints of the run. Raises OSError."""
    folder = folder_of(environ[env.STORE])
    return SharedFolder(folder / below) if folder is not None else UploadedFolder(store, below)


class SharedFolder:
    """Of a store that is a folder itself: what is written is there."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.lasting = str(path)

    def fetch(self, name: str) -> None:
        """It is there."""

    def keep(self, at_once: bool = False) -> None:
        """It is kept."""


class UploadedFolder:
    """Of a bucket: objects there are whole, and cannot grow, so files grow here."""

    def __init__(self, store: Store, prefix: str) -> None:
        """Raises OSError."""
        self._store = store
        self._prefix = prefix
        self.lasting = f"{store.place.rstrip('/')}/{prefix}"
        self.path = Path(tempfile.mkdtemp(prefix="capstan-tracking-"))
        self._uploaded: dict[Path, tuple[int, int]] = {}
        self._again_at = 0.0

    def fetch(self, name: str) -> None:
        try:
            (self.path / name).write_bytes(self._store.get(f"{self._prefix}/{name}"))
        except ObjectMissing:
            (self.path / name).unlink(missing_ok=True)

    def keep(self, at_once: bool = False) -> None:
        if not at_once and time.monotonic() < self._again_at:
            return
        self._again_at = time.monotonic() + _UPLOAD_SECONDS
        for file in sorted(self.path.rglob("*")):
            if not file.is_file() or file.is_symlink():
                continue
            found = file.stat()
            version = (found.st_size, found.st_mtime_ns)
            if self._uploaded.get(file) != version:
                self._store.put(f"{self._prefix}/{file.relative_to(self.path).as_posix()}", [file.read_bytes()])
                self._uploaded[file] = version
