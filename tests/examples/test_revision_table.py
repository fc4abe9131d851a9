"""The table of revisions shows what status says of each, beside what clients saw."""

from typing import Any

import pytest
from load import Seen
from revisions import Revisions, failure_of, is_live

DIGEST = "blake3:" + "a" * 64


def seen(revision: str, right: int, wrong: int) -> Seen:
    found = Seen(asked=right + wrong)
    for index in range(right + wrong):
        found.note(revision, is_right=index < right, began=0.0, now=1.0)
    return found


@pytest.mark.parametrize(
    ("revision", "cells"),
    [
        # As it is recorded before anything of it exists.
        ({"phase": "Starting"}, ("r", "digits@5", "Starting", "░" * 10 + " 0%", "0/0", "4", "75%", "")),
        (
            {
                "phase": "Canary",
                "weight": 33,
                "ready": 1,
                "total": 1,
                "gates": [
                    {"name": "ErrorRate", "verdict": "Pass"},
                    {"name": "LatencyP99", "verdict": "Inconclusive"},
                    {"name": "Agreement", "verdict": "Fail"},
                ],
            },
            (
                "r",
                "digits@5",
                "Canary",
                "███░░░░░░░ 33%",
                "1/1",
                "4",
                "75%",
                "+ErrorRate  ?LatencyP99  -Agreement",
            ),
        ),
    ],
)
def test_a_row_for_every_revision(revision: dict[str, Any], cells: tuple[str, ...]) -> None:
    table = Revisions({DIGEST: "digits@5"}, seen("r", right=3, wrong=1))
    assert table.row({"name": "r", "digest": DIGEST} | revision) == cells


def test_a_revision_that_is_gone_keeps_its_row() -> None:
    table = Revisions({}, seen("new", right=1, wrong=0))
    table.lines({"status": {"revisions": [{"name": "old", "digest": DIGEST, "phase": "Leaving"}]}})
    heading, old, new, load = table.lines(
        {"status": {"revisions": [{"name": "new", "digest": DIGEST, "phase": "Live"}]}}
    )
    assert heading.split() == ["REVISION", "MODEL", "PHASE", "TRAFFIC", "READY", "ANSWERS", "RIGHT", "GATES"]
    assert old.split() == ["old", "aaaaaaaa", "Gone", "░" * 10, "0%", "0/0"]
    assert new.split() == ["new", "aaaaaaaa", "Live", "░" * 10, "0%", "0/0", "1", "100%"]
    assert load == "1 requests, 0 failed"


def service(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {"generation": 2},
        "spec": {"replicas": 2},
        "status": {
            "observedGeneration": 2,
            "conditions": [{"type": "UpToDate", "status": "True"}],
            "model": {"digest": DIGEST},
            "ready": "2/2",
            **status,
        },
    }


def test_a_service_is_live_when_all_its_pods_serve_what_its_newest_spec_asks_for() -> None:
    assert is_live(service(), DIGEST)
    assert not is_live(service(observedGeneration=1), DIGEST)
    assert not is_live(service(conditions=[{"type": "UpToDate", "status": "False"}]), DIGEST)
    assert not is_live(service(ready="1/2"), DIGEST)
    assert not is_live(service(), "blake3:other")
    assert not is_live({"metadata": {"generation": 1}, "spec": {"replicas": 2}}, DIGEST)


def test_why_a_checkpoint_was_given_up_is_said_of_its_revision_alone() -> None:
    failure = {"reason": "GateFailed", "message": "it is wrong"}
    found = service(revisions=[{"name": "a", "digest": "other"}, {"name": "b", "digest": DIGEST, "failure": failure}])
    assert failure_of(found, DIGEST) == failure
    assert failure_of(found, "other") is None
