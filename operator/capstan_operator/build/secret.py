"""The one Secret of a job: what its pods are told, and the token with which they are told more."""

import base64
from typing import Any

from capstan_operator.build.children import Owner, job_labels, owner_reference, secret_name
from capstan_operator.build.run_config import run_json
from capstan_runtime.contract.run_config import JobConfig

RUN_FILE = "run.json"
TOKEN_FILE = "token"  # nosec B105  # a name


def build_secret(job: Owner, run: JobConfig, token: str) -> dict[str, Any]:
    """Secret `<job>-run`. Immutable: all pods of a job, whenever they start, must read the same run."""
    files = {RUN_FILE: run_json(run), TOKEN_FILE: token}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": secret_name(job.name),
            "namespace": job.namespace,
            "labels": job_labels(job),
            "ownerReferences": [owner_reference(job)],
        },
        "type": "Opaque",
        "immutable": True,
        "data": {name: base64.b64encode(text.encode()).decode() for name, text in files.items()},
    }
