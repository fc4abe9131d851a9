"""Keeps a sink equal to one collection of the API server: list, then watch, for ever.

Nothing that the server does ends it. After a disconnect it goes on from the last version; after a 410 or any other
error event everything is listed again, and the sink drops what vanished meanwhile.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

import msgspec

from capstan_operator.cluster.errors import UNREADABLE, ApiError, ErrorStatus
from capstan_operator.cluster.kinds import Resource
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.pods import Metadata
from capstan_operator.metrics import Metrics

logger = logging.getLogger(__name__)

MAX_BACKOFF_SECONDS = 30.0
HEALTHY_AFTER_SECONDS = 5.0
"""A watch that lived so long was no failure: the next one may start at once."""
ALIVE_SECONDS = 150.0
"""Two bookmarks and a reconnect may be missed before the watch counts as dead."""


class _HasMetadata(Protocol):
    metadata: Metadata


T = TypeVar("T", bound=_HasMetadata)
T_contra = TypeVar("T_contra", bound=_HasMetadata, contravariant=True)


class Sink(Protocol[T_contra]):
    """Where objects go."""

    def put(self, item: T_contra, /) -> None: ...

    def remove(self, item: T_contra, /) -> None: ...

    def replace(self, listed: Iterable[T_contra], version: str, /) -> None: ...


class Fan(Generic[T]):
    """A sink that hands everything on to several; each passes over what is not its own."""

    def __init__(self, *sinks: Sink[T]) -> None:
        self._sinks = sinks

    def put(self, item: T) -> None:
        for sink in self._sinks:
            sink.put(item)

    def remove(self, item: T) -> None:
        for sink in self._sinks:
            sink.remove(item)

    def replace(self, listed: Iterable[T], version: str) -> None:
        listed = list(listed)
        for sink in self._sinks:
            sink.replace(listed, version)


class _ListMetadata(msgspec.Struct, gc=False, rename="camel"):
    resource_version: str = ""
    token: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct, gc=False):
    metadata: _ListMetadata
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct, gc=False):
    type: str
    object: msgspec.Raw


class _Bare(msgspec.Struct, gc=False):
    metadata: Metadata


_decode_page = msgspec.json.Decoder(_Page).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_bare = msgspec.json.Decoder(_Bare).decode
_decode_error = msgspec.json.Decoder(ErrorStatus).decode


class Expired(Exception):
    """What was seen so far is no basis to go on from."""


def read_event(line: bytes, decode: Callable[[msgspec.Raw], T]) -> tuple[str, T | None, str]:
    """The type of a watch's event, its object, and the version that it brings; a BOOKMARK has no object.

    Raises Expired for an ERROR, and one of UNREADABLE.
    """
    event = _decode_event(line)
    if event.type == "BOOKMARK":
        return event.type, None, _decode_bare(event.object).metadata.resource_version
    if event.type == "ERROR":
        error = _decode_error(event.object)
        raise Expired(f"{error.reason} ({error.code}): {error.message}")
    item = decode(event.object)
    return event.type, item, item.metadata.resource_version


class Reflector(Generic[T]):
    """`run` never returns; `is_synced` once everything has been listed."""

    def __init__(
        self,
        client: KubeClient,
        resource: Resource,
        kind: type[T],
        sink: Sink[T],
        metrics: Metrics,
        *,
        namespace: str | None = None,
        selector: str = "",
    ) -> None:
        self._client = client
        self._resource = resource
        self._decode = msgspec.json.Decoder(kind).decode
        self._sink = sink
        self._metrics = metrics
        self._namespace = namespace
        self._selector = selector
        self._version: str | None = None
        """Of the last list or event; None: everything must be listed."""
        self._heard_at = time.monotonic()
        self.synced = asyncio.Event()
        metrics.watch_age.labels(resource.plural).set_function(self.silent_seconds)

    def silent_seconds(self) -> float:
        """Seconds since the server last said anything."""
        return time.monotonic() - self._heard_at

    def is_alive(self) -> bool:
        """Everything has been listed and the server has said something lately."""
        return self.synced.is_set() and self.silent_seconds() < ALIVE_SECONDS

    async def run(self) -> None:
        failures = 0
        while True:
            started = time.monotonic()
            try:
                if self._version is None:
                    await self._list()
                await self._watch()
            except Expired as why:
                logger.info("listing all %s again: %s", self._resource.plural, why)
                self._version = None
            except (ApiError, *UNREADABLE) as error:
                logger.warning("the watch of %s broke: %s", self._resource.plural, error)
                if isinstance(error, UNREADABLE):
                    self._version = None  # no telling what the unreadable event was
            if time.monotonic() - started >= HEALTHY_AFTER_SECONDS:
                failures = 0
                continue
            failures += 1
            limit = min(MAX_BACKOFF_SECONDS, 0.05 * 2 ** min(failures, 12))
            await asyncio.sleep(random.uniform(limit / 2, limit))  # nosec B311  # jitter

    async def _list(self) -> None:
        """All pages at one version, then swap. A token that expired half-way means: from the start."""
        items: list[T] = []
        token = ""  # nosec B105  # of a page
        while True:
            try:
                answer = await self._client.list_page(
                    self._resource, self._namespace, selector=self._selector, token=token
                )
            except ApiError as error:
                if error.is_expired and token:
                    raise Expired("the list took too long") from error
                raise
            self._heard_at = time.monotonic()
            page = _decode_page(answer)
            items += [self._decode(item) for item in page.items or ()]
            token = page.metadata.token
            if not token:
                break
        self._sink.replace(items, page.metadata.resource_version)
        self._version = page.metadata.resource_version
        self._metrics.relists.labels(self._resource.plural).inc()
        self.synced.set()

    async def _watch(self) -> None:
        """Follow one stream from the last version to its end."""
        assert self._version is not None
        try:
            async for line in self._client.watch(
                self._resource, self._namespace, selector=self._selector, version=self._version
            ):
                self._heard_at = time.monotonic()
                self._take_in(*read_event(line, self._decode))
        except ApiError as error:
            if error.is_expired:
                raise Expired(str(error)) from error
            raise

    def _take_in(self, change: str, item: T | None, version: str) -> None:
        if item is not None and change == "DELETED":
            self._sink.remove(item)
        elif item is not None:
            self._sink.put(item)
        self._version = version
