"""What a check comes to: one line, and what to do."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from capstan_operator.doctor.facts import Unread


class Level(StrEnum):
    """How it stands."""

    OK = "OK"
    WARN = "WARN"
    """It works, or may; somebody should know."""
    FAIL = "FAIL"
    """Something that Capstan needs does not work."""
    SKIP = "SKIP"
    """It could not be looked at."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check."""

    area: str
    check: str
    level: Level
    message: str
    fix: str | None = None
    """None: there is nothing to do."""


class Area:
    """Findings of one area, in order."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.findings: list[Finding] = []

    def ok(self, check: str, message: str) -> None:
        self.findings.append(Finding(self._name, check, Level.OK, message))

    def warn(self, check: str, message: str, fix: str) -> None:
        self.findings.append(Finding(self._name, check, Level.WARN, message, fix))

    def fail(self, check: str, message: str, fix: str) -> None:
        self.findings.append(Finding(self._name, check, Level.FAIL, message, fix))

    def skip(self, check: str, unread: Unread) -> None:
        self.findings.append(Finding(self._name, check, Level.SKIP, unread.why))


def listed(names: Iterable[str], most: int = 3) -> str:
    """The first of them, and how many more there are."""
    found = list(names)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return ", ".join(found[:most]) + more


def count(number: int, noun: str) -> str:
    """`1 node`, `2 nodes`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
