"""Exits 1 unless every line of the lock file $1 is what this environment has installed."""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.version import Version


def differences(lock: str) -> list[str]:
    """One line per pinned package that is missing here or has another version."""
    found = []
    for line in lock.splitlines():
        if not line or line.startswith("#"):
            continue
        name, _, pinned = line.partition("==")
        try:
            installed = Version(version(name)).public  # one package says v1.0 for 1.0
        except PackageNotFoundError:
            installed = "missing"
        if installed != pinned:
            found.append(f"{name}: locked {pinned}, installed {installed}; run `make setup`")
    return found


if __name__ == "__main__":
    problems = differences(Path(sys.argv[1]).read_text())
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    raise SystemExit(1 if problems else 0)
