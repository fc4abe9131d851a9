"""Asking supervisors: regularly, at once on a hint, and never more than is good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import orjson
import pytest

from capstan_operator.cluster.errors import SupervisorError
from capstan_operator.cluster.pods import Pod
from capstan_operator.cluster.poller import Poller
from capstan_operator.cluster.store import Store
from capstan_operator.cluster.supervisor_client import SupervisorClient, job_token
from capstan_operator.cluster.work_queue import ObjectKey, Priority
from capstan_operator.metrics import Metrics
from capstan_operator.observe import OperatorSettings
from capstan_runtime.contract.exit_codes import FailureClass
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import Exit, Phase, State
from tests.support.control_planes import free_port
from tests.support.fake_supervisors import FakeSupervisor, FakeSupervisors, serve_fake_supervisors
from tests.support.operators import eventually
from tests.support.small_decide import job_document

KEY = ObjectKey("default", "job")
MEMBERSHIP = Membership(fence=4, rank=0, world=1, coordinator="127.0.0.1:8471")


@dataclass
class World:
    """A store with one job, a poller, and supervisors on loopback addresses."""

    supervisors: FakeSupervisors
    client: SupervisorClient
    interval: float
    woken: list[Priority] = field(default_factory=list)
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.store = Store(
            lambda *_: None, token_of=lambda uid: f"t-{uid}", settings=OperatorSettings(), metrics=self.metrics
        )
        document = job_document("job")
        document["metadata"] |= {"uid": "job-uid", "resourceVersion": "1"}
        self.store.jobs.put(document)
        self.poller = Poller(
            self.store,
            self.client,
            lambda key, priority: self.woken.append(priority),
            lambda uid: f"t-{uid}",
            self.metrics,
            interval_seconds=self.interval,
        )

    async def add(self, worker: int) -> FakeSupervisor:
        """A running pod with a supervisor."""
        ip, name = f"127.0.0.{worker + 10}", f"job-{worker}-0"
        one = await self.supervisors.add(ip, name, "job-uid")
        one.token = "t-job-uid"
        self.store.put(running_pod(name, f"uid-{worker}", ip, worker))
        return one

    def polls(self, result: str) -> float:
        name = "capstan_operator_supervisor_polls_total"
        return self.metrics.registry.get_sample_value(name, {"result": result}) or 0.0

    def state(self, worker: int) -> State | None:
        observed = self.store.observe(KEY)
        assert observed is not None
        seen = observed.supervisors.get(f"uid-{worker}")
        return seen.state if seen is not None else None


def running_pod(name: str, uid: str, ip: str, worker: int) -> Pod:
    owner = {"apiVersion": "capstan.dev/v1alpha1", "kind": "TrainingJob", "name": "job", "uid": "job-uid"}
    document: dict[str, Any] = {
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": uid,
            "resourceVersion": "5",
            "labels": {"capstan.dev/worker": str(worker), "capstan.dev/incarnation": "0"},
            "ownerReferences": [owner | {"controller": True}],
        },
        "status": {"phase": "Running", "podIP": ip, "hostIP": "127.0.0.1"},
    }
    return msgspec.json.decode(orjson.dumps(document), type=Pod)


@asynccontextmanager
async def polling(interval: float = 0.05, *, starts: bool = True) -> AsyncIterator[World]:
    port = free_port()
    async with serve_fake_supervisors(port) as supervisors, SupervisorClient(port) as client:
        world = World(supervisors, client, interval)
        task = asyncio.create_task(world.poller.run()) if starts else None
        try:
            yield world
            assert task is None or not task.done(), task
        finally:
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


async def test_a_running_pod_is_asked_with_its_jobs_token_and_its_answer_is_kept() -> None:
    async with polling() as world:
        one = await world.add(0)
        await eventually(lambda: world.state(0) == one.state)
        assert one.tokens == {"Bearer t-job-uid"}
        assert world.woken == [Priority.NORMAL]


async def test_the_same_answer_again_wakes_nobody_and_a_changed_one_does() -> None:
    async with polling() as world:
        one = await world.add(0)
        await eventually(lambda: one.asked >= 4)
        wakes = len(world.woken)
        assert wakes <= 2  # the first answer, and at most one for progress
        one.become(phase=Phase.TRAINING, fence=1)
        await eventually(lambda: len(world.woken) > wakes)
        assert world.state(0) == one.state


async def test_steps_alone_wake_about_once_a_second() -> None:
    async with polling(0.02) as world:
        one = await world.add(0)
        for step in range(40):
            one.become(step=step)
            await asyncio.sleep(0.01)
        assert len(world.woken) <= 3
        await eventually(lambda: (state := world.state(0)) is not None and state.step == 39)


async def test_an_exit_is_a_repair() -> None:
    async with polling() as world:
        one = await world.add(0)
        await eventually(lambda: world.woken)
        one.become(exit=Exit(fence=1, code=1, failure=FailureClass.APPLICATION, message="m", at=1.0))
        await eventually(lambda: Priority.REPAIR in world.woken)


async def test_a_hint_asks_the_pod_that_sent_it_at_once_and_no_other() -> None:
    async with polling(30.0) as world:
        ones = [await world.add(number) for number in range(3)]
        await eventually(lambda: all(one.asked == 1 for one in ones))
        for _ in range(50):
            world.poller.take_hint(KEY, "job-1-0")
        for key, name in ((KEY, "job-7-0"), (ObjectKey("default", "other"), "job-1-0")):
            world.poller.take_hint(key, name)
        await eventually(lambda: ones[1].asked == 2)
        await asyncio.sleep(0.1)
        assert [one.asked for one in ones] == [1, 2, 1]


async def test_after_an_exit_the_peers_are_asked_at_once_and_no_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "capstan_operator.cluster.poller.PEERS_SECONDS", 60.0
    )  # on a busy machine both hints may be apart
    async with polling(30.0) as world:
        ones = [await world.add(number) for number in range(3)]
        await eventually(lambda: all(one.asked == 1 for one in ones))
        for number in (0, 1):
            ended = Exit(fence=1, code=75, failure=FailureClass.RETRYABLE, message="m", at=1.0)
            ones[number].become(exit=ended)
            world.poller.take_hint(KEY, f"job-{number}-0")
        await eventually(lambda: ones[2].asked == 2)
        await asyncio.sleep(0.1)
        assert ones[2].asked == 2


async def test_one_that_fell_silent_is_asked_again_soon_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capstan_operator.cluster.poller.MAX_POLLS_PER_SECOND", 0.1)  # a regular turn in 20 s
    async with polling() as world:
        quiet, lively = await world.add(0), await world.add(1)
        quiet.answer = b"not json"
        await eventually(lambda: quiet.asked >= 4, seconds=5)
        assert lively.asked == 1
        quiet.answer = None
        await eventually(lambda: world.state(0) == quiet.state, seconds=5)
        observed = world.store.observe(KEY)
        assert observed is not None
        assert observed.silent_since == {}


async def test_many_silent_ones_do_not_use_up_all_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("capstan_operator.cluster.poller.MAX_AT_ONCE", 2)
    monkeypatch.setattr("capstan_operator.cluster.poller.MAX_SILENT_AT_ONCE", 1)
    async with polling() as world:
        silent = [await world.add(number) for number in range(3)]
        for one in silent:
            one.answer = b"not json"
        await eventually(lambda: all(world.store.is_silent(f"uid-{number}") for number in range(3)))
        for one in silent:
            one.hangs = True
        await asyncio.sleep(0.3)
        lively = await world.add(3)
        await eventually(lambda: lively.asked >= 5, seconds=2.5)


async def test_a_supervisor_that_does_not_know_the_token_is_silent_for_that_reason() -> None:
    async with polling() as world:
        one = await world.add(0)
        one.token = "another"
        await eventually(lambda: world.store.is_silent("uid-0"))
        observed = world.store.observe(KEY)
        assert observed is not None
        assert observed.refusing == {"uid-0"}


async def test_silence_wakes_once_and_is_remembered() -> None:
    async with polling() as world:
        one = await world.add(0)
        await eventually(lambda: one.asked)
        one.answer = b"not json"
        await eventually(lambda: world.polls("error") >= 3)
        observed = world.store.observe(KEY)
        assert observed is not None
        assert observed.silent_since.keys() == {"uid-0"}
        assert len(world.woken) <= 3


async def test_one_that_hangs_does_not_keep_the_others_waiting() -> None:
    async with polling() as world:
        hanging, lively = await world.add(0), await world.add(1)
        hanging.hangs = True
        await eventually(lambda: lively.asked >= 5)
        assert hanging.asked == 1


async def test_a_job_is_not_judged_before_its_running_pods_were_asked() -> None:
    async with polling(starts=False) as world:
        await world.add(0)
        assert world.poller.has_looked("job-uid")
        world.poller.begin_term()
        assert not world.poller.has_looked("job-uid")
        task = asyncio.create_task(world.poller.run())
        await eventually(lambda: world.poller.has_looked("job-uid"))
        assert world.state(0) is not None
        await world.add(1)  # starts later: nobody waits for it
        assert world.poller.has_looked("job-uid")
        task.cancel()


async def test_a_pod_that_does_not_answer_is_waited_for_only_so_long() -> None:
    async with polling(starts=False) as world:
        await world.add(0)
        world.poller.begin_term()
        world.poller._term_began -= 5.1
        assert world.poller.has_looked("job-uid")


async def test_a_term_that_was_interrupted_leaves_nothing_behind() -> None:
    async with polling(starts=False) as world:
        one = await world.add(0)
        for _ in range(3):
            task = asyncio.create_task(world.poller.run())
            for _ in range(3):
                await asyncio.sleep(0)  # just long enough for a request to be planned and not begun
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        task = asyncio.create_task(world.poller.run())
        await eventually(lambda: one.asked >= 2)
        task.cancel()


async def test_pods_that_are_gone_are_asked_no_more() -> None:
    async with polling() as world:
        one = await world.add(0)
        await eventually(lambda: one.asked >= 2)
        world.store.replace([], "100")
        await asyncio.sleep(0.3)
        asked = one.asked
        await asyncio.sleep(0.3)
        assert one.asked == asked


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"x" * 70_000, "longer than 65536 bytes"),
        (b"[]", "Input should be an object"),
        (b'{"pod": "job-0-0"}', "uid: Field required"),
        (b'{"pod": "other", "uid": "job-uid"}', "other of job job-uid answered"),
        (b'{"pod": "job-0-0", "uid": "old-job", "fromTheFuture": 1}', "job-0-0 of job old-job answered"),
    ],
)
async def test_an_answer_that_is_too_long_or_not_the_pods_own_is_an_error(answer: bytes, problem: str) -> None:
    async with polling(starts=False) as world:
        one = await world.add(0)
        one.answer = answer
        with pytest.raises(SupervisorError, match=problem):
            await world.client.fetch_state("127.0.0.10", "t-job-uid", pod="job-0-0", job_uid="job-uid")


async def test_a_wrong_token_and_a_closed_port_are_errors() -> None:
    async with polling(starts=False) as world:
        await world.add(0)
        with pytest.raises(SupervisorError, match="401"):
            await world.client.fetch_state("127.0.0.10", "wrong", pod="job-0-0", job_uid="job-uid")
        with pytest.raises(SupervisorError, match=r"GET /state of 127\.0\.0\.99"):
            await world.client.fetch_state("127.0.0.99", "t", pod="job-0-0", job_uid="job-uid")


async def test_a_membership_arrives_as_it_was_sent() -> None:
    async with polling(starts=False) as world:
        one = await world.add(0)
        await world.client.push_membership("127.0.0.10", "t-job-uid", MEMBERSHIP, pod="job-0-0", pod_uid="uid-0")
        assert one.memberships == [MEMBERSHIP]


def test_tokens_differ_by_job_and_by_key_and_stay_the_same() -> None:
    tokens = [job_token(key, uid) for key in (b"k" * 32, b"l" * 32) for uid in ("a", "b")]
    assert len(set(tokens)) == 4
    assert job_token(b"k" * 32, "a") == tokens[0]
    assert len(tokens[0]) == 64
