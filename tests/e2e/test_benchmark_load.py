"""Benchmarks that put load on something: a service by its URL, one made for each run, and the control plane."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kubernetes import client

from tests.e2e.benchmarks import claim_of_benchmarks, run
from tests.e2e.cluster import GROUP, NAMESPACE, VERSION, Cluster
from tests.e2e.jobs import small_job
from tests.support.load_server import load_server

SERVICES = "inferenceservices"
CLAIM = "benchmarks-of-load"
MODEL = "benchmarked-model"
RIGHTS = Path("examples/bench-control-plane/bench.yaml")
embedded_only = pytest.mark.parametrize("cluster", ["embedded"], indirect=True, scope="session")
DIGIT = {"name": "input", "datatype": "FP32", "shape": [1, 8, 8, 1], "data": [0.0] * 64}


@pytest.fixture(scope="module")
def claimed(cluster: Cluster) -> Iterator[Cluster]:
    """With a claim for the results of all that follow."""
    with claim_of_benchmarks(cluster, CLAIM):
        yield cluster


def names(cluster: Cluster, plural: str) -> list[str]:
    found = cluster.custom.list_namespaced_custom_object(GROUP, VERSION, NAMESPACE, plural)["items"]
    return [each["metadata"]["name"] for each in found]


def values(folder: Path, metric: str) -> dict[tuple[str, ...], float]:
    """Of the one run, by its labels' values."""
    series = json.loads((folder / "result.json").read_bytes())["series"]
    return {
        tuple(value for _, value in sorted(each.get("labels", {}).items())): each["values"][0]
        for each in series
        if each["metric"] == metric
    }


def test_a_service_is_asked_by_its_url_with_a_key_that_only_a_secret_and_the_pod_hold(claimed: Cluster) -> None:
    key = "key-4711"
    secret = {"metadata": {"name": "load-key"}, "data": {"key": base64.b64encode(key.encode()).decode()}}
    claimed.core.create_namespaced_secret(NAMESPACE, secret)
    variable = {"name": "API_KEY", "valueFrom": {"secretKeyRef": {"name": "load-key", "key": "key"}}}
    serving = {
        "rates": [20, 40],
        "seconds": 1,
        "warmupSeconds": 0,
        "arrivals": "Constant",
        "objective": {"p99Milliseconds": 5000},
        "scenario": [{"name": "ask", "path": "/ok", "body": {}, "headers": {"Authorization": "Bearer $(API_KEY)"}}],
    }
    patch = {"spec": {"containers": [{"name": "bench", "env": [variable]}]}}
    with load_server() as server:
        workload = {"serving": {**serving, "url": server.url}}
        status, folder = run(claimed, CLAIM, "by-url", workload, pods={"podPatch": patch})
    claimed.core.delete_namespaced_secret("load-key", NAMESPACE)
    assert len(server.asked) == 1 + 20 + 40, "once to see whether it is ready, then each request of both rates"
    assert all(f"authorization: Bearer {key}\r\n".encode() in request for request in server.asked)
    assert status["result"] == "at least 40 requests/s kept"
    assert values(folder, "sustained_requests_per_second") == {(): 40.0}
    assert values(folder, "error_ratio") == {("20",): 0.0, ("40",): 0.0}
    assert sorted(path.name for path in (folder / "trials").glob("*.csv")) == [
        "t00.1.locust_20_stats.csv",
        "t00.1.locust_40_stats.csv",
    ]
    kept = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert not any(key.encode() in content for content in kept)


@embedded_only  # no pod of ours can reach a Service of the real one, which has no node for their addresses
def test_a_service_is_made_for_the_run_and_removed(claimed: Cluster) -> None:
    store = {"store": {"claim": {"name": CLAIM}}}
    training = {"steps": 20, "globalBatchSize": 64}
    claimed.create_job(small_job(MODEL, "flax", workers={"max": 1}, checkpoint=store, training=training))
    serving = {
        "service": {"modelRef": {"trainingJob": {"name": MODEL}}, "runtime": "flax", "drainSeconds": 0},
        "rates": [20],
        "seconds": 1,
        "scenario": [
            {"name": "oip", "path": "/v2/models/$(SERVICE)/infer", "body": {"inputs": [DIGIT]}},
            {"name": "kserve", "path": "/v1/models/$(SERVICE):predict", "body": {"instances": [DIGIT["data"]]}},
        ],
    }
    _, folder = run(claimed, CLAIM, "made", {"serving": serving})
    assert values(folder, "error_ratio") == {("20",): 0.0, ("20", "oip"): 0.0, ("20", "kserve"): 0.0}
    claimed.wait_gone(lambda: [name for name in names(claimed, SERVICES) if name.startswith("made-")], "the service")
    claimed.delete_job(MODEL)


def test_the_control_plane_gets_through_a_burst_of_jobs_and_nothing_is_left_of_it(claimed: Cluster) -> None:
    rights = client.RbacAuthorizationV1Api(claimed.api)
    makers = {
        "ServiceAccount": claimed.core.create_namespaced_service_account,
        "Role": rights.create_namespaced_role,
        "RoleBinding": rights.create_namespaced_role_binding,
    }
    for document in yaml.safe_load_all(RIGHTS.read_text()):
        if document["kind"] in makers:
            makers[document["kind"]](NAMESPACE, document)
    account = {"serviceAccountName": "capstan-bench"}
    _, folder = run(claimed, CLAIM, "jobs", {"controlPlane": {"jobs": 4, "workers": 2}}, pods=account)
    assert values(folder, "pods") == {(): 8.0}
    assert values(folder, "jobs_per_second")[()] > 0
    assert bool(values(folder, "api_calls_per_job")) == (claimed.name == "embedded"), "whose operator knows its URL"
    assert not [name for name in names(claimed, "trainingjobs") if name.startswith("jobs-t00")]
