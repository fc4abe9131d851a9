"""A measured figure, and the table of them."""

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Figure:
    """One number with what it took to get it."""

    name: str
    value: float
    unit: str
    command: str


def environment() -> str:
    """One line that says what was measured on."""
    cores, load = os.cpu_count(), os.getloadavg()[0]
    machine = f"{platform.machine()}, {cores} cores, load {load:.1f}, Python {platform.python_version()}"
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine}"


def markdown(figures: Iterable[Figure]) -> str:
    rows = ["| what | figure | command |", "| --- | ---: | --- |"]
    rows += [f"| {one.name} | {readable(one.value)} {one.unit} | `{one.command}` |" for one in figures]
    return "\n".join(rows)


def readable(value: float) -> str:
    """Three digits, and all that are before the point."""
    return f"{value:,.0f}" if 1000 <= abs(value) < float("inf") else f"{value:.3g}"
