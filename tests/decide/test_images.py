"""Pods of one world are of one image, although the operator that replaces one of them knows a newer one; which one that
is, status says by digest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import yaml

from capstan_operator.api.training_job import TrainingJobSpec
from capstan_operator.build.run_config import build_run_config, run_json
from capstan_operator.decide.training_job import decide_training_job
from capstan_operator.observe import Observed, OperatorSettings
from capstan_runtime.contract.run_config import read_job_config
from tests.e2e.releases import REPOSITORY
from tests.support import looks

OLDER, NEWER = "capstan/flax-trainer:0.1.0", "capstan/flax-trainer:9.9.9"


def without_worker_1(spec: dict[str, Any] | None = None, **changes: Any) -> Observed:
    """The operator was replaced by a newer one; then a pod was deleted, and the failure that this is was counted."""
    observed = looks.lived_until("running", spec)
    pods = [replace(pod, image=OLDER, running_since=5.0, **changes) for pod in observed.pods if pod.worker == 0]
    seen = replace(observed, pods=tuple(pods), settings=OperatorSettings(flax_image=NEWER))
    for moment in (100.0, 100.1, 100.2):
        decision = decide_training_job(seen, moment)
        if decision.create:
            return seen
        seen = replace(seen, job=replace(seen.job, status=decision.status))
    raise AssertionError("no pod is to be created")


def images(observed: Observed) -> list[tuple[str, list[str]]]:
    """Of the trainer container of each new pod: its image, and what it is told that it has."""
    found = []
    for pod in decide_training_job(observed, 100.2).create:
        (container,) = pod["spec"]["containers"]
        told = [entry["value"] for entry in container["env"] if entry["name"] == "CAPSTAN_IMAGE"]
        found.append((container["image"], told))
    return found


def test_a_pod_that_is_replaced_beside_others_gets_their_image() -> None:
    assert images(without_worker_1()) == [(OLDER, [])]


def test_it_is_told_that_image_where_it_is_told_any() -> None:
    assert images(without_worker_1({"recordSteps": True})) == [(OLDER, [OLDER])]


@pytest.mark.parametrize(
    "changes",
    [{"running_since": None}, {"is_deleting": True}],
    ids=["that has not started, and may never", "that goes"],
)
def test_a_pod_sets_no_image(changes: dict[str, Any]) -> None:
    observed = without_worker_1()
    pods = tuple(replace(pod, **changes) for pod in observed.pods)
    assert {image for image, _ in images(replace(observed, pods=pods))} == {NEWER}


def test_a_spec_that_names_an_image_has_it() -> None:
    observed = without_worker_1()
    spec = looks.merged(observed.job.spec, {"workers": {"image": "mine:2"}})
    assert images(replace(observed, job=replace(observed.job, spec=spec))) == [("mine:2", [])]


def test_what_pods_read_of_the_run_says_only_what_was_asked_for_and_is_the_same_run_when_it_is_read() -> None:
    """So a release that does not know a field reads it, as long as nobody asked for that."""
    paths = sorted((REPOSITORY / "examples").glob("*/job.yaml"))
    jobs = [one for path in paths for one in yaml.safe_load_all(path.read_text()) if one["kind"] == "TrainingJob"]
    assert len(jobs) > 4
    for document in jobs:
        run = build_run_config(looks.make_job(), TrainingJobSpec.parse(document["spec"]))
        text = run_json(run)
        assert read_job_config(text.encode()) == run
        assert "memoryTier" not in text or "memoryTier" in str(document)


def images_on_status(*resolved: str | None) -> list[str]:
    """Of a running job whose pods' nodes say this of their images."""
    observed = looks.lived_until("running")
    pods = tuple(replace(pod, image_id=image) for pod, image in zip(observed.pods, resolved, strict=True))
    return decide_training_job(replace(observed, pods=pods), 100.0).status.images


def test_status_says_which_image_runs_by_digest() -> None:
    assert images_on_status("trainer@sha256:01", "trainer@sha256:01") == ["trainer@sha256:01"]


def test_a_tag_that_was_moved_between_two_pods_shows() -> None:
    assert images_on_status("trainer@sha256:02", "trainer@sha256:01") == ["trainer@sha256:01", "trainer@sha256:02"]


def test_a_pod_whose_image_is_not_resolved_yet_says_nothing() -> None:
    assert images_on_status("trainer@sha256:01", None) == ["trainer@sha256:01"]
