"""What a kubelet and the containers do, for all pods of one namespace of an API server that is not ours to bend.

Pods start at once, and supervisors answer for them on loopback addresses of their own. Trainers train up to the first
checkpoint, and then either wait or end; runs and reports of Benchmarks end by themselves, unless the node holds them.
There is no training and no load: what is true here is what the operator sees and does.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from capstan_operator.api.meta import LABEL_BENCHMARK, LABEL_JOB, LABEL_REVISION, LABEL_TRIAL
from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.kinds import PODS
from capstan_runtime.contract.exit_codes import FailureClass
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import Checkpoint, Exit, Phase
from tests.support.bench_machine import task_of
from tests.support.benchmarks import summary, trial_end
from tests.support.fake_supervisors import FakeSupervisor, FakeSupervisors
from tests.support.real_cluster import Cluster

Document = dict[str, Any]
STEPS, SAVE_EVERY = 200, 10
TURN_SECONDS = 0.05
HOST = "127.0.0.1"
"""Of the node: pods have loopback addresses only on one that is this machine."""
_addresses = itertools.count(2)


@dataclass
class Trainer:
    """One pod of a TrainingJob."""

    name: str
    job: str
    uid: str
    supervisor: FakeSupervisor

    @property
    def told(self) -> Membership | None:
        """The newest membership, unless it only says that the job is over."""
        return next((one for one in reversed(self.supervisor.memberships) if not one.is_over), None)


@dataclass
class PretendNode:
    cluster: Cluster
    supervisors: FakeSupervisors
    held: set[str] = field(default_factory=set)
    """TrainingJobs that train on until they are taken out of here; all others succeed as soon as they can."""
    is_idle: bool = False
    """No pod starts."""
    holds_trials: bool = False
    """No run of a Benchmark ends, nor any report."""
    verdicts: dict[str, str] = field(default_factory=dict)
    """What the reports of these Benchmarks say."""
    sound: set[str] | None = None
    """Revisions whose pods work; those of all others find a corrupt checkpoint. None: all work."""
    saved: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Step of the newest checkpoint, by the uid of its job."""
    trainers: dict[str, Trainer] = field(default_factory=dict)
    """By the uid of the pod."""
    _pods: dict[str, Document] = field(default_factory=dict)
    """By uid, without those that are being deleted."""
    _started: set[str] = field(default_factory=set)
    """Uids of pods that run, whether the watch has said so by now or not."""

    def crash(self, job: str) -> None:
        """Rank 0 of `job` is killed."""
        for trainer in self.trainers.values():
            if trainer.job == job and trainer.supervisor.state.rank == 0:
                self._exit(trainer, 137, FailureClass.CRASH, "killed", signal="SIGKILL")

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            while True:
                await self._turn()
                await asyncio.sleep(TURN_SECONDS)

    async def _watch(self) -> None:
        """Keeps `_pods` up to date."""
        client, namespace = self.cluster.client, self.cluster.namespace
        page = json.loads(await client.list_page(PODS, namespace, selector="", token=""))
        assert page["items"] == [], "pods were there before their node"
        version = page["metadata"]["resourceVersion"]
        async for line in client.watch(PODS, namespace, selector="", version=version):
            event = json.loads(line)
            pod = event["object"]
            if event["type"] == "DELETED" or "deletionTimestamp" in pod["metadata"]:
                self._pods.pop(pod["metadata"]["uid"], None)
            elif event["type"] in ("ADDED", "MODIFIED"):
                self._pods[pod["metadata"]["uid"]] = pod

    async def _turn(self) -> None:
        """What follows from what is known of all pods."""
        pods, there = list(self._pods.values()), set(self._pods)
        self.trainers = {uid: one for uid, one in self.trainers.items() if uid in there}
        waiting = [pod for uid, pod in self._pods.items() if uid not in self._started]
        if not self.is_idle:
            await asyncio.gather(*map(self._start, waiting))
        if not self.holds_trials:
            await self._end_trials([pod for pod in pods if pod["status"].get("phase") == "Running"])
        crews: dict[tuple[str, int], list[Trainer]] = defaultdict(list)
        for trainer in self.trainers.values():
            if (told := trainer.told) is not None:
                self._listen(trainer, told)
                crews[trainer.job, told.fence].append(trainer)
            await self._end_if_over(trainer)
        for (job, _), crew in crews.items():
            if len(crew) == crew[0].supervisor.state.world:
                await self._train(job, sorted(crew, key=lambda one: one.supervisor.state.rank or 0))

    # Pods

    async def _start(self, pod: Document) -> None:
        metadata = pod["metadata"]
        labels, name, uid = metadata.get("labels", {}), metadata["name"], metadata["uid"]
        self._started.add(uid)
        number = next(_addresses)
        ip = f"127.{64 + number // 62500}.{number // 250 % 250}.{number % 250 + 2}"
        if LABEL_REVISION in labels:
            await self._set(name, **self._replica(labels[LABEL_REVISION], ip))
            return
        if LABEL_JOB in labels:
            owner = metadata["ownerReferences"][0]["uid"]
            supervisor = await self.supervisors.add(ip, name, owner)
            self.trainers[uid] = Trainer(name, labels[LABEL_JOB], owner, supervisor)
        await self._set(name, phase="Running", podIP=ip, hostIP=HOST)

    def _replica(self, revision: str, ip: str) -> Document:
        if self.sound is None or revision in self.sound:
            return {
                "phase": "Running",
                "podIP": ip,
                "hostIP": HOST,
                "conditions": [{"type": "Ready", "status": "True"}],
            }
        corrupt = {"exitCode": 65, "message": "shards/r0-0.safetensors: leaf 3 does not match"}
        last = {"restartCount": 1, "lastState": {"terminated": corrupt}}
        return {"phase": "Running", "podIP": ip, "hostIP": HOST, "containerStatuses": [_container("server") | last]}

    async def _end_trials(self, running: list[Document]) -> None:
        """Runs and reports whose ranks are all there."""
        by_trial: dict[str, list[Document]] = defaultdict(list)
        for pod in running:
            labels = pod["metadata"].get("labels", {})
            if LABEL_TRIAL in labels and LABEL_JOB not in labels:
                by_trial[pod["metadata"]["ownerReferences"][0]["uid"] + labels[LABEL_TRIAL]].append(pod)
        for pods in by_trial.values():
            if len(pods) < _world(pods[0]):
                continue
            for pod in pods:
                name, benchmark = pod["metadata"]["name"], pod["metadata"]["labels"][LABEL_BENCHMARK]
                words = summary(self.verdicts.get(benchmark)) if "-report-" in name else trial_end()
                await self._terminate(name, "bench", 0, words)

    async def _terminate(self, name: str, container: str, code: int, message: str) -> None:
        ended = {"exitCode": code, "reason": "Error" if code else "Completed", "message": message}
        statuses = [_container(container) | {"state": {"terminated": ended}}]
        await self._set(name, phase="Failed" if code else "Succeeded", containerStatuses=statuses)

    async def _set(self, name: str, **status: Any) -> None:
        try:
            await self.cluster.set_pod_status(name, **status)
        except ApiError as error:
            if not (error.is_not_found or error.is_conflict):  # it was deleted since the look
                raise

    # Trainers

    def _listen(self, trainer: Trainer, told: Membership) -> None:
        one = trainer.supervisor
        kept = {"keep_roots": told.keep_roots} if told.keep_roots is not None else {}
        if told.fence == one.state.fence:
            one.become(leave_at_checkpoint=told.leave_at_checkpoint or one.state.leave_at_checkpoint, **kept)
        elif told.fence > one.state.fence:
            one.become(
                fence=told.fence,
                rank=told.rank,
                world=told.world,
                micro_splits=told.micro_splits,
                leave_at_checkpoint=told.leave_at_checkpoint,
                phase=Phase.STARTING,
                step=0,
                metrics={},
                resumed_from=None,
                exit=None,
                **kept,
            )

    async def _end_if_over(self, trainer: Trainer) -> None:
        """A pod whose trainer has ended in the job's last attempt ends with it."""
        one = trainer.supervisor
        is_over = any(told.is_over and told.fence == one.state.fence for told in one.memberships)
        if is_over and one.state.phase is Phase.EXITED and one.state.exit is not None:
            one.become(phase=Phase.STOPPING)
            await self._terminate(
                trainer.name, "trainer", one.state.exit.code, one.state.model_dump_json(by_alias=True)
            )

    async def _train(self, job: str, crew: list[Trainer]) -> None:
        """A little further: all ranks of one attempt are there."""
        phases = {one.supervisor.state.phase for one in crew}
        if phases == {Phase.STARTING}:
            self._resume(crew)
        elif phases == {Phase.TRAINING} and any(one.supervisor.state.leave_at_checkpoint for one in crew):
            for one in crew:
                self._exit(one, 80, FailureClass.STOPPED, "stopped at the checkpoint, as asked")
        elif phases == {Phase.TRAINING} and job not in self.held:
            await self._succeed(crew)

    def _resume(self, crew: list[Trainer]) -> None:
        uid = crew[0].uid
        before = self.saved[uid]
        self.saved[uid] = min(before + SAVE_EVERY, STEPS)
        resumed = _checkpoint(uid, before) if before else None
        for one in crew:
            more = {"checkpoint": _checkpoint(uid, self.saved[uid])} if one.supervisor.state.rank == 0 else {}
            metrics = {"loss": 1.0, "step_seconds": 0.1}
            step = {"step": self.saved[uid], "steps": STEPS, "resumed_from": resumed, "metrics": metrics}
            one.supervisor.become(phase=Phase.TRAINING, **step, **more)

    async def _succeed(self, crew: list[Trainer]) -> None:
        for one in crew:
            last = {"checkpoint": _checkpoint(one.uid, STEPS)} if one.supervisor.state.rank == 0 else {}
            one.supervisor.become(phase=Phase.SUCCEEDED, step=STEPS, **last)
            await self._terminate(one.name, "trainer", 0, one.supervisor.state.model_dump_json(by_alias=True))

    def _exit(self, trainer: Trainer, code: int, failure: FailureClass, message: str, **more: Any) -> None:
        state = trainer.supervisor.state
        end = Exit(
            fence=state.fence, code=code, failure=failure, message=message, step=state.step, at=time.time(), **more
        )
        trainer.supervisor.become(phase=Phase.EXITED, exit=end)


def _checkpoint(job_uid: str, step: int) -> Checkpoint:
    root = hashlib.sha256(f"{job_uid} {step}".encode()).hexdigest()
    return Checkpoint(step=step, root=f"blake3:{root}", at=time.time(), verified_at=time.time())


def _container(name: str) -> Document:
    return {"name": name, "image": "", "imageID": "", "ready": False, "restartCount": 0}


def _world(pod: Document) -> int:
    """How many ranks the trial of this pod has."""
    world: int = (task_of(pod).get("trial") or {"world": 1})["world"]
    return world


@asynccontextmanager
async def pretend_node(cluster: Cluster, supervisors: FakeSupervisors) -> AsyncIterator[PretendNode]:
    """At work until the end of the block, where a fault of its own is raised."""
    node = PretendNode(cluster, supervisors)
    at_work = asyncio.create_task(node.run())
    try:
        yield node
    finally:
        at_work.cancel()
        (ended,) = await asyncio.gather(at_work, return_exceptions=True)
        if isinstance(ended, Exception):
            raise ended
