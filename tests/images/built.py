"""Images as buildah has built them: what they are said to be, and their files as a folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NEEDED = ("buildah", "runc", "debootstrap")


def builder_or_skip() -> None:
    """Skips where no images can be built and run."""
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if missing:
        pytest.skip(
            f"{missing[0]} is not on PATH: images are built with buildah on a base of debootstrap, run with runc"
        )
    if os.geteuid() != 0:
        pytest.skip("not root: debootstrap and containers need it")


def run(*command: str | Path, seconds: float = 60) -> str:
    """Its output; AssertionError with all that it said when it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


@dataclass(frozen=True)
class Image:
    """One that is mounted."""

    name: str
    root: Path
    config: dict[str, Any]
    """Of the OCI image: Env, User, Labels, …"""

    @property
    def env(self) -> dict[str, str]:
        return dict(entry.split("=", 1) for entry in self.config["Env"])

    def description(self, folder: Path) -> Path:
        """A file for as_container.py; containers keep their state in `folder`."""
        user, _, group = self.config["User"].partition(":")
        file = folder / f"{self.name}.json"
        file.write_text(
            json.dumps(
                {
                    "name": self.name,
                    "root": str(self.root),
                    "user": int(user),
                    "group": int(group),
                    "env": self.env,
                    "state": str(folder / "containers"),
                    "ran": str(folder / "ran.jsonl"),
                }
            )
        )
        return file


@contextmanager
def mounted(reference: str) -> Iterator[Image]:
    """The image as long as the context is open."""
    container = run("buildah", "from", "--pull=never", reference)
    try:
        root = Path(run("buildah", "mount", container))
        inspected = json.loads(run("buildah", "inspect", "--type", "image", reference))
        name = reference.rpartition("/")[2].partition(":")[0]
        yield Image(name, root, inspected["OCIv1"]["config"])
    finally:
        run("buildah", "rm", container)
