"""What all children of a Benchmark have in common: names, labels, and an owner."""

from typing import Any

from capstan_operator.api.meta import LABEL_BENCHMARK, LABEL_MANAGED_BY, LABEL_TRIAL, MANAGED_BY
from capstan_operator.build.children import Owner, owner_reference

LONGEST_BENCHMARK_NAME = 32
"""Characters a Benchmark may have in its name: those of its jobs and services, their pods and revisions follow."""
BENCHMARK_NAME = "^[a-z]([-a-z0-9]*[a-z0-9])?$"
"""An InferenceService is named after it, whose name begins with a letter."""


def child_name(benchmark: str, trial: str, attempt: int) -> str:
    """Of a TrainingJob, an InferenceService or a pod: `<benchmark>-<trial>`, from the second attempt on with
    `-<attempt>`. Pods of one trial add their rank."""
    first = f"{benchmark}-{trial}"
    return first if attempt == 1 else f"{first}-{attempt}"


def metadata(owner: Owner, name: str, trial: str) -> dict[str, Any]:
    """Of a child."""
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": {LABEL_MANAGED_BY: MANAGED_BY, LABEL_BENCHMARK: owner.name, LABEL_TRIAL: trial},
        "ownerReferences": [owner_reference(owner, "Benchmark")],
    }
