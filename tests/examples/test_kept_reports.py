"""The reports that are kept beside the example Benchmarks are those of their results, as they are made today."""

from __future__ import annotations

from pathlib import Path

import pytest

from capstan_runtime.bench.reporting import parse_result
from capstan_runtime.bench.reports import markdown
from capstan_runtime.bench.reports.html import page

FOLDERS = sorted(Path("examples").glob("bench-*/report"))
LARGEST = 400_000
"""Bytes of a file: a repository is no store."""


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_a_kept_report_is_that_of_its_result(folder: Path) -> None:
    result = parse_result((folder / "result.json").read_bytes(), str(folder))
    remade = f"make it again: capstan bench report {folder} --output FOLDER"
    assert (folder / "report.md").read_text() == markdown(result), remade
    assert (folder / "report.html").read_text() == page(result), remade
    assert all(path.stat().st_size < LARGEST for path in folder.iterdir())
    assert {one.node for one in result.environments} == {""}


def test_every_example_has_one() -> None:
    assert {folder.parent for folder in FOLDERS} == set(Path("examples").glob("bench-*"))
