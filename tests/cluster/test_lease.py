"""Leader election: one acts, the other waits; a crash costs the lease, a stop costs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from capstan_operator.cluster.kinds import LEASES
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.lease import Elector, LeaseTimes
from capstan_operator.metrics import Metrics
from tests.support.fake_api import FakeApi
from tests.support.operators import eventually

TIMES = LeaseTimes(duration=1.0, renew_deadline=0.6, retry=0.1)


@asynccontextmanager
async def candidate(client: KubeClient, name: str) -> AsyncIterator[tuple[Elector, asyncio.Task[None]]]:
    elector = Elector(client, "capstan", name, Metrics(), TIMES)
    task = asyncio.create_task(elector.run())
    try:
        yield elector, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def holder(api: FakeApi) -> str:
    held: str = api.get(LEASES, "capstan-operator", "capstan")["spec"]["holderIdentity"]
    return held


async def test_of_two_that_start_together_one_leads(api: FakeApi, client: KubeClient) -> None:
    async with candidate(client, "a") as (a, _), candidate(client, "b") as (b, _):
        await eventually(lambda: a.leading.is_set() or b.leading.is_set())
        for _ in range(10):
            await asyncio.sleep(0.05)
            assert a.leading.is_set() != b.leading.is_set()
            assert holder(api) == ("a" if a.leading.is_set() else "b")


async def test_after_a_crash_the_other_takes_over_when_the_lease_has_run_out_and_not_before(
    api: FakeApi, client: KubeClient
) -> None:
    async with candidate(client, "a") as (a, task):
        await eventually(a.leading.is_set)
        async with candidate(client, "b") as (b, _):
            await asyncio.sleep(0.2)
            task.cancel()  # without a word
            renewed = asyncio.get_running_loop().time()
            await eventually(b.leading.is_set, seconds=5)
            assert asyncio.get_running_loop().time() - renewed > TIMES.duration - 2 * TIMES.retry
    lease = api.get(LEASES, "capstan-operator", "capstan")["spec"]
    assert (lease["holderIdentity"], lease["leaseTransitions"]) == ("b", 2)


async def test_a_lease_that_runs_out_is_taken_then_and_not_at_the_next_regular_try(
    api: FakeApi, client: KubeClient
) -> None:
    spec = {"holderIdentity": "gone", "leaseDurationSeconds": 1, "leaseTransitions": 0}
    api.put(LEASES, {"metadata": {"name": "capstan-operator", "namespace": "capstan"}, "spec": spec})
    rare = Elector(client, "capstan", "a", Metrics(), LeaseTimes(duration=60, renew_deadline=50, retry=40))
    task = asyncio.create_task(rare.run())
    await eventually(rare.leading.is_set, seconds=5)
    task.cancel()
    assert holder(api) == "a"


async def test_a_graceful_stop_hands_over_at_the_next_try(api: FakeApi, client: KubeClient) -> None:
    slow = LeaseTimes(duration=60, renew_deadline=40, retry=0.1)
    a, b = (Elector(client, "capstan", name, Metrics(), slow) for name in "ab")
    first = asyncio.create_task(a.run())
    await eventually(a.leading.is_set)
    second = asyncio.create_task(b.run())
    await asyncio.sleep(0.2)
    first.cancel()
    await a.release()
    assert not a.leading.is_set()
    await eventually(b.leading.is_set, seconds=5)
    second.cancel()


async def test_a_renewal_that_was_interrupted_does_not_keep_the_lease_from_being_given_back(
    api: FakeApi, client: KubeClient
) -> None:
    async with candidate(client, "a") as (a, task):
        await eventually(a.leading.is_set)
        fault = api.fail("update", "leases", late_answer=0.5)
        await eventually(lambda: fault.times == 0)
        task.cancel()  # the renewal is under way
        await asyncio.sleep(0)
        await a.release()
    assert holder(api) == ""


async def test_writing_stops_before_the_lease_can_be_taken(api: FakeApi, client: KubeClient) -> None:
    async with candidate(client, "a") as (a, _):
        await eventually(a.leading.is_set)
        loop = asyncio.get_running_loop()
        api.fail("update", "leases", times=10_000, status=500)
        started = loop.time()
        await eventually(a.standing_by.is_set, seconds=5, every=0.002)
        assert loop.time() - started < TIMES.duration
        assert not a.leading.is_set()
        api.faults.clear()
        await eventually(a.leading.is_set, seconds=5)


async def test_a_server_that_hangs_costs_the_lease_in_time_too(api: FakeApi, client: KubeClient) -> None:
    async with candidate(client, "a") as (a, _):
        await eventually(a.leading.is_set)
        loop = asyncio.get_running_loop()
        api.fail("update", "leases", times=10_000, hangs=True)
        started = loop.time()
        await eventually(a.standing_by.is_set, seconds=5, every=0.002)
        assert loop.time() - started < TIMES.duration


async def test_a_single_failed_renewal_costs_nothing(api: FakeApi, client: KubeClient) -> None:
    async with candidate(client, "a") as (a, _):
        await eventually(a.leading.is_set)
        for fault in ({"status": 500}, {"loses_answer": True}, {"status": 409}):
            api.fail("update", "leases", **fault)
            await eventually(lambda: not api.faults)
            await asyncio.sleep(0.25)
            assert a.leading.is_set()


async def test_a_lease_taken_by_somebody_else_is_given_up_at_once(api: FakeApi, client: KubeClient) -> None:
    async with candidate(client, "a") as (a, _):
        await eventually(a.leading.is_set)
        api.change(LEASES, "capstan", "capstan-operator", lambda d: d["spec"].update(holderIdentity="intruder"))
        await eventually(a.standing_by.is_set, seconds=2)
        assert holder(api) == "intruder"


async def test_a_lease_that_somebody_made_by_hand_is_taken(api: FakeApi, client: KubeClient) -> None:
    api.put(LEASES, {"metadata": {"name": "capstan-operator", "namespace": "capstan"}})
    async with candidate(client, "a") as (a, _):
        await eventually(a.leading.is_set)
    assert holder(api) == "a"


async def test_a_deleted_lease_is_made_again(api: FakeApi, client: KubeClient) -> None:
    async with candidate(client, "a") as (a, _):
        await eventually(a.leading.is_set)
        api.remove(LEASES, "capstan", "capstan-operator")
        await eventually(lambda: api.of(LEASES))
        await eventually(lambda: holder(api) == "a")
        assert a.leading.is_set()
