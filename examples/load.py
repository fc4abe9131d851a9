"""A constant load on a service: requests come when they are due, whatever the answers do, and every answer is counted.

So a service that stalls is not asked less, and what it did not answer in time is not forgotten. A machine that has no
time to ask, though, asks less: that is not the service's fault. Each request has a connection of its own: behind a
Service a connection stays with the pod that it was given to.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

MOST_AT_ONCE = 500
ANSWER_SECONDS = 10.0
"""What takes longer is counted as failed."""
LATE_SECONDS = 0.5
"""Requests that could not be made for so long are not made up for."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request, and the class that a right answer names."""

    body: bytes
    label: int


@dataclass(slots=True)
class Answers:
    """What one revision answered."""

    count: int = 0
    right: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    """On the clock of the event loop."""
    all_before: int = 0
    all_until: int = 0
    """Answers of all revisions before its first, and up to its last."""

    @property
    def share(self) -> float:
        """Of all answers from its first to its last."""
        return self.count / (self.all_until - self.all_before) if self.count else 0.0


@dataclass(slots=True)
class Seen:
    """What the clients saw so far."""

    asked: int = 0
    by_revision: dict[str, Answers] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)
    """By what happened instead of an answer."""
    seconds: list[float] = field(default_factory=list)
    """How long each answer took."""

    @property
    def failed(self) -> int:
        return self.failures.total()

    def __str__(self) -> str:
        most = "".join(f", most of them: {what}" for what, _ in self.failures.most_common(1))
        return f"{self.asked:,} requests, {self.failed} failed{most}"

    def percentile(self, share: float) -> float:
        """Seconds within which `share` of the answers came; of no answers infinity."""
        return sorted(self.seconds)[int(share * (len(self.seconds) - 1))] if self.seconds else float("inf")

    def note(self, revision: str, *, is_right: bool, began: float, now: float) -> None:
        answers = self.by_revision.setdefault(revision, Answers(first_at=now, all_before=len(self.seconds)))
        self.seconds.append(now - began)
        answers.count += 1
        answers.right += is_right
        answers.last_at, answers.all_until = now, len(self.seconds)


@asynccontextmanager
async def load(url: str, questions: Sequence[Question], per_second: float) -> AsyncIterator[Seen]:
    """Asks `url` inside the block; what was asked by its end is waited for, unless the block ends with an error."""
    seen = Seen()
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=MOST_AT_ONCE, force_close=True),
        headers={"content-type": "application/json"},
    ) as session:
        under_way: set[asyncio.Task[None]] = set()
        asking = asyncio.create_task(_ask_when_due(session, url, questions, per_second, seen, under_way))
        try:
            yield seen
            asking.cancel()
            await asyncio.gather(*under_way)
        finally:
            for task in (asking, *under_way):
                task.cancel()
            await asyncio.gather(asking, *under_way, return_exceptions=True)


async def _ask_when_due(
    session: aiohttp.ClientSession,
    url: str,
    questions: Sequence[Question],
    per_second: float,
    seen: Seen,
    under_way: set[asyncio.Task[None]],
) -> None:
    """As many clients that know nothing of each other do: the time to the next request is random (Poisson)."""
    chance, clock = random.Random(1), asyncio.get_running_loop().time  # nosec B311  # nothing is kept secret by it
    due = clock()
    while True:
        due = max(due + chance.expovariate(per_second), clock() - LATE_SECONDS)
        await asyncio.sleep(max(0.0, due - clock()))
        task = asyncio.create_task(_ask(session, url, chance.choice(questions), seen))
        under_way.add(task)
        task.add_done_callback(under_way.discard)


async def _ask(session: aiohttp.ClientSession, url: str, question: Question, seen: Seen) -> None:
    clock = asyncio.get_running_loop().time
    began = clock()
    seen.asked += 1
    try:
        async with asyncio.timeout_at(began + ANSWER_SECONDS), session.post(url, data=question.body) as response:
            body = await response.read()
        if response.status != 200:
            seen.failures[f"status {response.status}: {body[:80].decode(errors='replace')}"] += 1
            return
        revision, label = response.headers["x-model-version"], label_of(orjson.loads(body))
    except TimeoutError:
        seen.failures[f"no answer within {ANSWER_SECONDS:g} s"] += 1
    except (aiohttp.ClientError, OSError, orjson.JSONDecodeError, LookupError) as error:
        seen.failures[f"{type(error).__name__}: {error}"] += 1
    else:
        seen.note(revision, is_right=label == question.label, began=began, now=clock())


def label_of(answer: dict[str, Any]) -> int:
    """What an answer of the Open Inference Protocol says that the sample is."""
    return int(answer["outputs"][0]["data"][0])
