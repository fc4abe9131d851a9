"""What all children of a TrainingJob have in common: computed names, labels, and an owner."""

from typing import Any, Protocol

from capstan_operator.api.meta import (
    API_VERSION,
    LABEL_INCARNATION,
    LABEL_JOB,
    LABEL_MANAGED_BY,
    LABEL_WORKER,
    MANAGED_BY,
)

LABEL_LENGTH = 63
"""Longest label value and host name (RFC 1123); a pod's name is its host name."""
INCARNATION_DIGITS = 4
"""Room kept in names. The budgets of all causes together rarely allow more than 9,999 pods of one worker."""


class Owner(Protocol):
    """The object of ours that a child belongs to; an ObservedJob is one."""

    @property
    def namespace(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def uid(self) -> str: ...


def secret_name(job_name: str) -> str:
    """`<job>-run`."""
    return f"{job_name}-run"


def pod_name(job_name: str, worker: int, incarnation: int) -> str:
    """`<job>-worker-<worker>`, from the second pod of a worker on with `-<incarnation>`."""
    first = f"{job_name}-worker-{worker}"
    return f"{first}-{incarnation}" if incarnation else first


def longest_job_name(workers: int) -> int:
    """How many characters a job of `workers` workers may have in its name, so that every pod's name fits."""
    suffix = pod_name("", workers - 1, 10**INCARNATION_DIGITS - 1)
    return LABEL_LENGTH - len(suffix)


def job_labels(job: Owner) -> dict[str, str]:
    """Labels of every child."""
    return {LABEL_MANAGED_BY: MANAGED_BY, LABEL_JOB: job.name}


def pod_labels(job: Owner, worker: int, incarnation: int) -> dict[str, str]:
    """Labels of one pod: by them it is found again."""
    return job_labels(job) | {LABEL_WORKER: str(worker), LABEL_INCARNATION: str(incarnation)}


def owner_reference(owner: Owner, kind: str = "TrainingJob") -> dict[str, Any]:
    """Makes the garbage collector remove the child with its owner."""
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
