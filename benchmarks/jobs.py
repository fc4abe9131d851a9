"""200 TrainingJobs of two trivial pods each, from apply to Succeeded, on the embedded cluster.

What is measured is the control plane alone: API server, operator, scheduler and node. The pods run `/bin/true`.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from benchmarks.report import Figure
from capstan_local.client import Resource
from capstan_operator.cluster.credentials import read_kubeconfig
from capstan_runtime.bench.burst import Burst, remove, run_burst, trivial_job
from capstan_runtime.bench.cluster import Access, Cluster
from capstan_runtime.bench.measured import percentile

JOBS = Resource("capstan.dev", "v1alpha1", "trainingjobs")
PODS = Resource("", "v1", "pods")
NAMESPACE = "default"
DEADLINE_SECONDS = 300.0
WORKERS = 2
MARK = "benchmark-jobs"
COMMAND = "python -m benchmarks jobs"


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


async def run_jobs(kubeconfig: Path, count: int) -> Burst:
    """That of a Benchmark of workload controlPlane; removed again before the next one."""
    credentials = read_kubeconfig(kubeconfig)
    token, authority = credentials.current_token(), credentials.ca_pem
    assert token is not None
    assert authority is not None
    async with Cluster(Access(credentials.server, lambda: token, authority.decode(), NAMESPACE)) as running:
        await remove(running, NAMESPACE, MARK)
        manifests = [trivial_job(f"bench-{index}", WORKERS, MARK) for index in range(count)]
        return await run_burst(running, NAMESPACE, manifests, MARK, DEADLINE_SECONDS)


def measure(count: int = 200) -> list[Figure]:
    with cluster() as kubeconfig:
        asyncio.run(run_jobs(kubeconfig, 1))  # the first job pays for lazy imports
        watched = processes(kubeconfig)
        before = {role: sum(process.cpu_times()[:2]) for role, process in watched.items()}
        burst = asyncio.run(run_jobs(kubeconfig, count))
        each = np.sort([*burst.job_seconds.values()])
        figures = [
            Figure(f"{count} jobs x {WORKERS} pods, apply to Succeeded", burst.seconds, "s", COMMAND),
            Figure("jobs per second", count / burst.seconds, "1/s", COMMAND),
            Figure("one job of the burst, p50", percentile(each, 0.5), "s", COMMAND),
            Figure("one job of the burst, p99", percentile(each, 0.99), "s", COMMAND),
        ]
        for role, process in watched.items():
            cpu = sum(process.cpu_times()[:2]) - before[role]
            figures.append(Figure(f"{role}: CPU per job", 1000 * cpu / count, "ms", COMMAND))
            figures.append(Figure(f"{role}: RSS after {count} jobs", process.memory_info().rss / 2**20, "MiB", COMMAND))
        return figures
