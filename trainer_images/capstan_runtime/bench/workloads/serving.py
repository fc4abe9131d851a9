"""Workload serving: open-loop load on a service, at one rate after another."""

import asyncio
import time
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

from capstan_runtime.bench.load.figures import load_notes, load_points
from capstan_runtime.bench.load.ladder import Rung, climb
from capstan_runtime.bench.load.locust import locust_stats
from capstan_runtime.bench.load.pool import Pool
from capstan_runtime.bench.load.target import Target, read_target, scenario_bytes
from capstan_runtime.bench.measured import Measured
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.contract.benchmark import TrialTask
from capstan_runtime.contract.workloads import Load
from capstan_runtime.errors import ConfigError

READY_SECONDS = 60.0
"""For the service to answer every kind of request once; its operator has called it ready, or its owner has."""
_PAUSE_SECONDS = 0.25
_PATIENCE_SECONDS = 10.0
_OWN_FAULT = tuple(
    f"status {code}" for code in (301, 302, 303, 307, 308, 400, 401, 403, 404, 405, 406, 411, 413, 414, 415, 422, 431)
)
_BUSY = "status 429"

T = TypeVar("T")


def run(trial: TrialTask, store: Store, environ: Mapping[str, str]) -> Measured:
    """The ladder of `trial.work.serving` against `trial.url`; beside the points a locust_<rate>_stats.csv of each rate.

    Raises ConfigError for a scenario that the service does not understand, and RuntimeError for one that is not there.
    """
    load = trial.work.serving
    assert load is not None
    if trial.url is None:
        raise ConfigError("task.url is not set; the operator sets it to that of the service")
    target = read_target(trial.url)
    requests = scenario_bytes(load.scenario, target, environ, trial.service)
    rungs = run_quickly(_climb(load, target, requests, trial.seed))
    files = {
        f"locust_{rung.name}_stats.csv": locust_stats(rung, load.scenario, load.timeout_seconds).encode()
        for rung in rungs
    }
    return Measured(load_points(load, rungs), load_notes(load, rungs), files)


def run_quickly(work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns, in uvloop's event loop where that is installed: it takes about a tenth less of a core."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


async def _climb(load: Load, target: Target, requests: list[bytes], seed: int) -> list[Rung]:
    await wait_ready(load, target, requests)
    return await climb(load, target, requests, seed)


async def wait_ready(load: Load, target: Target, requests: list[bytes], seconds: float = READY_SECONDS) -> None:
    """Returns once each kind of request was answered well, or with 429: a limit of rates is part of a service.

    After `seconds` it raises: ConfigError when the last answer says that the request is at fault, else RuntimeError.
    """
    deadline = time.monotonic() + seconds
    wrong = dict.fromkeys(range(len(requests)), "was not asked")
    while True:
        asked = [(kind, await _ask_once(load, target, requests, kind)) for kind in wrong]
        wrong = {kind: reason for kind, reason in asked if reason is not None}
        if not wrong:
            return
        if time.monotonic() > deadline:
            break
        await asyncio.sleep(_PAUSE_SECONDS)
    kind, reason = next(iter(wrong.items()))
    request = load.scenario[kind]
    what = f"{request.method} {request.path} at {target.authority}: {reason}"
    if reason in _OWN_FAULT:
        raise ConfigError(
            f"workload.serving.scenario[{request.name}]: {what}; correct its path, body or headers. A key goes into a "
            "header as $(NAME), and NAME into the pod by pods.podPatch"
        )
    raise RuntimeError(f"the service is not ready after {seconds:g} s: {what}")


async def _ask_once(load: Load, target: Target, requests: list[bytes], kind: int) -> str | None:
    """What is wrong with the answer to one request; None: nothing."""
    try:
        async with Pool(target, requests, 1, min(load.timeout_seconds, _PATIENCE_SECONDS)) as pool:
            pool.ask(time.monotonic(), kind)
            while not pool.is_quiet:
                await asyncio.sleep(0.005)
            reasons = [reason for _, reason in pool.record.failures if reason != _BUSY]
    except (OSError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"
    return reasons[0] if reasons else None
