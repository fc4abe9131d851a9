"""Throw-away Kubernetes control planes for tests: Capstan's embedded one, and a real one from envtest's binaries.

Both are child processes on free loopback ports with their state in a temporary folder. They die with the test run,
however it ends, and leave nothing behind:

    with RealControlPlane(assets, home) as plane:
        subprocess.run(["kubectl", "--kubeconfig", plane.kubeconfig, "get", "ns"], check=True)

The two classes offer the same attributes, so a test that takes a `ControlPlane` runs against either.
"""

from __future__ import annotations

import base64
import ctypes
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.schemas import share_schemas

READY_DEADLINE_SECONDS = 120.0
STOP_DEADLINE_SECONDS = 10.0
PORT_ATTEMPTS = 3

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class ControlPlaneError(Exception):
    """A control plane did not start, or died; the message ends with the last lines of its log."""


class Server:
    """One child process in its own process group, with its output in a file, that dies with the thread that made it."""

    def __init__(self, name: str, argv: Sequence[str | Path], home: Path, env: dict[str, str] | None = None) -> None:
        self.name = name
        self.log_path = home / f"{name}.log"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [str(part) for part in argv],
                cwd=home,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def wait_ready(self, is_ready: Callable[[], bool], deadline_seconds: float = READY_DEADLINE_SECONDS) -> None:
        """Returns once `is_ready()` holds; raises ControlPlaneError when the process ends first or time is up."""
        deadline = time.monotonic() + deadline_seconds
        while not is_ready():
            if self.process.poll() is not None:
                raise ControlPlaneError(f"{self.name} exited with {self.process.returncode}:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ControlPlaneError(f"{self.name} was not ready after {deadline_seconds:.0f} s:\n{self.log_tail()}")
            time.sleep(0.05)

    def stop(self, first_signal: int = signal.SIGTERM) -> int:
        """Exit code of the process, after its whole group is gone. A group that ignores the signal is killed."""
        if self.process.poll() is None:
            self._signal_group(first_signal)
            try:
                self.process.wait(STOP_DEADLINE_SECONDS)
            except subprocess.TimeoutExpired:
                self._signal_group(signal.SIGKILL)
        self._signal_group(signal.SIGKILL)
        return self.process.wait(STOP_DEADLINE_SECONDS)

    def log_tail(self, lines: int = 30) -> str:
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def _signal_group(self, number: int) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            return  # the whole group has ended already, which is what was asked for


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    """A loopback TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class ControlPlane:
    """What a test needs to know of a running API server."""

    home: Path
    name: str = ""
    url: str = ""
    token: str = ""
    ca_file: Path = Path()
    kubeconfig: Path = Path()
    is_current: bool = True
    """False for a server older than the Kubernetes that the embedded one follows."""

    servers: list[Server] = field(default_factory=list)

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        """Ends every process, last started first, and removes the folder."""
        while self.servers:
            self.servers.pop().stop(signal.SIGKILL)
        shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def ssl_context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca_file))

    def answers(self, path: str) -> bool:
        """Whether GET `path` with the admin token says 200."""
        if not self.ca_file.is_file():
            return False
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {self.token}"})
        try:
            with urllib.request.urlopen(request, timeout=2, context=self.ssl_context()) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@dataclass
class RealControlPlane(ControlPlane):
    """etcd and kube-apiserver from `assets`, and on request the controller manager and the scheduler."""

    assets: Path = Path()
    with_controller_manager: bool = True
    with_scheduler: bool = False
    with_service_accounts: bool = False
    """Whether pods are given the token of their ServiceAccount, as on any cluster; else they may name one that nobody
    made, and a namespace's first pod need not wait for it."""
    extra_apiserver_flags: Sequence[str] = ()

    @classmethod
    def assets_from_environment(cls) -> Path | None:
        """The folder in KUBEBUILDER_ASSETS; None when the variable is unset or empty."""
        folder = os.environ.get("KUBEBUILDER_ASSETS")
        return Path(folder) if folder else None

    def start(self) -> None:
        self.name, self.is_current = "real", False
        self.home.mkdir(parents=True, exist_ok=True)
        self.token = secrets.token_hex(16)
        _write_private_key(self.home / "service-account.key")
        (self.home / "tokens.csv").write_text(f'{self.token},admin,admin,"system:masters"\n')
        self._start_api_server()
        if self.with_controller_manager:
            self._start_controller_manager()
        if self.with_scheduler:
            self._start_scheduler()

    def binary(self, name: str) -> Path:
        """Path of a binary of the assets folder; etcd may also come from the PATH."""
        path = self.assets / name
        if path.is_file():
            return path.resolve()
        if name == "etcd" and (found := shutil.which("etcd")):
            return Path(found)
        raise ControlPlaneError(
            f"KUBEBUILDER_ASSETS: no '{name}' in '{self.assets}'; fill it with unpack_control_plane.sh"
        )

    def _start_api_server(self) -> None:
        # A port that was free may be taken a moment later by a neighbour; only then is a second try worth it.
        for attempt in range(1, PORT_ATTEMPTS + 1):
            try:
                etcd_url = self._start_etcd(attempt)
                self._start_kube_apiserver(etcd_url, attempt)
                return
            except ControlPlaneError as error:
                if attempt == PORT_ATTEMPTS or "address already in use" not in str(error):
                    raise
                while self.servers:
                    self.servers.pop().stop(signal.SIGKILL)

    def _start_etcd(self, attempt: int) -> str:
        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        flags = {
            "data-dir": self.home / f"etcd-{attempt}",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
        }
        server = self._launch("etcd", [*_as_flags(flags), "--unsafe-no-fsync"])
        server.wait_ready(lambda: _says_200(f"{client}/health"))
        return client

    def _start_kube_apiserver(self, etcd_url: str, attempt: int) -> None:
        port, certificates, key = free_port(), self.home / f"certs-{attempt}", self.home / "service-account.key"
        flags = {
            "etcd-servers": etcd_url,
            "secure-port": port,
            "bind-address": "127.0.0.1",
            "cert-dir": certificates,
            "service-account-key-file": key,
            "service-account-signing-key-file": key,
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-cluster-ip-range": "10.0.0.0/16",
            "token-auth-file": self.home / "tokens.csv",
            "authorization-mode": "RBAC",
            "allow-privileged": "true",
            **({} if self.with_service_accounts else {"disable-admission-plugins": "ServiceAccount"}),
            "enable-priority-and-fairness": "false",
        }
        self.url, self.ca_file = f"https://127.0.0.1:{port}", certificates / "apiserver.crt"
        server = self._launch("kube-apiserver", [*_as_flags(flags), *self.extra_apiserver_flags])
        server.wait_ready(lambda: self.answers("/readyz") and self.answers("/api/v1/namespaces/default"))
        self.kubeconfig = self.home / "kubeconfig"
        write_kubeconfig(self.kubeconfig, self.url, self.ca_file, self.token)

    def _start_controller_manager(self) -> None:
        flags = {
            "service-account-private-key-file": self.home / "service-account.key",
            # Garbage collection learns of a new custom kind at its next resync, 30 s apart and not adjustable; the
            # rest answers within a second or two.
            "node-monitor-grace-period": "20s",
            "concurrent-gc-syncs": 5,
        }
        server = self._launch_controller("kube-controller-manager", flags)
        server.wait_ready(lambda: self.answers("/api/v1/namespaces/default/serviceaccounts/default"))

    def _start_scheduler(self) -> None:
        self._launch_controller("kube-scheduler", {})

    def _launch_controller(self, name: str, flags: dict[str, object]) -> Server:
        port = free_port()
        common = {
            "kubeconfig": self.kubeconfig,
            "leader-elect": "false",
            "bind-address": "127.0.0.1",
            "port": 0,  # no plain-text port, whose default is fixed
            "secure-port": port,
            "cert-dir": self.home / f"{name}-certs",
        }
        server = self._launch(name, _as_flags(common | flags))
        server.wait_ready(lambda: _says_200(f"https://127.0.0.1:{port}/healthz"))
        return server

    def _launch(self, name: str, flags: list[str]) -> Server:
        server = Server(name, [self.binary(name), *flags], self.home)
        self.servers.append(server)
        return server


@dataclass
class EmbeddedControlPlane(ControlPlane):
    """capstan_local's API server in a process of its own, as a user runs it."""

    with_controllers: bool = False
    """Whether its scheduler, Deployments, Jobs and the like run too, as a real controller manager does."""

    def start(self) -> None:
        self.name = "embedded"
        self.home.mkdir(parents=True, exist_ok=True)
        share_schemas(self.home / "state")
        announced = self.home / "announced-kubeconfig"
        runner = Path(__file__).with_name("serve_embedded.py")
        argv: list[str | Path] = [sys.executable, runner, self.home / "state", announced]
        server = Server("capstan-local", [*argv, "--controllers"] if self.with_controllers else argv, self.home)
        self.servers.append(server)
        server.wait_ready(announced.is_file)
        self.kubeconfig = Path(announced.read_text())
        self._read_kubeconfig()
        server.wait_ready(lambda: self.answers("/readyz") and self.answers("/api/v1/namespaces/default"))

    def stop(self) -> None:
        """Ends it politely; a server that does not obey SIGTERM, or fails at it, is an error."""
        problems = [
            f"{server.name} ended with {code} on SIGTERM:\n{server.log_tail()}"
            for server in self.servers
            if (code := server.stop(signal.SIGTERM)) != 0
        ]
        self.servers.clear()
        shutil.rmtree(self.home, ignore_errors=True)
        if problems and sys.exc_info()[0] is None:
            raise ControlPlaneError(problems[0])

    def _read_kubeconfig(self) -> None:
        config = yaml.safe_load(self.kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.url, self.token = cluster["server"].rstrip("/"), user["token"]
        if "certificate-authority-data" in cluster:
            self.ca_file = self.home / "ca.crt"
            self.ca_file.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
        else:
            self.ca_file = Path(cluster["certificate-authority"])


def write_kubeconfig(path: Path, url: str, ca_file: Path, token: str) -> None:
    """A kubeconfig with one context, `default`, that uses `token`."""
    authority = base64.b64encode(ca_file.read_bytes()).decode()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "default", "cluster": {"server": url, "certificate-authority-data": authority}}],
        "users": [{"name": "default", "user": {"token": token}}],
        "contexts": [{"name": "default", "context": {"cluster": "default", "user": "default"}}],
        "current-context": "default",
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config))


def _write_private_key(path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoding, layout = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(encoding, layout, serialization.NoEncryption()))


def _as_flags(flags: dict[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in flags.items()]


def _says_200(url: str) -> bool:
    # Health only: these servers sign their own certificates and keep the authority to themselves.
    unverified = ssl._create_unverified_context()
    try:
        with urllib.request.urlopen(url, timeout=2, context=unverified) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
