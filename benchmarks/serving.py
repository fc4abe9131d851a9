"""Requests to a serving pod, beside two usual ways to serve the same model on the same machine in the same run.

A request is one sample as JSON over a persistent connection; 16 clients ask in a closed loop. The servers are all up
and take turns; every figure of the comparison is a median over the rounds. CPU is that of a server's whole process
tree. The table of models asks with binary tensors (Open Inference Protocol), with 1 and with 32 samples in a request.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.http_load import Load, Seen, put
from benchmarks.report import Figure
from benchmarks.serving_processes import INPUT_SHAPE, KEY, MODELS, Server, baseline, config_of, make_checkpoint, pod

COMMAND = "python -m benchmarks serving"
ROUNDS = 3
SECONDS = 8.0
WARM_SECONDS = 2.0
PATH = "/v2/models/bench/infer"
RUNTIMES = ("flax", "torch")
SEED_SAMPLES = {
    "flax MLP": {1: 1_247, 32: 18_734},
    "flax CNN": {1: 892, 32: 12_456},
    "torch MLP": {1: 1_156, 32: 16_892},
    "torch CNN": {1: 765, 32: 10_234},
}
"""Samples per second that the project was begun with, on a GPU that is not named, with models and clients that are not
either: shown beside what a CPU does here, and not comparable with it."""
GUARDS_OFF: dict[str, Any] = {"circuitBreaker": None}
"""Batches are made here too: they are no guard."""
GUARDS_ON: dict[str, Any] = {
    "auth": {"apiKeysSecretRef": {"name": "keys"}},
    "rateLimit": {"requests": 1_000_000},
    "adaptiveLimit": {},
    "circuitBreaker": {},
    "validation": {"range": {"min": 0.0, "max": 1.0}},
    "anomaly": {"energyAbove": 0.0},
    "audit": {},
}
"""All but the cache, which would answer in the model's place, and tracing, which needs a collector."""
PLAIN, DEFAULT_RAY = "uvicorn + FastAPI", "Ray Serve, defaults"
OFF, ON = "pod, guards off", "pod, all guards on"


def measure() -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="cb-") as folder:
        bench = _Bench(Path(folder))
        return [*bench.compare(), *bench.overload(), *bench.models()]


@dataclass(frozen=True, slots=True)
class _Turn:
    seen: Seen
    cpu_us: float
    """Per request that was answered with 200."""


