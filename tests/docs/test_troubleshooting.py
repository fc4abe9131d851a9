"""The page on troubleshooting knows every word that a status can say."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path

import pytest

from capstan_operator.decide.bench.reasons import BenchReason
from capstan_operator.decide.reasons import Reason
from capstan_operator.decide.serving.reasons import ServingReason
from capstan_runtime.contract.exit_codes import ExitCode

TROUBLESHOOTING = Path("docs/troubleshooting.md")


def _chapter(title: str) -> str:
    text = TROUBLESHOOTING.read_text()
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize(
    ("title", "reasons"), [("TrainingJobs", Reason), ("InferenceServices", ServingReason), ("Benchmarks", BenchReason)]
)
def test_every_reason_of_a_kind_has_something_to_do_and_no_other_is_listed(title: str, reasons: type[StrEnum]) -> None:
    rows = re.findall(r"^\| ([A-Z][^|]*) \| [^|]+ \|$", _chapter(title), re.MULTILINE)
    listed = [reason for row in rows for reason in row.split(", ")]
    assert sorted(listed) == sorted(reason.value for reason in reasons)


def test_every_exit_code_has_something_to_do() -> None:
    listed = re.findall(r"^\| (\d+) \|", _chapter("Exit codes"), re.MULTILINE)
    assert [int(code) for code in listed] == sorted(ExitCode)
