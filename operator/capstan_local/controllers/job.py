"""Job: runs pods until enough of them have succeeded."""

import itertools
import time

from capstan_local.client import JOBS, PODS, ApiError, Key, Object, key_of
from capstan_local.controllers.job_status import INDEX, Judgement, completed_indexes, index_of, judge
from capstan_local.controllers.queue import KeyQueue
from capstan_local.controllers.shared import OwnedIndex, Shared, controller_of, is_active, is_deleting, owner_reference
from capstan_local.node.status import parse_timestamp, timestamp

API_VERSION, KIND = "batch/v1", "Job"
FIRST_BACKOFF_SECONDS = 10.0
LONGEST_BACKOFF_SECONDS = 360.0


class JobController:
    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._queue = KeyQueue("job", self._reconcile)
        self._pods = OwnedIndex(shared, PODS, self._note_pod)
        shared.listen(JOBS, lambda _change, obj, _old: self._queue.wake(key_of(obj)))

    async def run(self) -> None:
        await self._queue.run()

    def _note_pod(self, pod: Object) -> None:
        owner = controller_of(pod)
        if owner is not None and owner["kind"] == KIND:
            self._queue.wake((pod["metadata"]["namespace"], owner["name"]))

    async def _reconcile(self, key: Key) -> float | None:
        job = self._shared.objects(JOBS).get(key)
        if job is None or is_deleting(job):
            return None
        pods = self._pods.owned_by(job["metadata"]["uid"])
        verdict = judge(job, pods, time.time())
        if verdict.is_final:
            await self._delete_active(pods)
            await self._write_status(job, verdict)
            return await self._expire(job)
        active = [pod for pod in pods if is_active(pod)]
        later = verdict.look_again
        if job["spec"].get("suspend"):
            await self._delete_active(pods)
        elif len(active) > verdict.wanted:
            await self._delete(active[verdict.wanted :])
        elif len(active) < verdict.wanted:
            pause = _pause_after_failures(pods)
            if pause <= 0:
                await self._create_pods(job, active, verdict)
            else:
                later = pause if later is None else min(later, pause)
        pods = self._pods.owned_by(job["metadata"]["uid"])
        await self._write_status(job, judge(job, pods, time.time()))
        return later

    async def _create_pods(self, job: Object, active: list[Object], verdict: Judgement) -> None:
        count = verdict.wanted - len(active)
        indexes: list[int | None] = [None] * count
        if job["spec"].get("completionMode") == "Indexed":
            taken = {index_of(pod) for pod in active} | completed_indexes(
                job, self._pods.owned_by(job["metadata"]["uid"])
            )
            missing = (index for index in range(job["spec"]["completions"]) if index not in taken)
            indexes = [*itertools.islice(missing, count)]
        for index in indexes:
            pod = await self._shared.client.create(PODS, build_pod(job, index))
            self._shared.remember(PODS, pod)
            self._event(job, "SuccessfulCreate", f"Created pod: {pod['metadata']['name']}")

    async def _delete_active(self, pods: list[Object]) -> None:
        await self._delete([pod for pod in pods if is_active(pod)])

    async def _delete(self, pods: list[Object]) -> None:
        for pod in pods:
            await self._shared.client.delete(PODS, key_of(pod), uid=pod["metadata"]["uid"])

    async def _write_status(self, job: Object, verdict: Judgement) -> None:
        before = job.get("status") or {}
        status = dict(verdict.status)
        status["startTime"] = before.get("startTime") or (
            None if job["spec"].get("suspend") else timestamp(time.time())
        )
        if {name: before.get(name) for name in status} == status:
            return
        written = await self._shared.client.patch(JOBS, key_of(job), {"status": status}, subresource="status")
        self._shared.remember(JOBS, written)
        if verdict.is_final:
            condition = verdict.status["conditions"][-1]
            reason = condition.get("reason") or "Completed"
            self._event(job, reason, condition.get("message") or "Job completed", warning=condition["type"] == "Failed")

    async def _expire(self, job: Object) -> float | None:
        """Deletes a finished job when its time to live is over; otherwise in how many seconds that is."""
        seconds = job["spec"].get("ttlSecondsAfterFinished")
        if seconds is None:
            return None
        conditions = (job.get("status") or {}).get("conditions") or []
        ended = [item["lastTransitionTime"] for item in conditions if item["type"] in ("Complete", "Failed")]
        if not ended:
            return None  # the status was written just now; its echo brings us back
        left = parse_timestamp(ended[-1]) + seconds - time.time()
        if left > 0:
            return float(left)
        try:
            await self._shared.client.delete(JOBS, key_of(job), uid=job["metadata"]["uid"], propagation="Background")
        except ApiError as error:
            if error.code != 409:
                raise
        return None

    def _event(self, job: Object, reason: str, message: str, *, warning: bool = False) -> None:
        self._shared.events.record(job, reason, message, kind=KIND, api_version=API_VERSION, warning=warning)


def build_pod(job: Object, index: int | None) -> Object:
    """A pod of the job; with `index` one that knows its completion index by annotation, variable and host name."""
    template, metadata = job["spec"]["template"], job["metadata"]
    given = template.get("metadata") or {}
    spec = template["spec"]
    annotations = dict(given.get("annotations") or {})
    prefix = f"{metadata['name']}-"
    if index is not None:
        annotations[INDEX] = str(index)
        prefix = f"{prefix}{index}-"
        variable = {"name": "JOB_COMPLETION_INDEX", "value": str(index)}
        containers = [
            {**container, "env": [*(container.get("env") or []), variable]} for container in spec["containers"]
        ]
        spec = {**spec, "hostname": f"{metadata['name']}-{index}", "containers": containers}
    labels = {
        **(given.get("labels") or {}),
        "controller-uid": metadata["uid"],
        "job-name": metadata["name"],
        "batch.kubernetes.io/controller-uid": metadata["uid"],
        "batch.kubernetes.io/job-name": metadata["name"],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": metadata["namespace"],
            "generateName": prefix,
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner_reference(job, API_VERSION, KIND)],
        },
        "spec": spec,
    }


def _pause_after_failures(pods: list[Object]) -> float:
    """Seconds to wait before the next pod: 10, 20, 40 … up to 360 after the newest failure."""
    ends = sorted(_end_of(pod) for pod in pods if (pod.get("status") or {}).get("phase") == "Failed")
    if not ends:
        return 0.0
    pause: float = min(FIRST_BACKOFF_SECONDS * 2.0 ** (len(ends) - 1), LONGEST_BACKOFF_SECONDS)
    return ends[-1] + pause - time.time()


def _end_of(pod: Object) -> float:
    status = pod.get("status") or {}
    ends = [
        parse_timestamp(item["state"]["terminated"]["finishedAt"])
        for item in status.get("containerStatuses") or []
        if item.get("state", {}).get("terminated", {}).get("finishedAt")
    ]
    return max(ends, default=parse_timestamp(pod["metadata"]["creationTimestamp"]))
