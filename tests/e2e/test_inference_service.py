"""One life of an InferenceService: it waits for its model, serves under every guard, rolls out what is good, gives up
what is not, and goes. The tests follow each other: each finds the service as the one before left it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from capstan_local.node.proxy import Address
from capstan_runtime.serving.audit import first_break
from tests.e2e.address import stable_address
from tests.e2e.cluster import NAMESPACE, Cluster, Status, TimedOut
from tests.e2e.collector import Collector
from tests.e2e.jobs import small_job
from tests.e2e.services import READY_SECONDS, Service, guarded_service, write_keys
from tests.e2e.traffic import Client, Load, digits, request_body

NAME, JOB, KEYS = "scores", "scores-model", "scores-keys"
INFER = f"/v2/models/{NAME}/infer"
ALICE, GREEDY, LATE = "key-of-alice", "key-of-greedy", "key-of-late"
LOAD_KEYS = {f"load-{number}": f"key-of-load-{number}" for number in range(20)}
"""Clients that share the load, so that none of them meets its rate limit."""
FIRST_KEYS = {**LOAD_KEYS, "alice": ALICE, "greedy": GREEDY}
KEY_SECONDS = 60.0
"""Until a change of a Secret is in the pods: a kubelet takes its time."""


@dataclass
class Served:
    service: Service
    address: Address
    job_uid: str
    waited_for: list[tuple[str, str]]
    """(reason, message) of status while there was nothing to serve."""
    collector: Collector

    def client(self, key: str | None = ALICE) -> closing[Client]:
        return closing(Client(self.address, key))

    def story(self) -> str:
        return self.service.story()

    def load(self) -> Load:
        return Load(self.address, INFER, [request_body(image[None]) for image in digits(100)], list(LOAD_KEYS.values()))


@contextmanager
def created_service(cluster: Cluster, collector: Collector) -> Iterator[Service]:
    service = Service(cluster, NAME)
    write_keys(cluster, KEYS, FIRST_KEYS)
    service.create(guarded_service(NAME, JOB, KEYS, collector.url))
    try:
        yield service
    finally:
        service.delete()
        cluster.delete_job(JOB)
        cluster.wait_gone(service.pods, f"pods of {NAME}", 120)
        cluster.wait_gone(lambda: cluster.pods(JOB), f"pods of {JOB}")


@pytest.fixture(scope="module")
def served(cluster: Cluster) -> Iterator[Served]:
    """The service, once it is Live; it was created before the job whose model it serves."""
    with ExitStack() as stack:
        collector = stack.enter_context(closing(Collector()))
        service = stack.enter_context(created_service(cluster, collector))
        waited_for = []

        def wait_for_reason(reason: str) -> None:
            status = service.wait(reason, lambda status: status.get("reason") == reason, 60)
            waited_for.append((reason, status["message"]))

        wait_for_reason("TrainingJobNotFound")
        cluster.claim(JOB)
        job = small_job(JOB, "flax", workers={"max": 1})
        uid = cluster.create_job(job)["metadata"]["uid"]
        wait_for_reason("TrainingJobNotDone")
        cluster.wait_phase(JOB, "Succeeded", seconds=240)
        service.wait_settled()
        yield Served(service, stack.enter_context(stable_address(service)), uid, waited_for, collector)


def test_it_says_what_it_waits_for(served: Served) -> None:
    assert served.waited_for == [
        (
            "TrainingJobNotFound",
            f"there is no TrainingJob {JOB} in this namespace; what it trains will be served",
        ),
        (
            "TrainingJobNotDone",
            f"TrainingJob {JOB} has not succeeded yet; what it ends with will be served. To serve sooner, set "
            "modelRef.trainingJob.track (each verified checkpoint) or digest (a certain one)",
        ),
    ]


def test_its_line_says_what_is_served_where(served: Served, kubectl: str) -> None:
    kubeconfig = str(served.service.cluster.kubeconfig)
    shown = subprocess.run(
        [kubectl, "--kubeconfig", kubeconfig, "get", "infs", NAME],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    head, line = shown.stdout.splitlines()
    assert head.split() == ["NAME", "READY", "URL", "MODEL", "DIGEST", "TRAFFIC", "REASON", "AGE"]
    status = served.service.status()
    model = f"{JOB}@{status['model']['step']}"
    traffic = [status["stable"], "100%"]
    assert line.split()[:-1] == [NAME, "2/2", status["url"], model, status["digest"], *traffic, "Live"]
    assert status["model"]["digest"].startswith(status["digest"])
    assert status["trafficMode"] == "Selector"
    assert served.service.condition("Serving") == ("True", "Live")


def test_an_answer_says_which_model_gave_it_how_sure_it_is_and_how_long_it_took(served: Served) -> None:
    status = served.service.status()
    with served.client() as client:
        answer = client.ask(INFER, request_body(digits(3)), x_request_id="first-3")
        old_protocol = client.ask(
            f"/v1/models/{NAME}:predict", json.dumps({"instances": [[0.0] * 64]}).encode(), x_request_id="old"
        )
    assert answer.status == 200
    digest, version = status["model"]["digest"], status["stable"]
    assert answer.output("label") == [0, 1, 2]  # the first three images are of these, and the model knows them
    assert all(0.1 < confidence <= 1.0 for confidence in answer.output("confidence"))
    document = answer.document
    assert (document["model_name"], document["model_version"]) == (NAME, version)
    parameters = document["parameters"]
    assert (parameters["request_id"], parameters["model_digest"], parameters["cached"]) == ("first-3", digest, False)
    assert 0 < parameters["model_ms"] <= parameters["total_ms"]
    told = {name: answer.headers[name] for name in ("x-request-id", "x-model-digest", "x-model-version", "x-cached")}
    assert told == {
        "x-request-id": "first-3",
        "x-model-digest": digest,
        "x-model-version": version,
        "x-cached": "false",
    }
    assert "model;dur=" in answer.headers["server-timing"]
    assert (old_protocol.status, old_protocol.headers["x-model-digest"]) == (200, digest)


def test_who_has_no_key_or_a_wrong_one_is_refused(served: Served) -> None:
    body = request_body(digits(1))
    with served.client(None) as nobody, served.client("stolen") as stranger:
        answers = [nobody.ask(INFER, body), stranger.ask(INFER, body), nobody.ask(f"/v2/models/{NAME}")]
        probe = nobody.ask("/v2/health/ready")
    missing = "an API key is missing; send Authorization: Bearer KEY, or X-Api-Key: KEY"
    assert [answer.error for answer in answers] == [(401, missing), (401, "the API key is not known"), (401, missing)]
    assert {answer.headers["www-authenticate"] for answer in answers} == {"Bearer"}
    assert probe.status == 200


def test_a_key_added_to_the_secret_works_without_a_restart(served: Served) -> None:
    before = started(served.service)
    write_keys(served.service.cluster, KEYS, FIRST_KEYS | {"late": LATE})
    wait_accepted(served, LATE)
    assert started(served.service) == before


def started(service: Service) -> dict[str, int]:
    """How often the container of each pod was started again, by the pod's uid."""
    return {pod.metadata.uid: pod.status.container_statuses[0].restart_count for pod in service.pods()}


