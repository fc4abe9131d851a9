"""Prints what the extras given as arguments ask for in pyproject.toml, one requirement a line, Capstan itself left out.

Standard library only: it runs in a container before anything is installed.
"""

import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def requirements(project: dict[str, Any], extras: Iterable[str]) -> list[str]:
    """Of the package and `extras`, extras of extras included, each once. KeyError names an extra that there is not."""
    own = re.compile(rf"{project['name']}\[(.+)\]")
    found: dict[str, None] = dict.fromkeys(project["dependencies"])
    waiting = list(extras)
    while waiting:
        for requirement in project["optional-dependencies"][waiting.pop(0)]:
            if match := own.fullmatch(requirement):
                waiting += match[1].split(",")
            else:
                found[requirement] = None
    return list(found)


if __name__ == "__main__":
    print("\n".join(requirements(tomllib.loads(Path("pyproject.toml").read_text())["project"], sys.argv[1:])))
