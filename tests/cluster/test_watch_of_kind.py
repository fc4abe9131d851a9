"""kopf as a bare watcher: what it delivers, what it survives, and that it writes nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from capstan_operator.cluster.credentials import read_kubeconfig
from capstan_operator.cluster.kinds import PODS, TRAINING_JOBS
from capstan_operator.handlers import Watch
from tests.support.fake_api import FakeApi
from tests.support.operators import eventually
from tests.support.small_decide import job_document


@asynccontextmanager
async def watching(api: FakeApi, namespace: str | None = None) -> AsyncIterator[list[tuple[str | None, str]]]:
    seen: list[tuple[str | None, str]] = []
    loop_thread = threading.get_ident()

    def sink(kind: str | None, document: dict[str, Any]) -> None:
        assert threading.get_ident() == loop_thread
        seen.append((kind, document["metadata"]["name"]))

    task = asyncio.create_task(Watch(read_kubeconfig(api.kubeconfig), TRAINING_JOBS, sink, namespace=namespace).run())
    try:
        await eventually(lambda: api.watches(TRAINING_JOBS))
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_exists_comes_first_and_then_what_happens(api: FakeApi) -> None:
    api.put(TRAINING_JOBS, job_document("there"))
    async with watching(api) as seen:
        api.put(TRAINING_JOBS, job_document("new"))
        api.change(TRAINING_JOBS, "default", "new", lambda job: job["spec"].update(x=1))
        api.remove(TRAINING_JOBS, "default", "there")
        await eventually(lambda: len(seen) == 4)
        assert sorted(seen, key=str) == [("ADDED", "new"), ("DELETED", "there"), ("MODIFIED", "new"), (None, "there")]


async def test_nothing_is_written_and_nothing_but_jobs_is_watched(api: FakeApi) -> None:
    async with watching(api) as seen:
        for number in range(5):
            api.put(TRAINING_JOBS, job_document(f"job-{number}"))
        await eventually(lambda: len(seen) == 5)
        await asyncio.sleep(0.2)
    assert {(call.verb, call.resource) for call in api.calls} == {("list", "trainingjobs"), ("watch", "trainingjobs")}
    assert api.watches(PODS) == 0


async def test_one_namespace_can_be_watched_alone(api: FakeApi) -> None:
    async with watching(api, "mine") as seen:
        api.put(TRAINING_JOBS, job_document("other"))
        api.put(TRAINING_JOBS, job_document("own", namespace="mine"))
        await eventually(lambda: seen == [("ADDED", "own")])
    assert {call.namespace for call in api.calls} == {"mine"}


async def test_after_a_410_everything_is_listed_again(api: FakeApi) -> None:
    api.put(TRAINING_JOBS, job_document("job"))
    async with watching(api) as seen:
        await eventually(lambda: seen == [(None, "job")])
        api.end_watches(TRAINING_JOBS, error=410)
        await eventually(lambda: seen == [(None, "job"), (None, "job")])


async def test_an_error_that_ends_kopf_starts_it_again(api: FakeApi) -> None:
    api.put(TRAINING_JOBS, job_document("job"))
    async with watching(api) as seen:
        await eventually(lambda: seen == [(None, "job")])
        api.end_watches(TRAINING_JOBS, error=500)
        await eventually(lambda: seen == [(None, "job"), (None, "job")], seconds=5)
        await eventually(lambda: api.watches(TRAINING_JOBS))


async def test_it_stops_quickly_and_leaves_no_thread(api: FakeApi) -> None:
    async with watching(api):
        assert any(thread.name == "kopf trainingjobs" for thread in threading.enumerate())
    await eventually(lambda: not any(thread.name == "kopf trainingjobs" for thread in threading.enumerate()), seconds=5)


async def test_a_stop_during_the_start_is_obeyed_too(api: FakeApi) -> None:
    for _ in range(3):
        task = asyncio.create_task(
            Watch(read_kubeconfig(api.kubeconfig), TRAINING_JOBS, lambda *_: None, namespace=None).run()
        )
        await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(task, return_exceptions=True)
