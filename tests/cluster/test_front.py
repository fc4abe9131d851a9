"""The operator's HTTP port, its key, and its events."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from io import StringIO

import aiohttp
import pytest

from capstan_operator.cluster.events import BURST_PER_OBJECT, MAX_QUEUED, EventWriter, ObjectRef
from capstan_operator.cluster.front import Front
from capstan_operator.cluster.kinds import EVENTS, SECRETS
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.operator_key import OperatorKeyError, fetch_or_create_key
from capstan_operator.cluster.work_queue import ObjectKey
from capstan_operator.decide.types import EventNote
from capstan_operator.logging_setup import JsonFormatter
from capstan_operator.metrics import Metrics
from capstan_runtime.contract.state import Hint
from capstan_runtime.listening import Allowance
from tests.support.control_planes import free_port
from tests.support.fake_api import FakeApi
from tests.support.operators import eventually

KEY = ObjectKey("default", "job")
HINT = Hint(namespace="default", job="job", pod="job-worker-0").document()


class Served:
    """A front on a free port, and what it was told."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self.hints: list[Hint] = []
        self.is_leading = True
        self.url = f"http://127.0.0.1:{free_port()}"
        self.session = aiohttp.ClientSession()
        self.metrics = Metrics()
        self.front = Front(self.metrics, lambda: self.problem, self.take_hint)

    def take_hint(self, hint: Hint) -> bool:
        self.hints.append(hint)
        return self.is_leading

    async def get(self, path: str) -> tuple[int, str]:
        async with self.session.get(self.url + path) as response:
            return response.status, await response.text()

    async def hint(self, body: bytes) -> int:
        async with self.session.post(f"{self.url}/hint", data=body) as response:
            return response.status


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    one = Served()
    async with one.session, one.front.serve("127.0.0.1", int(one.url.rsplit(":", 1)[1])):
        yield one


async def test_readiness_says_what_is_missing_and_health_does_not_care(served: Served) -> None:
    assert await served.get("/readyz") == (200, "ok\n")
    served.problem = "pods have not been listed"
    assert await served.get("/readyz") == (503, "pods have not been listed\n")
    assert await served.get("/healthz") == (200, "ok\n")


async def test_metrics_are_readable_and_carry_our_prefix(served: Served) -> None:
    status, text = await served.get("/metrics")
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert status == 200
    assert {"capstan_operator_reconcile_seconds", "capstan_goodput_ratio", "capstan_chaos_active"} <= names
    assert all(name.startswith("capstan_") for name in names)


async def test_a_hint_is_accepted_at_once(served: Served) -> None:
    assert await served.hint(json.dumps(HINT).encode()) == 202
    assert [hint.document() for hint in served.hints] == [HINT]


async def test_a_replica_that_stands_by_says_that_it_cannot_use_a_hint(served: Served) -> None:
    served.is_leading = False
    assert await served.hint(json.dumps(HINT).encode()) == 503


async def test_a_hint_that_never_ends_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capstan_operator.cluster.front.HINT_SECONDS", 0.1)

    async def endless() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    async with served.session.post(f"{served.url}/hint", data=endless()) as response:
        assert response.status == 408


@pytest.mark.parametrize(("body", "status"), [(b"{", 400), (b'{"job": 1}', 400), (b"[" * 5000, 413)])
async def test_a_hint_that_makes_no_sense_is_refused(served: Served, body: bytes, status: int) -> None:
    assert await served.hint(body) == status
    assert served.hints == []


