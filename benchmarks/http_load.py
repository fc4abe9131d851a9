"""Clients of one HTTP server in a process of their own: `python -m benchmarks.http_load LOAD`, LOAD being JSON.

Open loop: that of the product, `capstan_runtime.bench.load`. Closed loop, over the same connections: each asks again as
soon as it is answered, which is how fast a server can be and hides its stalls.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from capstan_runtime.bench.load.ladder import climb
from capstan_runtime.bench.load.pool import Asked, Pool
from capstan_runtime.bench.load.target import Target
from capstan_runtime.bench.measured import percentile
from capstan_runtime.bench.workloads.serving import run_quickly
from capstan_runtime.contract.workloads import Load as OpenLoad
from capstan_runtime.contract.workloads import Request

CONNECTIONS_OPEN_LOOP = 512
TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    address: str
    port: int
    path: str
    body: str
    """File that holds it."""
    seconds: float
    connections: int = 16
    rate: float | None = None
    """Requests per second that are due; None: closed loop."""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Seen:
    answered: int
    """With 200."""
    refused: int
    """With 429."""
    failed: int
    """All others."""
    seconds: float
    p50_ms: float
    """Of those answered with 200."""
    p99_ms: float
    generator_cpu: float
    """Share of one core that the clients used: near 1 they measure themselves."""

    @property
    def per_second(self) -> float:
        return self.answered / self.seconds


def put(load: Load) -> Seen:
    """What clients saw of `load`."""
    command = [sys.executable, "-m", "benchmarks.http_load", json.dumps(asdict(load))]
    return Seen(**json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout))


class _ClosedLoop(Pool):
    """Asks again whenever a request is over, until it is time."""

    until = 0.0

    def ended(self, request: Asked, seconds: float) -> None:
        super().ended(request, seconds)
        now = time.monotonic()
        if now < self.until:
            self.ask(now, request.kind)


async def _run(load: Load, body: bytes) -> Seen:
    target = Target(load.address, load.port, "", None)
    headers = {"host": target.authority, "content-length": str(len(body)), **load.headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"POST {load.path} HTTP/1.1\r\n{lines}\r\n".encode() + body
    return await (_closed(load, target, request) if load.rate is None else _open(load, target, request, load.rate))


async def _closed(load: Load, target: Target, request: bytes) -> Seen:
    async with _ClosedLoop(target, [request], load.connections, TIMEOUT_SECONDS) as pool:
        began, used = time.monotonic(), time.process_time()
        pool.until = began + load.seconds
        for _ in range(load.connections):
            pool.ask(time.monotonic(), 0)
        await asyncio.sleep(load.seconds)
        seconds, share = time.monotonic() - began, (time.process_time() - used) / load.seconds
        return _seen(np.array(pool.record.seconds), pool.record.failures, seconds, share)


async def _open(load: Load, target: Target, request: bytes, rate: float) -> Seen:
    plan = OpenLoad(
        rates=[rate],
        seconds=load.seconds,
        warmup_seconds=0,
        timeout_seconds=TIMEOUT_SECONDS,
        connections=CONNECTIONS_OPEN_LOOP,
        scenario=[Request(name="all", path=load.path)],
    )
    (rung,) = await climb(plan, target, [request], seed=1)
    # What comes later than that was not served in this time.
    in_time = rung.due + rung.latency <= rung.duration
    failures = Counter(rung.failures)
    failures[0, "too late"] = int(np.count_nonzero(~in_time & np.isfinite(rung.latency)))
    return _seen(rung.latency[in_time], failures, rung.duration, rung.cpu_share)


def _seen(latency: np.ndarray, failures: Mapping[tuple[int, str], int], seconds: float, share: float) -> Seen:
    answered = np.sort(latency[np.isfinite(latency)])
    p50, p99 = (1e3 * percentile(answered, part) if len(answered) else float("inf") for part in (0.5, 0.99))
    refused = failures.get((0, "status 429"), 0)
    return Seen(len(answered), refused, sum(failures.values()) - refused, seconds, p50, p99, share)


if __name__ == "__main__":
    wanted = Load(**json.loads(sys.argv[1]))
    print(json.dumps(asdict(run_quickly(_run(wanted, Path(wanted.body).read_bytes())))))
