"""`make audit`: a known vulnerability is red; what nobody could be asked about is said, and is not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.pypi import pypi

TODAY = datetime.now(UTC).date()
HARMFUL = {
    "vulnerabilities": [
        {
            "id": "PYSEC-2026-7",
            "aliases": ["CVE-2026-7777"],
            "details": "Any request stops the server.",
            "fixed_in": ["1.10.0", "1.9.2"],
        }
    ]
}
RELEASES: dict[str, Any] = {"web-server/1.9.1": HARMFUL, "safe/2.0": {"vulnerabilities": []}}
LOCK = "# made by a tool\nsafe==2.0\nWeb_Server==1.9.1\n"
FOUND = (
    "web-server 1.9.1: PYSEC-2026-7 = CVE-2026-7777: Any request stops the server.; `make lock` for 1.9.2 or 1.10.0\n"
)


def audit(folder: Path, environment: Mapping[str, str], lock: str = LOCK, accepted: str = "") -> tuple[int, str, str]:
    """Exit status, what it printed and what it complained of."""
    (folder / "my.lock").write_text(lock)
    (folder / "pyproject.toml").write_text(f"[tool.other]\n{accepted}")
    script = Path("scripts/audit.py").absolute()
    done = subprocess.run(
        [sys.executable, script, "my.lock"],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def acceptance(until: date, *, name: str = "CVE-2026-7777", package: str = "web-server") -> str:
    return (
        "[[tool.capstan.accepted-vulnerabilities]]\n"
        f'package = "{package}"\nid = "{name}"\nreason = "no server is started"\nuntil = {until}\n'
    )


def test_a_known_vulnerability_is_red_and_tells_what_mends_it(tmp_path: Path) -> None:
    with pypi(tmp_path, RELEASES) as environment:
        found = audit(tmp_path, environment)
    assert found == (1, "my.lock: 2 packages audited\n", f"my.lock: {FOUND}")


@pytest.mark.parametrize("name", ["PYSEC-2026-7", "CVE-2026-7777"])
def test_what_is_accepted_by_any_of_its_names_is_green_until_its_day(tmp_path: Path, name: str) -> None:
    with pypi(tmp_path, RELEASES) as environment:
        found = audit(tmp_path, environment, accepted=acceptance(TODAY + timedelta(days=1), name=name))
    assert found == (0, "my.lock: 2 packages audited\n", "")


def test_an_acceptance_that_is_over_is_red(tmp_path: Path) -> None:
    yesterday = TODAY - timedelta(days=1)
    with pypi(tmp_path, RELEASES) as environment:
        status, _, complaint = audit(tmp_path, environment, accepted=acceptance(yesterday))
    assert (status, complaint.splitlines()) == (
        1,
        [
            f"my.lock: {FOUND.rstrip()}",
            f"my.lock: pyproject.toml accepts CVE-2026-7777 of web-server until {yesterday}, which is over: mend it, or"
            " give a reason for another day",
        ],
    )


def test_an_acceptance_that_nothing_needs_is_red(tmp_path: Path) -> None:
    with pypi(tmp_path, {**RELEASES, "web-server/1.9.1": {"vulnerabilities": []}}) as environment:
        found = audit(tmp_path, environment, accepted=acceptance(TODAY))
    assert found == (
        1,
        "my.lock: 2 packages audited\n",
        "my.lock: pyproject.toml accepts CVE-2026-7777 of web-server, which it does not have any more: remove the"
        " entry\n",
    )


def test_packages_that_pypi_does_not_know_are_counted_and_no_failure(tmp_path: Path) -> None:
    with pypi(tmp_path, {"safe/2.0": {"vulnerabilities": []}}) as environment:
        found = audit(tmp_path, environment)
    assert found == (
        0,
        "my.lock: not audited: 1 of 2 packages not found in PyPI's database, web-server the first\n",
        "",
    )


def test_a_vulnerability_is_red_though_another_package_is_not_known(tmp_path: Path) -> None:
    with pypi(tmp_path, {"web-server/1.9.1": HARMFUL}) as environment:
        status, said, complaint = audit(tmp_path, environment)
    assert (status, complaint) == (1, f"my.lock: {FOUND}")
    assert said == "my.lock: not audited: 1 of 2 packages not found in PyPI's database, safe the first\n"


def test_a_database_that_fails_is_said_and_no_failure(tmp_path: Path) -> None:
    with pypi(tmp_path, {**RELEASES, "safe/2.0": 503}) as environment:
        status, said, complaint = audit(tmp_path, environment)
    assert (status, complaint) == (0, "")
    assert said.startswith("my.lock: not audited: ")
    assert said.count("\n") == 1


def test_a_database_out_of_reach_is_said_and_no_failure(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: a connection is refused
        environment = {"HTTPS_PROXY": f"http://127.0.0.1:{closed.getsockname()[1]}", "XDG_CACHE_HOME": str(tmp_path)}
        status, said, complaint = audit(tmp_path, {**environment, "PIP_NO_CACHE_DIR": "1"})
    assert (status, complaint) == (0, "")
    assert said.startswith("my.lock: not audited: ")
    assert "Unable to connect to proxy" in said


def test_a_line_that_pins_nothing_is_red(tmp_path: Path) -> None:
    found = audit(tmp_path, {}, lock="safe>=2.0\n")
    assert found == (1, "", "my.lock: 'safe>=2.0' pins no version; write name==version (`make lock` does)\n")
