"""A constant load on a service while it changes: every request is on record, and none is tried again.

Requests are due at random times (Poisson) whatever the answers do, and latency counts from when one was due. Half of
them come over connections of their own, half over persistent ones, as clients do that know nothing of each other.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

MOST_AT_ONCE = 512
ANSWER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Answered:
    """One request. Times are `time.monotonic` seconds."""

    due: float
    at: float
    revision: str
    """That answered; "" where the answer does not say."""
    failure: str
    """What came instead of 200; "": nothing did."""


@dataclass(slots=True)
class Record:
    """All requests that were answered, or failed, so far."""

    all: list[Answered] = field(default_factory=list)

    def failures(self) -> list[Answered]:
        return [one for one in self.all if one.failure]

    def between(self, began: float, ended: float) -> list[Answered]:
        """Those that were due then."""
        return [one for one in self.all if began <= one.due < ended]


def percentile_ms(answered: list[Answered], share: float) -> float:
    """Of those with an answer; of none of them infinity."""
    seconds = sorted(one.at - one.due for one in answered if not one.failure)
    return 1e3 * seconds[int(share * (len(seconds) - 1))] if seconds else float("inf")


@asynccontextmanager
async def load(url: str, bodies: list[bytes], per_second: float) -> AsyncIterator[Record]:
    """Asks `url` inside the block; what was asked by its end is waited for."""
    record = Record()
    asked: set[asyncio.Task[None]] = set()

    def session(*, force_close: bool) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=MOST_AT_ONCE, force_close=force_close)
        return aiohttp.ClientSession(connector=connector, headers={"content-type": "application/json"})

    async with session(force_close=True) as fresh, session(force_close=False) as kept:

        async def ask_when_due() -> None:
            chance = random.Random(1)
            due = time.monotonic()
            while True:
                due += chance.expovariate(per_second)
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                chosen = chance.choice((fresh, kept))
                task = asyncio.create_task(_ask(chosen, url, chance.choice(bodies), due, record))
                asked.add(task)
                task.add_done_callback(asked.discard)

        asking = asyncio.create_task(ask_when_due())
        try:
            yield record
        finally:
            asking.cancel()
            await asyncio.gather(asking, *asked, return_exceptions=True)


async def _ask(session: aiohttp.ClientSession, url: str, body: bytes, due: float, record: Record) -> None:
    revision = failure = ""
    try:
        async with asyncio.timeout(ANSWER_SECONDS), session.post(url, data=body) as response:
            answer = await response.read()
            revision = response.headers.get("x-model-version", "")
            if response.status != 200:
                failure = f"{response.status} {answer[:100]!r}"
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        failure = f"{type(error).__name__}: {error}"
    record.all.append(Answered(due, time.monotonic(), revision, failure))
