"""The page on the architecture and its pictures name files, phases and verdicts that there are, and all of those."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from capstan_operator.api.inference_service_status import RolloutStatus
from capstan_operator.api.meta import Phase
from capstan_operator.api.recovery_status import RecoverySeconds
from capstan_operator.decide.actions import ACTIONS
from capstan_runtime.bench.statistics.verdict import Verdict

PAGE = Path("docs/architecture.md")
PICTURES = Path("docs/pictures")
SOURCES = [Path("operator/capstan_operator"), Path("trainer_images/capstan_runtime"), Path("trainer_images"), Path()]


def _words(picture: str) -> list[str]:
    """The lines of text in a picture."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", (PICTURES / f"{picture}.svg").read_text())


def test_every_file_that_is_named_exists() -> None:
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", PAGE.read_text()))
    for picture in PICTURES.glob("*.svg"):
        named |= set(re.findall(r"\b[a-z_/]+(?:\.py|/)(?![\w*])", "\n".join(_words(picture.stem))))
    missing = [name for name in named if not any((source / name).exists() for source in SOURCES)]
    # Of a module without its folder it is enough that there is one of that name.
    assert [name for name in missing if not list(Path().glob(f"trainer_images/capstan_runtime/*/{name}"))] == []


def test_every_picture_is_shown() -> None:
    shown = re.findall(r"\(pictures/([\w-]+)\.svg\)", PAGE.read_text())
    assert sorted(shown) == sorted(picture.stem for picture in PICTURES.glob("*.svg"))


def test_the_picture_of_a_jobs_life_has_every_phase() -> None:
    assert {phase.value for phase in Phase} <= set(_words("job"))


def test_the_picture_of_a_rollout_has_every_phase() -> None:
    phases = set(get_args(RolloutStatus.model_fields["phase"].annotation))
    assert phases <= set(_words("rollout"))


def test_the_picture_of_a_gate_has_every_verdict() -> None:
    assert set(get_args(Verdict)) <= set(_words("gate"))


def test_what_follows_from_a_failure_is_told_for_every_class() -> None:
    table = PAGE.read_text().split("| class of failure |")[1].split("\n\n")[0]
    told = [name for row in re.findall(r"^\| ([A-Z][\w, ]+) \|", table, re.MULTILINE) for name in row.split(", ")]
    assert sorted(told) == sorted(failure.value for failure in ACTIONS)


def test_the_parts_of_a_recovery_are_all_named() -> None:
    parts = {field.alias or name for name, field in RecoverySeconds.model_fields.items()} - {"total"}
    assert parts <= set(re.findall(r"`(\w+)`", PAGE.read_text()))
