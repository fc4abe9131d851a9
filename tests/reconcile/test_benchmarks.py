"""Benchmarks under a whole operator, against an API server in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from capstan_operator.cluster.kinds import BENCHMARKS, EVENTS, INFERENCE_SERVICES, PODS, TRAINING_JOBS
from capstan_operator.decide.types import Decision
from capstan_operator.observe import Observed
from tests.support.benchmarks import spec_of, summary, trial_end
from tests.support.fake_api import FakeApi, names
from tests.support.operators import RunningOperator, eventually, run_one

Document = dict[str, Any]
SERVICE: Document = {
    "modelRef": {
        "uri": {"store": {"claim": {"name": "c"}}, "run": "default/train/uid", "digest": "blake3:" + 64 * "0"}
    },
    "runtime": "torch",
}
LOAD: Document = {"rates": [5], "scenario": [{"name": "predict", "path": "/v2/health/live", "method": "GET"}]}


def leave_jobs_alone(observed: Observed, now: float) -> Decision:
    return Decision(status=observed.job.status)


def benchmark(name: str = "bench", **spec: Any) -> Document:
    return {"metadata": {"name": name, "namespace": "default"}, "spec": spec_of(**spec)}


def status_of(api: FakeApi, name: str = "bench") -> Document:
    status: Document = api.get(BENCHMARKS, name).get("status", {})
    return status


def is_in(api: FakeApi, phase: str, name: str = "bench") -> Callable[[], bool]:
    return lambda: status_of(api, name).get("phase") == phase


class Machine:
    """A node, and whoever runs TrainingJobs and serves models: everything succeeds unless it is told to fail."""

    def __init__(self, api: FakeApi) -> None:
        self._api = api
        self.failing: dict[str, tuple[int, str]] = {}
        """By pod: exit code and last words."""
        self.jobs: dict[str, Document] = {}
        """By TrainingJob: its status, when it is to be another than success."""
        self.verdict: str | None = None
        self.is_stopped = False
        self.most_at_once = 0
        self._addresses = 0

    def run(self) -> None:
        if self.is_stopped:
            return
        waiting = [pod for pod in self._api.of(PODS) if pod["status"]["phase"] == "Pending"]
        self.most_at_once = max(
            self.most_at_once, len({pod["metadata"]["labels"]["capstan.dev/trial"] for pod in waiting})
        )
        for pod in waiting:
            self._addresses += 1
            self.set_pod(pod["metadata"]["name"], phase="Running", podIP=f"127.9.1.{self._addresses}")
        running = [pod for pod in self._api.of(PODS) if pod["status"]["phase"] == "Running"]
        for pod in running:
            if self._has_company(pod):
                self.end(pod["metadata"]["name"])
        for job in self._api.of(TRAINING_JOBS):
            name = job["metadata"]["name"]
            if "finishedAt" not in job.get("status", {}):
                self._api.change(TRAINING_JOBS, "default", name, self._say(self.jobs.get(name, ended("Succeeded"))))
        for service in self._api.of(INFERENCE_SERVICES):
            if not service.get("status", {}).get("url"):
                self._api.change(INFERENCE_SERVICES, "default", service["metadata"]["name"], self._say(live_service()))

    def end(self, name: str) -> None:
        code, words = self.failing.get(name, (0, summary(self.verdict) if "-report-" in name else trial_end()))
        terminated = {"exitCode": code, "reason": "Error" if code else "Completed", "message": words}
        status = [{"name": "bench", "state": {"terminated": terminated}}]
        self.set_pod(name, phase="Failed" if code else "Succeeded", containerStatuses=status)

    def set_pod(self, name: str, **status: Any) -> None:
        def edit(pod: Document) -> None:
            pod["status"] |= status

        self._api.change(PODS, "default", name, edit)

    def _has_company(self, pod: Document) -> bool:
        """All ranks of its trial run."""
        trial = task_of(pod).get("trial") or {"world": 1}
        label = pod["metadata"]["labels"]["capstan.dev/trial"]
        same = [one for one in self._api.of(PODS) if one["metadata"]["labels"]["capstan.dev/trial"] == label]
        return sum(one["status"]["phase"] != "Pending" for one in same) >= trial["world"]

    @staticmethod
    def _say(status: Document) -> Callable[[Document], None]:
        return lambda document: document.update(status=status)


def ended(how: str, reason: str = "Completed", restarts: int = 0) -> Document:
    """Status of a TrainingJob that has ended."""
    at = "2026-01-01T00:00:00Z"
    condition = {"type": how, "status": "True", "reason": reason, "message": f"it {how}", "lastTransitionTime": at}
    return {"phase": how, "conditions": [condition], "finishedAt": at, "restarts": {"total": restarts}}


def live_service() -> Document:
    at = "2026-01-01T00:00:00Z"
    conditions = [
        {"type": kind, "status": "True", "reason": "Live", "message": "", "lastTransitionTime": at}
        for kind in ("Accepted", "Serving", "UpToDate")
    ]
    return {"conditions": conditions, "ready": "1/1", "url": "http://127.1.2.3:8480", "stable": "x"}


def env_of(pod: Document) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in pod["spec"]["containers"][0]["env"]}


def task_of(pod: Document) -> Document:
    task: Document = json.loads(env_of(pod)["CAPSTAN_BENCH"].replace("$$", "$"))
    return task


@asynccontextmanager
async def running(api: FakeApi, machine: Machine) -> AsyncIterator[RunningOperator]:
    async def run_for_ever() -> None:
        while True:
            machine.run()
            await asyncio.sleep(0.03)

    async with run_one(api.kubeconfig, leave_jobs_alone) as operator:
        at_work = asyncio.create_task(run_for_ever())
        try:
            yield operator
        finally:
            at_work.cancel()
            await asyncio.gather(at_work, return_exceptions=True)


async def test_runs_are_made_one_after_the_other_and_reported(api: FakeApi) -> None:
    machine = Machine(api)
    async with running(api, machine) as operator:
        api.put(BENCHMARKS, benchmark())
        await eventually(is_in(api, "Succeeded"))
        assert operator.metrics.registry.get_sample_value("capstan_benchmarks", {"phase": "Succeeded"}) == 1
    status = status_of(api)
    report = status["report"]["log"]
    assert machine.most_at_once == 1
    assert [(one["trial"], one["attempt"]) for one in status["trials"]] == [("t00", 1), ("t01", 1)]
    assert (status["result"], status["progress"]["summary"]) == ("100 samples/s ±1 %", "2/2")
    assert names(api.of(PODS)) == [report, "bench-t01"]
    tasks = [task_of(call.body) for call in api.calls if (call.verb, call.resource) == ("create", "pods")]
    assert [task["trial"]["trial"] for task in tasks[:-1]] == ["t00", "t01"]
    assert [ref["repetition"] for ref in tasks[-1]["report"]["trials"]] == [0, 1]
    reasons = [event["reason"] for event in api.of(EVENTS)]
    assert reasons == ["Begun", "Reported"]
    assert [call for call in api.calls if call.status == 403] == []
