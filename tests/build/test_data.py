"""What pods get for data that is in a bucket."""

from __future__ import annotations

from typing import Any

import pytest

from capstan_operator.api.training_job import TrainingJobSpec
from capstan_operator.build.pod import build_pod_template
from capstan_operator.observe import OperatorSettings
from tests.support.looks import SPEC, make_job, merged


def pod_of(**changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The trainer's container, and the volumes."""
    spec = build_pod_template(make_job(), TrainingJobSpec.parse(merged(SPEC, changes)), OperatorSettings())["spec"]
    return spec["containers"][0], spec["volumes"]


def images(**more: Any) -> dict[str, Any]:
    return {"digits": None, "images": {"path": "s3://b/pictures", "size": 8, **more}}


def test_data_in_a_bucket_has_a_place_for_copies_and_an_account_of_its_own() -> None:
    bucket = {"secretName": "for-data", "endpoint": "http://minio:9000", "cacheSize": "20GiB"}
    checkpoints = {"store": {"claim": None, "object": {"url": "s3://c", "secretName": "for-checkpoints"}}}
    trainer, volumes = pod_of(data=images(bucket=bucket), checkpoint=checkpoints)
    assert trainer["envFrom"] == [
        {"secretRef": {"name": "for-checkpoints"}},
        {"prefix": "CAPSTAN_DATA_ACCOUNT_", "secretRef": {"name": "for-data"}},
    ]
    assert {"name": "CAPSTAN_DATA_CACHE", "value": "/var/cache/capstan/data"} in trainer["env"]
    assert {"name": "data", "mountPath": "/var/cache/capstan/data"} in trainer["volumeMounts"]
    assert {"name": "data", "emptyDir": {"sizeLimit": "20Gi"}} in volumes


@pytest.mark.parametrize(
    ("changes", "is_fetched"),
    [
        ({}, False),
        ({"data": {"digits": None, "arrays": {"path": "/data/x.npz"}}}, False),
        ({"dataQuality": {"reference": "/data/report.json"}}, False),
        ({"dataQuality": {"reference": "s3://b/report.json"}}, True),
        ({"data": images()}, True),
    ],
)
def test_only_what_is_in_a_bucket_needs_a_place_for_copies(changes: dict[str, Any], is_fetched: bool) -> None:
    trainer, volumes = pod_of(**changes)
    assert any(volume == {"name": "data", "emptyDir": {}} for volume in volumes) is is_fetched
    assert any(entry["name"] == "CAPSTAN_DATA_CACHE" for entry in trainer["env"]) is is_fetched
    assert "envFrom" not in trainer
