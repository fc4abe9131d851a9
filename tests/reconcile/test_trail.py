"""What whole operators say of themselves: each write in the audit trail with its reason, and no secret anywhere."""

from __future__ import annotations

import base64
import json
import logging
from collections import Counter
from collections.abc import Iterator
from io import StringIO
from typing import Any

import aiohttp
import pytest

from capstan_operator.cluster.kinds import PODS, SECRETS, TRAINING_JOBS
from capstan_operator.cluster.lease import LeaseTimes
from capstan_operator.decide.training_job import decide_training_job
from capstan_operator.logging_setup import JsonFormatter
from tests.support.fake_api import Call, FakeApi, names
from tests.support.fake_node import FakeNode
from tests.support.looks import SPEC
from tests.support.operators import eventually, run_one
from tests.support.small_decide import decide_small, job_document

Line = dict[str, Any]


class Log:
    """All lines that are logged, however unimportant, as they are written."""

    def __init__(self) -> None:
        self._stream = StringIO()
        self.handler = logging.StreamHandler(self._stream)
        self.handler.setFormatter(JsonFormatter())

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    def trail(self) -> list[Line]:
        lines = map(json.loads, self.text.splitlines())
        return [line["audit"] for line in lines if line["logger"] == "capstan.audit"]


@pytest.fixture
def log() -> Iterator[Log]:
    log, root = Log(), logging.getLogger()
    level = root.level
    root.addHandler(log.handler)
    root.setLevel(logging.DEBUG)
    yield log
    root.setLevel(level)
    root.removeHandler(log.handler)


async def test_every_write_is_in_the_trail_once_with_who_for_whom_and_why(
    api: FakeApi, node: FakeNode, log: Log
) -> None:
    async with run_one(api.kubeconfig, decide_small, supervisor_port=node.supervisors.port, lease=LeaseTimes()):
        api.put(TRAINING_JOBS, job_document("train"))
        await eventually(lambda: len(api.of(PODS)) == 2)
        await node.start_all()
        await eventually(lambda: all(one.memberships for one in node.by_pod.values()))
        for one in node.by_pod.values():
            one.become(fence=1)
        node.fail("train-1-0")
        await eventually(lambda: names(api.of(PODS)) == ["train-0-0", "train-1-1"])
        await node.start("train-1-1")
        await eventually(lambda: [m.fence for m in node.by_pod["train-1-1"].memberships][-1:] == [2])
        node.finish_all()
        await eventually(lambda: api.get(TRAINING_JOBS, "train").get("status", {}).get("phase") == "Succeeded")
        await eventually(lambda: "Succeeded" in [call.body.get("reason") for call in api.writes("events")])
    trail = log.trail()
    done = [call for call in api.calls if call.is_write and not _is_renewal(api, call)]
    assert Counter((line["verb"], line["kind"], line["name"]) for line in trail if line["kind"] != "Membership") == (
        Counter(map(_as_told, done))
    )
    told = [(line["name"], line["verb"], line["result"]) for line in trail if line["kind"] == "Membership"]
    pushed = {name: len(one.memberships) for name, one in node.by_pod.items()}
    assert Counter(name for name, _, result in told if result == "OK") == Counter(pushed)
    assert {line["who"] for line in trail} == {_holder(api)}
    assert "Unexplained" not in {line["reason"] for line in trail}
    of_the_job = {line["for"]["uid"] for line in trail if "for" in line}
    assert of_the_job == {api.get(TRAINING_JOBS, "train")["metadata"]["uid"]}
    own = [(line["verb"], line["kind"], line["reason"]) for line in trail if "for" not in line]
    assert own == [
        ("create", "Secret", "FirstStart"),
        ("create", "Lease", "LeaderElection"),
        ("update", "Lease", "LeaderElection"),
    ]


async def test_a_write_that_failed_is_in_the_trail_with_its_error(api: FakeApi, node: FakeNode, log: Log) -> None:
    api.fail("create", "pods", status=403)
    async with run_one(api.kubeconfig, decide_small, supervisor_port=node.supervisors.port):
        api.put(TRAINING_JOBS, job_document("train"))
        await eventually(lambda: len(api.of(PODS)) == 2)
    created = [line for line in log.trail() if (line["verb"], line["kind"]) == ("create", "Pod")]
    results = Counter(line["result"] for line in created)
    assert results["Fault"] == 1
    (failed,) = (line for line in created if line["result"] == "Fault")
    assert (failed["namespace"], failed["name"][:6], failed["uid"]) == ("default", "train-", "")
    assert all(line["uid"] for line in created if line["result"] == "OK")


async def test_the_token_of_a_job_is_nowhere_but_in_its_secret(api: FakeApi, node: FakeNode, log: Log) -> None:
    async with run_one(api.kubeconfig, decide_training_job, supervisor_port=node.supervisors.port) as operator:
        api.put(TRAINING_JOBS, job_document("train") | {"spec": SPEC})
        await eventually(lambda: len(api.of(PODS)) == 2)
        await node.start_all()
        await eventually(lambda: all(one.memberships for one in node.by_pod.values()))
        first, second = node.by_pod
        node.by_pod[first].token = "another"  # it answers 401 from now on, which is told
        node.fail(second)
        await eventually(lambda: len(api.get(TRAINING_JOBS, "train")["status"].get("recoveries", [])) > 0)
        async with aiohttp.ClientSession() as session, session.get(f"{operator.url}/metrics") as response:
            metrics = await response.text()
    secret, key = api.get(SECRETS, "train-run"), api.get(SECRETS, "capstan-operator-key", "capstan")
    token = base64.b64decode(secret["data"]["token"])
    assert {bearer for one in node.by_pod.values() for bearer in one.tokens} == {f"Bearer {token.decode()}"}
    secrets = _forms(token) | _forms(base64.b64decode(key["data"]["key"]))
    told = {
        "objects": json.dumps([document for (plural, *_), document in api.objects.items() if plural != "secrets"]),
        "requests": json.dumps([call.body for call in api.calls if call.resource != "secrets"]),
        "logs": log.text,
        "metrics": metrics,
        "memberships": json.dumps([m.document() for one in node.by_pod.values() for m in one.memberships]),
    }
    assert {what: len(text) > 200 for what, text in told.items()} == dict.fromkeys(told, True)
    assert [(what, form) for what, text in told.items() for form in secrets if form in text] == []


def _forms(secret: bytes) -> set[str]:
    """How these bytes may be written in a text."""
    forms = {base64.b64encode(secret).decode().rstrip("="), secret.hex()}
    return forms | ({secret.decode()} if secret.isascii() else set())


def _as_told(call: Call) -> tuple[str, str, str]:
    plural, _, subresource = call.resource.partition("/")
    kinds = {"pods": "Pod", "secrets": "Secret", "trainingjobs": "TrainingJob", "events": "Event", "leases": "Lease"}
    verb = "apply" if (call.verb, plural) == ("patch", "secrets") else call.verb
    name = call.name or call.body["metadata"]["name"]
    return verb, f"{kinds[plural]}/{subresource}" if subresource else kinds[plural], name


def _is_renewal(api: FakeApi, call: Call) -> bool:
    return call.resource == "leases" and call.verb == "update" and call.body["spec"]["holderIdentity"] != ""


def _holder(api: FakeApi) -> str:
    """The identity of the replica that led: the lease was given back, but its first holder made it."""
    (made,) = (call for call in api.calls if (call.resource, call.verb) == ("leases", "create"))
    return str(made.body["spec"]["holderIdentity"])
