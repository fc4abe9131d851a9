"""What the serving benchmark measures: pods and baselines as processes, over checkpoints made for it."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import new_attempt
from capstan_runtime.checkpoint.manifest import SaveFacts, TrainerState
from capstan_runtime.checkpoint.writer import Save, commit, write_shards
from capstan_runtime.contract import env
from capstan_runtime.contract.models import Model
from capstan_runtime.contract.serving import API_KEYS_FOLDER, ServeConfig
from capstan_runtime.contract.signature import Signature
from capstan_runtime.engine import LocalTensor
from capstan_runtime.model_signature import data_spec_of
from capstan_runtime.model_spec import initial_parameter, parameter_table, tensor_name

RUN = "bench"
KEY = "benchmark-key-0123456789abcdef"
MODELS: dict[str, dict[str, Any]] = {
    "MLP": {"mlp": {"hidden": [256, 128]}},
    "CNN": {"cnn": {"channels": [32, 64]}},
}
INPUT_SHAPE, CLASSES = (8, 8, 1), 10
START_SECONDS = 300.0
BASELINE_PORTS = {"uvicorn": 8490, "ray": 8491}

_address = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Server:
    """One that answers."""

    address: str
    port: int
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """Of the whole process tree so far."""
        return sum(sum(times) for times in self._each(lambda process: process.cpu_times()[:4]))

    def memory_mib(self, part: str = "") -> float:
        """Proportional set size of the processes whose name has `part` in it."""
        return sum(self._each(lambda process: process.memory_full_info().pss if part in process.name() else 0)) / 2**20

    def _each(self, look: Any) -> list[Any]:
        found = []
        for process in [self.process, *self.process.children(recursive=True)]:
            try:
                found.append(look(process))
            except psutil.NoSuchProcess:
                continue
        return found


def make_checkpoint(store: Path, model: dict[str, Any]) -> str:
    """The root of an untrained model's checkpoint."""
    signature = Signature(model=Model.parse(model), kind="image", input_shape=INPUT_SHAPE, outputs=CLASSES)
    values = {
        tensor_name(spec.name): initial_parameter(spec, 7)
        for spec in parameter_table(signature.model, data_spec_of(signature))
    }
    trainer = TrainerState(
        step=1,
        seed=0,
        global_batch_size=1,
        virtual_ranks=1,
        plan_version=1,
        data_fingerprint="",
        learning_rate_step=1,
        loss=1.0,
    )
    facts = SaveFacts(
        job="default/bench",
        run=RUN,
        step=1,
        fence=1,
        attempt=new_attempt(RUN),
        world=1,
        parent=None,
        created_at=0.0,
        trainer=trainer,
        metrics={},
        framework="flax",
        signature=signature,
    )
    save = Save(FolderStore(store), facts, 0)
    write_shards(save, (LocalTensor(name, values[name].shape, 0, values[name].ravel()) for name in sorted(values)))
    return commit(save, deadline_seconds=60.0).root


def config_of(root: str, runtime: str, guards: dict[str, Any]) -> ServeConfig:
    model = {"name": "bench", "version": "bench-1", "run": RUN, "root": root}
    return ServeConfig.parse(
        {"service": "default/bench", "model": model, "runtime": runtime, "guards": guards, "drainSeconds": 0.0}
    )


@contextmanager
def pod(folder: Path, store: Path, config: ServeConfig) -> Iterator[Server]:
    """A serving pod that is ready."""
    folder.mkdir()
    keys, temporary = folder / "keys", folder / "t"
    keys.mkdir()
    temporary.mkdir()
    (keys / "bench").write_text(KEY)
    address = f"127.8.{os.getpid() % 250}.{next(_address)}"
    file = folder / "serve.json"
    file.write_text(config.model_dump_json(by_alias=True))
    environ = {
        env.SERVE_CONFIG: str(file),
        env.POD_IP: address,
        env.STORE: str(store),
        env.POD_MOUNTS: json.dumps({API_KEYS_FOLDER: str(keys)}),
        "TMPDIR": str(temporary),
    }
    command = [sys.executable, "-m", "capstan_runtime.serve_replica"]
    with _running(command, environ, folder / "log") as process:
        _until_200(address, env.SERVE_PORT, "/v2/health/ready", process, folder / "log")
        yield Server(address, env.SERVE_PORT, process)


@contextmanager
def baseline(kind: str, folder: Path, store: Path, config: ServeConfig) -> Iterator[Server]:
    """`uvicorn` or `ray`; it answers."""
    folder.mkdir()
    file = folder / "serve.json"
    file.write_text(config.model_dump_json(by_alias=True))
    port = BASELINE_PORTS[kind]
    command = [sys.executable, "-m", "benchmarks.serving_baselines", kind, str(port), str(file), str(store)]
    environ = {"RAY_AUTH_MODE": "disabled", "RAY_agent_register_timeout_ms": "120000"}
    with _running(command, environ, folder / "log") as process:
        _until_200("127.0.0.1", port, "/docs", process, folder / "log")
        yield Server("127.0.0.1", port, process)


@contextmanager
def _running(command: list[str], environ: dict[str, str], log: Path) -> Iterator[psutil.Process]:
    with log.open("wb") as output:
        child = subprocess.Popen(
            command, env={**os.environ, **environ, "OMP_NUM_THREADS": "1"}, stdout=output, stderr=output
        )
    process = psutil.Process(child.pid)
    family: list[psutil.Process] = []
    try:
        yield process
        family = process.children(recursive=True)
    finally:
        child.terminate()
        try:
            child.wait(60)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        for left in psutil.wait_procs(family, 10)[1]:
            left.kill()


def _until_200(address: str, port: int, path: str, process: psutil.Process, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        connection = http.client.HTTPConnection(address, port, timeout=30)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        if time.monotonic() > deadline or process.status() == psutil.STATUS_ZOMBIE:
            raise RuntimeError(f"not ready: {log.read_text()[-2000:]}")
        time.sleep(0.1)
