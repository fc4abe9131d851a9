"""Children are written under the operator's own table of rights; what is not the job's is never touched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from capstan_operator.cluster.children import Children
from capstan_operator.cluster.errors import Predecessor, Stranger
from capstan_operator.cluster.kinds import PODS, SECRETS, Resource
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.limiter import Lane
from capstan_operator.decide.types import Manifest
from tests.support.fake_api import FakeApi, names


@dataclass(frozen=True)
class Job:
    """All that children need to know of their owner."""

    uid: str = "new"
    name: str = "train"
    namespace: str = "default"


@pytest.fixture
def children(client: KubeClient) -> Children:
    return Children(client, "TrainingJob", lambda *_: None)


def child(resource: Resource, name: str, owner: Job | None, **fields: Any) -> Manifest:
    metadata: dict[str, Any] = {"name": name, "namespace": "default"}
    if owner is not None:
        reference = {"apiVersion": "capstan.dev/v1alpha1", "kind": "TrainingJob", "name": owner.name, "uid": owner.uid}
        metadata["ownerReferences"] = [reference | {"controller": True}]
    return {"apiVersion": "v1", "kind": resource.kind, "metadata": metadata, **fields}


async def test_the_jobs_secret_is_deleted_and_a_strangers_stays(api: FakeApi, children: Children) -> None:
    api.put(SECRETS, child(SECRETS, "train-run", Job()))
    api.put(SECRETS, child(SECRETS, "other-run", None))
    for name in ("train-run", "other-run", "gone-run"):
        await children.delete(SECRETS, name, Job(), lane=Lane.CREATE)
    assert names(api.of(SECRETS)) == ["other-run"]


async def test_an_immutable_secret_with_an_older_token_is_made_anew(api: FakeApi, children: Children) -> None:
    old = api.put(SECRETS, child(SECRETS, "train-run", Job(), data={"token": "b2xk"}, immutable=True))
    wanted = child(SECRETS, "train-run", Job(), data={"token": "bmV3"}, immutable=True)
    await children.apply((wanted,), Job(), lane=Lane.CREATE)
    made = api.get(SECRETS, "train-run")
    assert (made["data"], made["metadata"]["uid"] == old["metadata"]["uid"]) == ({"token": "bmV3"}, False)
    await children.apply((wanted,), Job(), lane=Lane.CREATE)
    assert api.get(SECRETS, "train-run")["metadata"]["uid"] == made["metadata"]["uid"]


@pytest.mark.parametrize(
    ("owner", "error", "says"),
    [
        (
            Job(uid="old"),
            Predecessor,
            "is left of a deleted TrainingJob of the same name; this one starts when it is gone",
        ),
        (Job(uid="old", name="other"), Stranger, r"belongs to TrainingJob other, uid old\); delete it or rename"),
        (None, Stranger, r"it has no owner\); delete it or rename the TrainingJob"),
    ],
)
async def test_a_name_that_is_taken_says_whether_waiting_helps(
    api: FakeApi, children: Children, owner: Job | None, error: type[Exception], says: str
) -> None:
    # The fake server's garbage collector is off: what an old job leaves behind goes when it likes.
    for resource, name in ((PODS, "train-worker-0"), (SECRETS, "train-run")):
        before = child(resource, name, owner)
        before["metadata"] |= {"uid": name, "resourceVersion": "1"}
        api.objects[resource.plural, "default", name] = before
    with pytest.raises(error, match=f"Pod default/train-worker-0 .*{says}"):
        await children.create((child(PODS, "train-worker-0", Job()),), Job(), lane=Lane.CREATE)
    with pytest.raises(error, match=f"Secret default/train-run .*{says}"):
        await children.apply((child(SECRETS, "train-run", Job()),), Job(), lane=Lane.CREATE)
    assert {call.verb for call in api.calls if call.is_write and call.status < 300} == set()