def wait_accepted(served: Served, key: str) -> None:
    """Returns once both replicas have answered a client with this key: connections go to them in turn."""
    deadline = time.monotonic() + KEY_SECONDS
    answers: list[int] = []
    while answers[-4:] != [200] * 4:
        if time.monotonic() > deadline:
            raise TimedOut(f"{KEYS}: the new key is not accepted after {KEY_SECONDS:.0f} s: {answers[-10:]}")
        with served.client(key) as client:
            answers.append(client.ask(INFER, request_body(digits(1))).status)
        time.sleep(0.2)


def test_what_the_model_cannot_take_is_refused_and_it_is_said_why(served: Served) -> None:
    image = digits(1)
    sick = image.copy()
    sick[0, 3, 3, 0] = np.nan
    binary = request_header_of(sick)
    with served.client() as client:
        answers = [
            client.ask(INFER, request_body(image.reshape(1, 64))),
            client.ask(INFER, request_body(np.zeros((65, 8, 8, 1), np.float32))),
            client.ask(INFER, request_body(image * 20)),
            client.ask(INFER, binary + sick.tobytes(), inference_header_content_length=str(len(binary))),
            client.ask("/v2/models/other/infer", request_body(image)),
        ]
        # Before a single byte of it is sent.
        client.begin(INFER, 300 * 1024)
        too_large = client.answer()
    assert [answer.error for answer in answers] == [
        (400, "inputs[input]: shape [1, 64] does not fit the model; send [n, 8, 8, 1]"),
        (400, "inputs[input]: 65 samples in one request; send 1 to 64"),
        (400, "inputs[input]: values from 0 to 18.75 leave the range 0 to 1; scale them as in training"),
        (400, "inputs[input]: a value is NaN, infinite or too large for FP32; send finite numbers"),
        (404, "there is nothing at /v2/models/other/infer"),
    ]
    assert too_large.error == (413, "the body is larger than 262144 bytes; send fewer samples at a time")
    assert too_large.headers["connection"] == "close"


