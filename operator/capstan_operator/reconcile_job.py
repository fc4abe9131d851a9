"""One pass over a TrainingJob: the only place that orders what is written for it."""

import asyncio
import time
from collections.abc import Callable

from capstan_operator.api.training_job_status import TrainingJobStatus
from capstan_operator.cluster.children import Children
from capstan_operator.cluster.errors import ApiError, Predecessor, Stranger
from capstan_operator.cluster.events import EventWriter, ObjectRef
from capstan_operator.cluster.kinds import SECRETS
from capstan_operator.cluster.limiter import Lane
from capstan_operator.cluster.objects import ObjectRecord
from capstan_operator.cluster.poller import FIRST_LOOK_SECONDS, Poller
from capstan_operator.cluster.safety_net import SafetyNet
from capstan_operator.cluster.statuses import StatusWriter
from capstan_operator.cluster.store import Store
from capstan_operator.cluster.supervisor_client import SupervisorClient
from capstan_operator.cluster.trail import Cause, because
from capstan_operator.cluster.work_queue import ObjectKey, WorkQueue
from capstan_operator.decide.queueing import end_all_groups
from capstan_operator.decide.reasons import Reason
from capstan_operator.decide.refusal import show_refusal
from capstan_operator.decide.types import Decision, EventNote, MembershipPush
from capstan_operator.metrics import Metrics
from capstan_operator.observe import Observed

_REFUSALS = {Stranger: Reason.NAME_TAKEN, Predecessor: Reason.PREDECESSOR_LEAVING}

Decide = Callable[[Observed, float], Decision]


class JobReconciler:
    """Looks, decides and acts for TrainingJobs."""

    def __init__(
        self,
        *,
        decide: Decide,
        queue: WorkQueue,
        store: Store,
        children: Children,
        statuses: StatusWriter,
        supervisors: SupervisorClient,
        poller: Poller,
        safety_net: SafetyNet,
        events: EventWriter,
        metrics: Metrics,
    ) -> None:
        self._decide = decide
        self._queue = queue
        self._store = store
        self._children = children
        self._statuses = statuses
        self._supervisors = supervisors
        self._poller = poller
        self._safety_net = safety_net
        self._events = events
        self._metrics = metrics

    async def reconcile(self, key: ObjectKey) -> str:
        job = self._store.jobs.get(key)
        # Kueue keeps pods of a group from going until it hears that none of them is to be followed.
        with because(Cause("JobGone", "the TrainingJob of these pods was deleted", key)):
            await self._children.end_groups(key.namespace, end_all_groups(self._store.orphans(key)), lane=Lane.STATUS)
        if job is None:
            self._queue.forget(key)
            self._metrics.of_jobs.forget(key)
            return "gone"
        if not job.is_ours:
            return "foreign"
        if not self._poller.has_looked(job.uid):
            self._queue.add_after(key, FIRST_LOOK_SECONDS)
            return "waiting"
        observed = self._store.observe(key)
        assert observed is not None
        decision = self._decide(observed, time.time())
        did = await self._carry_out(job, observed, decision)
        if decision.requeue_after is not None:
            self._queue.add_after(key, decision.requeue_after)
        return "written" if did else "unchanged"

    async def refresh(self, key: ObjectKey) -> None:
        job = self._store.jobs.get(key)
        if job is not None:
            await self._safety_net.refresh(key, job.uid)

    async def _carry_out(self, job: ObjectRecord, observed: Observed, decision: Decision) -> bool:
        """In the order a Decision promises. Returns whether anything was done."""
        with because(Cause.of(job, decision.status)):
            try:
                await self._write_children(observed, decision)
            except ApiError as error:
                if error.is_refusal or isinstance(error, Predecessor):
                    await self._show_refusal(job, observed, error)
                raise
            lane = Lane.REPAIR if decision.is_repair else Lane.STATUS
            has_written = await self._write_status(job, observed, decision.status, lane)
            try:
                await self._push(job.key, decision.pushes, observed.token)
            finally:
                # The status that these follow from is written; no later pass would say them again.
                for note in decision.events:
                    self._events.note(ObjectRef(job.key, job.uid, job.version), note)
        deleted = decision.end_groups or decision.delete or decision.delete_secrets
        return bool(decision.apply or decision.create or deleted or decision.pushes) or has_written

    async def _write_children(self, observed: Observed, decision: Decision) -> None:
        job, lane = observed.job, Lane.REPAIR if decision.is_repair else Lane.CREATE
        await self._children.apply(decision.apply, job, lane=lane)
        await self._children.create(decision.create, job, lane=lane)
        await self._children.end_groups(job.namespace, decision.end_groups, lane=lane)
        await self._children.delete_pods(job.namespace, decision.delete, lane=lane)
        for name in decision.delete_secrets:
            await self._children.delete(SECRETS, name, job, lane=lane)

    async def _write_status(self, job: ObjectRecord, observed: Observed, status: TrainingJobStatus, lane: Lane) -> bool:
        """Returns whether there was anything to write."""
        has_written = await self._statuses.write(job, observed.job.status, status, lane)
        if has_written:
            self._metrics.of_jobs.count(job.key, observed.job.status, status, observed.job.spec)
        else:
            self._metrics.of_jobs.know(job.key, status, observed.job.spec)
        return has_written

    async def _show_refusal(self, job: ObjectRecord, observed: Observed, error: ApiError) -> None:
        """Say on status, and once as an event, what is in the way."""
        reason = _REFUSALS.get(type(error), Reason.CHILDREN_REFUSED)
        status = show_refusal(observed, reason, error.message, time.time())
        with because(Cause.of(job, status)):
            has_written = await self._write_status(job, observed, status, Lane.STATUS)
        if has_written:
            is_passing = reason is Reason.PREDECESSOR_LEAVING
            note = EventNote("Normal" if is_passing else "Warning", reason.value, error.message)
            self._events.note(ObjectRef(job.key, job.uid, job.version), note)

    async def _push(self, key: ObjectKey, pushes: tuple[MembershipPush, ...], token: str) -> None:
        """Tell all supervisors at once, five seconds in all. Raises the first error, after all were told."""

        async def push(one: MembershipPush) -> None:
            await self._supervisors.push_membership(
                one.ip, token, one.membership, pod=one.pod_name, pod_uid=one.pod_uid
            )
            self._poller.ask_now(key, one.pod_name)

        results = await asyncio.gather(*map(push, pushes), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
