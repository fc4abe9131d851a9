"""All processes that came from this one, however they were started: adopted, reaped, and ended with it."""

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_POLL_SECONDS = 0.01
_prctl = ctypes.CDLL(None, use_errno=True).prctl


def adopt_orphans() -> None:
    """Whose parent ends becomes a child of this process, as it would be of the first one of a container."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    """This process is killed when `parent` ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def reap() -> dict[int, int]:
    """Exit status (0-255, or -N after signal N) of each child that has ended, by process id."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while (result := os.waitpid(-1, os.WNOHANG))[0]:
            ended[result[0]] = os.waitstatus_to_exitcode(result[1])
    return ended


def kill_descendants(patience_seconds: float) -> None:
    """Kills until there are none left, or time is up. Needs `adopt_orphans`: so none can hide behind a dead parent."""
    deadline = time.monotonic() + patience_seconds
    while family := descendants(os.getpid()):
        for process in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        reap()
        if time.monotonic() > deadline:
            return
        time.sleep(_POLL_SECONDS)


def descendants(root: int) -> list[int]:
    """Children of `root`, their children, and so on; zombies too."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in brackets, may hold anything; state and parent follow it.
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found: list[int] = []
    unseen = [root]
    while unseen:
        young = children.get(unseen.pop(), [])
        found += young
        unseen += young
    return found
