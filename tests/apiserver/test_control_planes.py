"""The harness itself: what it starts ends with it, and what cannot start says why."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.control_planes import ControlPlaneError, EmbeddedControlPlane, RealControlPlane, Server


def test_stopping_a_server_ends_its_whole_group(tmp_path: Path) -> None:
    server = Server("family", ["/bin/sh", "-c", "sleep 60 & echo $! > child; wait"], tmp_path)
    server.wait_ready(lambda: (tmp_path / "child").is_file() and bool((tmp_path / "child").read_text().strip()))
    child = int((tmp_path / "child").read_text())
    server.stop()
    assert not _is_running(child)


def test_a_server_that_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.control_planes.STOP_DEADLINE_SECONDS", 0.3)
    server = Server("stubborn", ["/bin/sh", "-c", "trap '' TERM; touch ready; while :; do sleep 0.1; done"], tmp_path)
    server.wait_ready((tmp_path / "ready").is_file)
    assert server.stop() == -signal.SIGKILL


def test_servers_die_with_a_test_run_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import pathlib, time\n"
        "from tests.support.control_planes import Server\n"
        f"server = Server('orphan', ['sleep', '60'], pathlib.Path({str(tmp_path)!r}))\n"
        "print(server.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    root = Path(__file__).parents[2]
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=root)
    assert run.stdout is not None
    orphan = int(run.stdout.readline())
    assert _is_running(orphan)
    run.kill()
    run.wait(10)
    run.stdout.close()
    deadline = time.monotonic() + 10
    while _is_running(orphan):
        assert time.monotonic() < deadline, "the server outlived its test run"
        time.sleep(0.02)


def test_a_server_that_ends_early_shows_its_last_words(tmp_path: Path) -> None:
    server = Server("brief", ["/bin/sh", "-c", "echo no such flag >&2; exit 7"], tmp_path)
    with pytest.raises(ControlPlaneError, match="brief exited with 7:\nno such flag"):
        server.wait_ready(lambda: False, deadline_seconds=10)


def test_a_server_that_never_gets_ready_is_given_up(tmp_path: Path) -> None:
    server = Server("slow", ["sleep", "60"], tmp_path)
    with pytest.raises(ControlPlaneError, match="slow was not ready after 0 s"):
        server.wait_ready(lambda: False, deadline_seconds=0.1)
    server.stop()


def test_a_missing_binary_names_the_variable_and_the_folder(tmp_path: Path) -> None:
    plane = RealControlPlane(tmp_path / "plane", assets=tmp_path)
    with pytest.raises(ControlPlaneError, match=f"KUBEBUILDER_ASSETS: no 'kube-apiserver' in '{tmp_path}'"):
        plane.binary("kube-apiserver")


def test_the_embedded_plane_starts_stops_and_leaves_nothing(tmp_path: Path) -> None:
    plane = EmbeddedControlPlane(tmp_path / "plane")
    with plane:
        (server,) = plane.servers
        assert plane.answers("/api/v1/namespaces/kube-system")
        assert plane.kubeconfig.is_relative_to(tmp_path)
    assert not _is_running(server.process.pid)
    assert list(tmp_path.iterdir()) == []


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
