"""The safety net under the watch of one kind of ours: now and then, and after a relist, compare what is with what is
known.

kopf keeps the watch. When it has to list again, because the server forgot the past (410), it reports no deletions for
what vanished in between; nobody but this comparison would ever notice.
"""

import asyncio
import logging
import random
from collections.abc import Callable

import msgspec
import orjson

from capstan_operator.cluster.errors import UNREADABLE, ApiError
from capstan_operator.cluster.kinds import Resource
from capstan_operator.cluster.kube import METADATA_LIST, KubeClient
from capstan_operator.cluster.limiter import Lane
from capstan_operator.cluster.objects import Objects, is_newer
from capstan_operator.cluster.pods import Metadata
from capstan_operator.cluster.work_queue import ObjectKey, Priority

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 600.0
SETTLE_SECONDS = 2.0
"""Between the first sign of a relist and the comparison: the rest of the list is still coming in."""
PATIENCE_SECONDS = 2.0
"""How long the watch may deliver nothing of what the list has shown, before that is fetched here."""
MAX_PATIENCE_SECONDS = 120.0


class _Item(msgspec.Struct, gc=False):
    metadata: Metadata


class _PageMetadata(msgspec.Struct, gc=False, rename="camel"):
    resource_version: str = ""
    token: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct, gc=False):
    metadata: _PageMetadata
    items: list[_Item] | None = None


_decode_page = msgspec.json.Decoder(_Page).decode


class SafetyNet:
    """`run` never returns; `synced` is set once every listed object has been seen."""

    def __init__(
        self,
        client: KubeClient,
        resource: Resource,
        objects: Objects,
        wake: Callable[[ObjectKey, Priority], None],
        namespace: str | None,
    ) -> None:
        self._client = client
        self._resource = resource
        self._objects = objects
        self._wake = wake
        self._namespace = namespace
        self._suspicion = asyncio.Event()
        self.synced = asyncio.Event()

    def suspect(self) -> None:
        """The watch has started over: deletions may have been missed."""
        self._suspicion.set()

    async def run(self) -> None:
        while True:
            try:
                await self.compare()
            except (ApiError, *UNREADABLE) as error:
                logger.warning("%s could not be compared: %s", self._resource.plural, error)
                await asyncio.sleep(random.uniform(5.0, 10.0))  # nosec B311  # jitter
                continue
            self.synced.set()
            for record in self._objects.all():
                self._wake(record.key, Priority.BACKGROUND)
            try:
                async with asyncio.timeout(INTERVAL_SECONDS * random.uniform(0.8, 1.2)):  # nosec B311  # jitter
                    await self._suspicion.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(SETTLE_SECONDS)
            self._suspicion.clear()

    async def compare(self) -> None:
        """Compare once; fetch, one by one, only what differs."""
        listed, version = await self._list()
        await self._wait_for_watch(listed)
        present = {metadata.uid for metadata in listed}
        vanished = [
            (record.key, record.uid)
            for record in self._objects.all()
            if record.uid not in present and not is_newer(record.version, version)
        ]
        unseen = [(self._objects.key(m.namespace, m.name), m.uid) for m in filter(self._is_unseen, listed)]
        for key, uid in vanished + unseen:
            await self.refresh(key, uid)
        if vanished or unseen:
            missed = (len(vanished), len(unseen))
            logger.info("the watch of %s had missed %d deletions and %d changes", self._resource.plural, *missed)

    async def refresh(self, key: ObjectKey, uid: str) -> None:
        """Fetch one object and take in what is true: that it changed, or that it is gone."""
        try:
            document = orjson.loads(await self._client.get(self._resource, key.namespace, key.name, lane=Lane.STATUS))
        except ApiError as error:
            if not error.is_not_found:
                raise
            self._objects.remove(key, uid)
            return
        if document["metadata"]["uid"] != uid:
            self._objects.remove(key, uid)
        self._objects.put(document)

    async def _wait_for_watch(self, listed: list[Metadata]) -> None:
        """Until the watch has shown all of `listed`, or shows no more of it."""
        loop = asyncio.get_running_loop()
        began = moved_at = loop.time()
        unseen = len(listed) + 1
        while loop.time() - moved_at < PATIENCE_SECONDS and loop.time() - began < MAX_PATIENCE_SECONDS:
            listed = [metadata for metadata in listed if self._is_unseen(metadata)]
            if not listed:
                return
            if len(listed) < unseen:
                unseen, moved_at = len(listed), loop.time()
            await asyncio.sleep(0.1)

    def _is_unseen(self, metadata: Metadata) -> bool:
        if self._objects.is_gone(metadata.uid):
            return False
        known = self._objects.get(self._objects.key(metadata.namespace, metadata.name))
        return known is None or is_newer(metadata.resource_version, known.version)

    async def _list(self) -> tuple[list[Metadata], str]:
        listed: list[Metadata] = []
        token = ""  # nosec B105  # of a page
        while True:
            page = _decode_page(
                await self._client.list_page(
                    self._resource, self._namespace, selector="", token=token, accept=METADATA_LIST
                )
            )
            listed += [item.metadata for item in page.items or ()]
            token = page.metadata.token
            if not token:
                return listed, page.metadata.resource_version
