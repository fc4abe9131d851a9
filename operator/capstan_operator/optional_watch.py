"""A kind that not every API server serves, watched while it is served: an extension comes and goes, and of a kind that
changes with Kubernetes there is one version here and another there."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Generic

from capstan_operator.api.meta import LABEL_MANAGED_BY, MANAGED_BY
from capstan_operator.cluster.kinds import Resource
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.reflector import Reflector, Sink, T
from capstan_operator.cluster.served import is_served
from capstan_operator.metrics import Metrics

logger = logging.getLogger(__name__)


class OptionalWatch(Generic[T]):
    """`run` never returns. `synced` is set once it is known whether the kind is served and, if so, all were seen."""

    def __init__(
        self,
        client: KubeClient,
        versions: Sequence[Resource],
        kind: type[T],
        sink: Sink[T],
        report: Callable[[Resource | None], None],
        *,
        metrics: Metrics,
        namespace: str | None,
        look_seconds: float,
    ) -> None:
        """`versions` of one kind: the first that is served is watched. `report` hears which, once all were seen; None:
        none is served."""
        self._client = client
        self._versions = versions
        self._kind = kind
        self._sink = sink
        self._report = report
        self._metrics = metrics
        self._namespace = namespace
        self._look_seconds = look_seconds
        self.synced = asyncio.Event()

    async def run(self) -> None:
        while True:
            while (resource := await self._served()) is None:
                self._report(None)
                self.synced.set()
                await asyncio.sleep(self._look_seconds)
            await self._watch_while_served(resource)

    async def _watch_while_served(self, resource: Resource) -> None:
        reflector = Reflector(
            self._client,
            resource,
            self._kind,
            self._sink,
            self._metrics,
            namespace=self._namespace,
            selector=f"{LABEL_MANAGED_BY}={MANAGED_BY}",
        )
        parts = [asyncio.create_task(reflector.run()), asyncio.create_task(self._report_seen(reflector, resource))]
        try:
            while await self._served() == resource:
                await asyncio.wait(parts[:1], timeout=self._look_seconds)
                for ended in filter(asyncio.Task.done, parts):
                    ended.result()  # a fault of ours ends the operator, as in any other part of it
            logger.warning("%ss of %s/%s are not served any more", resource.kind, resource.group, resource.version)
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            self._metrics.watch_age.remove(resource.plural)

    async def _report_seen(self, reflector: Reflector[T], resource: Resource) -> None:
        await reflector.synced.wait()
        self._report(resource)
        self.synced.set()

    async def _served(self) -> Resource | None:
        for resource in self._versions:
            if await is_served(self._client, resource):
                return resource
        return None
