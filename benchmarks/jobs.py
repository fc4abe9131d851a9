"""200 TrainingJobs of two trivial pods each, from apply to Succeeded, on the embedded cluster.

What is measured is the control plane alone: API server, operator, scheduler and node. The pods run `/bin/true`.
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.report import Figure
from capstan_local.client import Access, Client, Resource

JOBS = Resource("capstan.dev", "v1alpha1", "trainingjobs")
PODS = Resource("", "v1", "pods")
NAMESPACE = "default"
DEADLINE_SECONDS = 300.0
COMMAND = "python -m benchmarks jobs"


def trivial_job(index: int) -> dict[str, Any]:
    return {
        "apiVersion": "capstan.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": f"bench-{index}", "namespace": NAMESPACE},
        "spec": {
            "framework": {"flax": {}},
            "model": {"mlp": {"hidden": [8]}},
            "data": {"digits": {}},
            "optimizer": {"sgd": {"learningRate": 0.1}},
            "schedule": {"constant": {}},
            "training": {"steps": 1, "globalBatchSize": 2},
            "workers": {
                "max": 2,
                "podPatch": {"spec": {"containers": [{"name": "trainer", "command": ["/bin/true"]}]}},
            },
            "checkpoint": {"store": {"hostPath": {"path": "/tmp"}}},
        },
    }


@contextmanager
def cluster(nodes: int = 1) -> Iterator[Path]:
    """The kubeconfig of a fresh embedded cluster."""
    with tempfile.TemporaryDirectory(prefix="capstan-bench-") as home:
        capstan = [sys.executable, "-m", "capstan_operator", "local"]
        subprocess.run([*capstan, "up", "--home", home, "--nodes", str(nodes)], check=True, stdout=subprocess.DEVNULL)
        try:
            yield Path(home) / "kubeconfig"
        finally:
            subprocess.run([*capstan, "down", "--home", home], check=True, stdout=subprocess.DEVNULL)


def processes(kubeconfig: Path) -> dict[str, psutil.Process]:
    """The cluster's two long-lived processes, by role."""
    home = str(kubeconfig.parent)
    found = {}
    for process in psutil.process_iter():
        try:
            command = process.cmdline()
            is_ours = home in " ".join(command) or process.environ().get("KUBECONFIG") == str(kubeconfig)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if is_ours and "capstan_operator" in command:
            found["operator" if "run" in command else "API server and node"] = process
    return found


async def run_jobs(kubeconfig: Path, count: int) -> tuple[float, list[float]]:
    """(seconds from the first create to the last Succeeded, seconds of each job)."""
    async with Client(Access.from_kubeconfig(kubeconfig)) as client:
        _, version = await client.list(JOBS, NAMESPACE)
        started = time.monotonic()
        begun: dict[str, float] = {}
        ended: dict[str, float] = {}

        async def create(index: int) -> None:
            begun[f"bench-{index}"] = time.monotonic()
            await client.create(JOBS, trivial_job(index))

        async def follow() -> None:
            async for kind, job in client.watch(JOBS, version, NAMESPACE):
                phase = job.get("status", {}).get("phase") if kind == "MODIFIED" else None
                name = job["metadata"]["name"]
                if phase in ("Failed", "Invalid"):
                    raise RuntimeError(f"{name} is {phase}: {job['status'].get('message')}")
                if phase == "Succeeded" and name not in ended:
                    ended[name] = time.monotonic()
                    if len(ended) == count:
                        return

        async with asyncio.timeout(DEADLINE_SECONDS):
            await asyncio.gather(follow(), *(create(index) for index in range(count)))
        return time.monotonic() - started, [ended[name] - begun[name] for name in ended]


def measure(count: int = 200) -> list[Figure]:
    with cluster() as kubeconfig:
        asyncio.run(run_jobs(kubeconfig, 1))  # the first job pays for lazy imports
        watched = processes(kubeconfig)
        before = {role: sum(process.cpu_times()[:2]) for role, process in watched.items()}
        asyncio.run(delete_all(kubeconfig))
        seconds, each = asyncio.run(run_jobs(kubeconfig, count))
        each.sort()
        figures = [
            Figure(f"{count} jobs x 2 pods, apply to Succeeded", seconds, "s", COMMAND),
            Figure("jobs per second", count / seconds, "1/s", COMMAND),
            Figure("one job of the burst, p50", statistics.median(each), "s", COMMAND),
            Figure("one job of the burst, p99", each[int(0.99 * (len(each) - 1))], "s", COMMAND),
        ]
        for role, process in watched.items():
            cpu = sum(process.cpu_times()[:2]) - before[role]
            figures.append(Figure(f"{role}: CPU per job", 1000 * cpu / count, "ms", COMMAND))
            figures.append(Figure(f"{role}: RSS after {count} jobs", process.memory_info().rss / 2**20, "MiB", COMMAND))
        return figures


async def delete_all(kubeconfig: Path) -> None:
    async with Client(Access.from_kubeconfig(kubeconfig)) as client:
        for job in (await client.list(JOBS, NAMESPACE))[0]:
            await client.delete(JOBS, (NAMESPACE, job["metadata"]["name"]))
        async with asyncio.timeout(60):
            while (await client.list(PODS, NAMESPACE))[0]:
                await asyncio.sleep(0.1)
