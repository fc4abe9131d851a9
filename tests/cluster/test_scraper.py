"""Asking serving replicas for their numbers: all are counted once, and none that has nothing to do with the step."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import aiohttp
import pytest
from aiohttp import web

from capstan_local.node.certificate import serving_context
from capstan_operator.api.rollout import Gates
from capstan_operator.cluster.scraper import MAX_ANSWER_BYTES, Scraper, Target
from capstan_operator.cluster.work_queue import ObjectKey
from capstan_operator.decide.serving.gates import judge
from capstan_operator.metrics import Metrics
from capstan_operator.observe_serving import ObservedTraffic, RevisionLatency, ServedTraffic
from capstan_runtime.contract.serving import Compare, Guards
from capstan_runtime.serving.app import make_app
from capstan_runtime.serving.refusal import Outcome, Shed
from tests.serving.asgi import classifier_app
from tests.serving.models import NumpyClassifier, WrongClassifier, serve_config
from tests.support.control_planes import free_port
from tests.support.fake_replicas import FakeReplica, FakeReplicas, serve_fake_replicas
from tests.support.http_server import Server
from tests.support.operators import eventually

KEY, UID = ObjectKey("default", "digits", "InferenceService"), "service-uid"
OTHER_KEY, OTHER_UID = ObjectKey("default", "letters", "InferenceService"), "other-uid"
STEP, NEXT_STEP = "2026-11-28T10:00:00.000Z", "2026-11-28T10:05:00.000Z"


@dataclass
class World:
    """A scraper, and replicas on loopback addresses."""

    replicas: FakeReplicas
    targets: dict[str, Target] = field(default_factory=dict)
    """By pod uid."""
    woken: list[ObjectKey] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)
    begun: int = 0
    """Rounds."""

    def __post_init__(self) -> None:
        self.scraper = Scraper(
            self._look, self.woken.append, self.metrics, port=self.replicas.port, interval_seconds=0.01
        )

    def _look(self) -> list[Target]:
        self.begun += 1
        return list(self.targets.values())

    async def add(self, number: int, revision: str = "stable", tls: ssl.SSLContext | None = None) -> FakeReplica:
        """A pod of the service."""
        ip = f"127.0.0.{number + 10}"
        one = await self.replicas.add(ip, revision, tls)
        self.targets[f"pod-{number}"] = Target(KEY, UID, revision, f"pod-{number}", ip, tls is not None, None)
        return one

    def change(self, number: int, **changes: object) -> None:
        self.targets[f"pod-{number}"] = replace(self.targets[f"pod-{number}"], **changes)  # type: ignore[arg-type]

    def enter(self, step: str | None) -> None:
        for uid, target in self.targets.items():
            self.targets[uid] = replace(target, since=step)

    async def pass_round(self) -> None:
        """Returns when a round is over that began after this was called."""
        before = self.begun
        await eventually(lambda: self.begun >= before + 2)

    def scrapes(self, result: str) -> float:
        name = "capstan_operator_replica_scrapes_total"
        return self.metrics.registry.get_sample_value(name, {"result": result}) or 0.0

    def counted(self) -> dict[str, ServedTraffic]:
        """Of the step, without the buckets of latency."""
        traffic = self.scraper.traffic(UID)
        if traffic is None:
            return {}
        return {name: replace(one, latencies=()) for name, one in traffic.by_revision.items()}


@asynccontextmanager
async def scraping() -> AsyncIterator[World]:
    async with serve_fake_replicas(free_port()) as replicas:
        world = World(replicas)
        task = asyncio.create_task(world.scraper.run())
        try:
            yield world
            assert not task.done(), task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_requests_failures_and_latencies_of_a_step_are_counted_by_revision() -> None:
    async with scraping() as world:
        stable, other, canary = await world.add(0), await world.add(1), await world.add(2, "canary")
        world.enter(STEP)
        await world.pass_round()
        stable.serve(7, ms=3.0)
        other.serve(2, ms=30.0)
        canary.serve(5, ms=90_000.0)
        canary.serve(2, Outcome.FAILED)
        canary.serve(1, Outcome.TIMEOUT)
        await world.pass_round()
        traffic = world.scraper.traffic(UID)
        assert traffic is not None
        assert (traffic.since, traffic.bounds[0], traffic.bounds[-1]) == (STEP, 0.001, 80.0)
        expected = [7 * (bound >= 0.003) + 2 * (bound >= 0.03) for bound in traffic.bounds]
        assert traffic.by_revision == {
            "stable": ServedTraffic(9, 0, tuple(expected), 9),
            "canary": ServedTraffic(8, 3, (0,) * len(traffic.bounds), 5),
        }


@pytest.mark.parametrize(
    ("outcome", "shed", "requests", "errors"),
    [
        (Outcome.OK, None, 1, 0),
        (Outcome.FAILED, None, 1, 1),
        (Outcome.TIMEOUT, None, 1, 1),
        (Outcome.UNAVAILABLE, None, 1, 1),
        (Outcome.UNAVAILABLE, Shed.BREAKER, 1, 1),
        (Outcome.SHED, Shed.QUEUE, 0, 0),
        (Outcome.SHED, Shed.RATE, 0, 0),
        (Outcome.INVALID, None, 0, 0),
        (Outcome.UNAUTHORIZED, None, 0, 0),
        (Outcome.GONE, None, 0, 0),
    ],
)
async def test_each_outcome_is_an_answer_a_failure_or_neither(
    outcome: Outcome, shed: Shed | None, requests: int, errors: int
) -> None:
    async with scraping() as world:
        one = await world.add(0)
        world.enter(STEP)
        await world.pass_round()
        one.serve(3, outcome, shed)
        await world.pass_round()
        timed = 3 if outcome is Outcome.OK else 0
        assert world.counted() == {"stable": ServedTraffic(3 * requests, 3 * errors, (), timed)}


async def test_what_was_counted_before_the_step_is_not_of_it() -> None:
    async with scraping() as world:
        one = await world.add(0)
        one.serve(5)
        await world.pass_round()
        one.serve(6, Outcome.FAILED)
        assert world.counted() == {}
        world.enter(STEP)
        await world.pass_round()
        assert world.counted() == {"stable": ServedTraffic()}
        one.serve(7)
        await world.pass_round()
        assert world.counted() == {"stable": ServedTraffic(7, 0, (), 7)}


async def test_a_new_step_begins_anew_and_after_the_last_one_nothing_is_counted() -> None:
    async with scraping() as world:
        one = await world.add(0)
        world.enter(STEP)
        await world.pass_round()
        one.serve(5)
        await world.pass_round()
        one.serve(3)
        world.enter(NEXT_STEP)
        await world.pass_round()
        one.serve(2)
        await world.pass_round()
        traffic = world.scraper.traffic(UID)
        assert traffic is not None
        assert (traffic.since, world.counted()) == (NEXT_STEP, {"stable": ServedTraffic(2, 0, (), 2)})
        world.enter(None)
        await world.pass_round()
        assert world.scraper.traffic(UID) is None


async def test_a_container_that_started_again_is_counted_on_without_what_nobody_heard() -> None:
    async with scraping() as world:
        one = await world.add(0)
        one.serve(4)
        world.enter(STEP)
        await world.pass_round()
        one.serve(3)
        await world.pass_round()
        one.serve(100)  # it ends before it is asked again
        one.restart()
        one.serve(9)  # more than the four and three that are known
        await world.pass_round()
        assert world.counted() == {"stable": ServedTraffic(12, 0, (), 12)}


async def test_what_a_pod_counted_stays_when_it_is_gone_and_a_new_one_counts_from_its_first_answer() -> None:
    async with scraping() as world:
        one, _ = await world.add(0, "canary"), await world.add(1)
        world.enter(STEP)
        await world.pass_round()
        one.serve(5, Outcome.FAILED)
        await world.pass_round()
        del world.targets["pod-0"]
        fresh = await world.add(2, "canary")
        fresh.serve(50)  # nobody knows when
        world.enter(STEP)
        await world.pass_round()
        fresh.serve(3)
        await world.pass_round()
        assert world.counted() == {"canary": ServedTraffic(8, 5, (), 3), "stable": ServedTraffic()}


async def test_new_numbers_in_a_step_wake_their_service_and_no_other() -> None:
    async with scraping() as world:
        one, other = await world.add(0), await world.add(1)
        world.change(1, service=OTHER_KEY, service_uid=OTHER_UID)
        await world.pass_round()
        one.serve(5)
        other.serve(5)
        await world.pass_round()
        world.change(0, since=STEP)
        await world.pass_round()
        assert world.woken == []
        one.serve(5)
        other.serve(5)
        await world.pass_round()
        await world.pass_round()
        assert world.woken == [KEY]


async def test_another_term_knows_nothing_of_the_one_before() -> None:
    async with scraping() as world:
        one = await world.add(0)
        world.enter(STEP)
        await world.pass_round()
        one.serve(5)
        await world.pass_round()
        world.scraper.begin_term()
        assert (world.scraper.traffic(UID), world.scraper.load(UID), world.scraper.latency(UID)) == (None, None, {})
        one.serve(3)
        await world.pass_round()
        one.serve(2)
        await world.pass_round()
        assert world.counted() == {"stable": ServedTraffic(2, 0, (), 2)}


async def test_a_hanging_pod_keeps_nobody_from_being_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four of them, of which each round asks one again."""
    monkeypatch.setattr("capstan_operator.cluster.scraper.ASK_SECONDS", 0.3)
    monkeypatch.setattr("capstan_operator.cluster.scraper.MAX_SILENT_A_ROUND", 1)
    async with scraping() as world:
        hanging = [await world.add(number) for number in range(4)]
        lively = await world.add(4)
        for one in hanging:
            one.hangs = True
        await eventually(lambda: world.scrapes("silent") >= 12, seconds=30)
        assert min(one.asked for one in hanging) >= 2
        assert lively.asked >= 8
        hanging[2].hangs = False
        asked = hanging[2].asked
        await eventually(lambda: hanging[2].asked >= asked + 4)
        assert world.woken == []


