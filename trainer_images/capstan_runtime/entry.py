"""How a trainer's process begins: at once or, as a warm spare, once everything is imported and a membership has come.

This module imports nothing heavy, so that a spare can do that in its own way.
"""

import contextlib
import faulthandler
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from capstan_runtime.contract import env

if TYPE_CHECKING:
    from capstan_runtime.loop import MakeEngine
    from capstan_runtime.preparing import Prepared

READY = b"ready\n"
"""What a spare writes on its descriptor once it could begin at once."""
_OOM_SCORE = Path("/proc/self/oom_score_adj")
_FIRST_TO_GO = "1000"


def begin(load: Callable[[], "MakeEngine"]) -> NoReturn:
    """Runs one attempt and ends the process with its exit code.

    `load` imports all that the trainer needs and returns what makes its engine. It must neither touch a device nor
    start a framework's backend: a spare calls it long before it knows whether it will ever train.
    """
    dump_stacks_when_asked()
    descriptor = os.environ.pop(env.SPARE, None)
    if descriptor is None:
        make_engine, prepared = load(), None
    else:
        make_engine, prepared = _stand_by(load, int(descriptor))
    from capstan_runtime.loop import main

    code = main(make_engine, prepared=prepared)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: frameworks' exit handlers wait for peers, who may be gone. What must be done is done.
    os._exit(code)


def dump_stacks_when_asked() -> None:
    """The supervisor asks a process that hangs, by SIGUSR1."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)


def _stand_by(load: Callable[[], "MakeEngine"], descriptor: int) -> "tuple[MakeEngine, Prepared]":
    """Everything a trainer needs but its membership, which is in the environment when this returns.

    Ends the process when there will be no membership, or when it would be of no use: then a trainer that is started
    the ordinary way will find the same trouble and report it.
    """
    with socket.socket(fileno=descriptor) as line, _first_to_be_killed_for_memory():
        # Starts BLAS' threads, which live as long as the process, at this thread's priority.
        import numpy  # noqa: F401

        loaded: list[tuple[MakeEngine, Prepared]] = []
        # Only a thread can be nice and leave no trace: a process without privileges can never raise its priority again.
        niceness = os.environ.pop(env.SPARE_NICENESS, None)
        importing = threading.Thread(target=lambda: loaded.append(_load(load, niceness)), name="imports")
        importing.start()
        importing.join()
        if not loaded:
            os._exit(1)  # the thread has said why
        _await_membership(line)
    return loaded[0]


def stand_by() -> None:
    """Returns at once in a trainer and, in a process that was started as a spare, once its membership is in the
    environment. For a program: what it imports, it has imported, at full priority."""
    os.environ.pop(env.SPARE_NICENESS, None)
    descriptor = os.environ.pop(env.SPARE, None)
    if descriptor is not None:
        with socket.socket(fileno=int(descriptor)) as line, _first_to_be_killed_for_memory():
            _await_membership(line)


def _await_membership(line: socket.socket) -> None:
    """Says that this process could begin, and waits. Ends it when there will be no membership."""
    with contextlib.suppress(BrokenPipeError):  # its membership is here, and nobody waits to hear that it is ready
        line.sendall(READY)
    with line.makefile("rb") as lines:
        membership = lines.readline()
    if not membership.endswith(b"\n"):
        os._exit(0)  # the supervisor is gone, or needs no trainer any more
    os.environ[env.MEMBERSHIP] = membership.decode()


def _load(load: Callable[[], "MakeEngine"], niceness: str | None) -> "tuple[MakeEngine, Prepared]":
    if niceness is not None:
        os.setpriority(os.PRIO_PROCESS, 0, int(niceness))  # on Linux: of this thread alone
    make_engine = load()
    import capstan_runtime.loop  # noqa: F401 - nothing is left to be imported when the membership comes
    from capstan_runtime.beat import data_comes_nearer
    from capstan_runtime.preparing import prepare

    return make_engine, prepare(os.environ, data_comes_nearer(os.environ))


@contextlib.contextmanager
def _first_to_be_killed_for_memory() -> Iterator[None]:
    """While this lasts, the kernel kills this process before any other when memory runs out."""
    try:
        before = _OOM_SCORE.read_text()
        _OOM_SCORE.write_text(_FIRST_TO_GO)
    except OSError:  # a hardened container: then it is as likely to be killed as the trainer
        yield
        return
    try:
        yield
    finally:
        # Without privileges it may go back to what the container's runtime had set, and it does.
        _OOM_SCORE.write_text(before)
