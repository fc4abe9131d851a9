"""List and watch, through everything that can happen to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from capstan_operator.cluster import kube
from capstan_operator.cluster.kinds import PODS
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.pods import Pod
from capstan_operator.cluster.reflector import Reflector
from capstan_operator.metrics import Metrics
from tests.support.fake_api import FakeApi
from tests.support.operators import eventually


class Mirror:
    """A sink that simply keeps what it is given."""

    def __init__(self) -> None:
        self.pods: dict[str, str] = {}
        """Name -> phase."""
        self.lists = 0

    def put(self, pod: Pod) -> None:
        self.pods[pod.metadata.name] = pod.status.phase

    def remove(self, pod: Pod) -> None:
        self.pods.pop(pod.metadata.name, None)

    def replace(self, listed: Iterable[Pod], version: str) -> None:
        self.pods = {pod.metadata.name: pod.status.phase for pod in listed}
        self.lists += 1


def pod(name: str, phase: str = "Pending") -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "default", "labels": {"ours": "yes"}}, "status": {"phase": phase}}


@asynccontextmanager
async def reflecting(client: KubeClient, metrics: Metrics) -> AsyncIterator[tuple[Mirror, Reflector[Pod]]]:
    mirror = Mirror()
    reflector = Reflector(client, PODS, Pod, mirror, metrics, selector="ours=yes")
    task = asyncio.create_task(reflector.run())
    try:
        yield mirror, reflector
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_cold_start_reads_all_pages_and_then_follows(
    api: FakeApi, client: KubeClient, metrics: Metrics
) -> None:
    for number in range(1203):
        api.put(PODS, pod(f"pod-{number}"))
    api.put(PODS, {"metadata": {"name": "not-ours", "namespace": "default"}})
    async with reflecting(client, metrics) as (mirror, reflector):
        await asyncio.wait_for(reflector.synced.wait(), 10)
        assert (len(mirror.pods), mirror.lists) == (1203, 1)
        assert [call.verb for call in api.calls[:3]] == ["list"] * 3
        api.put(PODS, pod("late", "Running"))
        api.remove(PODS, "default", "pod-7")
        await eventually(lambda: mirror.pods.get("late") == "Running" and "pod-7" not in mirror.pods)


async def test_after_a_disconnect_it_goes_on_where_it_was(api: FakeApi, client: KubeClient, metrics: Metrics) -> None:
    async with reflecting(client, metrics) as (mirror, _):
        await eventually(lambda: api.watches(PODS))
        for number in range(5):
            api.end_watches(PODS)
            api.put(PODS, pod(f"pod-{number}"))
            await eventually(lambda n=number: f"pod-{n}" in mirror.pods)
        assert mirror.lists == 1


async def test_deletions_in_a_gap_that_the_server_forgot_are_made_good(
    api: FakeApi, client: KubeClient, metrics: Metrics
) -> None:
    for name in ("stays", "vanishes"):
        api.put(PODS, pod(name))
    async with reflecting(client, metrics) as (mirror, _):
        await eventually(lambda: api.watches(PODS) and len(mirror.pods) == 2)
        api.muted.add("pods")
        api.remove(PODS, "default", "vanishes")
        api.put(PODS, pod("new"))
        api.forget_history()
        api.muted.clear()
        api.end_watches(PODS)
        await eventually(lambda: mirror.pods.keys() == {"stays", "new"})
        assert mirror.lists == 2


@pytest.mark.parametrize("code", [410, 500])
async def test_any_error_event_leads_to_a_new_list(
    api: FakeApi, client: KubeClient, metrics: Metrics, code: int
) -> None:
    async with reflecting(client, metrics) as (mirror, _):
        await eventually(lambda: api.watches(PODS))
        api.end_watches(PODS, error=code)
        await eventually(lambda: mirror.lists == 2)
        api.put(PODS, pod("after"))
        await eventually(lambda: "after" in mirror.pods)


async def test_refused_lists_and_watches_are_retried_for_ever(
    api: FakeApi, client: KubeClient, metrics: Metrics
) -> None:
    api.fail("list", "pods", times=2, status=500)
    api.fail("watch", "pods", times=2, status=503)
    api.put(PODS, pod("there"))
    async with reflecting(client, metrics) as (mirror, reflector):
        await eventually(lambda: api.watches(PODS))
        assert (mirror.pods, reflector.synced.is_set()) == ({"there": "Pending"}, True)


async def test_a_watch_that_hangs_is_replaced(
    api: FakeApi, client: KubeClient, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kube, "SILENCE_SECONDS", 0.2)
    api.fail("watch", "pods", hangs=True)
    async with reflecting(client, metrics) as (mirror, _):
        await eventually(lambda: api.watches(PODS))
        api.put(PODS, pod("seen"))
        await eventually(lambda: "seen" in mirror.pods)
        assert mirror.lists == 1


async def test_an_event_that_cannot_be_read_leads_to_a_new_list(
    api: FakeApi, client: KubeClient, metrics: Metrics
) -> None:
    async with reflecting(client, metrics) as (mirror, _):
        await eventually(lambda: api.watches(PODS))
        api._watchers[0].lines.put_nowait(b'{"type": "ADDED", "object": {"metadata": 7}}\n')
        await eventually(lambda: mirror.lists == 2)


async def test_bookmarks_move_the_version_on(api: FakeApi, client: KubeClient, metrics: Metrics) -> None:
    async with reflecting(client, metrics) as (mirror, reflector):
        await eventually(lambda: api.watches(PODS))
        api._watchers[0].lines.put_nowait(b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"5000"}}}\n')
        await eventually(lambda: reflector._version == "5000")
        api.version = 5000
        api.forget_history()
        api.end_watches(PODS)
        api.put(PODS, pod("after"))
        await eventually(lambda: "after" in mirror.pods)
        assert mirror.lists == 1


async def test_it_is_alive_only_when_it_has_listed_and_hears_something(
    api: FakeApi, client: KubeClient, metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reflecting(client, metrics) as (_, reflector):
        assert not reflector.is_alive()
        await asyncio.wait_for(reflector.synced.wait(), 5)
        assert reflector.is_alive()
        reflector._heard_at -= 1000
        assert not reflector.is_alive()
        age = metrics.registry.get_sample_value("capstan_operator_watch_last_event_age_seconds", {"resource": "pods"})
        assert age is not None
        assert age >= 1000
