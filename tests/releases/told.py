"""What a release makes of manifests, as JSON: run by the release itself, of which only the operator is there."""

import json
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from capstan_operator.api.benchmark import BenchmarkSpec
from capstan_operator.api.inference_service import InferenceServiceSpec
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.decide.bench.plan import plan_digest, plan_trials
from capstan_operator.decide.blueprint import Blueprint, read_blueprint
from capstan_operator.observe import ObservedJob, OperatorSettings


def told(document: dict[str, Any]) -> object:
    """What is on status for ever, and compared with what the spec asks for at every look; None: the release knows
    nothing of it."""
    name, spec = document["metadata"]["name"], document.get("spec")
    match document["kind"]:
        case "TrainingJob":
            job = ObservedJob("default", name, "7f3a", 1, 0.0, False, spec, TrainingJobStatus())
            blueprint = read_blueprint(job, OperatorSettings())
            return [blueprint.run_digest, blueprint.pods_digest] if isinstance(blueprint, Blueprint) else None
        case "Benchmark":
            parsed = BenchmarkSpec.parse(spec)
            return plan_digest(plan_trials(parsed), parsed, None)
        case "InferenceService":
            return InferenceServiceSpec.parse(spec).model_dump(mode="json", exclude_defaults=True)
    return None


def known(document: dict[str, Any]) -> object:
    try:
        return told(document)
    except ValidationError:
        return None  # it has fields that came later


def main() -> None:
    documents = [
        (path, document) for path in map(Path, sys.argv[1:]) for document in yaml.safe_load_all(path.read_text())
    ]
    found = {
        f"{path.parent.name}/{path.name} {document['kind']} {document['metadata']['name']}": known(document)
        for path, document in documents
    }
    print(json.dumps({name: value for name, value in found.items() if value is not None}))


if __name__ == "__main__":
    main()
