"""Laws of the guards by themselves, for whatever happens to them."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from capstan_runtime.contract.serving import AdaptiveLimit, Anomaly, Audit, Cache, CircuitBreaker, Guards, RateLimit
from capstan_runtime.serving.adaptive import AdaptiveLimiter, Place
from capstan_runtime.serving.audit import AuditLog, first_break
from capstan_runtime.serving.batcher import Batcher
from capstan_runtime.serving.breaker import Breaker, Circuit
from capstan_runtime.serving.cache import AnswerCache
from capstan_runtime.serving.classify import BatchResult, Scorer, batch_sizes
from capstan_runtime.serving.exchange import Trip
from capstan_runtime.serving.predictor import Sampling
from capstan_runtime.serving.queue import BoundedQueue
from capstan_runtime.serving.rate_limit import RateLimiter
from capstan_runtime.serving.refusal import Refusal
from capstan_runtime.serving.sampling import Sampler, log_probabilities
from capstan_runtime.serving.scores import scores_of
from capstan_runtime.serving.text import Text
from capstan_runtime.serving.worker import Worker
from tests.serving.models import NumpyClassifier
from tests.serving.test_guards import Clock


def is_refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except Refusal:
        return True
    return False


@given(
    requests=st.integers(1, 50),
    seconds=st.integers(1, 60),
    burst=st.none() | st.integers(1, 80),
    waits=st.lists(st.floats(0, 20), max_size=150),
)
def test_no_client_gets_more_than_burst_and_rate_allow_nor_less(
    requests: int, seconds: int, burst: int | None, waits: list[float]
) -> None:
    clock = Clock()
    limiter = RateLimiter(RateLimit(requests=requests, seconds=seconds, burst=burst), clock)
    most, rate = burst or requests, requests / seconds
    tokens, last = float(most), clock.now
    for wait in waits:
        clock.now += wait
        tokens = min(most, tokens + (clock.now - last) * rate)
        last = clock.now
        refused = is_refused(lambda: limiter.take("client"))
        if abs(tokens - 1.0) > 1e-3:  # at the very edge rounding decides
            assert refused == (tokens < 1.0)
        tokens -= not refused


def test_a_refused_client_that_waits_as_told_is_let_in() -> None:
    clock = Clock()
    limiter = RateLimiter(RateLimit(requests=3, seconds=10), clock)
    for _ in range(3):
        limiter.take("client")
    for _ in range(20):
        with pytest.raises(Refusal) as refused:
            limiter.take("client")
        assert refused.value.retry_after_seconds == 4  # a token every 3.3 s, in whole seconds
        clock.now += 10 / 3
        limiter.take("client")


def test_clients_are_forgotten_when_there_are_too_many() -> None:
    limiter = RateLimiter(RateLimit(requests=1, seconds=1000), Clock())
    for number in range(70_000):
        limiter.take(str(number))
    assert len(limiter._full_at) == 65_536
    assert is_refused(lambda: limiter.take("69999"))


class Replica:
    """Computes `capacity` requests at a time, in `seconds`; the others wait for their turn."""

    def __init__(self, config: AdaptiveLimit, capacity: int, seconds: float, most: int = 300) -> None:
        self.clock = Clock()
        self.limiter = AdaptiveLimiter(config, most, self.clock)
        self.capacity = capacity
        self.seconds = seconds

    def serve(self, demand: int, rounds: int) -> list[int]:
        """How many of `demand` simultaneous requests got in, each round."""
        taken = []
        for _ in range(rounds):
            places: list[Place] = []
            while len(places) < demand and not is_refused(lambda: places.append(self.limiter.enter())):  # noqa: B023
                pass
            began = self.clock.now
            for number, place in enumerate(places):
                self.clock.now = began + self.seconds * (1 + number // self.capacity)
                self.limiter.learn(place)
                self.limiter.leave()
            taken.append(len(places))
        return taken


@settings(max_examples=60)
@given(
    least=st.integers(1, 20),
    most=st.integers(1, 200),
    ratio=st.floats(1.1, 10),
    latencies=st.lists(st.floats(0, 100), max_size=300),
)
def test_the_adaptive_limit_stays_within_its_bounds(
    least: int, most: int, ratio: float, latencies: list[float]
) -> None:
    clock = Clock()
    limiter = AdaptiveLimiter(AdaptiveLimit(min_ongoing=least, latency_ratio=ratio), most, clock)
    for latency in latencies:
        place = limiter.enter()
        clock.now += latency
        limiter.learn(place)
        limiter.leave()
        assert least <= limiter.limit <= max(least, most)
        assert limiter.ongoing == 0


@pytest.mark.parametrize("capacity", [5, 20, 60])
def test_overload_is_brought_down_to_about_what_the_latency_allows(capacity: int) -> None:
    replica = Replica(AdaptiveLimit(min_ongoing=2, latency_ratio=2.0), capacity, seconds=0.02)
    replica.serve(demand=1, rounds=30)  # an idle replica is known
    taken = replica.serve(demand=300, rounds=400)[-100:]
    mean = sum(taken) / len(taken)
    assert capacity <= mean <= 6 * capacity, mean


@dataclass(frozen=True)
class Line:
    """A replica that computes one batch after another while requests come at random, whatever becomes of others."""

    batch: int
    call_seconds: float
    """Of a call for one request."""
    more_seconds: float
    """For each other request in it."""

    @property
    def full_seconds(self) -> float:
        return self.call_seconds + (self.batch - 1) * self.more_seconds

    @property
    def most_per_second(self) -> float:
        return self.batch / self.full_seconds

    def serve(self, limiter: AdaptiveLimiter, clock: Clock, per_second: float, seconds: float) -> list[float]:
        """Latencies of those that were answered, sorted."""
        chance = random.Random(1)
        end = clock.now + seconds
        due = clock.now + chance.expovariate(per_second)
        waiting: deque[Place] = deque()
        computing: list[Place] = []
        done = math.inf
        latencies: list[float] = []
        while (now := min(due, done)) < math.inf:
            clock.now = now
            if now == done:
                for place in computing:
                    limiter.learn(place)
                    limiter.leave()
                    latencies.append(now - place.since)
                done = math.inf
            else:
                is_refused(lambda: waiting.append(limiter.enter()))
                due = now + chance.expovariate(per_second)
                due = due if due < end else math.inf
            if done == math.inf and waiting:
                computing = [waiting.popleft() for _ in range(min(self.batch, len(waiting)))]
                done = now + self.call_seconds + (len(computing) - 1) * self.more_seconds
        return sorted(latencies)


@pytest.mark.parametrize(
    "line", [Line(1, 0.0025, 0.0), Line(1, 0.05, 0.0), Line(32, 0.0021, 0.0001), Line(8, 0.015, 0.001)]
)
@pytest.mark.parametrize("overload", [2.0, 5.0])
def test_overload_of_a_quiet_replica_is_met_within_moments_and_then_nobody_waits_long(
    line: Line, overload: float
) -> None:
    clock = Clock()
    limiter = AdaptiveLimiter(AdaptiveLimit(latency_ratio=2.0), 320, clock)
    line.serve(limiter, clock, 0.05 * line.most_per_second, 400 * line.full_seconds)
    seconds = 4000 * line.full_seconds
    first, later = (
        line.serve(limiter, clock, overload * line.most_per_second, seconds) for _ in ("from its beginning", "then")
    )
    goodput = len(later) / seconds / line.most_per_second
    waited_long = sum(latency > 5 * line.full_seconds for latency in first) / len(first)
    p99 = later[int(0.99 * len(later))] / line.full_seconds
    assert (goodput >= 0.75, waited_long <= 0.04, p99 <= 5.0) == (True, True, True), (goodput, waited_long, p99)


def test_a_replica_that_keeps_up_is_never_limited() -> None:
    replica = Replica(AdaptiveLimit(), capacity=1000, seconds=0.02)
    assert set(replica.serve(demand=250, rounds=200)) == {250}


def test_a_machine_that_became_slower_for_good_is_not_starved_and_a_faster_one_is_used() -> None:
    replica = Replica(AdaptiveLimit(min_ongoing=2, latency_ratio=2.0), capacity=50, seconds=0.01)
    replica.serve(demand=40, rounds=100)
    replica.seconds = 0.2
    assert replica.serve(demand=40, rounds=600)[-1] == 40
    replica.seconds = 0.01
    assert replica.serve(demand=40, rounds=200)[-1] == 40


@given(
    failures=st.integers(1, 5),
    events=st.lists(st.sampled_from(["fail", "succeed", "wait", "leave"]), max_size=60),
)
def test_the_circuit_opens_after_failures_in_a_row_and_one_trial_at_a_time_passes(
    failures: int, events: list[str]
) -> None:
    clock = Clock()
    breaker = Breaker(CircuitBreaker(failures=failures, open_seconds=10), clock)
    in_a_row, is_open, waited = 0, False, False
    for event in events:
        if event == "wait":
            clock.now += 10
            waited = True
            continue
        if is_open and not waited:
            assert is_refused(breaker.admit)
            assert breaker.state is Circuit.OPEN
            continue
        is_trial = breaker.admit()
        assert is_trial == is_open
        if is_trial:
            assert is_refused(breaker.admit), "a second trial beside the first"
        if event == "fail":
            in_a_row += 1
            breaker.note(has_failed=True)
            is_open, waited = is_open or in_a_row >= failures, False
        elif event == "succeed":
            in_a_row, is_open = 0, False
            breaker.note(has_failed=False)
        if is_trial:
            breaker.end_trial()


async def test_places_are_given_in_the_order_of_arrival_and_none_is_lost_to_those_who_leave() -> None:
    queue = BoundedQueue(places=1, may_wait=10)
    order: list[int] = []

    async def visit(number: int, stay: asyncio.Event) -> None:
        async with queue:
            order.append(number)
            await stay.wait()

    stays = [asyncio.Event() for _ in range(5)]
    visits = [asyncio.create_task(visit(number, stay)) for number, stay in enumerate(stays)]
    await asyncio.sleep(0)
    visits[2].cancel()
    stays[0].set()
    await asyncio.sleep(0)  # the place is 1's by now, and it leaves in the same turn
    visits[1].cancel()
    for stay in stays:
        stay.set()
    await asyncio.gather(*visits, return_exceptions=True)
    assert order[:1] == [0]
    assert order[-2:] == [3, 4]
    assert (queue.depth, queue.ongoing) == (0, 0)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=40), st.integers(1, 4))
def test_the_queue_never_lets_in_more_than_it_has_places(visits: list[tuple[int, int, bool]], places: int) -> None:
    async def run() -> None:
        queue = BoundedQueue(places, may_wait=5)
        inside = 0

        async def visit(delay: int, stay: int) -> None:
            nonlocal inside
            for _ in range(delay):
                await asyncio.sleep(0)
            async with queue:
                inside += 1
                assert inside <= places
                try:
                    for _ in range(stay):
                        await asyncio.sleep(0)
                finally:
                    inside -= 1

        tasks = [asyncio.create_task(visit(delay, stay)) for delay, stay, _ in visits]
        for task, (delay, stay, leaves) in zip(tasks, visits, strict=True):
            if leaves:
                for _ in range(delay + stay):
                    await asyncio.sleep(0)
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, None | Refusal | asyncio.CancelledError) for result in results)
        assert (queue.depth, queue.ongoing) == (0, 0)

    asyncio.run(run())


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=15),
    max_batch_size=st.integers(1, 8),
    wait=st.sampled_from([0.0, 0.001]),
    leavers=st.sets(st.integers(0, 14)),
)
def test_every_request_gets_its_own_rows_and_no_batch_is_larger_than_it_may_be(
    sizes: list[int], max_batch_size: int, wait: float, leavers: set[int]
) -> None:
    async def run() -> None:
        model = NumpyClassifier()
        worker = Worker()
        scorer = Scorer(model, max_batch_size)
        scorer.warm()
        results: list[tuple[BatchResult, int]] = []
        batcher = Batcher(
            worker, scorer, max_batch_size, wait, lambda result, samples: results.append((result, samples))
        )
        random = np.random.default_rng(3)
        inputs = [random.random((size, 4), np.float32) for size in sizes]
        futures = [batcher.submit(rows, Trip()) for rows in inputs]
        for number in leavers & set(range(1, len(sizes))):
            futures[number].cancel()
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*futures, return_exceptions=True)
        for rows, answer in zip(inputs, answers, strict=True):
            if not isinstance(answer, asyncio.CancelledError):
                assert not isinstance(answer, BaseException)
                expected = scores_of(model.expected(rows))
                np.testing.assert_allclose(answer.probabilities, expected.probabilities, rtol=1e-5)
        for result, samples in results:
            assert samples <= max_batch_size or len(result.answers) == 1
        assert max(model.batches) <= max_batch_size
        worker.stop()

    asyncio.run(run())


def test_batches_are_warmed_so_that_padding_at_most_doubles_the_work() -> None:
    assert [batch_sizes(most) for most in (1, 2, 3, 8, 12)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]]


async def test_the_cache_forgets_the_least_recently_used_and_never_outgrows_its_bytes() -> None:
    computed: list[str] = []

    async def compute(inputs: Any, trip: Trip) -> Any:
        computed.append(trip.input_digest)
        return scores_of(np.zeros((1, 50_000), np.float32))

    cache = AnswerCache(Cache(max_mebibytes=1), compute, Clock(), lambda is_hit: None)

    async def ask(key: str) -> None:
        await cache.scores(np.zeros((1, 4), np.float32), Trip(input_digest=key))

    for key in "abcde":  # 200 kB each: five fit
        await ask(key)
    await ask("a")
    await ask("f")
    assert cache.nbytes <= 1 << 20
    await ask("a")
    await ask("b")
    assert computed == list("abcdefb")


async def test_the_cache_forgets_what_is_too_old() -> None:
    clock = Clock()
    calls = 0

    async def compute(inputs: Any, trip: Trip) -> Any:
        nonlocal calls
        calls += 1
        return scores_of(np.zeros((1, 3), np.float32))

    cache = AnswerCache(Cache(ttl_seconds=5), compute, clock, lambda is_hit: None)
    for wait in (0, 4, 2, 1):
        clock.now += wait
        await cache.scores(np.zeros((1, 4), np.float32), Trip(input_digest="x"))
    assert calls == 2


@settings(max_examples=30)
@given(st.data())
def test_whatever_is_done_to_an_audit_chain_shows(data: st.DataObject) -> None:
    written: list[bytes] = []
    log = AuditLog(Audit(), written.append, {"service": "s"}, lambda lines: None)
    for number in range(5):
        log.record({"number": number})
    log.stop(5)
    lines = b"".join(written).splitlines()
    assert first_break(lines) is None
    at = data.draw(st.integers(0, len(lines) - 2))
    what = data.draw(st.sampled_from(["remove", "swap", "change", "repeat"]))
    forged = list(lines)
    if what == "remove":
        del forged[at]
    elif what == "swap":
        forged[at], forged[at + 1] = forged[at + 1], forged[at]
    elif what == "repeat":
        forged.insert(at, forged[at])
    else:
        forged[at] = orjson.dumps({**orjson.loads(forged[at]), "number": 77})
    assert first_break(forged) is not None


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=20),
    temperature=st.floats(0.05, 2),
    top_p=st.floats(0.01, 1),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_drawn_token_is_one_of_the_nucleus(logits: list[float], temperature: float, top_p: float, seed: int) -> None:
    row = np.array(logits, np.float32)
    token = Sampler(Sampling(temperature, top_p, seed)).draw(row)
    probabilities = np.exp(log_probabilities(row.astype(np.float64) / temperature))
    likelier = probabilities[probabilities > probabilities[token] * (1 + 1e-9)].sum()
    assert likelier < top_p + 1e-9
    assert Sampler(Sampling(temperature, top_p, seed)).draw(row) == token
    assert Sampler(Sampling(0.0)).draw(row) == int(row.argmax())


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    row = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    sampler = Sampler(Sampling(1.0, 1.0, 5))
    counts = np.bincount([sampler.draw(row) for _ in range(20_000)], minlength=3) / 20_000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.2], atol=4 * math.sqrt(0.25 / 20_000))


@given(
    text=st.binary(max_size=40).map(lambda raw: bytes(byte % 3 + 97 for byte in raw)),
    stops=st.lists(st.text("abc", min_size=1, max_size=4).map(str.encode), max_size=3),
)
def test_streamed_text_is_all_before_the_first_stop_sequence(text: bytes, stops: list[bytes]) -> None:
    streamed, has_stopped = "", False
    grown = Text(stops)
    end = len(text)
    for end in range(1, len(text) + 1):
        piece, has_stopped = grown.add(text[end - 1])
        streamed += piece
        if has_stopped:
            break
    if not has_stopped:
        assert streamed + grown.end() == text.decode()
        assert not any(stop in text for stop in stops)
        return
    ending = [stop for stop in stops if text[:end].endswith(stop)]
    assert any(streamed == text[: end - len(stop)].decode() for stop in ending)
    assert not any(stop in text[: end - 1] for stop in stops)


@given(st.text(max_size=30))
def test_any_text_survives_being_streamed_byte_by_byte(text: str) -> None:
    grown = Text([])
    assert "".join(grown.add(byte)[0] for byte in text.encode()) + grown.end() == text


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Anomaly(), "set energyAbove, confidenceBelow or both"),
        (lambda: Guards(adaptive_limit=AdaptiveLimit(min_ongoing=65)), "adaptiveLimit.minOngoing 65 is above"),
    ],
)
def test_guards_that_contradict_themselves_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build()
