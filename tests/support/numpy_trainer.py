"""A trainer whose framework is numpy, as a process."""

import os
from typing import TYPE_CHECKING

from capstan_runtime.entry import begin

if TYPE_CHECKING:
    from capstan_runtime.loop import MakeEngine


def load() -> "MakeEngine":
    from capstan_runtime.checkpoint.reader import OpenCheckpoint
    from tests.support.faulty_engine import FaultyEngine, read_slowly

    if "SLOW_READ" in os.environ:
        OpenCheckpoint.verify = read_slowly  # type: ignore[method-assign]
    return FaultyEngine


if __name__ == "__main__":
    begin(load)
