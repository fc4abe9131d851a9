"""Operators of this tree and of an earlier release, side by side as replicas of one Deployment: one leads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from tests.e2e.cluster import NAMESPACE, TimedOut
from tests.support.control_planes import Server, free_port

REPOSITORY = Path(__file__).parents[2]
LEASE = "capstan-operator"
READY_SECONDS = 60.0


@dataclass(frozen=True)
class Release:
    """A version of Capstan that can be run here."""

    version: str
    archive: Path | None
    """What `scripts/archive_release.py` packed; None: this tree."""

    def environ(self) -> dict[str, str]:
        """Of a process that is to import this release, and of it nothing but this release."""
        here = [str(REPOSITORY), *filter(None, sys.path)]
        path = here if self.archive is None else [str(self.archive), *_without_repository(here)]
        return {"PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}

    def run_python(self, *arguments: str) -> str:
        """What a short program of this release prints."""
        ended = subprocess.run(
            [sys.executable, *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | self.environ(),
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def images(self) -> list[str]:
        """The flags by which its chart names images."""
        names = {"flax": "flax-trainer", "deepspeed": "deepspeed-trainer", "serve": "serve-replica", "bench": "bench"}
        return [f"--{kind}-image=capstan/{name}:{self.version}" for kind, name in names.items()]


def _without_repository(path: list[str]) -> list[str]:
    """Nothing of a source tree: neither this one nor one that is installed to be edited."""
    return [entry for entry in path if not (Path(entry) / "capstan_operator").exists() and entry != str(REPOSITORY)]


EARLIER = Release("0.1.0", REPOSITORY / "tests" / "releases" / "capstan-0.1.0.zip")
THIS = Release("next", None)


@dataclass
class Replicas:
    """The operator's processes. The newest is the one that is meant to lead."""

    home: Path
    kubeconfig: Path
    leases: client.CoordinationV1Api
    running: list[Server] = field(default_factory=list)

    def start(self, release: Release) -> Server:
        """One more, once it is ready: its caches are filled, and it waits for the lease or has it."""
        port = free_port()
        command = [sys.executable, "-m", "capstan_operator", "run", "--kubeconfig", str(self.kubeconfig)]
        command += ["--port", str(port), *release.images()]
        name = f"operator-{len(list(self.home.glob('operator-*.log')))}-{release.version}"
        server = Server(name, command, self.home, os.environ | release.environ())
        self.running.append(server)
        server.wait_ready(lambda: _is_ready(port), READY_SECONDS)
        return server

    def hand_over(self, release: Release, number: signal.Signals = signal.SIGTERM) -> float:
        """A replica of `release` is started beside the one that leads, which then gets the signal: seconds from that
        until the new one leads."""
        (leader,) = self.running
        self.start(release)
        before = self.holder()
        began = time.monotonic()
        leader.process.send_signal(number)
        self.wait_until(lambda: self.holder() not in ("", before), "the new operator leads")
        taken = time.monotonic() - began
        code = leader.process.wait(20)
        assert code == (0 if number is signal.SIGTERM else -number), leader.log_tail()
        self.running.remove(leader)
        return taken

    def holder(self) -> str:
        """Who leads; empty: nobody."""
        try:
            return self.leases.read_namespaced_lease(LEASE, NAMESPACE).spec.holder_identity or ""
        except ApiException as error:
            if error.status != 404:
                raise
            return ""

    def wait_until(self, holds: Callable[[], object], what: str, seconds: float = READY_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {server.name}\n{server.log_tail()}" for server in self.running)
                raise TimedOut(f"not so after {seconds:.0f} s: {what}\n{logs}")
            time.sleep(0.1)

    def stop(self) -> None:
        for server in self.running:
            server.stop(signal.SIGTERM)


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