def request_header_of(images: npt.NDArray[np.float32]) -> bytes:
    """JSON that says: the samples follow as bytes."""
    parameters = {"binary_data_size": images.nbytes}
    tensor = {"name": "input", "shape": list(images.shape), "datatype": "FP32", "parameters": parameters}
    return json.dumps({"inputs": [tensor]}).encode()


def test_the_same_question_is_answered_from_memory(served: Served) -> None:
    body = request_body(digits(40)[37:])
    with served.client() as client:  # one connection, one replica
        first, second = client.ask(INFER, body), client.ask(INFER, body)
    assert [answer.headers["x-cached"] for answer in (first, second)] == ["false", "true"]
    assert [answer.document["parameters"]["cached"] for answer in (first, second)] == [False, True]
    assert second.document["outputs"] == first.document["outputs"]


def test_what_is_unlike_the_training_is_answered_and_flagged(served: Served) -> None:
    # Somewhere between a nought and a one the model has to doubt: where the likeliest class changes, two have at most
    # half of the probability each.
    share = np.linspace(0.0, 1.0, 64, dtype=np.float32).reshape(-1, 1, 1, 1)
    nought, one = digits(2)
    with served.client() as client:
        answer = client.ask(INFER, request_body(nought * (1 - share) + one * share))
    confidences, flags = answer.output("confidence"), answer.output("anomalous")
    assert flags == [confidence < 0.6 for confidence in confidences]
    assert set(flags) == {False, True}


def test_who_asks_too_often_is_told_when_to_come_again_and_others_are_answered(served: Served) -> None:
    body = request_body(digits(1))
    with served.client(GREEDY) as greedy, served.client() as other:
        answers = [greedy.ask(INFER, body) for _ in range(80)]
        calm = other.ask(INFER, body)
    statuses = [answer.status for answer in answers]
    # 40 at once, then one more each half second.
    assert (statuses[:40], set(statuses[40:])) == ([200] * 40, {200, 429} if 200 in statuses[40:] else {429})
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.error == (429, "more than 20 requests in 10 s; try again in 1 s")
    assert refused.headers["retry-after"] == "1"
    assert calm.status == 200


def test_a_request_is_followed_into_the_model_where_its_sender_asks_for_it(served: Served) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    with served.client() as client:
        assert client.ask(INFER, request_body(digits(1)), traceparent=f"00-{trace}-00f067aa0ba902b7-01").status == 200
    deadline = time.monotonic() + 60
    while not any(bytes.fromhex(trace) in spans for spans in served.collector.received):
        assert time.monotonic() < deadline, f"{len(served.collector.received)} batches of spans, none of this request"
        time.sleep(0.2)


def test_every_request_is_in_a_chain_of_records_that_holds(served: Served) -> None:
    status = served.service.status()
    with served.client() as client, served.client(None) as nobody:
        client.ask(INFER, request_body(digits(1)), x_request_id="of-alice")
        nobody.ask(INFER, request_body(digits(1)), x_request_id="of-nobody")
    deadline = time.monotonic() + 60
    while len(found := records_of(chains := audit_chains(served.service), "of-alice", "of-nobody")) < 2:
        assert time.monotonic() < deadline, f"the pods' logs hold {len(found)} of the two requests"
        time.sleep(0.2)
    assert [first_break(chain) for chain in chains] == [None, None]
    assert not [pod for pod in served.service.pods() if ALICE.encode() in served.service.log(pod.metadata.name)]
    model = {"version": status["stable"], "digest": status["model"]["digest"]}
    of_alice, of_nobody = found
    assert of_alice.items() >= {"client": "alice", "path": INFER, "status": 200, "outcome": "ok", **model}.items()
    assert of_nobody.items() >= {"path": INFER, "status": 401, "outcome": "unauthorized", **model}.items()


def audit_chains(service: Service) -> list[list[bytes]]:
    """The records of each pod as its log shows them; a line without its end is not one yet."""
    logs = [service.log(pod.metadata.name).splitlines(keepends=True) for pod in service.pods()]
    return [[line[:-1] for line in log if line.startswith(b'{"previous"') and line.endswith(b"\n")] for log in logs]


def records_of(chains: list[list[bytes]], *request_ids: str) -> list[dict[str, Any]]:
    """Those of these requests that there are."""
    records = {record.get("request_id"): record for chain in chains for record in map(json.loads, chain)}
    return [records[request_id] for request_id in request_ids if request_id in records]


