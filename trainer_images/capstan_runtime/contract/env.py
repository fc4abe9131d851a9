"""Names that a pod and the operator share: environment variables, paths, ports."""

import json
from collections.abc import Mapping
from pathlib import PurePosixPath

RUN_CONFIG = "CAPSTAN_RUN_CONFIG"
"""Path of `run.json` (RunConfig)."""
TOKEN_FILE = "CAPSTAN_TOKEN_FILE"  # nosec B105  # a name
"""Path of the bearer token that `/state` and `/membership` ask for."""
SERVE_CONFIG = "CAPSTAN_SERVE_CONFIG"
"""Path of `serve.json` (ServeConfig)."""
STORE = "CAPSTAN_STORE"
"""This job's checkpoints, shared by all workers: an absolute folder, or a URL `s3://bucket/prefix`, `gs://…`, `az://…`.
For a URL the usual variables of the provider apply (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …)."""
DATA_CACHE = "CAPSTAN_DATA_CACHE"
"""Folder on this pod's disk for copies of what data is in buckets; outlives its trainers."""
DATA_ACCOUNT = "CAPSTAN_DATA_ACCOUNT_"
"""Before the names of the provider's variables that hold for the bucket of the data alone, such as
CAPSTAN_DATA_ACCOUNT_AWS_ACCESS_KEY_ID."""
SCRATCH = "CAPSTAN_SCRATCH"
"""Folder on this pod's disk for what a run offloads there. Unset: the system's own for such files."""
MEMORY = "CAPSTAN_MEMORY"
"""Folder in this pod's memory (tmpfs) that outlives its trainers: the memory tier. Unset: there is none."""
SIGNING_KEY = "CAPSTAN_SIGNING_KEY"
"""Path of the PEM private key that signs manifests. Unset: they are not signed."""
TRACKER_SECRETS = "CAPSTAN_TRACKER_SECRETS"
"""Folder in which each tracker that has a Secret has a folder of its keys, a file each: `wandb/api-key`."""
DEVICE_MEMORY = "CAPSTAN_DEVICE_MEMORY"
"""Bytes that a run may take of each device. Unset: what the device says; CPUs say nothing, and then nobody asks before
the first step whether it fits."""
SPARE = "CAPSTAN_SPARE"
"""Set for a trainer started ahead of its membership: the number of the inherited descriptor from which it reads one
line of JSON, its Membership, once its imports are done."""
SPARE_NICENESS = "CAPSTAN_SPARE_NICENESS"
"""Of a spare's imports, while they compete with a trainer. Unset: they are as urgent as a trainer's."""
POD_NAME = "CAPSTAN_POD_NAME"
POD_IP = "CAPSTAN_POD_IP"
"""Address the supervisor and the trainer listen on."""
TERMINATION_LOG = "CAPSTAN_TERMINATION_LOG"
"""Path of the pod's termination message."""
OPERATOR_URL = "CAPSTAN_OPERATOR_URL"
"""Where to POST a wake-up hint; unset: the operator's next poll finds the news."""

MEMBERSHIP = "CAPSTAN_MEMBERSHIP"
"""JSON of the Membership; set by the supervisor for the trainer."""
REPORT_FD = "CAPSTAN_REPORT_FD"
"""Number of the inherited pipe on which the trainer writes Progress lines."""
PAGE = "CAPSTAN_PAGE"
"""Number of the inherited file in memory where the trainer says what it is doing (`beat.py`)."""
NOTICES = "CAPSTAN_NOTICES"
"""Number of the inherited file in memory where the supervisor says what has changed since (`notices.py`)."""

ACCOUNT_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where a pod finds the token of its service account, the API server's certificate authority, and its namespace."""
POD_MOUNTS = "POD_MOUNTS"
"""JSON object {mount path: folder}, set by a node that runs containers as plain processes, where nothing can be
mounted at `/data`. Such a node also rewrites paths in env and args; paths inside documents go through `host_path`."""

SUPERVISOR_PORT = 8470
"""`/state`, `/membership`, `/metrics`, `/healthz`."""
SERVE_PORT = 8480
"""Where a replica answers requests, probes and `/metrics`; its Services listen on the same port."""
COORDINATOR_PORT = 8471
COORDINATOR_PORTS = 64
BENCH_COORDINATOR_PORT = 8535
"""Where the ranks of a Benchmark's trial meet, on rank 0's pod: the first port that attempts do not rotate through."""


def coordinator_port(fence: int) -> int:
    """The port where attempt `fence` meets. Attempts rotate through 64 ports, so that a socket of the last attempt
    that the kernel has not let go of cannot be in the way."""
    return COORDINATOR_PORT + fence % COORDINATOR_PORTS


def host_path(path: str, environ: Mapping[str, str]) -> str:
    """Where `path` of the container really is: itself, or under the folder that stands in for its mount."""
    mounts: dict[str, str] = json.loads(environ.get(POD_MOUNTS, "{}"))
    wanted = PurePosixPath(path)
    for mount in sorted(mounts, key=len, reverse=True):
        if wanted.is_relative_to(mount):
            return str(PurePosixPath(mounts[mount]) / wanted.relative_to(mount))
    return path
