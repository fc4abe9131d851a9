"""The folder of a local cluster, and the process that serves it."""

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

POLL_SECONDS = 0.05
STOP_SECONDS = 40.0
KILL_SECONDS = 10.0


class LocalClusterError(Exception):
    """One line for the user: what did not work and where to look."""


class WrongUsage(LocalClusterError):
    """What was asked for contradicts itself, or what runs already."""


@dataclass(frozen=True, slots=True)
class Serving:
    """The process that serves a home, and what it was started with."""

    pid: int
    gpus: int | None
    """None: those that nvidia-smi found."""
    nodes: int


@dataclass(frozen=True, slots=True)
class Home:
    """The folder that holds everything of one local cluster."""

    folder: Path

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    @property
    def log(self) -> Path:
        return self.folder / "cluster.log"

    @property
    def lock(self) -> Path:
        """Held by the serving process for as long as it lives; its content is that process's `Serving`."""
        return self.folder / "cluster.lock"

    def node(self, index: int) -> Path:
        """Where one of the cluster's nodes keeps its things."""
        return self.folder / ("node" if index == 0 else f"node-{index + 1}")

    def port(self) -> int:
        """The API server's port; 0 before the first start."""
        with suppress(FileNotFoundError):
            return int((self.folder / "port").read_text())
        return 0

    @contextmanager
    def served(self, gpus: int | None, nodes: int) -> Iterator[None]:
        """Makes this process the one that serves the home. Raises LocalClusterError when another one does."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.lock.open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                other = self.serving()
                by = f"process {other.pid}" if other else "another process"
                raise LocalClusterError(f"{self.folder} is served by {by} already") from None
            lock.truncate(0)
            lock.write(json.dumps(asdict(Serving(os.getpid(), gpus, nodes))))
            lock.flush()
            yield

    def serving(self) -> Serving | None:
        """The process that serves this home; None when none does."""
        try:
            with self.lock.open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            text = self.lock.read_text()
            return Serving(**json.loads(text)) if text else None  # empty for the moment in which it is written
        return None


def stop(serving: Serving) -> bool:
    """Ends the process and everything it started; True when it did so itself, False when it had to be killed.

    Returns when nothing of it is left; raises LocalClusterError when something stays even so.
    """
    everything = {serving.pid, *_descendants(serving.pid)}
    _signal({serving.pid}, signal.SIGTERM)
    if _all_end(everything, STOP_SECONDS):
        return True
    _signal(everything | _descendants(serving.pid), signal.SIGKILL)
    if not _all_end(everything, KILL_SECONDS):
        raise LocalClusterError(f"process {serving.pid} or one that it started does not end, not even by SIGKILL")
    return False


def has_ended(pid: int) -> bool:
    """Whether the process is gone, or dead and only waits to be noticed by its parent."""
    return _stat(pid) is None


def _stat(pid: int) -> tuple[str, int] | None:
    """(state, parent) of a living process."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else (state, int(parent))


def _descendants(pid: int) -> set[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (found := _stat(int(entry.name))):
            children.setdefault(found[1], []).append(int(entry.name))
    found_pids: set[int] = set()
    left = [pid]
    while left:
        new = children.get(left.pop(), [])
        found_pids.update(new)
        left += new
    return found_pids


def _signal(pids: set[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _all_end(pids: set[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not all(has_ended(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
