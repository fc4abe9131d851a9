"""From a fault to the first new step: trainers killed, pods deleted, a trainer stopped; beside torchrun.

A small model trains on two workers of the embedded cluster, which knows nothing of the faults to come. Each figure runs
from the moment just before the fault (this process's clock) to the moment at which rank 0 had done its first step again
(its own clock, in `status.recoveries`); the split is the operator's. Before the next fault the job has committed a
newer checkpoint, and every pod has its warm spare ready, as it would after a minute of any real run.
`benchmarks/torchrun.py` trains the same model, batch and save interval in plain torch, under one torchrun agent with
two workers.
"""

from __future__ import annotations

import asyncio
import math
import signal
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psutil

from benchmarks import torchrun, torchrun_trainer, trainer_processes
from benchmarks.jobs import JOBS, NAMESPACE, PODS, cluster
from benchmarks.report import Figure
from capstan_local.client import CLAIMS, Access, Client

FRAMEWORKS: dict[str, dict[str, Any]] = {"flax": {"flax": {}}, "deepspeed": {"deepspeed": {"zeroStage": 1}}}
DELETIONS = 5
HANGS = 3
HANG_SECONDS = 5
"""The deadline of the measured job; the default is 60 s, which would be waited for in full."""
DEADLINE_SECONDS = 120.0
POLL_SECONDS = 0.1
IDLE_CPU_SECONDS = 0.02
"""A spare that used no more than this in half a second has done its imports."""
PARTS = ("detect", "decide", "schedule", "drain", "form", "restore", "verify", "compile", "firstStep")

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """One recovery."""

    seconds: float
    """From the fault to the first new step."""
    detection_seconds: float
    """From the fault to the operator's knowing of it."""
    record: Object
    """Of status.recoveries."""


def measure(kills: int = 10) -> list[Figure]:
    command = f"python -m benchmarks recovery --kills {kills}"
    figures: list[Figure] = []
    medians: dict[str, float] = {}
    with cluster() as kubeconfig:
        for framework in FRAMEWORKS:
            killed, deleted, hung = asyncio.run(_run_job(kubeconfig, framework, kills))
            medians[framework] = statistics.median(sample.seconds for sample in killed)
            figures += _figures(framework, killed, deleted, hung, command)
    theirs = torchrun.recover(kills)
    kind = "torchrun, one agent, 2 workers: worker killed -> first new step"
    figures += [
        Figure(f"{kind}, p50 of {kills}", statistics.median(theirs), "s", command),
        Figure(f"{kind}, p99", percentile_99(theirs), "s", command),
    ]
    for framework, median in medians.items():
        ratio = statistics.median(theirs) / median
        figures.append(Figure(f"killed -> first new step, p50: torchrun / Capstan {framework}", ratio, "x", command))
    return figures


def recovery_job(framework: str) -> Object:
    """A job that does not end by itself, and has every budget it needs."""
    budgets = dict.fromkeys(("crash", "lost", "hang", "retryable"), 1000)
    interval = {"steps": torchrun_trainer.SAVE_EVERY}
    training = {"steps": 10_000_000, "globalBatchSize": torchrun_trainer.BATCH, "seed": 3}
    return {
        "apiVersion": "capstan.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": f"recovery-{framework}", "namespace": NAMESPACE},
        "spec": {
            "framework": FRAMEWORKS[framework],
            "model": {"mlp": {"hidden": [torchrun_trainer.HIDDEN]}},
            "data": {"digits": {}},
            "optimizer": {"adamw": {"learningRate": torchrun_trainer.LEARNING_RATE}},
            "schedule": {"constant": {}},
            "training": training,
            "workers": {"max": 2},
            "checkpoint": {"store": {"claim": {"name": f"recovery-{framework}"}}, "interval": interval},
            "recovery": {"budgets": budgets, "deadlines": {"hang": HANG_SECONDS}},
        },
    }


async def _run_job(kubeconfig: Any, framework: str, kills: int) -> tuple[list[Sample], list[Sample], list[Sample]]:
    """(killed, deleted, hung)"""
    async with Client(Access.from_kubeconfig(kubeconfig)) as client:
        name = f"recovery-{framework}"
        claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        metadata = {"name": name, "namespace": NAMESPACE}
        await client.create(
            CLAIMS, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim}
        )
        created = await client.create(JOBS, recovery_job(framework))
        job = Disturbed(client, name, created["metadata"]["uid"])
        killed = [await job.disturb(job.send(signal.SIGKILL, number % 2)) for number in range(kills)]
        deleted = [await job.disturb(job.delete_pod(number % 2)) for number in range(DELETIONS)]
        hung = [await job.disturb(job.send(signal.SIGSTOP, number % 2)) for number in range(HANGS)]
        await client.delete(JOBS, (NAMESPACE, name))
        await job.wait("removed", lambda: _is_empty(client))
    return killed, deleted, hung


async def _is_empty(client: Client) -> bool:
    return not (await client.list(PODS, NAMESPACE))[0]


