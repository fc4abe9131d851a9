"""What a kubelet does to a pod, step by step as a test asks for it."""

from __future__ import annotations

from typing import Any

from capstan_operator.cluster.kinds import PODS
from tests.support.fake_api import Document, FakeApi
from tests.support.fake_supervisors import FakeSupervisor, FakeSupervisors


class FakeNode:
    def __init__(self, api: FakeApi, supervisors: FakeSupervisors) -> None:
        self.api = api
        self.supervisors = supervisors
        self.by_pod: dict[str, FakeSupervisor] = {}
        self._addresses = 0

    async def start(self, name: str) -> FakeSupervisor:
        """Pod `name` runs and its supervisor answers."""
        self._addresses += 1
        ip = f"127.0.1.{self._addresses}"
        pod = self.api.get(PODS, name)
        owner = pod["metadata"]["ownerReferences"][0]["uid"]
        self.by_pod[name] = await self.supervisors.add(ip, name, owner)
        self.set_status(name, phase="Running", podIP=ip, hostIP="127.0.0.1")
        return self.by_pod[name]

    async def start_all(self) -> None:
        for pod in self.api.of(PODS):
            if pod["status"]["phase"] == "Pending":
                await self.start(pod["metadata"]["name"])

    def finish_all(self) -> None:
        for pod in self.api.of(PODS):
            self.set_status(pod["metadata"]["name"], phase="Succeeded")

    def fail(self, name: str, exit_code: int = 1) -> None:
        terminated = {"exitCode": exit_code, "reason": "Error", "message": ""}
        self.set_status(
            name, phase="Failed", containerStatuses=[{"name": "trainer", "state": {"terminated": terminated}}]
        )

    def set_status(self, name: str, **status: Any) -> None:
        def edit(pod: Document) -> None:
            pod["status"] |= status

        self.api.change(PODS, "default", name, edit)
