"""A real MLflow server on this machine, started for a test, from the environment in which the S3 server is."""

import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.training_runs import ROOT, free_port

COMMAND = "CAPSTAN_MLFLOW_SERVER"
"""Path of `mlflow`. Unset: `.venv-s3/bin/mlflow` below the repository."""
_PATIENCE_SECONDS = 120.0


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Address of one that is up and keeps its runs in `folder`. Skips the test where there is no server; fails it where
    CI is set, which must have one."""
    own = ROOT / ".venv-s3" / "bin" / "mlflow"
    command = os.environ.get(COMMAND) or (str(own) if own.exists() else None)
    if command is None or shutil.which(command) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            f"no mlflow server: scripts/setup_s3.sh, or set {COMMAND}"
        )
    address = f"http://127.0.0.1:{(port := free_port())}"
    # Its file store is up in half the time that a database takes to be made; the API is the same.
    store = ["--backend-store-uri", (folder / "runs").as_uri(), "--default-artifact-root", (folder / "files").as_uri()]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [command, "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *store],
            env={**os.environ, "MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            process_group=0,
        )
    try:
        _wait_until_up(address, process, folder / "server.log")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(_PATIENCE_SECONDS)


def _wait_until_up(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up_at = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up_at, f"the MLflow server does not answer\n{log.read_text()}"
            time.sleep(0.1)
