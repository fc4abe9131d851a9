"""`capstan doctor` on whole clusters: everything is right on the one that `capstan local up` makes."""

from __future__ import annotations

import json
import subprocess
import time

from tests.e2e.cluster import Cluster
from tests.e2e.conftest import CAPSTAN

UNUSUAL = {
    # A kube-apiserver without CEL, and an operator that is a process beside the cluster.
    "real": {"version": "WARN", "Deployment": "WARN", "rights": "SKIP"},
    "embedded": {},
}


def test_the_doctor_finds_a_cluster_that_works_healthy(cluster: Cluster) -> None:
    # Of a namespace without any objects: other tests break theirs on purpose.
    command = [*CAPSTAN, "doctor", "--kubeconfig", str(cluster.kubeconfig), "-n", "kube-public", "-o", "json"]
    deadline = time.monotonic() + 90
    while True:  # of a cluster that has just begun, the node and the operator are on their way
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        findings = json.loads(ended.stdout)["findings"]
        found = {one["check"]: one["level"] for one in findings if one["level"] != "OK"}
        if found == UNUSUAL[cluster.name] or time.monotonic() > deadline:
            break
    assert (found, ended.returncode) == (UNUSUAL[cluster.name], 0), findings
