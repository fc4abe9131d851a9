"""`capstan doctor` on whole clusters: everything is right on the one that `capstan local up` makes."""

from __future__ import annotations

import json
import subprocess

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
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    findings = json.loads(ended.stdout)["findings"]
    assert {one["check"]: one["level"] for one in findings if one["level"] != "OK"} == UNUSUAL[cluster.name], findings
    assert ended.returncode == 0
