"""Who serves a home, how it is ended with all it started, and what `capstan local up` does not silently ignore."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from capstan_operator import local_cluster, local_home
from capstan_operator.local_home import Home, LocalClusterError, Serving, has_ended, stop

PARENT = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
if sys.argv[1] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: (child.kill(), child.wait(), sys.exit(0)))
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(("manner", "by_itself"), [("polite", True), ("stubborn", False)])
def test_nothing_of_a_stopped_process_is_left(manner: str, by_itself: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_home, "STOP_SECONDS", 5.0 if by_itself else 0.3)
    process = subprocess.Popen([sys.executable, "-c", PARENT, manner], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert stop(Serving(process.pid, None, 1)) is by_itself
    assert has_ended(process.pid)
    assert has_ended(child)
    process.communicate(timeout=5)


def test_a_home_is_served_by_one_process_which_is_known(tmp_path: Path) -> None:
    home = Home(tmp_path / "new")
    assert home.serving() is None
    with home.served(gpus=2, nodes=3):
        assert home.serving() == Serving(os.getpid(), 2, 3)
        with pytest.raises(LocalClusterError, match=f"is served by process {os.getpid()} already"), home.served(2, 3):
            pass
    assert home.serving() is None


@pytest.mark.parametrize(
    ("asked", "runs"),
    [
        ({"port": 7000}, "--port 6000, not --port 7000"),
        ({"gpus": 0}, "the GPUs that it found, not --gpus 0"),
        ({"nodes": 2}, "--nodes 1, not --nodes 2"),
    ],
)
def test_a_running_cluster_is_not_asked_to_be_another(
    tmp_path: Path, asked: dict[str, int], runs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "port").write_text("6000\n")
    options = {"action": "up", "home": tmp_path, "port": 0, "gpus": None, "nodes": None, "allow_chaos": False, **asked}
    with Home(tmp_path).served(gpus=None, nodes=1):
        assert local_cluster.main(argparse.Namespace(**options)) == 2
    assert capsys.readouterr().err == (
        f"capstan local up: the cluster at {tmp_path} runs with {runs}; "
        f"stop it first: capstan local down --home {tmp_path}\n"
    )


def test_status_says_how_to_start_the_cluster_of_that_home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert local_cluster.main(argparse.Namespace(action="status", home=tmp_path)) == 1
    assert capsys.readouterr().out == (
        f"No cluster runs from {tmp_path}; start one with: capstan local up --home {tmp_path}\n"
    )
