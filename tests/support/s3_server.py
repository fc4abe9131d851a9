"""A real S3 server on this machine, started for a test: moto's, over HTTP, from an environment of its own.

It is not a package of the tests' own environment: its botocore and the Kubernetes client do not agree about a library.
"""

import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.training_runs import free_port

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "CAPSTAN_MOTO_SERVER"
"""Path of `moto_server`. Unset: `.venv-s3/bin/moto_server` below the repository, or the one on PATH."""
BUCKET = "checkpoints"
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class S3Server:
    """A server with one empty bucket."""

    endpoint: str

    def environ(self) -> dict[str, str]:
        """What a job would have."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def unfinished_uploads(self) -> int:
        """Multipart uploads that were neither completed nor aborted."""
        with urllib.request.urlopen(f"{self.endpoint}/{BUCKET}?uploads", timeout=10) as answer:
            return int(answer.read().count(b"<Upload>"))


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """One that is up. Skips the test where there is no `moto_server`; fails it where CI is set, which must have one."""
    command = _command()
    if command is None:
        reason = (
            f"no moto_server: python -m venv .venv-s3 && .venv-s3/bin/pip install 'moto[server,s3]', or set {COMMAND}"
        )
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    port = free_port()
    process = subprocess.Popen(
        [command, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        server = S3Server(f"http://127.0.0.1:{port}")
        _create_bucket(server, process)
        yield server
    finally:
        process.terminate()
        process.wait(_PATIENCE_SECONDS)


def _command() -> str | None:
    if COMMAND in os.environ:
        return os.environ[COMMAND]
    own = ROOT / ".venv-s3" / "bin" / "moto_server"
    return str(own) if own.exists() else shutil.which("moto_server")


def _create_bucket(server: S3Server, process: subprocess.Popen[bytes]) -> None:
    give_up_at = time.monotonic() + _PATIENCE_SECONDS
    request = urllib.request.Request(f"{server.endpoint}/{BUCKET}", method="PUT")
    while True:
        try:
            urllib.request.urlopen(request, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            assert process.poll() is None, "the S3 server has ended"
            assert time.monotonic() < give_up_at, "the S3 server does not answer"
            time.sleep(0.05)
