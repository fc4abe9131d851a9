"""Which of a few kinds that come with extensions the API server serves: an extension comes and goes."""

import asyncio
import logging
from collections.abc import Callable, Mapping

from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.kinds import Resource
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.limiter import Lane

logger = logging.getLogger(__name__)

LOOK_SECONDS = 15.0
"""How soon it is seen that a kind was installed, or removed."""
RETRY_SECONDS = 1.0


async def is_served(client: KubeClient, resource: Resource) -> bool:
    """As the API server says, however long it takes to answer."""
    while True:
        try:
            answer = await client.call("GET", resource.group_path, lane=Lane.SYSTEM)
            return f'"{resource.plural}"'.encode() in answer
        except ApiError as error:
            if error.is_not_found:
                return False
            logger.warning("whether %ss are served is not known: %s", resource.kind, error)
        await asyncio.sleep(RETRY_SECONDS)


class ServedKinds:
    """`run` never returns; `synced` is set once it is known which of `kinds`, by a name for each, are served."""

    def __init__(
        self,
        client: KubeClient,
        kinds: Mapping[str, Resource],
        changed: Callable[[], None],
        look_seconds: float,
    ) -> None:
        self._client = client
        self._kinds = kinds
        self._changed = changed
        self._look_seconds = look_seconds
        self.names: frozenset[str] = frozenset()
        self.synced = asyncio.Event()

    async def run(self) -> None:
        while True:
            found = {name for name, resource in self._kinds.items() if await is_served(self._client, resource)}
            if found != self.names:
                self.names = frozenset(found)
                self._changed()
            self.synced.set()
            await asyncio.sleep(self._look_seconds)
