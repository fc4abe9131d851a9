"""`scripts/run_tests.py [--jobs N] [--tests FOLDER] [PYTEST ARGUMENTS]`: all tests, several of their folders at a time.

Most of a run is waiting: for processes to start, for leases to end, for one core while the other idles. So two sessions
of pytest go on side by side, each with a folder of its own; folders share nothing. Which are known to take longest
begin first. What a folder prints is shown when it has ended. Exits 1 if any test failed.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

LONGEST = ("numerics", "e2e", "runtime", "apiserver", "charts", "serve_replica", "local", "simulate", "gitops", "bench")
NO_TESTS = 5
"""pytest's status when all that it found is left out by a mark."""
_LOOK_SECONDS = 0.1
_END_SECONDS = 30.0


def folders_of(tests: Path) -> list[Path]:
    """Those right below `tests` that hold any, the longest first. Raises ValueError for tests that are in none."""
    stray = sorted(tests.glob("test_*.py"))
    if stray:
        raise ValueError(f"{stray[0]}: put it into a folder, or nobody runs it")
    found = [each for each in tests.iterdir() if each.is_dir() and next(each.rglob("test_*.py"), None)]
    rank = {name: number for number, name in enumerate(LONGEST)}
    return sorted(found, key=lambda each: (rank.get(each.name, len(LONGEST)), each.name))


@dataclass
class Session:
    """pytest with one folder."""

    folder: Path
    process: "subprocess.Popen[bytes]"
    output: IO[bytes]
    began: float = field(default_factory=time.monotonic)

    def end(self) -> None:
        """Lets it put away what it has begun, within reason, and shows how far it has come."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.tell()

    def tell(self) -> bool:
        """Prints what it has printed; whether all is well."""
        is_well = self.process.returncode in (0, NO_TESTS)
        word = "passed" if is_well else f"FAILED with status {self.process.returncode}"
        self.output.seek(0)
        print(self.output.read().decode(errors="replace").rstrip(), flush=True)
        print(f"== {self.folder}: {word} after {time.monotonic() - self.began:.0f} s", flush=True)
        return is_well


def run(folders: list[Path], jobs: int, arguments: list[str]) -> list[Path]:
    """Those in which something failed."""
    waiting, sessions, failed = list(folders), list[Session](), list[Path]()
    try:
        while waiting or sessions:
            while waiting and len(sessions) < jobs:
                folder, output = waiting.pop(0), tempfile.TemporaryFile()  # noqa: SIM115  # open until its session is told of
                command = [sys.executable, "-m", "pytest", str(folder), *arguments]
                # Whoever looks while it goes on, or ends it, sees how far it has come.
                environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
                process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environ)
                print(f"== {folder}: begins", flush=True)
                sessions.append(Session(folder, process, output))
            for session in [each for each in sessions if each.process.poll() is not None]:
                sessions.remove(session)
                if not session.tell():
                    failed.append(session.folder)
            time.sleep(_LOOK_SECONDS)
    finally:
        for session in sessions:  # somebody wants all of it to end
            session.end()
    return failed


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--tests", type=Path, default=Path("tests"))
    options, arguments = parser.parse_known_args()
    signal.signal(signal.SIGTERM, _interrupt)
    # A shell's background jobs ignore it, and so would every session.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()
    failed = run(folders_of(options.tests), options.jobs, arguments)
    word = f"FAILED in {', '.join(map(str, failed))}" if failed else "passed"
    print(f"== all: {word} after {time.monotonic() - began:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