def test_a_new_configuration_rolls_out_and_no_request_fails(served: Served) -> None:
    """The job is gone by then: the service outlives it."""
    service = served.service
    old = service.status()
    service.cluster.delete_job(JOB)
    with served.load() as load, served.client() as stalled:
        stalled.begin(INFER, 100)
        service.patch({"protocols": ["OpenInference"]})
        new = service.wait_settled(not_on=old["stable"])
        # Its pod may be long gone; it was answered all the same, when its time was over.
        never_sent = stalled.answer()
    assert load.failed == []
    assert load.revisions() == {old["stable"], new["stable"]}
    assert never_sent.error == (408, "the request did not arrive within 20 s")
    assert new["url"] == old["url"]
    assert new["model"] == old["model"]
    with served.client() as client:
        assert client.ask(f"/v1/models/{NAME}:predict", b'{"instances": []}').status == 404


def test_a_deleted_pod_is_replaced_and_no_request_fails(served: Served) -> None:
    service = served.service
    stable = service.status()["stable"]
    before = {pod.metadata.uid for pod in service.pods()}
    with served.load() as load:
        service.cluster.core.delete_namespaced_pod(service.pods()[0].metadata.name, NAMESPACE)
        service.wait("on one pod", lambda status: status["ready"] == "1/2", 60)
        service.wait_settled()
    assert load.failed == []
    assert load.revisions() == {stable}
    assert len(before & {pod.metadata.uid for pod in service.pods()}) == 1


def test_blue_and_green_change_places_in_one_moment_and_no_request_fails(served: Served) -> None:
    service = served.service
    old = service.status()["stable"]
    with served.load() as load:
        strategy = {"rolling": None, "blueGreen": {"holdSeconds": 2}}
        service.patch({"replicas": 1, "rollout": {"strategy": strategy}, "cache": None})
        new = service.wait_settled(not_on=old)["stable"]
    assert load.failed == []
    assert load.revisions() == {old, new}
    fresh = [answered for answered in load.answered if answered.is_fresh]
    switched = min(answered.received for answered in fresh if answered.revision == new)
    assert {answered.revision for answered in fresh if answered.sent > switched} == {new}
    with served.client() as client:
        body = request_body(digits(1))
        assert [client.ask(INFER, body).headers["x-cached"] for _ in range(2)] == ["false", "false"]


def test_a_corrupted_checkpoint_gets_no_traffic_and_the_old_one_serves_on(served: Served) -> None:
    service = served.service
    before = service.status()
    run = corrupt_copy(served)
    stored = {"store": {"claim": {"name": JOB}}, "run": run, "digest": before["model"]["digest"]}
    with served.load() as load:
        service.patch({"modelRef": {"trainingJob": None, "uri": stored}, "runtime": "flax"})
        status = service.wait("given up", lambda status: status["reason"] == "CorruptCheckpoint", READY_SECONDS)
        service.wait("rid of it", lambda _: service.revisions() == [before["stable"]], 60)
    assert load.failed == []
    assert load.revisions() == {before["stable"]}
    assert (status["stable"], status["ready"], status.get("rollout")) == (before["stable"], "1/1", None)
    assert status["served"] == before["served"]
    assert service.condition("RolledBack") == ("True", "CorruptCheckpoint")
    assert service.condition("UpToDate") == ("False", "CorruptCheckpoint")
    (failure,) = failures(status)
    assert (failure["reason"], failure["exitCode"]) == ("CorruptCheckpoint", 65)


def failures(status: Status) -> list[dict[str, object]]:
    return [revision["failure"] for revision in status["revisions"] if "failure" in revision]


def corrupt_copy(served: Served) -> str:
    """The run's folder in the store once more, under another job's name, with one bit of every tensor flipped; its
    name in the store."""
    (original,) = served.service.cluster.home.glob(f"**/volumes/*/*/{NAMESPACE}/{JOB}/{served.job_uid}")
    copy = original.parents[1] / "tampered" / original.name
    shutil.copytree(original, copy)
    for shard in copy.glob("*/shards/*.safetensors"):
        flip_bits(shard)
    return f"{NAMESPACE}/tampered/{served.job_uid}"


def flip_bits(shard: Path) -> None:
    """One in each tensor: what is not served, as an optimizer's state, is not read either."""
    content = bytearray(shard.read_bytes())
    header = int.from_bytes(content[:8], "little")
    for name, entry in json.loads(content[8 : 8 + header]).items():
        if name != "__metadata__":
            content[8 + header + entry["data_offsets"][0]] ^= 1
    shard.write_bytes(content)


def test_deleting_it_removes_all_it_made_and_nothing_else(served: Served) -> None:
    service, core = served.service, served.service.cluster.core
    assert service.children() != []
    service.delete()
    service.cluster.wait_gone(service.children, f"something of {NAME}", 120)
    assert core.read_namespaced_secret(KEYS, NAMESPACE).metadata.deletion_timestamp is None
    assert core.read_namespaced_persistent_volume_claim(JOB, NAMESPACE).metadata.deletion_timestamp is None
