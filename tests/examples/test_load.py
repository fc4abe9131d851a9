"""The load of the serving demo counts every request it has made, whatever became of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from load import Answers, Question, Seen, load

QUESTIONS = [Question(b"%d" % digit, digit) for digit in range(10)]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[str]:
    """The address of a real server."""
    runner = web.ServerRunner(web.Server(handler))
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


def answer(revision: str, label: int) -> web.Response:
    return web.json_response({"outputs": [{"name": "label", "data": [label]}]}, headers={"x-model-version": revision})


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


async def test_every_request_is_answered_by_somebody_or_failed_for_some_reason() -> None:
    asked = 0

    async def take_turns(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        digit = int(await request.read())
        match asked % 4:
            case 0:
                return web.Response(status=503, text="busy")
            case 1:
                return answer("good", digit)
            case 2:
                return answer("bad", digit + 1)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with served(take_turns) as url, load(url, QUESTIONS, per_second=400) as seen:
        await until(lambda: asked >= 40)
    good, bad = seen.by_revision["good"], seen.by_revision["bad"]
    assert seen.asked == asked == good.count + bad.count + seen.failed
    assert (good.right, bad.right) == (good.count, 0)
    assert len(seen.seconds) == good.count + bad.count
    assert seen.failures["status 503: busy"] == asked // 4
    assert any(kind.startswith("ServerDisconnectedError") for kind in seen.failures)
    assert str(seen).startswith(f"{asked} requests, {seen.failed} failed, most of them: ")


async def test_a_service_that_stalls_is_asked_no_less_and_its_delay_is_seen() -> None:
    gate = asyncio.Event()

    async def stall(request: web.Request) -> web.StreamResponse:
        await gate.wait()
        return answer("slow", int(await request.read()))

    async with served(stall) as url, load(url, QUESTIONS, per_second=200) as seen:
        await until(lambda: seen.asked >= 50)
        assert seen.seconds == []
        gate.set()
    assert seen.failed == 0
    assert seen.by_revision["slow"].count == seen.asked >= 50
    assert seen.percentile(1.0) > seen.percentile(0.0) > 0


async def test_nobody_there_is_a_failure_of_each_request(unused_tcp_port: int) -> None:
    async with load(f"http://127.0.0.1:{unused_tcp_port}/", QUESTIONS, per_second=200) as seen:
        await until(lambda: seen.failed >= 5)
    assert seen.failed == seen.asked
    assert seen.by_revision == {}
    assert seen.percentile(0.5) == float("inf")


async def test_an_error_inside_does_not_wait_for_answers() -> None:
    never = asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse:
        await never.wait()
        return web.Response()

    async def fail_under(url: str) -> None:
        async with load(url, QUESTIONS, per_second=200) as seen:
            await until(lambda: seen.asked >= 5)
            raise LookupError

    async with served(hang) as url:
        with pytest.raises(LookupError):
            await fail_under(url)
        never.set()


def test_a_share_counts_from_the_first_answer_to_the_last() -> None:
    seen = Seen()
    for revision in "aaabaabaaaa":
        seen.note(revision, is_right=True, began=0.0, now=1.0)
    assert seen.by_revision["b"] == Answers(2, 2, 1.0, 1.0, all_before=3, all_until=7)
    assert seen.by_revision["b"].share == 0.5
    assert Answers().share == 0.0