async def test_pods_that_refuse_connections_are_asked_again_and_again() -> None:
    async with scraping() as world:
        one = await world.add(0)
        world.targets["pod-9"] = Target(KEY, UID, "stable", "pod-9", "127.0.0.99", False, None)
        await eventually(lambda: world.scrapes("unreadable") >= 3 and one.asked >= 3)
        assert world.scrapes("silent") == 0


def _said(one: FakeReplica, old: str, new: str) -> web.Response:
    text = one.metrics.render().decode()
    assert old in text
    return web.Response(body=text.replace(old, new).encode())


OK = 'capstan_serving_requests_total{outcome="ok"} '
LE = 'latency_seconds_bucket{le="'
HOSTILE = {
    "nothing": lambda _: web.Response(body=b""),
    "an error": lambda one: web.Response(status=500, body=one.metrics.render()),
    "another address": lambda _: web.Response(status=307, headers={"location": "http://127.0.0.11/metrics"}),
    "no text": lambda _: web.Response(body=os.urandom(4096)),
    "too much": lambda one: web.Response(body=one.metrics.render() + b"#" * MAX_ANSWER_BYTES),
    "one endless line": lambda _: web.Response(body=b"capstan_serving_model_info{" + b',version="' * 10_000),
    "NaN": lambda one: _said(one, OK + "5.0", OK + "NaN"),
    "infinity": lambda one: _said(one, OK + "5.0", OK + "+Inf"),
    "a negative count": lambda one: _said(one, OK + "5.0", OK + "-5.0"),
    "half a request": lambda one: _said(one, OK + "5.0", OK + "5.5"),
    "more than can be counted": lambda one: _said(one, OK + "5.0", OK + "1e300"),
    "no number": lambda one: _said(one, OK + "5.0", OK + "five"),
    "no count": lambda one: _said(one, "latency_seconds_count 5.0", ""),
    "no beginning": lambda one: _said(one, "latency_seconds_created", "latency_seconds_deleted"),
    "buckets that fall": lambda one: _said(one, LE + '80.0"} 5', LE + '80.0"} 6'),
    "buckets that do not end": lambda one: _said(one, LE + '+Inf"} 5.0', ""),
    "bounds out of order": lambda one: _said(one, LE + '40.0"', LE + '90.0"'),
    "buckets of nothing": lambda one: _said(one, LE + '40.0"', LE + 'NaN"'),
    "another revision": lambda one: _said(one, 'version="stable"', 'version="other"'),
    "no revision": lambda one: _said(one, "capstan_serving_model_info{", "capstan_serving_model_name{"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_an_answer_that_cannot_be_true_counts_for_nothing(name: str) -> None:
    async with scraping() as world:
        one = await world.add(0)
        world.enter(STEP)
        await world.pass_round()
        one.serve(5)
        one.answer = HOSTILE[name](one)
        unreadable = world.scrapes("unreadable")
        await eventually(lambda: world.scrapes("unreadable") >= unreadable + 2)
        assert (world.counted(), world.woken) == ({"stable": ServedTraffic()}, [])
        one.answer = None
        await world.pass_round()
        assert world.counted() == {"stable": ServedTraffic(5, 0, (), 5)}


async def test_a_replica_with_a_certificate_that_nobody_knows_is_asked() -> None:
    async with scraping() as world:
        await world.add(0, tls=serving_context("digits", "192.0.2.1", None))
        await eventually(lambda: world.scrapes("counted") >= 2)


async def test_load_and_latency_are_those_that_the_pods_tell() -> None:
    async with scraping() as world:
        one, starting = await world.add(0), await world.add(1)
        world.change(0, load_seconds=60.0)
        world.change(1, load_seconds=60.0, is_ready=False)
        await world.pass_round()
        one.ongoing, starting.ongoing = 4, 1
        one.serve(3, Outcome.SHED, Shed.QUEUE)
        one.serve(2, Outcome.SHED, Shed.RATE)
        one.serve(98, ms=3.0)
        one.serve(2, ms=7.0)
        await world.pass_round()
        await world.pass_round()
        load = world.scraper.load(UID)
        assert load is not None
        assert sum(sample.turned_away for sample in load.samples) == 3
        assert replace(load.samples[-1], at=0.0, turned_away=0) == type(load.samples[-1])(0.0, 1, 1, 4, 0)
        assert world.scraper.latency(UID) == {"stable": RevisionLatency(p50=0.00315, p99=0.008, requests=100)}


def _has_answered(scraper: Scraper) -> bool:
    traffic = scraper.traffic(UID)
    return traffic is not None and bool(traffic.by_revision)


async def test_the_numbers_of_a_real_replica_are_those_of_its_clients() -> None:
    server = Server(classifier_app(Guards(batching=None)))
    host, port = server.url.removeprefix("http://").split(":")
    woken: list[ObjectKey] = []
    target = Target(KEY, UID, "digits-00001", "pod", host, False, STEP, load_seconds=60.0)
    scraper = Scraper(lambda: [target], woken.append, Metrics(), port=int(port), interval_seconds=0.15)
    task = asyncio.create_task(scraper.run())
    try:
        await eventually(lambda: _has_answered(scraper))
        tensor = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1.0, 2.0, 3.0, 4.0]}
        async with aiohttp.ClientSession(server.url) as clients:
            for _ in range(12):
                async with clients.post("/v2/models/digits/infer", json={"inputs": [tensor]}) as response:
                    assert response.status == 200
            async with clients.post("/v2/models/digits/infer", json={"inputs": []}) as response:
                assert response.status == 400

        def counted() -> ServedTraffic | None:
            traffic: ObservedTraffic | None = scraper.traffic(UID)
            return replace(traffic.by_revision["digits-00001"], latencies=()) if traffic else None

        await eventually(lambda: counted() == ServedTraffic(12, 0, (), 12))
        assert set(woken) == {KEY}
        load = scraper.load(UID)
        assert load is not None
        assert (load.samples[-1].ready, load.samples[-1].answered, load.samples[-1].ongoing) == (1, 1, 0)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        server.stop()


