"""Schemas of the built-in kinds: derived once in a test run, not once more by each API server that starts."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory


@cache
def _shared() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="capstan-schemas-")


def share_schemas(home: Path) -> None:
    """A server of this home, which has not started yet, looks for them where all others of the run keep them."""
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "cache").exists():
        (home / "cache").symlink_to(_shared().name)
