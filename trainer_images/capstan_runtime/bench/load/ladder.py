"""One rate after another, each for its time: what was seen, and whether the generator itself was in the way."""

import asyncio
import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from capstan_runtime.bench.load.alarm import Alarm
from capstan_runtime.bench.load.arrivals import Arrivals, Floats, plan_arrivals
from capstan_runtime.bench.load.pool import Pool, Record
from capstan_runtime.bench.load.target import Target
from capstan_runtime.contract.workloads import Load

MOST_CPU_SHARE = 0.7
"""Of a core: above that, answers wait for the generator to read them."""
MOST_LAG_SECONDS = 0.001
"""That requests are sent after they are due, at the 99th percentile."""
_AT_ONCE = 64
"""Requests that are sent before the loop looks for answers again."""
_AHEAD_SECONDS = 0.02
_GRACE_SECONDS = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class Rung:
    """What was seen at one rate. Arrays are in the order in which requests were due."""

    rate: float
    """That was asked for, per second."""
    duration: float
    """Seconds in which requests were due."""
    due: Floats
    """[n] seconds after the rung began."""
    latency: Floats
    """[n] seconds from due to answered; infinity: it failed."""
    kinds: npt.NDArray[np.uint8]
    """[n] index in the scenario."""
    failures: Mapping[tuple[int, str], int]
    """By kind, and what happened."""
    body_bytes: Mapping[int, int]
    """Of answers, by kind."""
    lag_p99: float
    """Seconds that requests were sent after they were due, though a connection was free."""
    cpu_share: float
    """Of one core, that the generator used."""

    @property
    def name(self) -> str:
        """Its rate, for labels and files."""
        return f"{self.rate:.12g}"

    @property
    def is_limited_by_generator(self) -> bool:
        return self.cpu_share >= MOST_CPU_SHARE or self.lag_p99 >= MOST_LAG_SECONDS


async def climb(load: Load, target: Target, requests: list[bytes], seed: int) -> list[Rung]:
    """A Rung for each of `load.rates`, in their order, after a warm-up at the first one.

    Each begins when the one before has nothing under way, and has a random stream of its own: leaving one out does not
    change the others. Raises OSError when the target's name is not known.
    """
    weights = [request.weight for request in load.scenario]
    async with Pool(target, requests, load.connections, load.timeout_seconds) as pool:
        rungs = []
        for index, rate in enumerate((load.rates[0], *load.rates)):
            seconds = load.seconds if index else load.warmup_seconds
            rng = np.random.default_rng([seed, index])
            arrivals = plan_arrivals(load.arrivals, rate, seconds, weights, rng)
            rung = await _climb_one(pool, arrivals, rate, seconds, load.timeout_seconds)
            if index:
                rungs.append(rung)
        return rungs


async def _climb_one(pool: Pool, arrivals: Arrivals, rate: float, seconds: float, timeout_seconds: float) -> Rung:
    pool.record = record = Record()
    pool.expect(rate)
    await pool.settled()
    gc.collect()
    gc.freeze()
    gc.disable()  # a collection takes longer than requests may be late; nothing here is in a cycle
    try:
        begun = time.monotonic() + _AHEAD_SECONDS
        used = time.process_time()
        deadline = begun + seconds + timeout_seconds + _GRACE_SECONDS
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline - time.monotonic()):
            await _send_when_due(pool, arrivals, begun)
            await _sleep_until(begun + seconds)
            share = (time.process_time() - used) / max(1e-9, time.monotonic() - begun)
            while not pool.is_quiet:
                await asyncio.sleep(0.005)
    finally:
        gc.enable()
        gc.unfreeze()
    return _rung(record, rate, seconds, begun, share)


async def _send_when_due(pool: Pool, arrivals: Arrivals, begun: float) -> None:
    """Returns when the last one was asked."""
    due, kinds = (arrivals.due + begun).tolist(), arrivals.kinds.tolist()
    loop, is_done = asyncio.get_running_loop(), asyncio.Event()
    following = 0

    def send() -> None:
        nonlocal following
        until = min(following + _AT_ONCE, len(due))
        while following < until and due[following] <= time.monotonic():
            pool.ask(due[following], kinds[following])
            following += 1
        if following == len(due):
            is_done.set()
        elif following == until:
            loop.call_soon(send)
        else:
            alarm.set(due[following])

    alarm = Alarm(send)
    try:
        send()
        await is_done.wait()
    finally:
        alarm.close()


async def _sleep_until(at: float) -> None:
    await asyncio.sleep(max(0.0, at - time.monotonic()))


def _rung(record: Record, rate: float, seconds: float, begun: float, share: float) -> Rung:
    due = np.array(record.due)
    order = np.argsort(due, kind="stable")
    return Rung(
        rate=rate,
        duration=seconds,
        due=due[order] - begun,
        latency=np.array(record.seconds)[order],
        kinds=np.array(record.kinds)[order],
        failures=dict(record.failures),
        body_bytes=dict(record.bytes),
        lag_p99=float(np.quantile(np.array(record.lags), 0.99, method="inverted_cdf")) if record.lags else 0.0,
        cpu_share=share,
    )
