"""The keyed queue: once each, one at a time, repairs first, failures later and later."""

from __future__ import annotations

import asyncio

from capstan_operator.cluster.work_queue import ObjectKey, Priority, WorkQueue
from capstan_operator.metrics import Metrics

A, B, C = (ObjectKey("default", name) for name in "abc")


async def take_all(queue: WorkQueue) -> list[tuple[ObjectKey, Priority]]:
    taken = []
    while queue.depth():
        taken.append(await queue.get())
    return taken


async def test_a_key_added_three_times_is_taken_once() -> None:
    queue = WorkQueue(Metrics())
    for _ in range(3):
        queue.add(A)
    assert await take_all(queue) == [(A, Priority.NORMAL)]


async def test_repairs_come_first_then_the_rest_in_order_of_arrival() -> None:
    queue = WorkQueue(Metrics())
    queue.add(A, Priority.BACKGROUND)
    queue.add(B)
    queue.add(C, Priority.REPAIR)
    queue.add(A, Priority.BACKGROUND)
    assert await take_all(queue) == [(C, Priority.REPAIR), (B, Priority.NORMAL), (A, Priority.BACKGROUND)]


async def test_a_waiting_key_is_promoted_and_never_demoted() -> None:
    queue = WorkQueue(Metrics())
    queue.add(A, Priority.BACKGROUND)
    queue.add(A, Priority.REPAIR)
    queue.add(A, Priority.NORMAL)
    assert await take_all(queue) == [(A, Priority.REPAIR)]


async def test_a_key_in_flight_is_not_handed_out_again_before_it_is_done() -> None:
    queue = WorkQueue(Metrics())
    queue.add(A)
    await queue.get()
    queue.add(A, Priority.REPAIR)
    queue.add(A, Priority.NORMAL)
    assert queue.depth() == 0
    queue.done(A)
    assert await take_all(queue) == [(A, Priority.REPAIR)]


async def test_a_worker_for_repairs_leaves_the_rest_alone() -> None:
    queue = WorkQueue(Metrics())
    queue.add(A)
    repairer = asyncio.create_task(queue.get(only_repairs=True))
    await asyncio.sleep(0)
    assert not repairer.done()
    queue.add(B, Priority.REPAIR)
    assert await asyncio.wait_for(repairer, 1) == (B, Priority.REPAIR)
    assert await take_all(queue) == [(A, Priority.NORMAL)]


async def test_a_cancelled_worker_takes_no_wake_up_with_it() -> None:
    queue = WorkQueue(Metrics())
    first, second = (asyncio.create_task(queue.get()) for _ in range(2))
    await asyncio.sleep(0)
    queue.add(A)  # meant for the first, which is cancelled before it runs
    first.cancel()
    assert await asyncio.wait_for(second, 1) == (A, Priority.NORMAL)


async def test_the_earlier_of_two_dates_counts_and_a_wake_up_clears_it() -> None:
    queue = WorkQueue(Metrics())
    queue.add_after(A, 30)
    queue.add_after(A, 0.02)
    queue.add_after(A, 60)
    assert await asyncio.wait_for(queue.get(), 1) == (A, Priority.NORMAL)
    queue.done(A)
    queue.add_after(B, 0.02)
    queue.add(B)
    await queue.get()
    queue.done(B)
    await asyncio.sleep(0.05)
    assert queue.depth() == 0


async def test_failures_are_retried_later_and_later_up_to_a_minute() -> None:
    queue = WorkQueue(Metrics())
    delays = [queue.retry(A) for _ in range(12)]
    limits = [min(60.0, 0.2 * 2**n) for n in range(12)]
    assert all(0.75 * limit <= delay <= limit for delay, limit in zip(delays, limits, strict=True))
    queue.succeeded(A)
    assert queue.retry(A) <= 0.2


async def test_a_failing_key_that_is_woken_all_the_time_waits_before_the_next_try() -> None:
    queue = WorkQueue(Metrics())
    for _ in range(8):
        queue.retry(A)
    queue.add(A, Priority.REPAIR)
    assert queue.depth() == 0
    queue.succeeded(A)
    queue.add(A, Priority.REPAIR)
    assert queue.depth() == 1


async def test_a_pass_that_asked_to_be_repeated_at_once_and_then_failed_is_held_back() -> None:
    queue = WorkQueue(Metrics())
    queue.add_after(A, 0.0)
    for _ in range(6):
        queue.retry(A)
    await asyncio.sleep(0.05)
    assert queue.depth() == 0


async def test_a_key_that_is_gone_is_not_looked_at_again() -> None:
    queue = WorkQueue(Metrics())
    queue.add_after(A, 0.01)
    queue.forget(A)
    await asyncio.sleep(0.05)
    assert queue.depth() == 0


async def test_all_is_quiet_only_when_the_last_key_in_flight_is_done() -> None:
    queue = WorkQueue(Metrics())
    queue.add(A)
    queue.add(B)
    await queue.get()
    await queue.get()
    quiet = asyncio.create_task(queue.wait_until_nothing_in_flight())
    queue.done(A)
    await asyncio.sleep(0)
    assert not quiet.done()
    queue.done(B)
    await asyncio.wait_for(quiet, 1)


async def test_far_dates_of_keys_that_are_woken_all_the_time_do_not_pile_up() -> None:
    queue = WorkQueue(Metrics())
    for _ in range(2000):
        queue.add(A)
        await queue.get()
        queue.done(A)
        queue.add_after(A, 7 * 86400.0)
        queue.add_after(B, 86400.0)
    assert len(queue._heap) <= 2 * 2 + 64
    queue.add_after(A, 0.01)
    assert await asyncio.wait_for(queue.get(), 5) == (A, Priority.NORMAL)
