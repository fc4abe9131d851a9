"""The table of jobs shows every status a job can have, the emptiest too."""

from typing import Any

import live
import pytest


@pytest.mark.parametrize(
    ("status", "cells"),
    [
        ({}, ("j", "Pending", "░" * 20, "", "", "", "", "")),
        # Known from the spec before the first step is made.
        ({"phase": "Starting", "steps": 200}, ("j", "Starting", "░" * 20, "0/200", "", "", "", "")),
        (
            {
                "phase": "Restarting",
                "step": 50,
                "steps": 200,
                "percent": 25,
                "metrics": {"loss": 1.23456, "accuracy": 0.5, "samples_per_second": 1234.5},
                "checkpoint": {"summary": "50@3fa9c1d2"},
                "restarts": {"total": 1},
            },
            (
                "j",
                "Restarting",
                "█" * 5 + "░" * 15,
                "50/200",
                "1.2346",
                "0.500",
                "1,234",
                "50@3fa9c1d2  1 restarts",
            ),
        ),
    ],
)
def test_a_row_for_every_status(status: dict[str, Any], cells: tuple[str, ...]) -> None:
    assert live.row({"metadata": {"name": "j"}, "status": status}) == cells
