"""torchrun's elastic agent as the yardstick for benchmarks/recovery.py: one agent, two workers, one of them killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.torchrun_trainer import SAVE_EVERY

SECONDS = 120.0
POLL_SECONDS = 0.02


def recover(kills: int) -> list[float]:
    """Seconds from each SIGKILL of a worker to rank 0's first step in the workers that torchrun started then.

    torchrun keeps its defaults but for the number of restarts, which is not to be the limit. Nothing is killed before
    the workers have been steady for a while and saved.
    """
    with tempfile.TemporaryDirectory(prefix="capstan-torchrun-") as home:
        folder = Path(home)
        program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        program += ["--max-restarts", "1000", "-m", "benchmarks.torchrun_trainer", str(folder)]
        threads = str(max(1, (os.cpu_count() or 1) // 2))  # what Capstan's workers on one machine get, too
        with (folder / "log").open("wb") as log:
            agent = subprocess.Popen(program, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": threads})
        try:
            return [_kill_one(agent, folder, number) for number in range(kills)]
        finally:
            agent.send_signal(signal.SIGTERM)
            agent.wait(SECONDS)


def _kill_one(agent: subprocess.Popen[bytes], folder: Path, number: int) -> float:
    _wait_for_step(agent, folder, lives=number + 1)
    saved = folder / "checkpoint.pt"
    before = saved.stat().st_mtime if saved.exists() else 0.0
    deadline = time.monotonic() + SECONDS
    while not saved.exists() or saved.stat().st_mtime <= before:
        if time.monotonic() > deadline:
            raise RuntimeError(f"no checkpoint every {SAVE_EVERY} steps:\n{_tail(folder)}")
        time.sleep(POLL_SECONDS)
    time.sleep(1.0 + random.Random(number).random())
    victim = _workers(agent.pid)[number % 2]
    killed_at = time.time()
    victim.kill()
    return _wait_for_step(agent, folder, lives=number + 2) - killed_at


def _wait_for_step(agent: subprocess.Popen[bytes], folder: Path, lives: int) -> float:
    """When life number `lives` made its first step."""
    marks = folder / "first-steps"
    deadline = time.monotonic() + SECONDS
    while True:
        lines = marks.read_text().splitlines() if marks.exists() else []
        if len(lines) >= lives:
            return float(lines[lives - 1].split()[0])
        if agent.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"torchrun did not come to the first step of life {lives}:\n{_tail(folder)}")
        time.sleep(POLL_SECONDS)


def _workers(agent_pid: int) -> list[psutil.Process]:
    """By rank."""
    children = [child for child in psutil.Process(agent_pid).children() if "LOCAL_RANK" in child.environ()]
    return sorted(children, key=lambda child: int(child.environ()["LOCAL_RANK"]))


def _tail(folder: Path) -> str:
    return "\n".join((folder / "log").read_text(errors="replace").splitlines()[-15:])