async def test_a_real_canary_that_is_quick_and_wrong_is_found_out_by_what_it_tells() -> None:
    proven = Server(make_app(serve_config(), NumpyClassifier()))
    told = serve_config().model_copy(update={"compare": Compare(url=proven.url, most_per_second=1e9)})
    model = told.model.model_copy(update={"version": "digits-2"})
    canary = Server(make_app(told.model_copy(update={"model": model}), WrongClassifier()))
    host, port = canary.url.removeprefix("http://").split(":")
    target = Target(KEY, UID, "digits-2", "pod", host, False, STEP)
    scraper = Scraper(lambda: [target], lambda key: None, Metrics(), port=int(port), interval_seconds=0.15)
    task = asyncio.create_task(scraper.run())

    def verdicts() -> dict[str, str]:
        traffic = scraper.traffic(UID)
        assert traffic is not None
        gates = Gates(min_agreement=0.9)
        judged = judge(gates, traffic.by_revision["digits-2"], traffic.by_revision["digits-2"], traffic.bounds)
        return {gate.name: gate.verdict for gate in judged}

    try:
        await eventually(lambda: _has_answered(scraper))
        async with aiohttp.ClientSession(canary.url) as clients:
            for _ in range(10):
                async with clients.post("/v1/models/digits:predict", json={"instances": [[1, 2, 3, 4]]}) as response:
                    assert response.status == 200
        await eventually(lambda: verdicts()["Agreement"] == "Fail")
        assert verdicts() == {"ErrorRate": "Inconclusive", "LatencyP99": "Inconclusive", "Agreement": "Fail"}
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        canary.stop()
        proven.stop()
