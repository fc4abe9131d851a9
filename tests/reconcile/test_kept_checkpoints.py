"""A job and a service under one operator: what is served, the job's retention keeps, and its attempt goes on."""

from __future__ import annotations

from capstan_operator.cluster.kinds import INFERENCE_SERVICES, PODS, TRAINING_JOBS
from capstan_operator.decide.training_job import decide_training_job
from capstan_runtime.contract.state import Checkpoint, Phase
from tests.support.fake_api import Document, FakeApi
from tests.support.fake_node import FakeNode
from tests.support.fake_supervisors import FakeSupervisor
from tests.support.looks import make_job, root
from tests.support.operators import eventually, run_one

KEPT = (root(40),)
JOB: Document = {
    "apiVersion": "capstan.dev/v1alpha1",
    "kind": "TrainingJob",
    "metadata": {"name": "digits", "namespace": "default"},
    "spec": dict(make_job().spec),
}
SERVICE: Document = {
    "apiVersion": "capstan.dev/v1alpha1",
    "kind": "InferenceService",
    "metadata": {"name": "served", "namespace": "default"},
    "spec": {"modelRef": {"trainingJob": {"name": "digits", "track": True}}},
}


def asked_to_keep(one: FakeSupervisor) -> tuple[str, ...] | None:
    return one.memberships[-1].keep_roots if one.memberships else None


async def test_a_job_is_told_what_is_served_and_when_it_is_not_any_more_and_goes_on(
    api: FakeApi, node: FakeNode
) -> None:
    port = node.supervisors.port
    async with run_one(api.kubeconfig, decide_training_job, supervisor_port=port):
        api.put(TRAINING_JOBS, JOB)
        await eventually(lambda: len(api.of(PODS)) == 2)
        await node.start_all()
        await eventually(lambda: [asked_to_keep(one) for one in node.by_pod.values()] == [(), ()])
        first, second = node.by_pod["digits-worker-0"], node.by_pod["digits-worker-1"]
        for rank, one in enumerate((first, second)):
            one.become(fence=1, rank=rank, world=2, phase=Phase.TRAINING, step=45, keep_roots=())
        first.become(checkpoint=Checkpoint(step=40, root=root(40), at=1.0, verified_at=2.0))
        api.put(INFERENCE_SERVICES, SERVICE)
        await eventually(lambda: asked_to_keep(first) == KEPT)
        first.become(keep_roots=KEPT)
    told = len(first.memberships)
    async with run_one(api.kubeconfig, decide_training_job, supervisor_port=port) as operator:
        await eventually(lambda: operator.value("reconciles_total", result="unchanged") >= 2)
        assert len(first.memberships) == told, "who has heard it is not told again"
        api.remove(INFERENCE_SERVICES, "default", "served")
        await eventually(lambda: asked_to_keep(first) == ())
        first.become(keep_roots=())
    places = {one.model_copy(update={"keep_roots": None}) for one in first.memberships}
    assert (len(places), {one.keep_roots for one in second.memberships}) == (1, {()}), "rank 0 alone removes any"
    status = api.get(TRAINING_JOBS, "digits")["status"]
    assert (status["fence"], status["restarts"]["total"]) == (1, 0)
