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
    rows += [f"| {figure.name} | {figure.value:,.3g} {figure.unit} | `{figure.command}` |" for figure in figures]
    return "\n".join(rows)
