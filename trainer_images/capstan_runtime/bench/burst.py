"""Many TrainingJobs at once, whose pods end at once: what is measured is who carries them out, not what they do."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from capstan_runtime.bench.cluster import Cluster, Refused
from capstan_runtime.errors import ConfigError

API_VERSION = "capstan.dev/v1alpha1"
LABEL = "capstan.dev/burst"
"""On the jobs and their pods: who made them. Everything that has it is removed before and after."""
CLEAN_SECONDS = 120.0
_LOOK_SECONDS = 0.2


@dataclass(slots=True)
class Burst:
    """What was seen of it. Seconds count from the moment at which all jobs were due, not from when each was sent."""

    seconds: float = 0.0
    """Until the last job had succeeded."""
    job_seconds: dict[str, float] = field(default_factory=dict)
    """Until each job had."""
    first_pod_seconds: dict[str, float] = field(default_factory=dict)
    """Until the first pod of each was there."""
    pods: int = 0


def trivial_job(name: str, workers: int, mark: str, owners: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """A TrainingJob whose pods run /bin/true. Its store is a bucket that nobody ever asks: so it needs no volume, which
    many namespaces would refuse."""
    labels = {LABEL: mark}
    return {
        "apiVersion": API_VERSION,
        "kind": "TrainingJob",
        "metadata": {"name": name, "labels": labels, "ownerReferences": list(owners)},
        "spec": {
            "framework": {"flax": {}},
            "model": {"mlp": {"hidden": [8]}},
            "data": {"digits": {}},
            "optimizer": {"sgd": {"learningRate": 0.1}},
            "schedule": {"constant": {}},
            "training": {"steps": 1, "globalBatchSize": workers},
            "workers": {
                "max": workers,
                "podPatch": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [{"name": "trainer", "command": ["/bin/true"]}]},
                },
            },
            "checkpoint": {"store": {"object": {"url": "s3://unused/unused"}}},
        },
    }


def paths(namespace: str) -> tuple[str, str]:
    """Of TrainingJobs and of Pods."""
    return f"/apis/{API_VERSION}/namespaces/{namespace}/trainingjobs", f"/api/v1/namespaces/{namespace}/pods"


async def run_burst(
    cluster: Cluster, namespace: str, manifests: Sequence[dict[str, Any]], mark: str, seconds: float
) -> Burst:
    """Creates all `manifests`, which have `LABEL`, and waits until each has succeeded.

    Raises TimeoutError after `seconds`, RuntimeError when a job fails, ConfigError when one is refused as invalid.
    """
    jobs_path, pods_path = paths(namespace)
    burst, names = Burst(), {manifest["metadata"]["name"] for manifest in manifests}
    async with asyncio.timeout(seconds):
        jobs_version, pods_version = [await _version(cluster, path) for path in (jobs_path, pods_path)]
        begun = time.monotonic()

        async def follow_jobs() -> None:
            async with aclosing(cluster.watch(jobs_path, jobs_version, labelSelector=f"{LABEL}={mark}")) as changes:
                async for _, job in changes:
                    name = job["metadata"]["name"]
                    if name in names and name not in burst.job_seconds and _has_succeeded(job):
                        burst.job_seconds[name] = time.monotonic() - begun
                        if len(burst.job_seconds) == len(names):
                            return

        async def follow_pods() -> None:
            async with aclosing(cluster.watch(pods_path, pods_version, labelSelector=f"{LABEL}={mark}")) as changes:
                async for kind, pod in changes:
                    name = pod["metadata"]["labels"].get("capstan.dev/job")
                    if kind == "ADDED" and name in names:
                        burst.pods += 1
                        burst.first_pod_seconds.setdefault(name, time.monotonic() - begun)

        pods = asyncio.create_task(follow_pods())
        try:
            creates = (cluster.ask("POST", jobs_path, manifest) for manifest in manifests)
            await _all(follow_jobs(), *creates)
            burst.seconds = time.monotonic() - begun
            while len(burst.first_pod_seconds) < len(names) and not pods.done():  # its watch may lag behind the other
                await asyncio.sleep(0.01)
            if pods.done():
                pods.result()
        finally:
            pods.cancel()
            await asyncio.gather(pods, return_exceptions=True)
    return burst


@asynccontextmanager
async def nothing_left(cluster: Cluster, namespace: str, mark: str) -> AsyncIterator[None]:
    """Inside the block there may be jobs with this mark: before it those of a run that was killed are removed, and
    after it all, however it ends. Raises RuntimeError when they do not go."""
    await remove(cluster, namespace, mark)
    try:
        yield
    finally:
        await remove(cluster, namespace, mark)


async def remove(cluster: Cluster, namespace: str, mark: str) -> None:
    """Returns once no job and no pod with this mark is there. Raises RuntimeError after CLEAN_SECONDS."""
    jobs_path, pods_path = paths(namespace)
    asked: set[str] = set()
    try:
        async with asyncio.timeout(CLEAN_SECONDS):
            while jobs := await _names(cluster, jobs_path, mark):
                await _all(*(_delete(cluster, f"{jobs_path}/{name}") for name in jobs - asked))
                asked |= jobs
                await asyncio.sleep(_LOOK_SECONDS)
            while await _names(cluster, pods_path, mark):
                await asyncio.sleep(_LOOK_SECONDS)
    except TimeoutError:
        raise RuntimeError(
            f"TrainingJobs and pods labelled {LABEL}={mark} are still there {CLEAN_SECONDS:.0f} s after their deletion"
        ) from None


async def _names(cluster: Cluster, path: str, mark: str) -> set[str]:
    found = await cluster.ask("GET", path, labelSelector=f"{LABEL}={mark}")
    return {item["metadata"]["name"] for item in found["items"]}


async def _delete(cluster: Cluster, path: str) -> None:
    try:
        await cluster.ask("DELETE", path, {"propagationPolicy": "Background"})
    except Refused as error:
        if error.code != 404:
            raise


async def _version(cluster: Cluster, path: str) -> str:
    """Where to watch from."""
    version: str = (await cluster.ask("GET", path, limit="1"))["metadata"]["resourceVersion"]
    return version


async def _all(*work: Any) -> None:
    """Waits for all; the first that fails ends the others."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _has_succeeded(job: dict[str, Any]) -> bool:
    status = job.get("status") or {}
    phase, name, message = status.get("phase"), job["metadata"]["name"], status.get("message")
    if phase == "Invalid":
        raise ConfigError(f"TrainingJob {name} is Invalid: {message}")
    if phase == "Failed":
        raise RuntimeError(f"TrainingJob {name} has failed: {message}")
    return phase == "Succeeded"
