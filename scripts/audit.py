"""Asks PyPI for known vulnerabilities of what lock files pin: `python scripts/audit.py LOCK...`, one line for each.

Exits 1 for a vulnerability, unless pyproject.toml accepts it for some time with a reason; and for an acceptance whose
time is over or that nothing needs. What PyPI cannot be asked about is said to be not audited, and is no failure: an
index of one's own may not have that part of PyPI's API, and a build must not depend on it.
"""

import argparse
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==\S+")
_SECONDS = 300.0
"""For all packages of a file; 229 take 10 s."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A vulnerability that does no harm here, for now: an entry of `[[tool.capstan.accepted-vulnerabilities]]`."""

    package: str
    """Its canonical name: lower case, hyphens."""
    id: str
    """As PyPI names it, or one of its other names, such as the CVE's."""
    reason: str
    until: date
    """The last day."""


@dataclass(frozen=True, slots=True)
class Vulnerability:
    package: str
    version: str
    ids: tuple[str, ...]
    """PyPI's own name for it first."""
    fixed_in: tuple[str, ...]
    description: str

    def is_accepted_by(self, accepted: Accepted) -> bool:
        return accepted.package == self.package and accepted.id in self.ids

    def __str__(self) -> str:
        name = " = ".join(self.ids)
        mended = f"`make lock` for {' or '.join(self.fixed_in)}" if self.fixed_in else "no version mends it yet"
        return f"{self.package} {self.version}: {name}: {self.description[:200]}; {mended}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What PyPI knows of one lock file's packages."""

    audited: frozenset[str]
    unknown: tuple[str, ...]
    """Packages that it could not be asked about, sorted."""
    vulnerabilities: tuple[Vulnerability, ...]


class NoAnswer(Exception):
    """The message says why in one line."""


def pinned(lock: Path) -> list[str]:
    """The packages' names in canonical form. Raises ValueError for a line that pins nothing."""
    lines = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    for line in lines:
        if _PIN.fullmatch(line) is None:
            raise ValueError(f"{lock}: {line!r} pins no version; write name==version (`make lock` does)")
    return [canonicalize_name(line.partition("==")[0]) for line in lines]


def ask(lock: Path) -> Answer:
    """Raises NoAnswer."""
    tool = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json"]
    try:
        done = subprocess.run([*tool, "-r", str(lock)], capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"no answer within {_SECONDS:g} s") from None
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except json.JSONDecodeError:
        # pip-audit ends like this when PyPI is out of reach, with a line or with a traceback.
        raise NoAnswer(done.stderr.strip().rpartition("\n")[2][:200] or f"pip-audit exited {done.returncode}") from None
    return Answer(
        frozenset(each["name"] for each in found if "vulns" in each),
        tuple(sorted(each["name"] for each in found if "skip_reason" in each)),
        tuple(
            Vulnerability(
                each["name"], each["version"], (v["id"], *v["aliases"]), tuple(v["fix_versions"]), v["description"]
            )
            for each in found
            for v in each.get("vulns", ())
        ),
    )


def judge(answer: Answer, accepted: Sequence[Accepted], today: date) -> list[str]:
    """What is wrong, one line each."""
    live = [each for each in accepted if today <= each.until]
    problems = [str(v) for v in answer.vulnerabilities if not any(v.is_accepted_by(each) for each in live)]
    for each in accepted:
        entry = f"pyproject.toml accepts {each.id} of {each.package}"
        if today > each.until:
            problems.append(f"{entry} until {each.until}, which is over: mend it, or give a reason for another day")
        elif each.package in answer.audited and not any(v.is_accepted_by(each) for v in answer.vulnerabilities):
            problems.append(f"{entry}, which it does not have any more: remove the entry")
    return problems


def outcome(lock: Path, answer: Answer) -> str:
    """What was asked, and what was not, in one line."""
    if answer.unknown:
        count = len(answer.unknown) + len(answer.audited)
        unknown = (
            f"{len(answer.unknown)} of {count} packages not found in PyPI's database, {answer.unknown[0]} the first"
        )
        return f"{lock}: not audited: {unknown}"
    return f"{lock}: {len(answer.audited)} packages audited"


def accepted_in(pyproject: Path) -> list[Accepted]:
    """Raises TypeError for an entry with other fields than those of Accepted."""
    table = tomllib.loads(pyproject.read_text())["tool"].get("capstan", {})
    return [Accepted(**entry) for entry in table.get("accepted-vulnerabilities", ())]


def main(locks: Sequence[Path], pyproject: Path) -> int:
    accepted = accepted_in(pyproject)
    problems: list[str] = []
    for lock in locks:
        try:
            names = frozenset(pinned(lock))
            answer = ask(lock)
        except ValueError as error:
            problems.append(str(error))
            continue
        except NoAnswer as error:
            print(f"{lock}: not audited: {error}")
            continue
        missing = names - answer.audited - frozenset(answer.unknown)
        problems += [f"{lock}: {name} is pinned, but pip-audit did not ask about it" for name in sorted(missing)]
        relevant = [each for each in accepted if each.package in names]
        problems += [f"{lock}: {each}" for each in judge(answer, relevant, datetime.now(UTC).date())]
        print(outcome(lock, answer))
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("locks", nargs="+", type=Path, metavar="LOCK")
    parser.add_argument("--pyproject", type=Path, default=Path("pyproject.toml"), help="what is accepted stands in it")
    arguments = parser.parse_args()
    raise SystemExit(main(arguments.locks, arguments.pyproject))
