"""A copy of all objects of one kind of an API server, kept true by list and watch."""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field

from capstan_local.client import ApiError, ChangeType, Client, Key, Object, Resource, Unreachable, key_of, version_of

log = logging.getLogger(__name__)

SHORTEST_WATCH_SECONDS = 1.0


@dataclass
class Informer:
    """A copy of all objects of one kind, kept true by list and watch.

    `on_change(type, object, previous)` is called in the event loop for every difference, including those found by
    comparing a new list with what was known, so vanished objects always show as DELETED. An object replaced by one of
    the same name shows as DELETED and ADDED. What is kept and handed on is `reduce(object)`: by default all of it but
    managedFields.
    """

    client: Client
    resource: Resource
    on_change: Callable[[ChangeType, Object, Object | None], None]
    namespace: str | None = None
    selectors: Mapping[str, str] = field(default_factory=dict)
    reduce: Callable[[Object], Object] = lambda obj: _without_managed_fields(obj)
    objects: dict[Key, Object] = field(default_factory=dict)
    synced: asyncio.Event = field(default_factory=asyncio.Event)
    _dropped: deque[str] = field(default_factory=lambda: deque(maxlen=4096))
    """uids of what was deleted lately: an answer to an earlier write may arrive after the news of the deletion."""

    def remember(self, obj: Object) -> None:
        """Takes in what the API server answered to a write, unless something newer is known already."""
        known = self.objects.get(key_of(obj))
        metadata = obj["metadata"]
        is_news = known is None or known["metadata"]["uid"] != metadata["uid"] or version_of(known) < version_of(obj)
        if is_news and metadata["uid"] not in self._dropped:
            self._put(obj)

    async def run(self) -> None:
        """Follows the server until cancelled; outages are waited out with a pause that doubles up to 5 s."""
        failures = 0
        while True:
            try:
                items, version = await self.client.list(self.resource, self.namespace, **self.selectors)
                self._replace(items)
                self.synced.set()
                failures = 0
                await self._follow(version)
            except (ApiError, Unreachable) as error:
                failures += 1
                level = logging.DEBUG if isinstance(error, ApiError) and error.code == 410 else logging.WARNING
                log.log(level, "%s: listing again: %s", self.resource.plural, error)
                await asyncio.sleep(random.uniform(0.5, 1.0) * min(5.0, 0.1 * 2**failures))  # nosec B311  # jitter

    async def _follow(self, version: str) -> None:
        """Watches from `version` on, again and again when the server ends a watch in good order."""
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            watch = self.client.watch(self.resource, version, self.namespace, **self.selectors)
            async with aclosing(watch) as changes:
                async for kind, obj in changes:
                    version = obj["metadata"]["resourceVersion"]
                    if kind in ("ADDED", "MODIFIED"):
                        self._put(obj)
                    elif kind == "DELETED":
                        self._drop(key_of(obj), obj)
            if loop.time() - started < SHORTEST_WATCH_SECONDS:  # a proxy that hangs up must not make this loop spin
                await asyncio.sleep(SHORTEST_WATCH_SECONDS)

    def _replace(self, items: list[Object]) -> None:
        found = {key_of(item) for item in items}
        for key in [key for key in self.objects if key not in found]:
            self._drop(key, self.objects[key])
        for item in items:
            self._put(item)

    def _put(self, obj: Object) -> None:
        obj = self.reduce(obj)
        key = key_of(obj)
        old = self.objects.get(key)
        if old is not None and old["metadata"]["uid"] != obj["metadata"]["uid"]:
            self._drop(key, old)
            old = None
        if old is not None and version_of(old) >= version_of(obj):
            return  # known already, from a list or from the answer to a write
        self.objects[key] = obj
        self.on_change("MODIFIED" if old is not None else "ADDED", obj, old)

    def _drop(self, key: Key, last: Object) -> None:
        old = self.objects.pop(key, None)
        if old is not None:
            self._dropped.append(old["metadata"]["uid"])
            self.on_change("DELETED", self.reduce(last), old)


def _without_managed_fields(obj: Object) -> Object:
    obj["metadata"].pop("managedFields", None)
    return obj


def only_identity(obj: Object) -> Object:
    """For informers that only need to know that something changed."""
    kept = {name: obj["metadata"].get(name) for name in ("namespace", "name", "uid", "resourceVersion")}
    return {"metadata": kept}
