"""Events are kept for an hour, as kube-apiserver keeps them (--event-ttl)."""

import asyncio
from datetime import UTC, datetime, timedelta

from capstan_local.server.collection import Entry
from capstan_local.server.deletion import DeleteOptions, Deleter
from capstan_local.server.errors import ApiError
from capstan_local.server.resources import Catalog
from capstan_local.server.storage import Store

KEPT = timedelta(hours=1)
_PAUSE_SECONDS = 60.0
_AT_ONCE = 64


async def expire_events(store: Store, catalog: Catalog) -> None:
    """Delete old events, now and every minute, until cancelled."""
    while True:
        await delete_older(store, catalog, datetime.now(UTC) - KEPT)
        await asyncio.sleep(_PAUSE_SECONDS)


async def delete_older(store: Store, catalog: Catalog, limit: datetime) -> int:
    """How many events were deleted because they were last seen before `limit`."""
    events, deleter = catalog.stored()["events"], Deleter(store, catalog)
    old = [entry for entry in store.scan("events") if last_seen(entry) < limit]

    async def delete(entry: Entry) -> None:
        try:
            await deleter.delete(events, entry.namespace, entry.name, DeleteOptions(uid=entry.uid))
        except ApiError as error:
            if error.code not in (404, 409):  # somebody else deleted or replaced it
                raise

    for at in range(0, len(old), _AT_ONCE):
        await asyncio.gather(*(delete(entry) for entry in old[at : at + _AT_ONCE]))
    return len(old)


def last_seen(entry: Entry) -> datetime:
    """When an event last happened; when it was created if it does not say."""
    event = entry.load()
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event["metadata"]["creationTimestamp"])
    return datetime.fromisoformat(next(time for time in times if time))
