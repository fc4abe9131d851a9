"""When a process of the world dies, the others end at once, and say that it was not their fault."""

import multiprocessing
import os
import signal
import time
from typing import Any

import psutil
import pytest

from capstan_runtime.errors import PeerLost
from tests.support.engines import FLAX, MLP, context_of, deepspeed, make_engine, train
from tests.support.ranks import free_coordinator, run_ranks

Document = dict[str, Any]
FRAMEWORKS = {"flax": FLAX, "deepspeed": deepspeed(1)}
PEER_LOST, NO_ERROR = 75, 1
NOTICE_SECONDS = 30.0
"""It takes milliseconds where the connection breaks; the margin is for a machine that has other things to do."""


def die_or_notice(
    rank: int,
    coordinator: str,
    framework: Document,
    victim: int,
    died: Any,
    where: str,
    model: Document,
    more: Document,
) -> None:
    context = context_of(framework, model, rank, 2, coordinator, **more)
    engine = make_engine(context)
    train(engine, context, 0, 3)
    if rank == victim:
        died.value = time.monotonic()
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        if where == "step":
            train(engine, context, 3, 1000)
        else:
            engine.exchange(b"anyone?")
    except PeerLost:
        os._exit(PEER_LOST)
    os._exit(NO_ERROR)


@pytest.mark.parametrize("framework", FRAMEWORKS.values(), ids=FRAMEWORKS)
@pytest.mark.parametrize(("victim", "where"), [(1, "step"), (0, "step"), (1, "exchange"), (0, "exchange")])
def test_a_killed_peer_ends_the_survivor_soon(framework: Document, victim: int, where: str) -> None:
    require_notice(framework, victim, where, MLP, {})


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_stage_of_a_pipeline_ends_its_neighbour_soon(victim: int) -> None:
    stages: Document = {"parallelism": {"pipeline": 2}, "workersPerReplica": 2}
    decoder: Document = {"transformer": {"layers": 2, "dim": 16, "heads": 2}}
    require_notice(deepspeed(1), victim, "step", decoder, stages)


def require_notice(framework: Document, victim: int, where: str, model: Document, more: Document) -> None:
    run_ranks(_nothing, 1)  # the server that ranks are forked from is up
    context = multiprocessing.get_context("forkserver")
    died = context.Value("d", 0.0)
    coordinator = free_coordinator()
    arguments = (coordinator, framework, victim, died, where, model, more)
    ranks = [context.Process(target=die_or_notice, args=(rank, *arguments), daemon=True) for rank in range(2)]
    try:
        for process in ranks:
            process.start()
        survivor = ranks[1 - victim]
        ranks[victim].join(120)
        survivor.join(NOTICE_SECONDS)
        notice_seconds = time.monotonic() - died.value
        assert died.value > 0, "the victim did not come to the third step"
        print(f"noticed after {notice_seconds:.3f} s, exit {survivor.exitcode}")
        # JAX's client may abort first when it is the coordinator that went away: see flax_trainer/world.py.
        may_abort = framework is FLAX and victim == 0
        assert survivor.exitcode in ({PEER_LOST, -signal.SIGABRT} if may_abort else {PEER_LOST})
    finally:
        for process in ranks:
            process.kill()
            process.join()


FROZEN_SECONDS = 25.0
"""Longer than JAX's coordinator would wait by a short deadline of its own."""


def freeze_or_wait(rank: int, coordinator: str, framework: Document) -> None:
    engine = make_engine(context := context_of(framework, MLP, rank, 2, coordinator))
    train(engine, context, 0, 3)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    train(engine, context, 3, 10)
    os._exit(0)


@pytest.mark.parametrize("framework", FRAMEWORKS.values(), ids=FRAMEWORKS)
def test_who_waits_for_a_frozen_peer_is_not_the_one_that_ends(framework: Document) -> None:
    """Who is to blame supervisors see: a trainer that ended first would be blamed itself."""
    run_ranks(_nothing, 1)
    context = multiprocessing.get_context("forkserver")
    coordinator = free_coordinator()
    ranks = [
        context.Process(target=freeze_or_wait, args=(rank, coordinator, framework), daemon=True) for rank in (0, 1)
    ]
    try:
        for process in ranks:
            process.start()
        frozen = psutil.Process(ranks[1].pid)
        limit = time.monotonic() + 120
        while frozen.status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < limit
            time.sleep(0.1)
        ranks[0].join(FROZEN_SECONDS)
        assert ranks[0].exitcode is None
        frozen.resume()
        for process in ranks:
            process.join(NOTICE_SECONDS)
        assert [process.exitcode for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
            process.join()


def _nothing(rank: int, world: int, coordinator: str) -> None:
    pass


def wait_alone(rank: int, world: int, coordinator: str, framework: Document) -> float:
    # Rank 1 of 2, whose rank 0 never comes.
    started = time.monotonic()
    context = context_of(framework, MLP, 1, 2, coordinator, patience_seconds=2.0)
    with pytest.raises(PeerLost):
        make_engine(context)
    return time.monotonic() - started


def test_a_torch_process_that_nobody_joins_gives_up_at_its_deadline() -> None:
    (seconds,) = run_ranks(wait_alone, 1, deepspeed(0))
    assert seconds < NOTICE_SECONDS
