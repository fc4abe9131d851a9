"""The files the node keeps about one pod."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capstan_local.node.logs import log_path

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PodFolder:
    """`home/pods/<uid>`: volumes, logs, and what must be known after the node was killed."""

    home: Path
    uid: str

    @property
    def path(self) -> Path:
        return self.home / "pods" / self.uid

    @property
    def temporary(self) -> Path:
        """TMPDIR of the pod's containers. Short: Unix sockets in it must fit into 108 bytes."""
        return self.home / "tmp" / self.uid[:8]

    def volume(self, name: str) -> Path:
        return self.path / "volumes" / name

    def container(self, name: str) -> Path:
        return self.path / "containers" / name

    def work(self, name: str) -> Path:
        """Home and working directory of a container that names none."""
        return self.container(name) / "work"

    def logs(self, name: str) -> Path:
        return self.container(name) / "logs"

    def log(self, name: str, restart: int) -> Path:
        return log_path(self.logs(name), restart)

    def termination_message(self, name: str) -> Path:
        return self.container(name) / "termination-log"

    def write_record(self, name: str, record: dict[str, Any]) -> None:
        """Keeps a container's state; the newest one survives the node being killed at any moment."""
        path = self.container(name) / "state.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(record))
        fresh.replace(path)

    def read_record(self, name: str) -> dict[str, Any] | None:
        path = self.container(name) / "state.json"
        return json.loads(path.read_text()) if path.exists() else None

    def make(self) -> None:
        for path in (self.path, self.temporary):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def remove(self) -> None:
        for path in (self.path, self.temporary):
            try:
                shutil.rmtree(path)
            except FileNotFoundError:
                continue
            except OSError as error:  # say, files of another user: the pod is gone all the same
                log.warning("could not remove %s: %s", path, error)


def remove_strangers(home: Path, known_uids: set[str]) -> None:
    """Removes what was kept about pods that are gone."""
    for path in (home / "pods").glob("*"):
        if path.name not in known_uids:
            PodFolder(home, path.name).remove()
