"""`kubectl` as a person uses it: arguments in, text out."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.control_planes import ControlPlane

TIMEOUT_SECONDS = 40


@dataclass(frozen=True)
class Done:
    command: str
    code: int
    out: str
    err: str

    def ok(self) -> str:
        """Standard output without its last newline, if the command succeeded."""
        assert self.code == 0, f"{self.command}: exit {self.code}\n{self.out}{self.err}"
        return self.out.rstrip("\n")

    def fails(self) -> str:
        """Standard error, if the command failed."""
        assert self.code != 0, f"{self.command}: unexpected success\n{self.out}{self.err}"
        return self.err


class Lines:
    """The output of a running command, line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def next(self, deadline_seconds: float = 15) -> str:
        """The next line; AssertionError when none comes in time."""
        try:
            return self._lines.get(timeout=deadline_seconds)
        except queue.Empty:
            raise AssertionError(f"no line within {deadline_seconds} s, exit code {self.process.poll()}") from None

    def until(self, wanted: str, deadline_seconds: float = 15) -> str:
        """The first line that contains `wanted`."""
        deadline = time.monotonic() + deadline_seconds
        while wanted not in (line := self.next(max(0.01, deadline - time.monotonic()))):
            pass
        return line

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))


@dataclass(frozen=True)
class Kubectl:
    plane: ControlPlane
    namespace: str
    home: Path

    def run(self, *arguments: str, stdin: Any = None) -> Done:
        """The finished command. `stdin` is text, or an object to be sent as YAML."""
        text = yaml.safe_dump(stdin) if isinstance(stdin, dict) else stdin
        done = subprocess.run(
            self._argv(arguments), input=text, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=self._env()
        )
        return Done(f"kubectl {' '.join(arguments)}", done.returncode, done.stdout, done.stderr)

    def __call__(self, *arguments: str, stdin: Any = None) -> str:
        """Standard output of a command that must succeed."""
        return self.run(*arguments, stdin=stdin).ok()

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "-o", "json"))

    @contextmanager
    def follow(self, *arguments: str) -> Iterator[Lines]:
        """A command that goes on, such as `get -w`, until the block ends."""
        process = subprocess.Popen(
            self._argv(arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self._env(),
            start_new_session=True,
        )
        try:
            yield Lines(process)
        finally:
            process.kill()
            process.wait(10)

    def _argv(self, arguments: tuple[str, ...]) -> list[str]:
        binary = shutil.which("kubectl")
        assert binary is not None
        return [binary, "--kubeconfig", str(self.plane.kubeconfig), "-n", self.namespace, *arguments]

    def _env(self) -> dict[str, str]:
        return {"HOME": str(self.home), "PATH": os.environ["PATH"], "KUBECTL_EXTERNAL_DIFF": "diff -u -N"}
