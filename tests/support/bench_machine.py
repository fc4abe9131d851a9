"""A node, and whoever runs TrainingJobs and serves models, for Benchmarks at an API server in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from capstan_operator.cluster.kinds import PODS, TRAINING_JOBS
from capstan_operator.decide.types import Decision
from capstan_operator.observe import Observed
from tests.support.benchmarks import summary, trial_end
from tests.support.fake_api import FakeApi
from tests.support.fake_deployments import FakeDeployments
from tests.support.operators import RunningOperator, run_one

Document = dict[str, Any]


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
        self._deployments = FakeDeployments(api)

    def run(self) -> None:
        if self.is_stopped:
            return
        waiting = [pod for pod in self._pods() if pod["status"]["phase"] == "Pending"]
        self.most_at_once = max(
            self.most_at_once, len({pod["metadata"]["labels"]["capstan.dev/trial"] for pod in waiting})
        )
        for pod in waiting:
            self._addresses += 1
            ip = f"127.9.1.{self._addresses}"
            self.set_pod(pod["metadata"]["name"], phase="Running", podIP=ip, hostIP="127.0.0.1")
        running = [pod for pod in self._pods() if pod["status"]["phase"] == "Running"]
        for pod in running:
            if self._has_company(pod):
                self.end(pod["metadata"]["name"])
        for job in self._api.of(TRAINING_JOBS):
            name = job["metadata"]["name"]
            if "finishedAt" not in job.get("status", {}):
                self._api.change(TRAINING_JOBS, "default", name, self._say(self.jobs.get(name, ended("Succeeded"))))
        self._deployments.match()

    def end(self, name: str) -> None:
        code, words = self.failing.get(name, (0, summary(self.verdict) if "-report-" in name else trial_end()))
        terminated = {"exitCode": code, "reason": "Error" if code else "Completed", "message": words}
        status = [{"name": "bench", "state": {"terminated": terminated}}]
        self.set_pod(name, phase="Failed" if code else "Succeeded", containerStatuses=status)

    def set_pod(self, name: str, **status: Any) -> None:
        def edit(pod: Document) -> None:
            pod["status"] |= status

        self._api.change(PODS, "default", name, edit)

    def _pods(self) -> list[Document]:
        """Those of Benchmarks."""
        return [pod for pod in self._api.of(PODS) if "capstan.dev/trial" in pod["metadata"]["labels"]]

    def _has_company(self, pod: Document) -> bool:
        """All ranks of its trial run."""
        trial = task_of(pod).get("trial") or {"world": 1}
        label = pod["metadata"]["labels"]["capstan.dev/trial"]
        same = [one for one in self._pods() if one["metadata"]["labels"]["capstan.dev/trial"] == label]
        return sum(one["status"]["phase"] != "Pending" for one in same) >= trial["world"]

    @staticmethod
    def _say(status: Document) -> Callable[[Document], None]:
        return lambda document: document.update(status=status)


def ended(how: str, reason: str = "Completed", restarts: int = 0) -> Document:
    """Status of a TrainingJob that has ended."""
    at = "2026-01-01T00:00:00Z"
    condition = {"type": how, "status": "True", "reason": reason, "message": f"it {how}", "lastTransitionTime": at}
    return {"phase": how, "conditions": [condition], "finishedAt": at, "restarts": {"total": restarts}}


def env_of(pod: Document) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in pod["spec"]["containers"][0]["env"]}


def task_of(pod: Document) -> Document:
    task: Document = json.loads(env_of(pod)["CAPSTAN_BENCH"].replace("$$", "$"))
    return task


def leave_jobs_alone(observed: Observed, now: float) -> Decision:
    return Decision(status=observed.job.status)


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
        assert operator.value("reconciles_total", result="error") == 0
