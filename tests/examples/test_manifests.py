"""Every manifest of the examples is what the API server and the operator accept, field by field."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.support.manifests import SPECS, Document, refusals

FILES = sorted(path for path in Path("examples").rglob("*") if path.suffix in (".yaml", ".yml"))


def documents(path: Path) -> list[Document]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", FILES, ids=str)
def test_the_api_server_and_the_operator_accept_it(path: Path) -> None:
    own = [document for document in documents(path) if document["kind"] in SPECS]
    assert own
    for document in own:
        assert refusals(document) == []
        SPECS[document["kind"]].parse(document["spec"])


@pytest.mark.parametrize("path", FILES, ids=str)
def test_every_job_and_benchmark_keeps_what_it_makes_in_a_claim_of_its_example(path: Path) -> None:
    of_example = [document for file in path.parent.glob("*.yaml") for document in documents(file)]
    claims = {one["metadata"]["name"] for one in of_example if one["kind"] == "PersistentVolumeClaim"}
    places = {"TrainingJob": "checkpoint", "Benchmark": "results"}
    stores = [one["spec"][places[one["kind"]]]["store"] for one in documents(path) if one["kind"] in places]
    assert {store["claim"]["name"] for store in stores} <= claims


def test_the_service_of_the_digits_changes_its_model_and_nothing_else() -> None:
    folder = Path("examples/digits-service")
    services = [
        document
        for file in ("service.yaml", "good.yaml", "bad.yaml")
        for document in documents(folder / file)
        if document["kind"] == "InferenceService"
    ]
    models = [service["spec"].pop("modelRef") for service in services]
    assert models == [{"trainingJob": {"name": name}} for name in ("digits-v1", "digits-v2", "digits-hasty")]
    assert services == [services[0]] * 3


def test_the_models_of_the_digits_are_measured_on_the_same_held_out_samples() -> None:
    """Which these are follows from the seed."""
    folder = Path("examples/digits-service")
    jobs = [one for file in folder.glob("*.yaml") for one in documents(file) if one["kind"] == "TrainingJob"]
    assert sorted(job["metadata"]["name"] for job in jobs) == ["digits-hasty", "digits-v1", "digits-v2"]
    assert {job["spec"]["training"]["seed"] for job in jobs} == {1}


def test_the_program_in_the_manifest_is_the_one_that_runs_by_hand() -> None:
    folder = Path("examples/program-torch")
    code = next(one for one in documents(folder / "job.yaml") if one["kind"] == "ConfigMap")
    assert code["data"] == {"train.py": (folder / "train.py").read_text()}
