"""A trainer whose framework is numpy, as a process."""

import os
from typing import TYPE_CHECKING

from capstan_runtime.entry import begin

if TYPE_CHECKING:
    from capstan_runtime.loop import MakeEngine


def load() -> "MakeEngine":
    from capstan_runtime.checkpoint import background, retention
    from tests.support.faulty_engine import FaultyEngine, commit_slowly, read_slowly

    if "SLOW_READ" in os.environ:
        retention.read_back = read_slowly  # type: ignore[assignment]
    if "SLOW_COMMIT" in os.environ:
        background.commit = commit_slowly  # type: ignore[assignment]
    return FaultyEngine


if __name__ == "__main__":
    begin(load)
