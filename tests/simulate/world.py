"""A cluster in memory: an API server's objects, nodes and kubelets, all moved by one clock. What runs in the pods is in
`trainers.py`.

Nothing here knows how the operator decides. What it must never do is asserted where it would do it.
"""

from __future__ import annotations

import base64
import heapq
import itertools
import json
import random
from collections.abc import Callable
from typing import Any

from capstan_operator.api.meta import LABEL_INCARNATION, LABEL_WORKER
from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.build.secret import RUN_FILE
from capstan_runtime.contract.exit_codes import FailureClass
from tests.simulate.pods import Pod, Refused
from tests.simulate.trainers import HAS_TRAINER, Trainers

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


class World:
    """`at` puts an action on the clock, `run` lets time pass."""

    def __init__(self, seed: int, spec: dict[str, Any]) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.transcript: list[str] = []
        self.spec, self.generation = spec, 1
        self.status: dict[str, Any] = {}
        self.version = 1
        self.pods: dict[str, Pod] = {}
        self.secret: dict[str, Any] | None = None
        """The run as the Secret tells it; None: there is none."""
        self.writes: list[str] = []
        self.on_change: Callable[[str], None] = lambda name: None
        """Called with the name of a pod that changed, or "job"."""
        self.on_hint: Callable[[], None] = lambda: None
        self.faults = 0
        self.crashing_start_ups = 0
        """How many of the next pods die while they start."""
        self.dark_nodes: set[str] = set()
        """Nodes without power: what runs on them is gone, and nobody says so."""
        self.full_nodes: set[str] = set()
        """Nodes that take no further pod."""
        self._maxima = [int(spec["workers"]["max"])]
        self.known_step_at: dict[int, int] = {}
        """By fence: step of the newest checkpoint that status knew when the attempt began."""
        self._clock: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._uids = itertools.count(1)
        self.trainers = Trainers(self)

    # Time

    def at(self, delay: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._clock, (self.now + delay, next(self._order), action))

    def run(self, until: float, done: Callable[[], bool] = lambda: False) -> None:
        while self._clock and self._clock[0][0] <= until and not done():
            self.now, _, action = heapq.heappop(self._clock)
            action()

    def note(self, text: str) -> None:
        self.transcript.append(f"{self.now:7.1f}  {text}")

    def soon(self, low: float, high: float) -> float:
        return self.random.uniform(low, high)

    # The API server

    def create_pod(self, manifest: dict[str, Any]) -> Pod:
        """Creates the pod, or returns the one of that name."""
        name, labels = manifest["metadata"]["name"], manifest["metadata"]["labels"]
        if name in self.pods:
            return self.pods[name]
        assert self.secret is not None, "a pod was created before its Secret"
        assert not self.is_finished, f"pod {name} was created after the end"
        command = manifest["spec"]["containers"][0]["command"]
        worker, incarnation = int(labels[LABEL_WORKER]), int(labels[LABEL_INCARNATION])
        pod = Pod(name, f"uid-{next(self._uids)}", worker, incarnation, self.now, "capstan_runtime" in command[-1])
        pod.kept_off = _kept_off(manifest["spec"])
        self.pods[name] = pod
        self.writes.append(f"create {name}")
        self.note(f"create pod {name}")
        self.at(self.soon(1.0, 3.0), lambda: self._start(pod))
        self.on_change(name)
        return pod

    def delete_pod(self, name: str, uid: str) -> None:
        pod = self.pods.get(name)
        if pod is None or pod.uid != uid or pod.is_deleting:
            return
        self.writes.append(f"delete {name}")
        self.note(f"delete pod {name}")
        self.terminate(pod)

    def apply_secret(self, manifest: dict[str, Any]) -> None:
        """It is immutable: one that says something else is made anew."""
        run = json.loads(base64.b64decode(manifest["data"][RUN_FILE]))
        if run != self.secret:
            self.writes.append("secret")
            self.note("create secret")
        self.secret = run

    def delete_secret(self) -> None:
        self.secret = None
        self.note("delete secret")

    def write_status(self, status: TrainingJobStatus, seen_version: int) -> None:
        """Raises Refused when the job was changed since it was seen."""
        if seen_version != self.version:
            raise Refused("conflict")
        before, after = TrainingJobStatus.parse(self.status), status
        self._check_status(before, after)
        self.status = status.document()
        self.version += 1
        self.writes.append(f"status {after.phase} {after.reason}")
        if (before.phase, before.reason) != (after.phase, after.reason):
            self.note(f"status {after.phase} ({after.reason}): {after.message}")
        self.on_change("job")

    def change_spec(self, spec: dict[str, Any]) -> None:
        self.spec, self.generation, self.version = spec, self.generation + 1, self.version + 1
        self._maxima.append(int(spec["workers"]["max"]))
        self.on_change("job")

    @property
    def virtual_ranks(self) -> int:
        """Those that the pods have read."""
        assert self.secret is not None
        return int(self.secret["training"]["virtualRanks"])

    @property
    def largest_max(self) -> int:
        """The largest workers.max of every spec there was."""
        return max(*self._maxima, int(self.spec["workers"]["max"]))

    @property
    def is_finished(self) -> bool:
        return self.status.get("finishedAt") is not None

    def _check_status(self, before: TrainingJobStatus, after: TrainingJobStatus) -> None:
        assert after.fence >= before.fence, "the fence went back"
        if after.fence == before.fence and after.resumed_from == before.resumed_from:
            assert (after.step or 0) >= (before.step or 0), f"step {before.step} became {after.step} for no reason"
        if before.finished_at is not None:
            kept = {"observed_generation": None, "cleaned_up_at": None}
            assert after.model_copy(update=kept) == before.model_copy(update=kept), "a finished job changed"
        if after.fence > before.fence:
            known = [entry.step for entry in after.quarantined] + ([after.checkpoint.step] if after.checkpoint else [])
            self.known_step_at[after.fence] = max(known, default=0)
        assert (after.micro_splits or 1) >= (before.micro_splits or 1), "micro-batches grew"
        ends = [skip.first + skip.count for skip in after.skips]
        begins = [skip.first for skip in after.skips]
        assert all(end < begin for end, begin in zip(ends, begins[1:], strict=False)), f"skips overlap: {after.skips}"
        assert len(after.node_faults) <= 10
        assert after.restarts.total <= before.restarts.total + 1, "one write counted two failures"
        # More restarts than faults would mean that one was counted twice.
        assert after.restarts.total <= self.faults, f"{after.restarts} after {self.faults} faults"

    # Nodes and kubelets

    def can_reach(self, pod: Pod) -> bool:
        return pod.is_reachable and not self.is_dark(pod)

    def is_dark(self, pod: Pod) -> bool:
        return pod.node in self.dark_nodes

    def lose_node(self, node: str) -> None:
        """The node goes dark, and takes no pods until it is back."""
        self.fault(f"{node} goes dark")
        self.dark_nodes.add(node)
        self.full_nodes.add(node)

    def bring_back(self, node: str) -> None:
        """The node starts again: what was on it is over."""
        self.note(f"! {node} is back")
        self.dark_nodes.discard(node)
        self.full_nodes.discard(node)
        for pod in [pod for pod in self.pods.values() if pod.node == node]:
            self.vanish(pod)

    def _start(self, pod: Pod) -> None:
        if pod.is_deleting or self.pods.get(pod.name) is not pod:
            return
        pod.node = self._find_node(pod)
        if pod.node is None:
            if pod.waiting is None:
                pod.waiting = "Unschedulable: 0/4 nodes are available"
                self.on_change(pod.name)
            self.at(2.0, lambda: self._start(pod))
            return
        pod.waiting, pod.run = None, self.secret
        if self.crashing_start_ups:
            self.crashing_start_ups -= 1
            self.fault(f"{pod.name} dies while it starts")
            return self.fail_pod(pod, 1, "Error")
        pod.phase, pod.ip = "Running", f"10.{pod.incarnation // 256}.{pod.incarnation % 256}.{pod.worker + 1}"
        pod.running_since = self.now
        self.on_change(pod.name)
        if not pod.has_supervisor:
            self.at(self.soon(3.0, 6.0), lambda: self.end(pod, 0))

    def _find_node(self, pod: Pod) -> str | None:
        """Every worker has a node of its own, and there is a spare one; None: it may run on neither now."""
        bad = self.full_nodes | pod.kept_off
        return next((node for node in (f"node-{pod.worker}", "spare") if node not in bad), None)

    def end(self, pod: Pod, exit_code: int, reason: str | None = None) -> None:
        """The container of `pod` ends."""
        if pod.phase not in ("Pending", "Running"):
            return
        pod.phase = "Failed" if exit_code else "Succeeded"
        pod.exit_code, pod.exit_reason = exit_code, reason or ("Error" if exit_code else "Completed")
        pod.final = pod.state if pod.has_supervisor and reason != "OOMKilled" else None
        self.on_change(pod.name)

    def terminate(self, pod: Pod) -> None:
        """SIGTERM, a few seconds, and gone; on a dark node it only looks so."""
        pod.is_deleting = True
        if self.is_dark(pod):
            return self.on_change(pod.name)
        if pod.state.phase in HAS_TRAINER:
            self.trainers.exit(pod, 80, FailureClass.STOPPED, "stopped as asked")
        self.on_change(pod.name)

        def leave() -> None:
            self.end(pod, 80)
            self.at(self.soon(0.1, 1.0), lambda: self.vanish(pod))

        self.at(self.soon(0.5, 3.0), leave)
        return None

    def vanish(self, pod: Pod) -> None:
        if self.pods.get(pod.name) is pod:
            del self.pods[pod.name]
            pod.phase = "Gone"
            self.on_change(pod.name)

    def fail_pod(self, pod: Pod, exit_code: int, reason: str) -> None:
        self.end(pod, exit_code, reason)

    def fault(self, text: str) -> None:
        """Everything that may rightly cost a restart is counted."""
        self.faults += 1
        self.note(f"! {text}")


def _kept_off(pod_spec: dict[str, Any]) -> frozenset[str]:
    """Nodes that the pod must not, by its affinity, be put on."""
    of_nodes = pod_spec.get("affinity", {}).get("nodeAffinity", {})
    fields = [
        field for term in of_nodes.get(REQUIRED, {}).get("nodeSelectorTerms", []) for field in term["matchFields"]
    ]
    return frozenset(field["values"][0] for field in fields)
