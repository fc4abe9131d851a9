"""What the linters pass over says what it is and why."""

from __future__ import annotations

import re
from pathlib import Path

FOLDERS = ("operator", "trainer_images", "scripts", "examples")
EXPLAINED = re.compile(r"# nosec B\d{3}  # \S")


def test_every_exception_for_bandit_names_its_rule_and_its_reason() -> None:
    lines = [
        f"{path}: {line.strip()}"
        for folder in FOLDERS
        for path in sorted(Path(folder).rglob("*.py"))
        for line in path.read_text().splitlines()
        if "# nosec" in line
    ]
    assert lines, "there are exceptions, so this looks at the wrong place"
    assert [line for line in lines if not EXPLAINED.search(line)] == []