class _Bench:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._roots = {name: make_checkpoint(folder / f"store-{name}", model) for name, model in MODELS.items()}
        sample = np.linspace(0.0, 1.0, int(np.prod(INPUT_SHAPE)), dtype=np.float32).round(4)
        tensor = {"name": "input", "shape": [1, *INPUT_SHAPE], "datatype": "FP32", "data": sample.tolist()}
        self._json = folder / "json"
        self._json.write_bytes(json.dumps({"inputs": [tensor]}).encode())

    def compare(self) -> Iterator[Figure]:
        with self._servers() as servers:
            for server in servers.values():
                self._turn(server, WARM_SECONDS)
            turns: dict[str, list[_Turn]] = {name: [] for name in servers}
            for number in range(ROUNDS):
                for name in list(servers) if number % 2 == 0 else list(servers)[::-1]:
                    turns[name].append(self._turn(servers[name], SECONDS))
            cpu = {name: statistics.median(turn.cpu_us for turn in each) for name, each in turns.items()}
            rate = {name: statistics.median(turn.seen.per_second for turn in each) for name, each in turns.items()}
            for name, server in servers.items():
                each = [turn.seen for turn in turns[name]]
                yield Figure(f"{name}: CPU per request", cpu[name], "us", COMMAND)
                yield Figure(f"{name}: throughput, 16 clients", rate[name], "1/s", COMMAND)
                yield Figure(f"{name}: p50", statistics.median(seen.p50_ms for seen in each), "ms", COMMAND)
                yield Figure(f"{name}: p99", statistics.median(seen.p99_ms for seen in each), "ms", COMMAND)
                yield Figure(f"{name}: requests not answered 200", sum(s.refused + s.failed for s in each), "", COMMAND)
                yield Figure(f"{name}: memory", server.memory_mib(), "MiB", COMMAND)
            yield Figure("CPU per request: all guards on / uvicorn + FastAPI", cpu[ON] / cpu[PLAIN], "x", COMMAND)
            yield Figure("throughput: all guards on / Ray Serve's defaults", rate[ON] / rate[DEFAULT_RAY], "x", COMMAND)
            yield Figure("throughput lost to all guards", 100 * (1 - rate[ON] / rate[OFF]), "%", COMMAND)
            yield Figure("the same by CPU per request", 100 * (1 - cpu[OFF] / cpu[ON]), "%", COMMAND)

    def overload(self) -> Iterator[Figure]:
        """Twice as many requests as it can answer, due whatever it says, of a model that is most of a request's cost:
        where it is not, turning requests away costs about as much as answering them. What it can answer is taken from a
        pod without the adaptive limit: clients in a closed loop that are refused would ask again at once, and take the
        cores that they are to measure."""
        guards = {**GUARDS_ON, "rateLimit": None}
        store, root = self._folder / "store-CNN", self._roots["CNN"]
        limited, unlimited = (config_of(root, "torch", one) for one in (guards, {**guards, "adaptiveLimit": None}))
        body, headers = self._binary(32)
        with (
            pod(self._folder / "unlimited", store, unlimited) as reference,
            pod(self._folder / "overload", store, limited) as server,
        ):
            self._turn(reference, WARM_SECONDS, body=body, headers=headers)
            self._turn(server, WARM_SECONDS, connections=1, body=body, headers=headers)
            alone = self._turn(server, SECONDS, connections=1, body=body, headers=headers).seen
            peak = self._turn(reference, SECONDS, body=body, headers=headers).seen
            over = self._turn(server, 2 * SECONDS, rate=2 * peak.per_second, body=body, headers=headers).seen
            piled = self._turn(reference, 2 * SECONDS, rate=2 * peak.per_second, body=body, headers=headers).seen
        asked = over.answered + over.refused + over.failed
        yield Figure("torch CNN, 32 samples a request: saturation, 16 clients", peak.per_second, "1/s", COMMAND)
        yield Figure("overload at 2x saturation: goodput", 100 * over.per_second / peak.per_second, "%", COMMAND)
        yield Figure("overload: p99 of the answered", over.p99_ms, "ms", COMMAND)
        yield Figure("the same without the adaptive limit, by the queue alone", piled.p99_ms, "ms", COMMAND)
        yield Figure("unloaded, one client: p99", alone.p99_ms, "ms", COMMAND)
        yield Figure("overload: p99 / unloaded p99", over.p99_ms / alone.p99_ms, "x", COMMAND)
        yield Figure("overload: answered 429", 100 * over.refused / asked, "%", COMMAND)
        yield Figure("overload: neither 200 nor 429", over.failed, "", COMMAND)
        yield Figure("overload: cores used by the clients", over.generator_cpu, "", COMMAND)

    def models(self) -> Iterator[Figure]:
        for model, root in self._roots.items():
            for runtime in RUNTIMES:
                folder = self._folder / f"{model}-{runtime}"
                with pod(folder, self._folder / f"store-{model}", config_of(root, runtime, GUARDS_OFF)) as server:
                    for samples in (1, 32):
                        body, headers = self._binary(samples)
                        self._turn(server, WARM_SECONDS, body=body, headers=headers)
                        seen = self._turn(server, SECONDS, body=body, headers=headers).seen
                        name = f"{runtime} {model}, batch {samples}"
                        seed = f"the seed's, on a GPU it does not name: {SEED_SAMPLES[f'{runtime} {model}'][samples]:,}"
                        yield Figure(f"{name}: samples, CPU here ({seed})", samples * seen.per_second, "1/s", COMMAND)
                        yield Figure(f"{name}: p50", seen.p50_ms, "ms", COMMAND)
                        yield Figure(f"{name}: p99", seen.p99_ms, "ms", COMMAND)
                    memory = server.memory_mib("ServeReplica")
                    yield Figure(f"{runtime} {model}: memory of the replica", memory, "MiB", COMMAND)
                    yield Figure(f"{runtime} {model}: memory of the pod", server.memory_mib(), "MiB", COMMAND)

    @contextmanager
    def _servers(self) -> Iterator[dict[str, Server]]:
        root, store = self._roots["MLP"], self._folder / "store-MLP"
        on, off = config_of(root, "torch", GUARDS_ON), config_of(root, "torch", GUARDS_OFF)
        with ExitStack() as up:
            yield {
                PLAIN: up.enter_context(baseline("uvicorn", self._folder / "plain", store, off)),
                DEFAULT_RAY: up.enter_context(baseline("ray", self._folder / "ray", store, off)),
                OFF: up.enter_context(pod(self._folder / "off", store, off)),
                ON: up.enter_context(pod(self._folder / "on", store, on)),
            }

    def _turn(
        self,
        server: Server,
        seconds: float,
        connections: int = 16,
        rate: float | None = None,
        body: Path | None = None,
        headers: dict[str, str] | None = None,
    ) -> _Turn:
        given = {"x-api-key": KEY, "content-type": "application/json", **(headers or {})}
        file = str(body or self._json)
        load = Load(server.address, server.port, PATH, file, seconds, connections, rate, given)
        before = server.cpu_seconds()
        seen = put(load)
        return _Turn(seen, 1e6 * (server.cpu_seconds() - before) / max(1, seen.answered))

    def _binary(self, samples: int) -> tuple[Path, dict[str, str]]:
        values = np.random.default_rng(0).random((samples, *INPUT_SHAPE), np.float32)
        parameters = {"binary_data_size": values.nbytes}
        tensor = {"name": "input", "shape": values.shape, "datatype": "FP32", "parameters": parameters}
        head = json.dumps({"inputs": [tensor]}).encode()
        file = self._folder / f"binary-{samples}"
        file.write_bytes(head + values.tobytes())
        return file, {"Inference-Header-Content-Length": str(len(head)), "content-type": "application/octet-stream"}
