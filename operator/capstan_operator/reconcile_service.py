"""One pass over an InferenceService: the only place that orders what is written for it."""

import logging
import time
from collections.abc import Callable

from capstan_operator.cluster.audit import Audit
from capstan_operator.cluster.children import Children
from capstan_operator.cluster.errors import ApiError, Predecessor, Stranger
from capstan_operator.cluster.events import EventWriter, ObjectRef
from capstan_operator.cluster.kinds import DEPLOYMENTS, HTTP_ROUTES, SECRETS, SERVICES
from capstan_operator.cluster.limiter import Lane
from capstan_operator.cluster.objects import ObjectRecord
from capstan_operator.cluster.serving_store import ServingStore
from capstan_operator.cluster.statuses import StatusWriter
from capstan_operator.cluster.work_queue import ObjectKey, WorkQueue
from capstan_operator.decide.inference_service import decide_inference_service
from capstan_operator.decide.serving.reasons import ServingReason
from capstan_operator.decide.serving.refusal import show_refusal
from capstan_operator.decide.serving.types import ServingDecision
from capstan_operator.decide.types import EventNote
from capstan_operator.observe import ObservedServing

logger = logging.getLogger(__name__)

UNSEEN_SECONDS = 1.0
"""How soon a service is looked at again while its children have not been listed: what is not seen is not missing."""

_REFUSALS = {Stranger: ServingReason.NAME_TAKEN, Predecessor: ServingReason.PREDECESSOR_LEAVING}
_DELETABLE = {"Deployment": DEPLOYMENTS, "Service": SERVICES, "Secret": SECRETS, "HTTPRoute": HTTP_ROUTES}


class ServiceReconciler:
    """Looks, decides and acts for InferenceServices."""

    def __init__(
        self,
        *,
        queue: WorkQueue,
        store: ServingStore,
        is_synced: Callable[[], bool],
        children: Children,
        statuses: StatusWriter,
        audit: Audit,
        events: EventWriter,
    ) -> None:
        self._queue = queue
        self._store = store
        self._is_synced = is_synced
        self._children = children
        self._statuses = statuses
        self._audit = audit
        self._events = events

    async def reconcile(self, key: ObjectKey) -> str:
        service = self._store.services.get(key)
        if service is None:
            self._queue.forget(key)
            return "gone"
        if not self._is_synced():
            self._queue.add_after(key, UNSEEN_SECONDS)
            return "waiting"
        observed = self._store.observe(key)
        assert observed is not None
        decision = decide_inference_service(observed, time.time())
        did = await self._carry_out(service, observed, decision)
        if decision.requeue_after is not None:
            self._queue.add_after(key, decision.requeue_after)
        return "written" if did else "unchanged"

    async def refresh(self, key: ObjectKey) -> None:
        service = self._store.services.get(key)
        if service is not None:
            await self._audit.refresh(key, service.uid)

    async def _carry_out(self, service: ObjectRecord, observed: ObservedServing, decision: ServingDecision) -> bool:
        """In the order a ServingDecision promises. Returns whether anything was done."""
        try:
            await self._write_children(observed, decision)
        except ApiError as error:
            if error.is_refusal or isinstance(error, Predecessor):
                await self._show_refusal(service, observed, error)
            raise
        has_written = await self._statuses.write(service, observed.service.status, decision.status, Lane.STATUS)
        for note in decision.events:
            self._events.note(ObjectRef(service.key, service.uid, service.version), note)
        did = bool(decision.apply or decision.scale or decision.delete)
        if did or decision.events:
            _log(service.key, decision)
        return did or has_written

    async def _write_children(self, observed: ObservedServing, decision: ServingDecision) -> None:
        """Who takes traffic from a broken revision, or mends one, does not wait for a burst of new objects."""
        owner, lane = observed.service, Lane.REPAIR if observed.deployments else Lane.CREATE
        await self._children.apply(decision.apply, owner, lane=lane)
        for scale in decision.scale:
            await self._children.scale(
                DEPLOYMENTS, owner.namespace, scale.deployment, scale.uid, scale.replicas, lane=lane
            )
        for deletion in decision.delete:
            await self._children.delete(_DELETABLE[deletion.kind], deletion.name, owner, lane=lane)

    async def _show_refusal(self, service: ObjectRecord, observed: ObservedServing, error: ApiError) -> None:
        """Say on status, and once as an event, what is in the way."""
        reason = _REFUSALS.get(type(error), ServingReason.CHILDREN_REFUSED)
        status = show_refusal(observed, reason, error.message, time.time())
        if await self._statuses.write(service, observed.service.status, status, Lane.STATUS):
            is_passing = reason is ServingReason.PREDECESSOR_LEAVING
            note = EventNote("Normal" if is_passing else "Warning", reason.value, error.message)
            self._events.note(ObjectRef(service.key, service.uid, service.version), note)


def _log(key: ObjectKey, decision: ServingDecision) -> None:
    logger.info(
        decision.status.message or "decision carried out",
        extra={
            "service": str(key),
            "reason": decision.status.reason,
            "applied": [f"{manifest['kind']} {manifest['metadata']['name']}" for manifest in decision.apply],
            "scaled": {scale.deployment: scale.replicas for scale in decision.scale},
            "deleted": [f"{deletion.kind} {deletion.name}" for deletion in decision.delete],
            "events": [note.reason for note in decision.events],
        },
    )
