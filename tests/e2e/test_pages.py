"""The pages that a reader types from are typed, command by command, from a home with nothing in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.pages import sessions

SETUP = {"make setup", ". .venv/bin/activate"}
"""What this process runs in already."""
DEADLINE_SECONDS = 900
_HEADER = re.compile(r"[A-Z%][A-Z%/ -]{10,}")
_MARK = "=====command "


@pytest.fixture
def home() -> Iterator[Path]:
    """A home whose cluster is stopped at the end, whatever became of the page."""
    with tempfile.TemporaryDirectory(prefix="capstan-page-") as folder:
        yield Path(folder)
        subprocess.run([*_CAPSTAN, "local", "down"], env=_environment(Path(folder)), check=True, timeout=90)


_CAPSTAN = [sys.executable, "-m", "capstan_operator"]


def _environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("KUBECONFIG", "VIRTUAL_ENV")}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return kept | {"HOME": str(home), "PATH": path}


@pytest.mark.full
@pytest.mark.parametrize(
    ("page", "heading"),
    [("docs/first-job.md", None), ("docs/operating.md", "The cluster is lost, the store is there")],
)
def test_every_command_of_the_page_works_and_prints_the_columns_that_it_shows(
    page: str, heading: str | None, home: Path
) -> None:
    shown = [(command, output) for command, output in sessions(Path(page), heading) if command not in SETUP]
    script = "\n".join(f"echo '{_MARK}'\n{command}" for command, _ in shown)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f"{script}\n"],
        env=_environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_SECONDS,
    )
    printed = done.stdout.split(f"{_MARK}\n")[1:]
    assert done.returncode == 0, f"{shown[len(printed) - 1][0]}\n{printed[-1]}"
    for (command, output), found in zip(shown, printed, strict=True):
        assert (command, _columns(found)) == (command, _columns(output))


def _columns(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if _HEADER.fullmatch(line.strip())]
