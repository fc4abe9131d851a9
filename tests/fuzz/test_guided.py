"""The same targets led by coverage, each for some seconds, as `make fuzz` does for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.table import BROKEN, TARGETS
from tests.fuzz.target import Target

pytest.importorskip("atheris", reason="atheris has wheels for Linux on x86-64 alone")

SECONDS = 10


@pytest.mark.full
@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_what_coverage_leads_to_is_taken_or_refused_as_documented(target: Target, tmp_path: Path) -> None:
    fuzzed = fuzz(target, SECONDS, tmp_path)
    assert (fuzzed.finding, fuzzed.told) == (None, "")
    assert fuzzed.executions > len(target.seeds())


@pytest.mark.full
def test_a_parser_that_breaks_is_found(tmp_path: Path) -> None:
    fuzzed = fuzz(BROKEN, SECONDS, tmp_path)
    assert "ZeroDivisionError" in fuzzed.told
    assert fuzzed.finding is not None
    found = fuzzed.finding.read_bytes()
    fuzzed.finding.unlink()
    with pytest.raises(ZeroDivisionError):
        BROKEN.feed(found)
