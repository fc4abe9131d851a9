"""Events about pods, written in the background: they inform people and must never hold a container up."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from capstan_local.client import EVENTS, ApiError, Client, Unreachable

log = logging.getLogger(__name__)

QUEUE_LENGTH = 4096
REMEMBERED = 4096


class EventRecorder:
    """Queues events and writes them one by one. The same event again raises the count of the first."""

    def __init__(self, client: Client, component: str, host: str = "") -> None:
        self._client = client
        self._source = {"component": component, **({"host": host} if host else {})}
        self._queue: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue(QUEUE_LENGTH)
        self._written: OrderedDict[tuple[str, str, str], tuple[str, int]] = OrderedDict()
        """(uid, reason, message) -> name and count of the event that says so."""

    def record(
        self,
        obj: Mapping[str, Any],
        reason: str,
        message: str,
        *,
        kind: str = "Pod",
        api_version: str = "v1",
        warning: bool = False,
        field: str = "",
    ) -> None:
        """Queues an event about `obj`. When the queue is full the event is dropped, with a line in the log."""
        metadata = obj["metadata"]
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        involved = {
            "kind": kind,
            "apiVersion": api_version,
            "namespace": metadata.get("namespace", ""),
            "name": metadata["name"],
            "uid": metadata["uid"],
            "resourceVersion": metadata.get("resourceVersion", ""),
            **({"fieldPath": field} if field else {}),
        }
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "namespace": metadata.get("namespace") or "default",
                "name": f"{metadata['name']}.{time.time_ns():x}",
            },
            "involvedObject": involved,
            "reason": reason,
            "message": message,
            "type": "Warning" if warning else "Normal",
            "source": self._source,
            "reportingComponent": self._source["component"],
            "reportingInstance": self._source.get("host", ""),
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            self._queue.put_nowait((metadata["uid"], event))
        except asyncio.QueueFull:
            log.warning("event dropped, %d are waiting: %s %s: %s", QUEUE_LENGTH, metadata["name"], reason, message)

    async def run(self) -> None:
        """Writes until cancelled."""
        while True:
            uid, event = await self._queue.get()
            await self._write(uid, event)
            self._queue.task_done()

    async def flush(self, timeout_seconds: float) -> None:
        """Waits until all is written, or the time is up."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._queue.join()
        except TimeoutError:
            log.warning("%d events were not written in %.0f s", self._queue.qsize(), timeout_seconds)

    async def _write(self, uid: str, event: dict[str, Any]) -> None:
        same = (uid, event["reason"], event["message"])
        namespace = event["metadata"]["namespace"]
        name, count = self._written.get(same, ("", 0))
        try:
            if name:
                try:
                    body = {"count": count + 1, "lastTimestamp": event["lastTimestamp"]}
                    await self._client.patch(EVENTS, (namespace, name), body)
                    self._written[same] = (name, count + 1)
                    return
                except ApiError as error:
                    if error.code != 404:  # expired meanwhile
                        raise
            await self._client.create(EVENTS, event)
            self._written[same] = (event["metadata"]["name"], 1)
            if len(self._written) > REMEMBERED:
                self._written.popitem(last=False)
        except (ApiError, Unreachable) as error:
            log.info("event not written: %s %s: %s", event["involvedObject"]["name"], event["reason"], error)
