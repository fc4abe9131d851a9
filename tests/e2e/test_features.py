"""Features as a user has them: a manifest on the embedded cluster, a trainer that is killed, and a success.

`make test` takes one of them, another one each time: CAPSTAN_SAMPLE_SEED repeats one that failed. All of them, each in
one framework, take half an hour, and run in `make test-full`. What the whole matrix of frameworks and stages trains is
compared in `tests/numerics/test_features.py`.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.e2e.cluster import NAMESPACE, Cluster
from tests.support.features import (
    SAVE_EVERY,
    SEED,
    STEPS,
    VARIANTS,
    Document,
    Feature,
    FeatureRun,
    label,
    load_features,
    refusal,
    run_config,
    spec_of,
    write_data,
)


def variant_of(feature: Feature, chance: random.Random) -> str:
    """One that the schema accepts."""
    return chance.choice(
        [variant for variant in VARIANTS if refusal(spec_of(feature.base, variant, [feature.patch])) is None]
    )


def everything() -> list[tuple[Feature, str]]:
    chance = random.Random(SEED)
    return [(feature, variant_of(feature, chance)) for feature in load_features()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features") / "data"
    write_data(folder)
    return folder


def manifest(name: str, spec: Document, data: Path) -> Document:
    """A job with `data` in /data, whose rank 0 is killed after the first save."""
    volume = {"name": "data", "hostPath": {"path": str(data)}}
    mount = {"name": "data", "mountPath": "/data", "readOnly": True}
    spec["workers"]["podPatch"] = {
        "spec": {"volumes": [volume], "containers": [{"name": "trainer", "volumeMounts": [mount]}]}
    }
    spec["checkpoint"]["store"] = {"claim": {"name": name}}
    spec["chaos"] = [{"name": "killed", "fault": "Kill", "step": SAVE_EVERY + 1, "rank": 0}]
    return {"apiVersion": "capstan.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": name}, "spec": spec}


def survives(cluster: Cluster, feature: Feature, variant: str, data: Path) -> None:
    if cluster.name != "embedded":
        pytest.skip("what the API server does with it is tested elsewhere; this is about trainers")
    name = f"{feature.name}-{variant}"
    cluster.claim(name)
    # The models that it learns or begins from, where it will find them.
    claim = cluster.home / "node" / "volumes" / NAMESPACE / name
    FeatureRun(claim, run_config(spec_of(feature.base, variant, [feature.patch], str(data))))
    cluster.create_job(manifest(name, spec_of(feature.base, variant, [feature.patch]), data))
    try:
        status = cluster.wait_phase(name, "Succeeded", seconds=180)
    finally:
        cluster.delete_job(name)
        cluster.wait_gone(lambda: cluster.pods(name), f"pods of {name}")
    assert status["step"] == STEPS
    assert status["restarts"] == {"total": 1, "byCause": {"Crash": 1}}
    assert status["metrics"]["validation_loss"] > 0


@pytest.mark.parametrize(("feature", "variant"), random.Random(SEED).sample(everything(), 1), ids=label)
def test_a_sampled_feature_survives_a_kill_on_a_cluster(
    cluster: Cluster, feature: Feature, variant: str, data: Path
) -> None:
    print(f"CAPSTAN_SAMPLE_SEED={SEED}")
    survives(cluster, feature, variant, data)


@pytest.mark.full
@pytest.mark.parametrize(("feature", "variant"), everything(), ids=label)
def test_every_feature_survives_a_kill_on_a_cluster(
    cluster: Cluster, feature: Feature, variant: str, data: Path
) -> None:
    survives(cluster, feature, variant, data)
