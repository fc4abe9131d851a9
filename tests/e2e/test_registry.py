"""A model's way from a job to its users: trained, registered, served by its name, promoted, rolled out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.address import stable_address
from tests.e2e.cluster import NAMESPACE, Cluster
from tests.e2e.jobs import small_job
from tests.e2e.services import Service
from tests.e2e.traffic import Client, digits, request_body

NAME, JOB, MODEL = "named", "named-model", "letters"
INFER = f"/v2/models/{NAME}/infer"
FOLLOW_SECONDS = 60.0
"""From a promotion until the service wants it: the pod that asks looks every 10 s."""


def capstan_model(*arguments: str | Path) -> Any:
    """What the command says as JSON."""
    command = [sys.executable, "-m", "capstan_runtime.registry", *map(str, arguments), "--output", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextmanager
def trained(cluster: Cluster) -> Iterator[Path]:
    """The store of a job that has registered what it ended with, a model of integers, and kept what it had half-way."""
    cluster.claim(JOB)
    registering = {"name": MODEL, "version": "2.0.0", "stage": "staging"}
    job = small_job(
        JOB,
        "flax",
        workers={"max": 1},
        compression={"quantize": {}},
        registerAs=registering,
        checkpoint={
            "store": {"claim": {"name": JOB}},
            "interval": {"steps": 100},
            "retention": {"last": 3},
        },
    )
    uid = cluster.create_job(job)["metadata"]["uid"]
    try:
        cluster.wait_phase(JOB, "Succeeded", seconds=240)
        (run,) = cluster.home.glob(f"**/volumes/*/*/{NAMESPACE}/{JOB}/{uid}")
        yield run.parents[2]
    finally:
        cluster.delete_job(JOB)
        cluster.wait_gone(lambda: cluster.pods(JOB), f"pods of {JOB}")


@contextmanager
def serving(cluster: Cluster) -> Iterator[Service]:
    service = Service(cluster, NAME)
    reference = {"store": {"claim": {"name": JOB}}, "name": MODEL, "stage": "production"}
    service.create(
        {
            "apiVersion": "capstan.dev/v1alpha1",
            "kind": "InferenceService",
            "metadata": {"name": NAME},
            "spec": {"modelRef": {"registry": reference}, "replicas": 1},
        }
    )
    try:
        yield service
    finally:
        service.delete()
        cluster.wait_gone(service.pods, f"pods of {NAME}", 120)
        cluster.wait_gone(lambda: askers(service), f"pods of {NAME} that ask", 60)


def askers(service: Service) -> list[Any]:
    return service.pods({"capstan.dev/registry": NAME})


def served_digest(service: Service) -> str:
    """Of the checkpoint that an answer came from."""
    with stable_address(service) as address, closing(Client(address, None)) as client:
        return client.ask(INFER, request_body(digits(3))).headers["x-model-digest"]


@pytest.mark.full
def test_a_job_registers_a_service_follows_the_stage_and_what_is_promoted_goes_live(cluster: Cluster) -> None:
    with trained(cluster) as store, serving(cluster) as service:
        registered = cluster.status(JOB)["registered"]
        entry = capstan_model("show", store, f"{MODEL}@staging")["entry"]
        assert registered == {"name": MODEL, "version": "2.0.0", "digest": entry["root"]}
        assert entry["step"] == 200
        assert entry["lineage"]["config"]["training"]["steps"] == 200
        compression = cluster.status(JOB)["compression"]
        after, events = compression["after"], cluster.event_reasons(JOB)
        assert (compression["before"]["step"], after["step"]) == (200, 200)
        assert after["bytes"] < compression["before"]["bytes"]
        assert after["accuracy"] == pytest.approx(entry["metrics"]["accuracy"], rel=1e-5)
        assert {"Registered", "Compressed"} <= set(events)

        waiting = service.wait("asking", lambda status: status.get("reason") == "RegistryAsked", 60)
        assert f"waits until {MODEL}@production is in the registry" in waiting["message"]
        first = capstan_model("register", store, MODEL, "100", "--version", "1.0.0", "--stage", "production")["entry"]
        status = service.wait_settled()
        before = status["stable"]
        assert (status["model"]["version"], status["model"]["digest"]) == (f"{MODEL} 1.0.0", first["root"])
        assert status["served"] == f"{MODEL} 1.0.0"
        assert served_digest(service) == first["root"]

        capstan_model("promote", store, f"{MODEL}@staging", "production", "--expect", "1.0.0")
        service.wait("following", lambda status: status["model"]["version"] == f"{MODEL} 2.0.0", FOLLOW_SECONDS)
        status = service.wait_settled(not_on=before)
        assert status["served"] == f"{MODEL} 2.0.0"
        assert served_digest(service) == entry["root"]
        (asker,) = [pod for pod in askers(service) if pod.metadata.deletion_timestamp is None]
        assert asker.status.phase == "Running"
        assert capstan_model("verify", store)["bad"] == 0
