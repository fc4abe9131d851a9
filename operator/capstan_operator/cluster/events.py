"""Kubernetes events on our objects, for `kubectl describe`: grouped, rate limited, and never in anybody's way."""

import asyncio
import logging
from collections import OrderedDict, deque
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson

from capstan_operator.api.meta import API_VERSION, FIELD_MANAGER
from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.kinds import EVENTS
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.limiter import Lane
from capstan_operator.cluster.trail import Cause, because
from capstan_operator.cluster.work_queue import ObjectKey
from capstan_operator.decide.types import EventNote
from capstan_operator.metrics import Metrics

logger = logging.getLogger(__name__)

MAX_QUEUED = 1000
MAX_REMEMBERED = 4096
GROUP_SECONDS = 600.0
"""The same words about the same object within ten minutes are one event with a count."""
BURST_PER_OBJECT = 25
REFILL_SECONDS = 60.0
"""An object that used up its burst may say one more thing each minute."""
MAX_MESSAGE = 1024
"""What the API allows."""


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """Whom an event is about."""

    key: ObjectKey
    uid: str
    version: str


@dataclass(slots=True)
class _Group:
    name: str
    count: int
    first: str
    at: float


@dataclass(slots=True)
class _Budget:
    left: float
    at: float


class EventWriter:
    """`note` queues and returns at once; `run` writes. What cannot be written is counted, logged and dropped."""

    def __init__(self, client: KubeClient, identity: str, metrics: Metrics) -> None:
        self._client = client
        self._identity = identity
        self._metrics = metrics
        self._queue: deque[tuple[ObjectRef, EventNote]] = deque()
        self._filled = asyncio.Event()
        self._groups: OrderedDict[tuple[str, str, str], _Group] = OrderedDict()
        """By (uid, reason, message), least recently used first."""
        self._budgets: OrderedDict[str, _Budget] = OrderedDict()
        """By uid, least recently used first."""

    def note(self, about: ObjectRef, note: EventNote) -> None:
        """Something happened to `about`."""
        if len(self._queue) >= MAX_QUEUED or not self._is_within_budget(about.uid):
            self._metrics.events.labels("dropped").inc()
            return
        self._queue.append((about, note))
        self._filled.set()

    async def run(self) -> None:
        while True:
            await self._filled.wait()
            while self._queue:
                about, note = self._queue.popleft()
                try:
                    with because(Cause(note.reason, note.message, about.key, about.uid)):
                        await self._write(about, note)
                    self._metrics.events.labels("written").inc()
                except ApiError as error:
                    self._metrics.events.labels("failed").inc()
                    logger.warning("event %s was not written: %s", note.reason, error, extra=about.key.log_fields())
            self._filled.clear()

    async def _write(self, about: ObjectRef, note: EventNote) -> None:
        loop_now, now = asyncio.get_running_loop().time(), datetime.now(UTC)
        stamp = now.isoformat(timespec="seconds").replace("+00:00", "Z")
        group_key = (about.uid, note.reason, note.message)
        group = self._groups.get(group_key)
        if group is not None and loop_now - group.at < GROUP_SECONDS:
            try:
                patch = {"count": group.count + 1, "lastTimestamp": stamp}
                await self._client.merge_patch(EVENTS, about.key.namespace, group.name, patch, lane=Lane.EVENTS)
            except ApiError as error:
                if not error.is_not_found:  # events live an hour only
                    raise
            else:
                group.count, group.at = group.count + 1, loop_now
                self._groups.move_to_end(group_key)
                return
        name = f"{about.key.name[:200]}.{int(now.timestamp() * 1e6):x}"
        event = _event(name, about, note, stamp, self._identity)
        await self._client.create(EVENTS, about.key.namespace, orjson.dumps(event), lane=Lane.EVENTS)
        self._groups[group_key] = _Group(name, 1, stamp, loop_now)
        if len(self._groups) > MAX_REMEMBERED:
            self._groups.popitem(last=False)

    def _is_within_budget(self, uid: str) -> bool:
        now = asyncio.get_running_loop().time()
        budget = self._budgets.setdefault(uid, _Budget(BURST_PER_OBJECT, now))
        self._budgets.move_to_end(uid)
        if len(self._budgets) > MAX_REMEMBERED:
            self._budgets.popitem(last=False)
        budget.left = min(BURST_PER_OBJECT, budget.left + (now - budget.at) / REFILL_SECONDS)
        budget.at = now
        if budget.left < 1:
            return False
        budget.left -= 1
        return True


def _event(name: str, about: ObjectRef, note: EventNote, stamp: str, identity: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": about.key.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": about.key.kind,
            "namespace": about.key.namespace,
            "name": about.key.name,
            "uid": about.uid,
            "resourceVersion": about.version,
        },
        "type": note.type,
        "reason": note.reason,
        "message": note.message[:MAX_MESSAGE],
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": FIELD_MANAGER,
        "reportingInstance": identity,
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "count": 1,
    }
