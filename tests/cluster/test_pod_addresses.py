"""Which pods are asked with which token, and where: what a pod says of its owner and address was written by others."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest

from capstan_operator.cluster.pods import Pod, pod_address
from capstan_operator.cluster.store import Store
from capstan_operator.cluster.work_queue import ObjectKey
from capstan_operator.metrics import Metrics
from capstan_operator.observe import OperatorSettings
from tests.support.small_decide import job_document

OWNERS = {"apiVersion": "capstan.dev/v1alpha1", "kind": "TrainingJob", "name": "job", "controller": True}


def store_with_a_job_in_each(*namespaces: str) -> Store:
    store = Store(lambda key, priority: None, token_of=str, settings=OperatorSettings(), metrics=Metrics())
    for namespace in namespaces:
        metadata = {"namespace": namespace, "uid": f"uid-of-{namespace}", "resourceVersion": "1"}
        document = job_document("job")
        store.jobs.put(document | {"metadata": document["metadata"] | metadata})
    return store


def pod(namespace: str, owner_uid: str, **changes: Any) -> Pod:
    metadata = {
        "name": "job-worker-0",
        "namespace": namespace,
        "uid": f"pod-in-{namespace}",
        "resourceVersion": "2",
        "labels": {"capstan.dev/worker": "0", "capstan.dev/incarnation": "0"},
        "ownerReferences": [OWNERS | {"uid": owner_uid}],
    }
    status = {"phase": "Running", "podIP": "10.0.0.9", "hostIP": "10.0.0.1"} | changes
    return msgspec.json.decode(orjson.dumps({"metadata": metadata, "status": status}), type=Pod)


def test_a_pod_that_names_a_job_of_another_namespace_as_its_owner_never_gets_that_jobs_token() -> None:
    store = store_with_a_job_in_each("victim", "attacker")
    store.put(pod("attacker", owner_uid="uid-of-victim"))
    assert list(store.pods_to_ask()) == []
    assert store.pod_to_ask(ObjectKey("victim", "job"), "job-worker-0") is None
    of_victim, of_attacker = (store.observe(ObjectKey(name, "job")) for name in ("victim", "attacker"))
    assert of_victim is not None
    assert of_attacker is not None
    assert (of_victim.pods, of_attacker.pods) == ((), ())


def test_such_a_pod_does_not_take_the_place_of_the_jobs_own() -> None:
    store = store_with_a_job_in_each("victim")
    store.put(pod("victim", owner_uid="uid-of-victim"))
    store.put(pod("attacker", owner_uid="uid-of-victim"))
    store.remove(pod("attacker", owner_uid="uid-of-victim"))
    assert [(record.key.namespace, record.pod.uid) for record in store.pods_to_ask()] == [("victim", "pod-in-victim")]


@pytest.mark.parametrize(
    "status",
    [
        {"podIP": "127.0.0.1"},
        {"podIP": "169.254.169.254"},
        {"podIP": "10.0.0.1@evil.example"},
        {"podIP": "evil.example"},
        {"podIP": None},
    ],
)
def test_a_pod_whose_address_no_pod_can_have_is_not_asked(status: dict[str, Any]) -> None:
    store = store_with_a_job_in_each("team")
    store.put(pod("team", owner_uid="uid-of-team", **status))
    assert list(store.pods_to_ask()) == []


@pytest.mark.parametrize(
    ("ip", "host_ip"),
    [
        ("10.0.0.9", "10.0.0.1"),
        ("192.168.3.4", ""),
        ("100.64.0.7", "100.64.0.1"),
        ("240.10.0.5", "10.128.0.2"),
        ("255.255.255.254", "10.128.0.2"),
        ("fd00::9", "fd00::1"),
        ("2001:db8::9", "2001:db8::1"),
        ("127.64.0.1", "127.0.0.1"),
    ],
)
def test_what_a_pod_can_have_is_an_address(ip: str, host_ip: str) -> None:
    assert pod_address(ip, host_ip) == ip


@pytest.mark.parametrize(
    "ip",
    [
        "0.0.0.0",
        "127.0.0.1",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "169.254.169.254",
        "fe80::1",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "::ffff:255.255.255.255",
        "64:ff9b::a9fe:a9fe",
        "::",
        "10.0.0.1:8080",
        "10.0.0.1/24",
        "localhost",
        " 10.0.0.1",
        "",
    ],
)
def test_what_no_pod_can_have_is_none(ip: str) -> None:
    assert pod_address(ip, "10.0.0.1") is None
