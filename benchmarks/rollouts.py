"""A service under constant load while it changes: rollouts, lost pods, a drained node, and models that are bad.

Two pods serve a small CNN on an embedded cluster of two nodes, all on this machine, beside the clients. Each change is
made when a third of the requests have been asked, and the load goes on until the change is done and all have been. No
request is tried again: one that is not answered 200 has failed. Bad models are canaries of the same checkpoint whose
answers `faulty_model/sitecustomize.py` spoils.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.jobs import JOBS, NAMESPACE, PODS, cluster
from benchmarks.report import Figure, readable
from benchmarks.rollout_load import Answered, Record, load, percentile_ms
from capstan_local.client import CLAIMS, NODES, Access, Client, Resource
from capstan_runtime.data.digits import open_digits

SERVICES = Resource("capstan.dev", "v1alpha1", "inferenceservices")
NAME = "rollouts"
FAULTS = Path(__file__).with_name("faulty_model")
RATE = 200.0
"""Requests per second: some of what two pods, the clients and a starting pod can do on two cores."""
BAD_AFTER_SECONDS = 20.0
"""For which the load on a bad model goes on before and after it."""
DEADLINE_SECONDS = 400.0
POLL_SECONDS = 0.2
BAD_MODELS = ("errors", "slow", "wrong")

Object = dict[str, Any]
ROLLING: Object = {"rolling": {"maxSurge": 1}}
BLUE_GREEN: Object = {"blueGreen": {"holdSeconds": 5}}
GATES: Object = {"minRequests": 200, "maxLatencyRatio": 5.0, "minAgreement": 0.9}
"""Latency is generous: all pods share two cores with a pod that starts."""
CANARY: Object = {"canary": {"steps": [{"weight": 33, "holdSeconds": 10}], "gates": GATES}}


@dataclass(frozen=True, slots=True)
class Change:
    """What a change was to its clients."""

    record: Record
    began: float
    ended: float

    @property
    def during(self) -> list[Answered]:
        return self.record.between(self.began, self.ended)

    @property
    def before(self) -> list[Answered]:
        return self.record.between(0.0, self.began)


def measure(requests: int = 20_000) -> list[Figure]:
    return asyncio.run(_measure(requests, f"python -m benchmarks rollouts --requests {requests}"))


async def _measure(requests: int, command: str) -> list[Figure]:
    figures: list[Figure] = []

    def add(found: Iterator[tuple[str, float, str]]) -> None:
        for name, value, unit in found:
            print(f"  {name}: {readable(value)} {unit}", flush=True)
            figures.append(Figure(name, value, unit, command))

    with cluster(nodes=2) as kubeconfig:
        async with Client(Access.from_kubeconfig(kubeconfig)) as client:
            service = Service(client)
            await service.create()
            changes: dict[str, Callable[[], Awaitable[None]]] = {
                "rolling update": lambda: service.replace("rolling", ROLLING),
                "blue-green": lambda: service.replace("blue-green", BLUE_GREEN),
                "canary": lambda: service.replace("canary", CANARY),
                "pod deleted": service.delete_pod,
                "pod killed": service.kill_pod,
                "node drained": service.drain_node,
            }
            for name, change in changes.items():
                add(_of_change(name, await _under_load(service, change, requests)))
            for fault in BAD_MODELS:
                add(_of_bad_model(fault, *await _bad_model(service, fault)))
    return figures


async def _under_load(service: Service, change: Callable[[], Awaitable[None]], requests: int) -> Change:
    async with service.load() as record:
        await _until(lambda: len(record.all) >= requests // 3, "a third of the requests")
        began = time.monotonic()
        await change()
        ended = time.monotonic()
        await _until(lambda: len(record.all) >= requests, "all requests")
    return Change(record, began, ended)


async def _bad_model(service: Service, fault: str) -> tuple[Change, str]:
    """What its clients saw, and the revision."""
    async with service.load() as record:
        await asyncio.sleep(BAD_AFTER_SECONDS)
        began = time.monotonic()
        revision = await service.roll_out(fault, CANARY, fault)
        failure = await service.until_given_up(revision)
        ended = time.monotonic()
        await asyncio.sleep(BAD_AFTER_SECONDS)
    found = await service.revision(revision)
    verdicts = ", ".join(f"{one['name']} {one['verdict']}" for one in found.get("gates", []))
    print(f"  {fault}: {failure['reason']}: {failure['message']} ({verdicts})", flush=True)
    return Change(record, began, ended), revision


def _of_change(name: str, change: Change) -> Iterator[tuple[str, float, str]]:
    failures = change.record.failures()
    for failure, count in Counter(one.failure for one in failures).most_common(3):
        print(f"  {name}: {count} failed: {failure}", flush=True)
    yield f"{name}: requests", len(change.record.all), ""
    yield f"{name}: failed", len(failures), ""
    yield f"{name}: seconds it took", change.ended - change.began, "s"
    for share in (0.5, 0.99):
        yield f"{name}: p{100 * share:.0f} before", percentile_ms(change.before, share), "ms"
        yield f"{name}: p{100 * share:.0f} meanwhile", percentile_ms(change.during, share), "ms"


def _of_bad_model(fault: str, change: Change, revision: str) -> Iterator[tuple[str, float, str]]:
    """A failure that does not say who answered is laid to the bad model: there is no other cause in sight."""
    bad = [one for one in change.record.all if one.revision == revision or (one.failure and not one.revision)]
    first, last = min(one.due for one in bad), max(one.due for one in bad)
    name = f"bad model, {fault}"
    yield f"{name}: seconds from its first request to its last", last - first, "s"
    yield f"{name}: seconds from apply to all traffic back", change.ended - change.began, "s"
    yield f"{name}: share of the traffic from apply to then", 100 * len(bad) / max(1, len(change.during)), "%"
    meanwhile = change.record.between(first, last)
    yield f"{name}: share while it had any", 100 * len(bad) / max(1, len(meanwhile)), "%"
    yield f"{name}: requests that failed", len(change.record.failures()), ""
    yield (
        f"{name}: requests to the proven model that failed",
        sum(bool(one.failure) and one.revision not in ("", revision) for one in change.record.all),
        "",
    )


class Service:
    """The service that is changed."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._bodies = [_body(image) for image in open_digits()[0].fetch(np.arange(100))[0]]

    async def create(self) -> None:
        claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        metadata = {"name": NAME, "namespace": NAMESPACE}
        await self._client.create(
            CLAIMS, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim}
        )
        await self._client.create(JOBS, _job(metadata))
        await self._client.create(SERVICES, _service(metadata))
        await self._wait("ready", self._is_settled)

    @asynccontextmanager
    async def load(self) -> AsyncIterator[Record]:
        await self._wait("settled", self._is_settled)
        url = (await self._status())["url"]
        async with load(f"{url}/v2/models/{NAME}/infer", self._bodies, RATE) as record:
            yield record

    async def replace(self, mark: str, strategy: Object) -> None:
        """A new revision of the same model, all the way."""
        revision = await self.roll_out(mark, strategy)

        async def is_done() -> bool:
            failure = (await self.revision(revision)).get("failure")
            if failure:
                raise RuntimeError(f"{mark} was given up: {failure}")
            return (await self._status()).get("stable") == revision and await self._is_settled()

        await self._wait(f"on {mark}", is_done)

    async def roll_out(self, mark: str, strategy: Object, fault: str | None = None) -> str:
        """Begins a new revision, and says its name once status knows it."""
        known = {one["name"] for one in (await self._status())["revisions"]}
        patch: Object = {"metadata": {"annotations": {"benchmark": mark}}}
        if fault:
            entries = [{"name": "PYTHONPATH", "value": str(FAULTS)}, {"name": "BENCHMARK_FAULT", "value": fault}]
            patch["spec"] = {"containers": [{"name": "server", "env": entries}]}
        service = await self._client.get(SERVICES, NAME, NAMESPACE)
        service["spec"] |= {"podPatch": patch, "rollout": {"strategy": strategy}}
        await self._client.replace(SERVICES, service)
        found: list[str] = []

        async def is_known() -> bool:
            found[:] = [one["name"] for one in (await self._status())["revisions"] if one["name"] not in known]
            return bool(found)

        await self._wait(f"beginning {mark}", is_known)
        return found[0]

    async def until_given_up(self, revision: str) -> Object:
        """The failure, once it has no traffic any more."""

        async def is_given_up() -> bool:
            status = await self._status()
            return "failure" in await self.revision(revision) and status.get("traffic") == f"{status['stable']} 100%"

        await self._wait(f"rid of {revision}", is_given_up)
        failure: Object = (await self.revision(revision))["failure"]
        return failure

    async def delete_pod(self) -> None:
        """As `kubectl delete pod` does."""
        await self._lose([(await self._pods())[0]], grace_seconds=None)

    async def kill_pod(self) -> None:
        """Without a moment's grace."""
        await self._lose([(await self._pods())[0]], grace_seconds=0)

    async def drain_node(self) -> None:
        """As `kubectl drain` does: the node is cordoned, its pods are deleted with their grace."""
        node = (await self._pods())[0]["spec"]["nodeName"]
        await self._client.patch(NODES, ("", node), {"spec": {"unschedulable": True}})
        await self._lose([pod for pod in await self._pods() if pod["spec"]["nodeName"] == node], grace_seconds=None)
        await self._client.patch(NODES, ("", node), {"spec": {"unschedulable": None}})

    async def revision(self, name: str) -> Object:
        """What status says of it; {}: nothing."""
        return next((one for one in (await self._status())["revisions"] if one["name"] == name), {})

    async def _lose(self, pods: list[Object], grace_seconds: int | None) -> None:
        """Deletes them, and waits until they are gone and others stand in for them."""
        lost = {pod["metadata"]["uid"] for pod in pods}
        for pod in pods:
            await self._client.delete(PODS, (NAMESPACE, pod["metadata"]["name"]), grace_seconds=grace_seconds)

        async def are_replaced() -> bool:
            there = {pod["metadata"]["uid"] for pod in await self._pods()}
            return not lost & there and await self._is_settled()

        await self._wait("whole again", are_replaced)

    async def _pods(self) -> list[Object]:
        return (await self._client.list(PODS, NAMESPACE, labelSelector=f"capstan.dev/service={NAME}"))[0]

    async def _is_settled(self) -> bool:
        """One revision, two pods, both ready."""
        pods = await self._pods()
        status = await self._status()
        return (
            status.get("ready") == "2/2"
            and "rollout" not in status
            and len(pods) == 2
            and all(_is_ready(pod) for pod in pods)
        )

    async def _status(self) -> Object:
        status: Object = (await self._client.get(SERVICES, NAME, NAMESPACE)).get("status") or {}
        return {"revisions": [], **status}

    async def _wait(self, what: str, holds: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not await holds():
            if time.monotonic() > deadline:
                raise RuntimeError(f"not {what} after {DEADLINE_SECONDS:.0f} s: {await self._status()}")
            await asyncio.sleep(POLL_SECONDS)


async def _until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not {what} after {DEADLINE_SECONDS:.0f} s")
        await asyncio.sleep(POLL_SECONDS)


def _is_ready(pod: Object) -> bool:
    conditions = pod["status"].get("conditions") or []
    is_leaving = "deletionTimestamp" in pod["metadata"]
    return not is_leaving and any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def _body(image: Any) -> bytes:
    tensor = {"name": "input", "shape": [1, *image.shape], "datatype": "FP32", "data": image.ravel().tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


def _job(metadata: Object) -> Object:
    """A few steps are enough: nobody asks whether its answers are right, only whether they stay the same."""
    return {
        "apiVersion": "capstan.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": metadata,
        "spec": {
            "framework": {"flax": {}},
            "model": {"cnn": {"channels": [16, 32], "groups": 8}},
            "data": {"digits": {}},
            "optimizer": {"adamw": {"learningRate": 0.003}},
            "schedule": {"constant": {}},
            "training": {"steps": 100, "globalBatchSize": 64, "seed": 1},
            "workers": {"max": 1},
            "checkpoint": {"store": {"claim": {"name": NAME}}},
        },
    }


def _service(metadata: Object) -> Object:
    return {
        "apiVersion": "capstan.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": metadata,
        "spec": {
            "modelRef": {"trainingJob": {"name": NAME}},
            "runtime": "torch",
            "replicas": 2,
            "rollout": {"strategy": ROLLING},
        },
    }
