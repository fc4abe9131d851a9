"""One kind of ours as the operator sees it: kopf's watch, and the comparison that makes good what it misses."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from capstan_operator.cluster.credentials import Credentials
from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.kinds import Resource
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.limiter import Lane
from capstan_operator.cluster.objects import Objects
from capstan_operator.cluster.safety_net import SafetyNet
from capstan_operator.cluster.work_queue import ObjectKey, Priority
from capstan_operator.handlers import Watch

logger = logging.getLogger(__name__)


class OwnKind:
    """`run` keeps `objects` equal to what the API server has, until cancelled. The kind must be served."""

    def __init__(
        self,
        client: KubeClient,
        credentials: Credentials,
        resource: Resource,
        objects: Objects,
        wake: Callable[[ObjectKey, Priority], None],
        namespace: str | None,
    ) -> None:
        self._objects = objects
        self.safety_net = SafetyNet(client, resource, objects, wake, namespace)
        self._watch = Watch(credentials, resource, self._take, namespace=namespace)

    @property
    def synced(self) -> asyncio.Event:
        """Set once every object there was has been seen."""
        return self.safety_net.synced

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch.run())
            group.create_task(self.safety_net.run())

    def _take(self, kind: str | None, document: dict[str, Any]) -> None:
        """An event of kopf's. One out of a list, after the first list, means that the watch has started over."""
        metadata = document["metadata"]
        if kind == "DELETED":
            self._objects.remove(self._objects.key(metadata["namespace"], metadata["name"]), metadata["uid"])
            return
        self._objects.put(document)
        if kind is None and self.synced.is_set():
            self.safety_net.suspect()


async def wait_until_served(client: KubeClient, resource: Resource, report: Callable[[str], None]) -> None:
    """Until the API server serves a kind; `report` hears why it is still waited for. kopf is told not to look for new
    kinds, so a kind must be there before it is watched."""
    delay = 0.25
    problem: str | None = None
    while True:
        try:
            answer = await client.call("GET", resource.group_path, lane=Lane.SYSTEM)
            if f'"{resource.plural}"'.encode() in answer:
                return
            now = f"{resource.kind}s are not served yet: kubectl apply -f crds/"
        except ApiError as error:
            now = f"{resource.kind}s are unknown to the API server: kubectl apply -f crds/"
            if not error.is_not_found:
                now = str(error)
        if now != problem:
            problem = now
            report(problem)
            logger.warning("waiting: %s", problem)
        await asyncio.sleep(delay)
        delay = min(5.0, delay * 1.5)
