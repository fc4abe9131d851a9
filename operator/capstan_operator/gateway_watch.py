"""HTTPRoutes, watched while the API server serves them: the Gateway API is an extension that comes and goes."""

import asyncio
import logging

from capstan_operator.api.meta import LABEL_MANAGED_BY, MANAGED_BY
from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.gateway_routes import HttpRoute
from capstan_operator.cluster.kinds import HTTP_ROUTES
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.limiter import Lane
from capstan_operator.cluster.reflector import Reflector
from capstan_operator.cluster.serving_store import ServingStore
from capstan_operator.metrics import Metrics

logger = logging.getLogger(__name__)

LOOK_SECONDS = 15.0
"""How soon it is seen that the Gateway API was installed, or removed."""
RETRY_SECONDS = 1.0


class GatewayWatch:
    """`run` never returns. `synced` is set once it is known whether HTTPRoutes are served and, if so, all were seen."""

    def __init__(
        self, client: KubeClient, store: ServingStore, metrics: Metrics, *, namespace: str | None, look_seconds: float
    ) -> None:
        self._client = client
        self._store = store
        self._metrics = metrics
        self._namespace = namespace
        self._look_seconds = look_seconds
        self.synced = asyncio.Event()

    async def run(self) -> None:
        while True:
            while not await self._is_served():
                self._store.set_gateway_api(is_served=False)
                self.synced.set()
                await asyncio.sleep(self._look_seconds)
            await self._watch_while_served()

    async def _watch_while_served(self) -> None:
        reflector = Reflector(
            self._client,
            HTTP_ROUTES,
            HttpRoute,
            self._store.gateway_routes,
            self._metrics,
            namespace=self._namespace,
            selector=f"{LABEL_MANAGED_BY}={MANAGED_BY}",
        )
        parts = [asyncio.create_task(reflector.run()), asyncio.create_task(self._report(reflector))]
        try:
            while await self._is_served():
                await asyncio.sleep(self._look_seconds)
            logger.warning("HTTPRoutes are not served any more")
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            self._metrics.watch_age.remove(HTTP_ROUTES.plural)

    async def _report(self, reflector: Reflector[HttpRoute]) -> None:
        await reflector.synced.wait()
        self._store.set_gateway_api(is_served=True)
        self.synced.set()

    async def _is_served(self) -> bool:
        """As the API server says, however long it takes to answer."""
        while True:
            try:
                answer = await self._client.call("GET", HTTP_ROUTES.group_path, lane=Lane.SYSTEM)
                return f'"{HTTP_ROUTES.plural}"'.encode() in answer
            except ApiError as error:
                if error.is_not_found:
                    return False
                logger.warning("whether HTTPRoutes are served is not known: %s", error)
            await asyncio.sleep(RETRY_SECONDS)