async def test_a_flood_of_hints_is_held_back(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.front._allowance = Allowance(0.0, 3.0)  # however slow this machine is, nothing is refilled meanwhile
    answers = [await served.hint(json.dumps(HINT).encode()) for _ in range(5)]
    assert answers == [202, 202, 202, 429, 429]


async def test_hints_of_one_client_that_are_too_many_are_counted_too(served: Served) -> None:
    answers = [await served.hint(json.dumps(HINT).encode()) for _ in range(100)]
    assert set(answers) == {202, 429}
    assert {(await served.get("/nothing"))[0] for _ in range(100)} >= {429}
    results = {
        result: served.metrics.registry.get_sample_value("capstan_operator_hints_total", {"result": result})
        for result in ("accepted", "limited")
    }
    assert results == {"accepted": answers.count(202), "limited": answers.count(429)}


async def test_two_replicas_that_start_together_get_the_same_key(api: FakeApi, client: KubeClient) -> None:
    keys = await asyncio.gather(*(fetch_or_create_key(client, "capstan") for _ in range(4)))
    assert len(set(keys)) == 1
    assert len(keys[0]) == 32
    assert await fetch_or_create_key(client, "capstan") == keys[0]
    assert len(api.of(SECRETS)) == 1


@pytest.mark.parametrize("data", [{}, {"key": "%%%"}, {"key": base64.b64encode(b"short").decode()}])
async def test_a_key_that_is_none_is_an_error_that_says_what_to_do(
    api: FakeApi, client: KubeClient, data: dict[str, str]
) -> None:
    api.put(SECRETS, {"metadata": {"name": "capstan-operator-key", "namespace": "capstan"}, "data": data})
    with pytest.raises(OperatorKeyError, match="delete the Secret and restart the operator"):
        await fetch_or_create_key(client, "capstan")


@pytest.fixture
async def events(client: KubeClient, metrics: Metrics) -> AsyncIterator[EventWriter]:
    writer = EventWriter(client, "me", metrics)
    task = asyncio.create_task(writer.run())
    yield writer
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def note(reason: str, message: str = "m") -> EventNote:
    return EventNote("Warning", reason, message)


async def test_the_same_words_again_are_counted_and_not_repeated(api: FakeApi, events: EventWriter) -> None:
    job = ObjectRef(KEY, "uid", "7")
    for one in (note("A"), note("A"), note("B"), note("A"), note("A", "other")):
        events.note(job, one)
    await eventually(lambda: len(api.writes("events")) == 5)
    said = {(event["reason"], event["message"], event["count"]) for event in api.of(EVENTS)}
    assert said == {("A", "m", 3), ("B", "m", 1), ("A", "other", 1)}
    (event,) = (event for event in api.of(EVENTS) if event["reason"] == "B")
    assert event["involvedObject"] == {
        "apiVersion": "capstan.dev/v1alpha1",
        "kind": "TrainingJob",
        "namespace": "default",
        "name": "job",
        "uid": "uid",
        "resourceVersion": "7",
    }


async def test_an_event_that_expired_is_made_anew(api: FakeApi, events: EventWriter) -> None:
    job = ObjectRef(KEY, "uid", "7")
    events.note(job, note("A"))
    await eventually(lambda: api.of(EVENTS))
    api.remove(EVENTS, "default", api.of(EVENTS)[0]["metadata"]["name"])
    events.note(job, note("A"))
    await eventually(lambda: [event["count"] for event in api.of(EVENTS)] == [1])


async def test_a_talkative_job_is_cut_short_and_the_others_are_heard(
    api: FakeApi, events: EventWriter, metrics: Metrics
) -> None:
    for number in range(BURST_PER_OBJECT + 10):
        events.note(ObjectRef(KEY, "loud", "7"), note(f"R{number}"))
    events.note(ObjectRef(KEY, "quiet", "7"), note("Heard"))
    await eventually(lambda: len(api.of(EVENTS)) == BURST_PER_OBJECT + 1)
    dropped = metrics.registry.get_sample_value("capstan_operator_events_total", {"result": "dropped"})
    assert dropped == 10


async def test_a_failed_event_is_dropped_and_the_next_one_written(api: FakeApi, events: EventWriter) -> None:
    api.fail("create", "events", status=500)
    for reason in ("Lost", "Kept"):
        events.note(ObjectRef(KEY, "uid", "7"), note(reason))
    await eventually(lambda: [event["reason"] for event in api.of(EVENTS)] == ["Kept"])


async def test_the_queue_of_events_is_bounded(client: KubeClient, metrics: Metrics) -> None:
    writer = EventWriter(client, "me", metrics)  # nobody writes
    for number in range(MAX_QUEUED + 5):
        writer.note(ObjectRef(KEY, f"uid-{number}", "7"), note("A"))
    assert metrics.registry.get_sample_value("capstan_operator_events_total", {"result": "dropped"}) == 5


def test_a_log_line_is_one_json_object_with_the_job_the_fence_and_the_traceback() -> None:
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    try:
        raise ValueError("boom")
    except ValueError:
        extra = {"job": "default/job", "fence": 3, "reason": "Bug", "_a_librarys_own": 1}
        logger.exception("a %s", "message", extra=extra)
    (line,) = stream.getvalue().splitlines()
    document = json.loads(line)
    assert document.pop("time").endswith("+00:00")
    assert document.pop("traceback").endswith("ValueError: boom")
    assert document == {
        "level": "error",
        "logger": "test",
        "message": "a message",
        "job": "default/job",
        "fence": 3,
        "reason": "Bug",
    }
