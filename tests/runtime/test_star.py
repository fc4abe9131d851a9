"""Little messages between ranks: complete, in order, and the first to be lost is named to everybody."""

import socket
import struct
import threading
import time
from collections.abc import Callable
from queue import Queue
from typing import Any

import pytest

from capstan_runtime.errors import PeerLost
from capstan_runtime.parallel.star import MOST_BYTES, Star, form_star

PATIENCE_SECONDS = 20.0


def run_star(world: int, work: Callable[[int, Star], Any], patience_seconds: float = PATIENCE_SECONDS) -> list[Any]:
    """What `work(rank, star)` returned or raised, for each rank, every rank in a thread of its own."""
    addresses: Queue[bytes] = Queue()
    results: list[Any] = [None] * world

    def publish(address: bytes) -> None:
        for _ in range(world - 1):
            addresses.put(address)

    def rank_main(rank: int) -> None:
        try:
            star = form_star(
                rank, world, "127.0.0.1", publish, lambda: addresses.get(timeout=10), 10.0, patience_seconds
            )
            try:
                results[rank] = work(rank, star)
            finally:
                star.close()
        except PeerLost as error:
            results[rank] = error

    threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


@pytest.mark.parametrize("world", [1, 2, 5])
def test_every_rank_gets_all_payloads_in_rank_order(world: int) -> None:
    payloads = [[b"", bytes([rank]) * MOST_BYTES, b"rank %d" % rank] for rank in range(world)]
    answers = run_star(world, lambda rank, star: [star.exchange(payload) for payload in payloads[rank]])
    assert answers == [[list(column) for column in zip(*payloads, strict=True)]] * world


def test_a_message_that_is_too_long_is_refused_by_who_would_send_it() -> None:
    def work(rank: int, star: Star) -> object:
        if rank == 1:
            with pytest.raises(
                ValueError, match=r"^rank 1: a message of 65,537 bytes is longer than the 65,536"
            ) as told:
                star.exchange(bytes(MOST_BYTES + 1))
            return str(told.value)
        return star.exchange(b"here")

    answers = run_star(2, work)
    assert answers[1] == (
        "rank 1: a message of 65,537 bytes is longer than the 65,536 that one rank may send; "
        "send less, or through the store"
    )
    assert str(answers[0]).startswith("rank 1 went away")
    with pytest.raises(ValueError, match="longer than"):
        Star(0, 1, {}, PATIENCE_SECONDS).exchange(bytes(MOST_BYTES + 1))


@pytest.mark.parametrize("sender", [0, 1])
def test_what_is_no_message_of_a_rank_is_not_waited_for(sender: int) -> None:
    ours, theirs = socket.socketpair()
    verdict = struct.pack("<i", -1) if sender == 0 else b""
    theirs.sendall(verdict + struct.pack("<I", 3_000_000_000) + b"noise")
    star = Star(1 - sender, 2, {sender: ours}, PATIENCE_SECONDS)
    with theirs, pytest.raises(PeerLost) as told:
        star.exchange(b"here")
    star.close()
    assert str(told.value) == (
        f"rank {sender} went astray: a message of 3,000,000,000 bytes is longer than the 65,536 that one rank may send"
    )


@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_that_goes_away_is_noticed_and_named(victim: int) -> None:
    def work(rank: int, star: Star) -> None:
        star.exchange(b"here")
        if rank != victim:
            star.exchange(b"still here?")

    answers = run_star(4, work)
    named = [str(answer).partition(":")[0] for rank, answer in enumerate(answers) if rank != victim]
    assert all(name.startswith(f"rank {victim} went away") for name in named), named


def test_a_rank_that_is_silent_is_named_when_patience_is_over() -> None:
    is_over = threading.Event()

    def work(rank: int, star: Star) -> None:
        if rank == 2:
            is_over.wait(20)
            return
        try:
            star.exchange(b"here")
        finally:
            if rank == 0:
                is_over.set()

    answers = run_star(3, work, patience_seconds=0.3)
    assert str(answers[0]) == "ranks [2] sent nothing within 0 s"
    assert str(answers[1]) in ("rank 2 went away, says rank 0", "rank 0 sent nothing within 0 s")


def test_strangers_do_not_get_in() -> None:
    addresses: Queue[bytes] = Queue()
    answers: list[list[bytes]] = []

    def center() -> None:
        star = form_star(0, 2, "127.0.0.1", addresses.put, lambda: b"", 10.0, PATIENCE_SECONDS)
        answers.append(star.exchange(b"a"))
        star.close()

    thread = threading.Thread(target=center)
    thread.start()
    published = addresses.get(timeout=10)
    host, port = published[16:].decode().rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as stranger:
        stranger.sendall(b"x" * 20)
        assert stranger.recv(1) == b"", "the connection is closed"
    star = form_star(1, 2, host, lambda _: None, lambda: published, 10.0, PATIENCE_SECONDS)
    answers.append(star.exchange(b"b"))
    thread.join(10)
    star.close()
    assert answers == [[b"a", b"b"]] * 2


def test_a_rank_that_does_not_come_is_named() -> None:
    started = time.monotonic()
    with pytest.raises(PeerLost, match=r"^ranks \[1, 2\] did not come$"):
        form_star(0, 3, "127.0.0.1", lambda _: None, lambda: b"", 0.2, PATIENCE_SECONDS)
    assert time.monotonic() - started < PATIENCE_SECONDS
