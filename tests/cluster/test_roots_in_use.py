"""Which checkpoints of a job are served: told of each change, by what statuses say, whoever wrote them."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_operator.cluster.objects import ObjectRecord
from capstan_operator.cluster.roots_in_use import MOST_ROOTS, RootsInUse
from capstan_operator.cluster.work_queue import ObjectKey

DIGITS, LETTERS = ObjectKey("default", "digits"), ObjectKey("default", "letters")
SERVICES = [ObjectKey("default", name, "InferenceService") for name in ("a", "b")]


def service(key: ObjectKey, status: dict[str, Any]) -> ObjectRecord:
    return ObjectRecord(key, key.name, "1", 1, 0.0, False, b"{}", orjson.dumps(status), False)


def revision(name: str, root: str, job: str = "digits", **more: Any) -> dict[str, Any]:
    return {"name": name, "digest": root, "job": job, "phase": "Live", **more}


def model(root: str, run: str = "default/digits/3f1c") -> dict[str, Any]:
    return {"source": "trainingJob digits", "run": run, "digest": root, "store": {}}


ROLLOUT = {
    "stable": "a-1",
    "model": model("r3"),
    "revisions": [
        revision("a-1", "r1"),
        revision("a-2", "r2"),
        revision("a-0", "r0", failure={"reason": "GateFailed"}),
        revision("a-9", "r9", job="letters"),
    ],
}


def test_what_is_proven_on_its_way_or_to_be_served_next_is_in_use_and_what_was_given_up_is_not() -> None:
    told: list[ObjectKey] = []
    roots = RootsInUse(told.append)
    roots.note(SERVICES[0], service(SERVICES[0], ROLLOUT))
    assert (roots.of(DIGITS), roots.of(LETTERS), told) == (("r1", "r2", "r3"), ("r9",), [DIGITS, LETTERS])
    roots.note(SERVICES[0], service(SERVICES[0], ROLLOUT | {"message": "another one"}))
    assert told == [DIGITS, LETTERS]
    roots.note(SERVICES[1], service(SERVICES[1], {"model": model("r1")}))
    assert told == [DIGITS, LETTERS], "the same is in use"
    roots.note(SERVICES[0], None)
    assert (roots.of(DIGITS), roots.of(LETTERS), told) == (("r1",), (), [DIGITS, LETTERS, DIGITS, LETTERS])


@pytest.mark.parametrize(
    "status",
    [
        {},
        {"model": None, "revisions": None},
        {
            "model": {"run": 7, "digest": "r"},
            "revisions": [None, {}, {"job": "digits"}, {"digest": 1, "job": "digits"}],
        },
        {"model": model("r", "digits")},
        {"model": model("r", "other/digits/3f1c")},
    ],
)
def test_what_makes_no_sense_or_is_of_another_namespace_keeps_nothing(status: dict[str, Any]) -> None:
    roots = RootsInUse(lambda job: None)
    roots.note(SERVICES[0], service(SERVICES[0], status))
    assert roots.of(DIGITS) == ()


def test_of_too_many_those_that_are_proven_come_first() -> None:
    roots = RootsInUse(lambda job: None)
    many = [revision(f"a-{number}", f"r{number:03}") for number in range(MOST_ROOTS + 20)]
    roots.note(SERVICES[0], service(SERVICES[0], {"stable": many[-1]["name"], "revisions": many}))
    assert roots.of(DIGITS) == (*(f"r{number:03}" for number in range(MOST_ROOTS - 1)), many[-1]["digest"])


statuses = st.none() | st.fixed_dictionaries(
    {
        "revisions": st.lists(
            st.builds(revision, st.just("x"), st.sampled_from("pqr"), st.sampled_from(["digits", "letters"])),
            max_size=3,
        )
    }
)


@given(st.lists(st.tuples(st.sampled_from(SERVICES), statuses), max_size=10))
def test_whatever_happened_before_only_the_newest_of_each_service_counts(
    changes: list[tuple[ObjectKey, dict[str, Any] | None]],
) -> None:
    told: dict[ObjectKey, tuple[str, ...]] = {}
    roots = RootsInUse(lambda job: told.update({job: roots.of(job)}))
    fresh, newest = RootsInUse(lambda job: None), dict(changes)
    for key, status in changes:
        roots.note(key, service(key, status) if status is not None else None)
    for key, status in newest.items():
        fresh.note(key, service(key, status) if status is not None else None)
    for job in (DIGITS, LETTERS):
        assert roots.of(job) == fresh.of(job) == told.get(job, ())
