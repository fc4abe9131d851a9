"""The ranks of a world as threads of one process, for what needs no framework."""

import threading
from collections.abc import Callable
from typing import Any

Exchange = Callable[[bytes], list[bytes]]
_PATIENCE_SECONDS = 30.0


def run_rank_threads(world: int, main: Callable[[int, Exchange], Any]) -> list[Any]:
    """What `main(rank, exchange)` returned or raised on every rank, in rank order."""
    barrier = threading.Barrier(world, timeout=_PATIENCE_SECONDS)
    slots = [b""] * world
    results: list[Any] = [None] * world

    def run(rank: int) -> None:
        def exchange(payload: bytes) -> list[bytes]:
            slots[rank] = payload
            barrier.wait()
            answers = list(slots)
            barrier.wait()
            return answers

        try:
            results[rank] = main(rank, exchange)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_PATIENCE_SECONDS)
        assert not thread.is_alive(), "a rank does not return"
    return results
