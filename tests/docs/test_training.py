"""The page on training: every piece of a manifest that it shows is one that the schema accepts."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.features import merge, refusal, spec_of
from tests.support.pages import blocks

PAGE = Path("docs/training.md")
PIECES = [yaml.safe_load(code) for language, code in blocks(PAGE) if language == "yaml"]


def whole(piece: dict[str, Any]) -> dict[str, Any]:
    """A spec with the piece in it, on the model that it shows, or one that takes what it shows."""
    base = next(iter(piece.get("model", {"cnn": {}})))
    spec = spec_of(base, "zero1", [])
    for choice in ("optimizer", "schedule", "data", "model"):
        if choice in piece:
            spec[choice] = {}
    return merge(spec, piece)


@pytest.mark.parametrize("piece", PIECES, ids=lambda piece: ", ".join(piece))
def test_a_piece_of_a_manifest_is_accepted(piece: dict[str, Any]) -> None:
    spec = whole(piece)
    if "compression" in piece:
        spec["framework"] = {"deepspeed": {"zeroStage": 0}}
        spec["training"]["steps"] = 1000
    assert refusal(spec) is None
