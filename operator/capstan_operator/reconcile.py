"""Snapshot, decide, apply: the only place that orders writes.

A pass reads nothing but the store and remembers nothing. Whatever goes wrong, the pass ends, and the next one computes
everything again from what is then seen.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import orjson

from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.cluster.children import Children
from capstan_operator.cluster.errors import ApiError, Predecessor, Stranger, SupervisorError
from capstan_operator.cluster.events import EventWriter, JobRef
from capstan_operator.cluster.job_audit import JobAudit
from capstan_operator.cluster.kinds import TRAINING_JOBS
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.limiter import Lane
from capstan_operator.cluster.poller import FIRST_LOOK_SECONDS, Poller
from capstan_operator.cluster.store import Store
from capstan_operator.cluster.supervisor_client import SupervisorClient
from capstan_operator.cluster.work_queue import JobKey, WorkQueue
from capstan_operator.decide.reasons import Reason
from capstan_operator.decide.refusal import show_refusal
from capstan_operator.decide.types import Decision, EventNote, MembershipPush
from capstan_operator.metrics import Metrics
from capstan_operator.observe import Observed

logger = logging.getLogger(__name__)

WORKERS = 112
REPAIR_WORKERS = 16
"""These take nothing but repairs, so a repair never waits for the last pass of a burst to end."""

_REFUSALS = {Stranger: Reason.NAME_TAKEN, Predecessor: Reason.PREDECESSOR_LEAVING}

Decide = Callable[[Observed, float], Decision]


class Reconciler:
    """`run` works on the queue until cancelled, one pass per job at a time, many jobs at once."""

    def __init__(
        self,
        *,
        decide: Decide,
        queue: WorkQueue,
        store: Store,
        client: KubeClient,
        supervisors: SupervisorClient,
        poller: Poller,
        audit: JobAudit,
        events: EventWriter,
        metrics: Metrics,
    ) -> None:
        self._decide = decide
        self._queue = queue
        self._store = store
        self._client = client
        self._children = Children(client, store)
        self._supervisors = supervisors
        self._poller = poller
        self._audit = audit
        self._events = events
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

    async def _pass(self, key: JobKey) -> None:
        """One pass, and what follows from how it ended."""
        started = time.monotonic()
        try:
            result = await self.reconcile(key)
            self._queue.succeeded(key)
        except ApiError as error:
            result = await self._after_api_error(key, error)
        except SupervisorError as error:
            result = "push_error"
            logger.warning("a membership was not delivered: %s", error, extra={"job": str(key), "reason": "PushFailed"})
            self._queue.retry(key)
        except Exception:
            result = "error"
            seconds = self._queue.retry(key)
            logger.exception("a pass failed; next try in %.1f s", seconds, extra={"job": str(key), "reason": "Bug"})
        self._metrics.reconciles.labels(result).inc()
        self._metrics.reconcile_seconds.observe(time.monotonic() - started)

    async def reconcile(self, key: JobKey) -> str:
        """Look at one job, decide, and carry out the decision. Returns how it ended, in one word.

        Raises ApiError or SupervisorError at the first thing that could not be done.
        """
        job = self._store.job(key)
        if job is None:
            self._queue.forget(key)
            self._metrics.of_jobs.forget(key)
            return "gone"
        if not self._poller.has_looked(job.uid):
            self._queue.add_after(key, FIRST_LOOK_SECONDS)
            return "waiting"
        observed = self._store.observe(key)
        assert observed is not None
        decision = self._decide(observed, time.time())
        did = await self._carry_out(key, observed, decision, job.version)
        if decision.requeue_after is not None:
            self._queue.add_after(key, decision.requeue_after)
        return "written" if did else "unchanged"

    async def _carry_out(self, key: JobKey, observed: Observed, decision: Decision, version: str) -> bool:
        """In the order a Decision promises. Returns whether anything was done."""
        try:
            await self._write_children(key, observed, decision)
        except ApiError as error:
            if error.is_refusal or isinstance(error, Predecessor):
                await self._show_refusal(key, observed, error, version)
            raise
        lane = Lane.REPAIR if decision.is_repair else Lane.STATUS
        has_written = await self._write_status(key, observed, decision.status, version, lane)
        try:
            await self._push(key, decision.pushes, observed.token)
        finally:
            # The status that these follow from is written; no later pass would say them again.
            for note in decision.events:
                self._events.note(JobRef(key, observed.job.uid, version), note)
        did = bool(decision.apply or decision.create or decision.delete or decision.delete_secrets or decision.pushes)
        if did or decision.events:
            _log(key, decision)
        return did or has_written

    async def _write_children(self, key: JobKey, observed: Observed, decision: Decision) -> None:
        job, lane = observed.job, Lane.REPAIR if decision.is_repair else Lane.CREATE
        await self._children.apply(decision.apply, job, lane=lane)
        await self._children.create_pods(decision.create, job, lane=lane)
        await self._children.delete_pods(key.namespace, decision.delete, lane=lane)
        await self._children.delete_secrets(decision.delete_secrets, job, lane=lane)

    async def _write_status(
        self, key: JobKey, observed: Observed, status: TrainingJobStatus, version: str, lane: Lane
    ) -> bool:
        """One merge patch, or none when nothing differs. Returns whether there was one.

        The version that was looked at is a precondition: a job of the same name made anew, or changed meanwhile by
        its user or by another leader, is looked at again instead of being given somebody else's status.
        """
        old, new = observed.job.status.document(), status.document()
        if old == new:
            self._metrics.status_writes.labels("suppressed").inc()
            self._metrics.of_jobs.know(key, status, observed.job.spec)
            return False
        patch = {"metadata": {"resourceVersion": version}, "status": replacing_patch(old, new)}
        answer = await self._client.merge_patch(
            TRAINING_JOBS, key.namespace, key.name, patch, lane=lane, subresource="status"
        )
        self._metrics.status_writes.labels("written").inc()
        self._metrics.of_jobs.count(key, observed.job.status, status, observed.job.spec)
        self._store.put_job(orjson.loads(answer))
        return True

    async def _show_refusal(self, key: JobKey, observed: Observed, error: ApiError, version: str) -> None:
        """Say on status, and once as an event, what is in the way."""
        reason = _REFUSALS.get(type(error), Reason.CHILDREN_REFUSED)
        status = show_refusal(observed, reason, error.message, time.time())
        if await self._write_status(key, observed, status, version, Lane.STATUS):
            is_passing = reason is Reason.PREDECESSOR_LEAVING
            note = EventNote("Normal" if is_passing else "Warning", reason.value, error.message)
            self._events.note(JobRef(key, observed.job.uid, version), note)

    async def _push(self, key: JobKey, pushes: tuple[MembershipPush, ...], token: str) -> None:
        """Tell all supervisors at once, five seconds in all. Raises the first error, after all were told."""

        async def push(one: MembershipPush) -> None:
            await self._supervisors.push_membership(one.ip, token, one.membership)
            self._poller.ask_now(key, one.pod_name)

        results = await asyncio.gather(*map(push, pushes), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _after_api_error(self, key: JobKey, error: ApiError) -> str:
        """Try again; after a conflict, or when the job is gone, from a fresh look: the snapshot was old."""
        self._queue.retry(key)
        if not (error.is_conflict or error.is_not_found):
            logger.warning("a pass failed: %s", error, extra={"job": str(key), "reason": error.reason})
            return "refused" if error.is_refusal else "api_error"
        job = self._store.job(key)
        if job is not None:
            try:
                await self._audit.refresh(key, job.uid)
            except ApiError as second:
                logger.warning("a job could not be read: %s", second, extra={"job": str(key), "reason": second.reason})
        return "conflict"


def replacing_patch(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The JSON merge patch (RFC 7386) that makes `old` exactly `new`: all of `new`, and null for what it lacks."""
    patch: dict[str, Any] = {name: None for name in old if name not in new}
    for name, value in new.items():
        before = old.get(name)
        is_nested = isinstance(value, dict) and isinstance(before, dict)
        patch[name] = replacing_patch(old[name], value) if is_nested else value
    return patch


def _log(key: JobKey, decision: Decision) -> None:
    logger.info(
        decision.status.message or "decision carried out",
        extra={
            "job": str(key),
            "fence": decision.status.fence,
            "reason": decision.status.reason,
            "pods_created": len(decision.create),
            "pods_deleted": len(decision.delete),
            "memberships": len(decision.pushes),
            "events": [note.reason for note in decision.events],
        },
    )
