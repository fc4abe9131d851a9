"""Fuzzes by coverage: `python -m tests.fuzz [--seconds N] [NAME ...]`; without names all targets, one after the other.

A finding stays in build/fuzz, and `python -m tests.fuzz --feed NAME FILE` repeats it. Exits 1 if there was one.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz.regressions import REGRESSIONS
from tests.fuzz.table import TARGETS
from tests.fuzz.target import Target, feed_within_limits

FINDINGS = Path("build/fuzz")
_TIMEOUT_SECONDS = 60
"""For one input, on a machine that may be busy: what is slower is a finding, too."""
_MOST_RSS_MIB = 3072
_MOST_BYTES = 16384
_START_SECONDS = 120.0
"""Imports, with every function of ours instrumented."""
_EXECUTED = re.compile(r"^stat::number_of_executed_units: (\d+)", re.MULTILINE)
_PYTHON_ERROR = re.compile(r"^ === Uncaught Python exception: ===\n(.*?)^==\d+==", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Fuzzed:
    executions: int
    finding: Path | None
    told: str
    """Of a finding: what went wrong."""


def fuzz(target: Target, seconds: int, folder: Path) -> Fuzzed:
    """Runs it for about so long, or until there is a finding."""
    corpus = folder / target.name
    corpus.mkdir()
    for number, seed in enumerate((*target.seeds(), *REGRESSIONS.get(target.name, ()))):
        (corpus / f"{number:03d}").write_bytes(seed)
    FINDINGS.mkdir(parents=True, exist_ok=True)
    before = set(FINDINGS.glob(f"{target.name}-*"))
    options = [
        f"-max_total_time={seconds}", f"-timeout={_TIMEOUT_SECONDS}",
        f"-report_slow_units={_TIMEOUT_SECONDS}", f"-rss_limit_mb={_MOST_RSS_MIB}",
        f"-max_len={_MOST_BYTES}", "-print_final_stats=1", f"-artifact_prefix={FINDINGS}/{target.name}-", str(corpus),
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.guided", target.name, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds + _START_SECONDS + _TIMEOUT_SECONDS,
        check=False,
    )
    said = done.stdout.decode(errors="replace")
    executed = _EXECUTED.search(said)
    left = sorted(set(FINDINGS.glob(f"{target.name}-*")) - before)
    if done.returncode == 0 and executed and not left:
        return Fuzzed(int(executed[1]), None, "")
    error = _PYTHON_ERROR.search(said)
    told = error[1] if error else said[-3000:]
    return Fuzzed(int(executed[1]) if executed else 0, left[0] if left else FINDINGS, told)


def main(names: list[str], seconds: int) -> int:
    width = max(map(len, names))
    found = []
    with TemporaryDirectory(prefix="capstan-fuzz-") as folder:
        for name in names:
            fuzzed = fuzz(TARGETS[name], seconds, Path(folder))
            print(f"{name:{width}}  {fuzzed.executions:9,} executions  {fuzzed.finding or 'no finding'}", flush=True)
            if fuzzed.finding is not None:
                print(f"{fuzzed.told}\npython -m tests.fuzz --feed {name} {fuzzed.finding}", flush=True)
                found.append(name)
    return 1 if found else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--feed", action="store_true", help="NAME FILE: give one target the content of a file")
    arguments = parser.parse_args()
    if arguments.feed:
        chosen, file = arguments.names
        is_taken = feed_within_limits(TARGETS[chosen], Path(file).read_bytes())
        raise SystemExit(print(f"{chosen}: {'taken' if is_taken else 'refused as documented'}"))
    if unknown := sorted(set(arguments.names) - TARGETS.keys()):
        parser.error(f"{', '.join(unknown)}: there is no such target; choose from {', '.join(TARGETS)}")
    raise SystemExit(main(arguments.names or list(TARGETS), arguments.seconds))
