"""Snapshot, decide, apply: what is common to all kinds. How one object is looked at and what is written in which order
is said once for each kind: `reconcile_job.py`, `reconcile_service.py`.

A pass reads nothing but the stores and remembers nothing. Whatever goes wrong, the pass ends, and the next one computes
everything again from what is then seen.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Protocol

from capstan_operator.cluster.errors import ApiError, SupervisorError
from capstan_operator.cluster.work_queue import ObjectKey, WorkQueue
from capstan_operator.metrics import Metrics

logger = logging.getLogger(__name__)

WORKERS = 112
REPAIR_WORKERS = 16
"""These take nothing but repairs, so a repair never waits for the last pass of a burst to end."""


class KindReconciler(Protocol):
    """What is done for the objects of one kind."""

    async def reconcile(self, key: ObjectKey) -> str:
        """Look at one object, decide, and carry out the decision. Returns how it ended, in one word.

        Raises ApiError or SupervisorError at the first thing that could not be done.
        """

    async def refresh(self, key: ObjectKey) -> None:
        """Fetch what is true of one object: the snapshot was old. Raises ApiError."""


class Reconciler:
    """`run` works on the queue until cancelled, one pass per object at a time, many objects at once. `kinds` holds a
    reconciler for each kind that keys name."""

    def __init__(self, kinds: Mapping[str, KindReconciler], queue: WorkQueue, metrics: Metrics) -> None:
        self._kinds = kinds
        self._queue = queue
        self._metrics = metrics
        self._is_draining = False

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(WORKERS + REPAIR_WORKERS):
                group.create_task(self._work(only_repairs=number < REPAIR_WORKERS))

    def drain(self) -> None:
        """Begin no further pass; those under way go on. For good: the operator is stopping."""
        self._is_draining = True

    async def _work(self, *, only_repairs: bool) -> None:
        while not self._is_draining:
            key, priority = await self._queue.get(only_repairs=only_repairs)
            try:
                if self._is_draining:
                    return
                await self._pass(key)
            except asyncio.CancelledError:
                # Interrupted half-way: whoever leads next looks again.
                self._queue.add(key, priority)
                raise
            finally:
                self._queue.done(key)

    async def _pass(self, key: ObjectKey) -> None:
        """One pass, and what follows from how it ended."""
        started = time.monotonic()
        kind = self._kinds[key.kind]
        try:
            result = await kind.reconcile(key)
            self._queue.succeeded(key)
        except ApiError as error:
            result = await self._after_api_error(kind, key, error)
        except SupervisorError as error:
            result = "push_error"
            _warn(key, "PushFailed", f"a membership was not delivered: {error}")
            self._queue.retry(key)
        except Exception:
            result = "error"
            seconds = self._queue.retry(key)
            extra = key.log_fields() | {"reason": "Bug"}
            logger.exception("a pass failed; next try in %.1f s", seconds, extra=extra)
        self._metrics.reconciles.labels(result).inc()
        self._metrics.reconcile_seconds.observe(time.monotonic() - started)

    async def _after_api_error(self, kind: KindReconciler, key: ObjectKey, error: ApiError) -> str:
        """Try again; after a conflict, or when the object is gone, from a fresh look: the snapshot was old."""
        self._queue.retry(key)
        if not (error.is_conflict or error.is_not_found):
            _warn(key, error.reason, f"a pass failed: {error}")
            return "refused" if error.is_refusal else "api_error"
        try:
            await kind.refresh(key)
        except ApiError as second:
            _warn(key, second.reason, f"it could not be read: {second}")
        return "conflict"


def _warn(key: ObjectKey, reason: str, message: str) -> None:
    logger.warning("%s", message, extra=key.log_fields() | {"reason": reason})
