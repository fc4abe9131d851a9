"""Runs whole operators in the test's loop, and waits for what they should bring about."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from capstan_operator.cluster.lease import LeaseTimes
from capstan_operator.metrics import Metrics
from capstan_operator.observe import OperatorSettings
from capstan_operator.reconcile_job import Decide
from capstan_operator.run import RunSettings, run_operator
from tests.support.control_planes import free_port

QUICK_LEASE = LeaseTimes(duration=2.0, renew_deadline=1.2, retry=0.3)


@dataclass
class RunningOperator:
    """One replica under test."""

    stop_signal: asyncio.Event
    task: asyncio.Task[None]
    url: str
    metrics: Metrics = field(repr=False)

    async def stop(self) -> None:
        """As on SIGTERM."""
        self.stop_signal.set()
        async with asyncio.timeout(10):
            await self.task

    def value(self, name: str, **labels: str) -> float:
        """Of one of its series; 0 when there is none yet."""
        return self.metrics.registry.get_sample_value(f"capstan_operator_{name}", labels) or 0.0


@asynccontextmanager
async def run_one(
    kubeconfig: Path,
    decide: Decide,
    *,
    supervisor_port: int = 1,
    lease: LeaseTimes = QUICK_LEASE,
    poll_seconds: float = 0.2,
    allow_chaos: bool = False,
    settings: OperatorSettings | None = None,
) -> AsyncIterator[RunningOperator]:
    port, metrics, stop = free_port(), Metrics(), asyncio.Event()
    run = RunSettings(
        kubeconfig=kubeconfig,
        operator_namespace="capstan",
        http_port=port,
        lease=lease,
        supervisor_port=supervisor_port,
        poll_seconds=poll_seconds,
        operator=settings or OperatorSettings(allow_chaos=allow_chaos),
    )
    task = asyncio.create_task(run_operator(run, stop, decide=decide, metrics=metrics))
    operator = RunningOperator(stop, task, f"http://127.0.0.1:{port}", metrics)
    try:
        yield operator
    finally:
        stop.set()
        await asyncio.wait([task], timeout=10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def eventually(holds: Callable[[], object], seconds: float = 15.0, every: float = 0.01) -> None:
    """Returns when `holds()` is true; fails the test when it is not in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError("this did not come true in time")
        await asyncio.sleep(every)
