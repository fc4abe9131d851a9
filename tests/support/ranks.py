"""Runs a function once per rank, each in a process of its own, and brings back what it returned.

Processes are forked from a server that has imported both frameworks, so that a world of two starts in well under a
second; nothing of one test is left in the next.
"""

import functools
import multiprocessing
import os
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

_PRELOADED = ["tests.support.preload_trainers"]
_DEADLINE_SECONDS = 240.0
"""For all of it, on a machine that has other things to do."""


@functools.cache
def _compiled() -> tempfile.TemporaryDirectory[str]:
    """What JAX has compiled, for the other tests of this process: most are short runs of the same few models. Made when
    it is first asked for: a rank imports this module too, and does not live to remove a folder of its own."""
    return tempfile.TemporaryDirectory(prefix=f"capstan-compiled-{os.getpid()}-")


def free_coordinator() -> str:
    """`127.0.0.1:port` of a port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def run_ranks(function: Callable[..., Any], world: int, *args: Any) -> list[Any]:
    """`function(rank, world, coordinator, *args)` for every rank; the results in rank order.

    Raises AssertionError with the traceback of the first rank that failed, or if one takes too long.
    """
    # One thread each, as a pod with one core has: two processes with more would fight for the cores.
    os.environ.update(
        OMP_NUM_THREADS="1",
        DS_ACCELERATOR="cpu",
        JAX_PLATFORMS="cpu",
        JAX_COMPILATION_CACHE_DIR=_compiled().name,
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    coordinator = free_coordinator()
    ranks = []
    for rank in range(world):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(theirs, function, rank, world, coordinator, *args), daemon=True)
        process.start()
        theirs.close()
        ranks.append((process, ours))
    deadline = time.monotonic() + _DEADLINE_SECONDS
    try:
        return [_result(rank, pipe, deadline) for rank, (_, pipe) in enumerate(ranks)]
    finally:
        for process, pipe in ranks:
            process.kill()
            process.join()
            pipe.close()


def _run(pipe: Connection, function: Callable[..., Any], *args: Any) -> None:
    try:
        answer = (True, function(*args))
    except BaseException:  # it crosses to the test as text, whatever it is
        answer = (False, traceback.format_exc())
    pipe.send(answer)
    pipe.close()
    # The frameworks' exit handlers would wait for ranks that may have failed.
    os._exit(0)


def _result(rank: int, pipe: Connection, deadline: float) -> Any:
    if not pipe.poll(max(0.0, deadline - time.monotonic())):
        raise AssertionError(f"rank {rank} did not answer within {_DEADLINE_SECONDS:.0f} s")
    try:
        succeeded, answer = pipe.recv()
    except EOFError:
        raise AssertionError(f"rank {rank} died without an answer") from None
    assert succeeded, f"rank {rank}:\n{answer}"
    return answer