class Disturbed:
    """A running job that is disturbed and watched."""

    def __init__(self, client: Client, name: str, uid: str) -> None:
        self._client = client
        self._name = name
        self._uid = uid

    async def disturb(self, fault: Callable[[], Awaitable[None]]) -> Sample:
        """The recovery from `fault`, which is done to the job once it is steady."""
        await self.wait("steady", self._is_steady)
        fence = (await self._status())["fence"]
        began = time.time()
        await fault()
        record: Object = {}

        async def has_recovered() -> bool:
            nonlocal record
            found = [entry for entry in (await self._status())["recoveries"] if entry["fence"] > fence]
            record = found[-1] if found else {}
            return "recoveredAt" in record

        await self.wait("recovered", has_recovered)
        known = _seconds(record["at"]) + record["seconds"].get("detect", 0.0)
        return Sample(_seconds(record["recoveredAt"]) - began, known - began, record)

    def send(self, number: signal.Signals, worker: int) -> Callable[[], Awaitable[None]]:
        async def fault() -> None:
            trainer_processes.trainer(self._uid, worker).send_signal(number)

        return fault

    def delete_pod(self, worker: int) -> Callable[[], Awaitable[None]]:
        async def fault() -> None:
            selector = f"capstan.dev/job={self._name}"
            pods, _ = await self._client.list(PODS, NAMESPACE, labelSelector=selector)
            name = next(pod["metadata"]["name"] for pod in pods if f"-worker-{worker}" in pod["metadata"]["name"])
            await self._client.delete(PODS, (NAMESPACE, name))

        return fault

    async def wait(self, what: str, holds: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not await holds():
            if time.monotonic() > deadline:
                status = await self._status()
                raise RuntimeError(f"{self._name} is not {what} after {DEADLINE_SECONDS:.0f} s: {status}")
            await asyncio.sleep(POLL_SECONDS)

    async def _status(self) -> Object:
        job = await self._client.get(JOBS, self._name, NAMESPACE)
        status: Object = job.get("status") or {}
        if status.get("phase") in ("Failed", "Invalid"):
            raise RuntimeError(f"{self._name} is {status['phase']}: {status.get('message')}")
        return status

    async def _is_steady(self) -> bool:
        """Whether it trains, has saved since it last resumed, and every worker has a spare that waits."""
        status = await self._status()
        resumed = status.get("resumedFrom", {}).get("step", 0)
        if status.get("phase") != "Running" or status.get("checkpoint", {}).get("step", 0) <= resumed:
            return False
        processes = trainer_processes.find(self._uid)
        if sorted(processes) != [0, 1] or any(len(found) != 2 for found in processes.values()):
            return False
        spares = [found[1] for found in processes.values()]
        before = [_cpu_seconds(spare) for spare in spares]
        await asyncio.sleep(0.5)
        return all(_cpu_seconds(spare) - was < IDLE_CPU_SECONDS for spare, was in zip(spares, before, strict=True))


def _cpu_seconds(process: psutil.Process) -> float:
    """Used so far; infinite for a process that is gone."""
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return math.inf
    return float(times.user + times.system)


def _seconds(time_text: str) -> float:
    return datetime.fromisoformat(time_text).timestamp()


def percentile_99(values: Sequence[float]) -> float:
    """The smallest that 99 % do not exceed: of fewer than 100, the largest."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


def _figures(
    framework: str, killed: list[Sample], deleted: list[Sample], hung: list[Sample], command: str
) -> Iterator[Figure]:
    def p50(values: Iterator[float]) -> float:
        return statistics.median(values)

    kind = f"{framework}, 2 workers: trainer killed -> first new step"
    seconds = [sample.seconds for sample in killed]
    yield Figure(f"{kind}, p50 of {len(killed)}", statistics.median(seconds), "s", command)
    yield Figure(f"{kind}, p99", percentile_99(seconds), "s", command)
    for part in PARTS:
        values = [sample.record["seconds"].get(part, 0.0) for sample in killed]
        yield Figure(f"{kind}, of it {part}, p50", statistics.median(values), "s", command)
    from_memory = sum(sample.record.get("source") == "Memory" for sample in killed)
    yield Figure(f"{kind}, restored from memory", 100 * from_memory / len(killed), "%", command)
    deleted_p50 = p50(sample.seconds for sample in deleted)
    yield Figure(f"{framework}: pod deleted -> first new step, p50 of {len(deleted)}", deleted_p50, "s", command)
    for what, samples in (("death of a process", killed), ("deletion of a pod", deleted)):
        detection = p50(sample.detection_seconds for sample in samples)
        yield Figure(f"{framework}: {what} known to the operator after, p50", detection, "s", command)
        worst = max(sample.detection_seconds for sample in samples)
        yield Figure(f"{framework}: {what} known to the operator after, longest", worst, "s", command)
    beyond = p50(sample.detection_seconds - HANG_SECONDS for sample in hung)
    name = f"{framework}: stopped process known to the operator, after the {HANG_SECONDS} s of hang, p50"
    yield Figure(name, beyond, "s", command)
