"""Serving pods as processes, with small real checkpoints."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from capstan_runtime.contract import env
from capstan_runtime.contract.models import Model
from capstan_runtime.contract.serving import TLS_FOLDER, ServeConfig
from capstan_runtime.contract.signature import Signature
from capstan_runtime.model_signature import data_spec_of
from capstan_runtime.model_spec import initial_parameter, parameter_table, tensor_name
from tests.support.certificates import Authority, MountedSecret
from tests.support.checkpoints import RUN, save

LIVE, READY, INFER = "/v2/health/live", "/v2/health/ready", "/v2/models/digits/infer"
SIGNATURE = Signature(model=Model.parse({"mlp": {"hidden": [24, 16]}}), kind="image", input_shape=(8, 8, 1), outputs=10)
SECONDS = 180.0
"""Until a pod has done what is waited for, on a machine that does much else."""

_address = itertools.count(1)


def make_checkpoint(store: Path) -> str:
    """The root of a checkpoint of a small classifier."""
    state = {
        tensor_name(spec.name): initial_parameter(spec, 7)
        for spec in parameter_table(SIGNATURE.model, data_spec_of(SIGNATURE))
    }
    return save(store, 10, arrays=state, signature=SIGNATURE).root


def config_of(root: str, **changes: Any) -> ServeConfig:
    model = {"name": "digits", "version": "digits-1", "run": RUN, "root": root}
    return ServeConfig.parse(
        {"service": "default/digits", "model": model, "runtime": "torch", "drainSeconds": 1.0, **changes}
    )


WITH_TLS = {"guards": {"tls": {"secretRef": {"name": "digits-tls"}}}}
"""Changes of a configuration."""


def request_body(samples: int = 1) -> bytes:
    values = np.linspace(0.0, 1.0, samples * 64).round(4).tolist()
    tensor = {"name": "input", "shape": [samples, 8, 8, 1], "datatype": "FP32", "data": values}
    return json.dumps({"inputs": [tensor]}).encode()


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


class RunningPod:
    """`python -m capstan_runtime.serve_replica` on an address of its own."""

    def __init__(
        self,
        folder: Path,
        store: Path,
        config: ServeConfig,
        command: tuple[str, ...] | None = None,
        authority: Authority | None = None,
    ) -> None:
        """With `authority` it has a Secret with a certificate for its address, and its clients trust nobody else."""
        folder.mkdir()
        self.address = f"127.7.{os.getpid() % 250}.{next(_address)}"
        self.log = folder / "log"
        self.termination_log = folder / "termination-log"
        self.temporary = folder / "t"
        self.temporary.mkdir()
        (folder / "serve.json").write_text(config.model_dump_json(by_alias=True))
        facts = {
            env.SERVE_CONFIG: str(folder / "serve.json"),
            env.POD_IP: self.address,
            env.STORE: str(store),
            env.TERMINATION_LOG: str(self.termination_log),
            "TMPDIR": str(self.temporary),
        }
        self._tls = authority.client() if authority else None
        if authority:
            self.secret = MountedSecret(folder / "tls", authority.issue(self.address).files)
            facts[env.POD_MOUNTS] = json.dumps({TLS_FOLDER: str(self.secret.folder)})
        self._command = command or (sys.executable, "-m", "capstan_runtime.serve_replica")
        self._environ = {**os.environ, **facts}
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("wb") as log:
            return subprocess.Popen(self._command, env=self._environ, stdout=log, stderr=log, start_new_session=True)

    def again(self, **changes: str) -> tuple[int, str]:
        """Starts it once more, with changes of its environment; how that ended."""
        self._environ |= changes
        self.process = self._start()
        return self.ended()

    def ask(self, path: str, body: bytes | None = None) -> Reply | None:
        """Over a new connection; None: nobody listens."""
        connection = (
            http.client.HTTPSConnection(self.address, env.SERVE_PORT, timeout=30, context=self._tls)
            if self._tls
            else http.client.HTTPConnection(self.address, env.SERVE_PORT, timeout=30)
        )
        try:
            connection.request("GET" if body is None else "POST", path, body)
            response = connection.getresponse()
            headers = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, headers, response.read())
        except OSError:
            return None
        finally:
            connection.close()

    def is_ready(self) -> bool:
        reply = self.ask(READY)
        return reply is not None and reply.status == 200

    def until(self, holds: Callable[[], Any]) -> Any:
        """The first true answer; AssertionError with the pod's log when it ends first or time is up."""
        deadline = time.monotonic() + SECONDS
        while not (found := holds()):
            assert self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.said()}"
            assert time.monotonic() < deadline, f"it did not come to pass:\n{self.said()}"
            time.sleep(0.05)
        return found

    def ended(self) -> tuple[int, str]:
        """Exit code and termination message, once it has ended by itself or because it was asked to."""
        code = self.process.wait(SECONDS)
        message = self.termination_log.read_text() if self.termination_log.exists() else ""
        return code, message.removesuffix("\n")

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
