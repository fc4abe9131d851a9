"""Lanes and the rate that follows the server."""

from __future__ import annotations

import asyncio

import pytest

from capstan_operator.cluster import limiter as limiter_module
from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.limiter import MAX_IN_FLIGHT, RESERVED_FOR_REPAIR, Lane, Limiter


async def fill(limiter: Limiter, lane: Lane, count: int) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(limiter.acquire(lane)) for _ in range(count)]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


async def cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def admitted(tasks: list[asyncio.Task[None]]) -> int:
    return sum(task.done() for task in tasks)


async def test_a_burst_of_creates_leaves_room_for_repairs() -> None:
    limiter = Limiter(rate=2000)
    creates = await fill(limiter, Lane.CREATE, 300)
    assert admitted(creates) == MAX_IN_FLIGHT - RESERVED_FOR_REPAIR
    repairs = await fill(limiter, Lane.REPAIR, 20)
    assert admitted(repairs) == RESERVED_FOR_REPAIR
    limiter.release(Lane.CREATE, 0.01)
    await asyncio.sleep(0)
    assert (admitted(creates), admitted(repairs)) == (MAX_IN_FLIGHT - RESERVED_FOR_REPAIR, RESERVED_FOR_REPAIR + 1)
    await cancel(creates + repairs)


async def test_without_tokens_a_late_repair_is_served_before_all_that_wait() -> None:
    limiter = Limiter(rate=40)
    first = await fill(limiter, Lane.CREATE, 16)
    assert admitted(first) == 16
    order: list[str] = []

    async def ask(lane: Lane, name: str) -> None:
        await limiter.acquire(lane)
        order.append(name)
        limiter.release(lane, 0.01)

    waiting = [
        asyncio.create_task(ask(lane, lane.name))
        for lane in (Lane.EVENTS, Lane.STATUS, Lane.CREATE, Lane.REPAIR)
        if not await asyncio.sleep(0)
    ]
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert order == ["REPAIR", "CREATE", "STATUS", "EVENTS"]


async def test_the_lease_never_waits() -> None:
    limiter = Limiter(rate=40)
    creates = await fill(limiter, Lane.CREATE, 300)
    limiter.release(Lane.CREATE, 0.01, throttled_for=30)
    await asyncio.wait_for(limiter.acquire(Lane.SYSTEM), 1)
    await cancel(creates)


async def test_a_429_halves_the_rate_once_a_second_and_pauses_everybody() -> None:
    limiter = Limiter(rate=200)
    await asyncio.gather(*await fill(limiter, Lane.CREATE, 3))
    for _ in range(3):
        limiter.release(Lane.CREATE, 0.01, throttled_for=0.2)
    assert limiter.rate == 100
    repairs = await fill(limiter, Lane.REPAIR, 1)
    assert admitted(repairs) == 0
    await asyncio.wait_for(repairs[0], 2)


async def test_slow_answers_lower_the_rate_and_full_use_raises_it_again() -> None:
    limiter = Limiter(rate=100)
    tasks = await fill(limiter, Lane.CREATE, 200)
    limiter.release(Lane.CREATE, 3.0)
    assert limiter.rate == 80
    for _ in range(80):
        limiter.release(Lane.CREATE, 0.01)
        await asyncio.sleep(0.001)
    assert 95 < limiter.rate < 105
    await cancel(tasks)


async def test_the_rate_stays_within_its_bounds() -> None:
    low, high = Limiter(rate=5), Limiter(rate=2000)
    await low.acquire(Lane.CREATE)
    low.release(Lane.CREATE, 0.01, throttled_for=0)
    tasks = await fill(high, Lane.CREATE, 300)
    high.release(Lane.CREATE, 0.01)
    assert (low.rate, high.rate) == (5, 2000)
    await cancel(tasks)


async def test_a_request_that_is_cancelled_gives_its_slot_back() -> None:
    limiter = Limiter(rate=2000)
    tasks = await fill(limiter, Lane.CREATE, MAX_IN_FLIGHT)
    slots = MAX_IN_FLIGHT - RESERVED_FOR_REPAIR
    assert (admitted(tasks), limiter.in_flight) == (slots, slots)
    limiter.release(Lane.CREATE, 0.01)  # admits the next one, which is cancelled in the same turn
    await cancel(tasks[slots:])
    assert limiter.in_flight == slots - 1


async def test_a_turn_that_does_not_come_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limiter_module, "MAX_WAIT_SECONDS", 0.05)
    limiter = Limiter(rate=40)
    tasks = await fill(limiter, Lane.CREATE, 20)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    late = [result for result in results if result is not None]
    assert all(isinstance(result, ApiError) and result.reason == "TooBusy" for result in late)
    assert len(late) >= 1
