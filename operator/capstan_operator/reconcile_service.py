"""One pass over an InferenceService: the only place that orders what is written for it."""

import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from itertools import groupby
from typing import Any

from capstan_operator.api.inference_service_status import InferenceServiceStatus
from capstan_operator.api.meta import LABEL_MANAGED_BY, LABEL_REVISION, MANAGED_BY, InferenceServiceCondition
from capstan_operator.cluster.children import Children
from capstan_operator.cluster.errors import ApiError, Predecessor, Stranger
from capstan_operator.cluster.events import EventWriter, ObjectRef
from capstan_operator.cluster.kinds import (
    APPLICABLE,
    DEPLOYMENTS,
    HTTP_ROUTES,
    INFERENCE_SERVICES,
    SECRETS,
    SERVICES,
    Resource,
)
from capstan_operator.cluster.limiter import Lane
from capstan_operator.cluster.objects import ObjectRecord
from capstan_operator.cluster.safety_net import SafetyNet
from capstan_operator.cluster.serving_store import STUCK_SECONDS, ServingStore
from capstan_operator.cluster.statuses import StatusWriter
from capstan_operator.cluster.trail import Cause, because
from capstan_operator.cluster.work_queue import ObjectKey, WorkQueue
from capstan_operator.decide.inference_service import decide_inference_service
from capstan_operator.decide.refusal import with_refusal
from capstan_operator.decide.serving.reasons import ServingReason
from capstan_operator.decide.serving.types import ChildDeletion, ServingDecision
from capstan_operator.decide.types import EventNote, Manifest
from capstan_operator.observe_serving import ObservedServing

logger = logging.getLogger(__name__)

UNSEEN_SECONDS = 1.0
"""How soon a service is looked at again while its children have not been listed: what is not seen is not missing."""

_BUDGET = "PodDisruptionBudget"
MAX_MESSAGE = 1000
"""Of what the API server says; it quotes whole objects now and then."""
_REFUSALS = {Stranger: ServingReason.NAME_TAKEN, Predecessor: ServingReason.PREDECESSOR_LEAVING}
_DELETABLE = {"Deployment": DEPLOYMENTS, "Service": SERVICES, "Secret": SECRETS, "HTTPRoute": HTTP_ROUTES}


class ServiceReconciler:
    """Looks, decides and acts for InferenceServices."""

    def __init__(
        self,
        *,
        queue: WorkQueue,
        store: ServingStore,
        is_seen: Callable[[ObjectRecord], bool],
        children: Children,
        statuses: StatusWriter,
        safety_net: SafetyNet,
        events: EventWriter,
    ) -> None:
        self._queue = queue
        self._store = store
        self._is_seen = is_seen
        self._children = children
        self._statuses = statuses
        self._safety_net = safety_net
        self._events = events

    async def reconcile(self, key: ObjectKey) -> str:
        service = self._store.services.get(key)
        if service is None:
            self._queue.forget(key)
            return "gone"
        if not service.is_ours:
            return "foreign"
        if not self._is_seen(service):
            self._queue.add_after(key, UNSEEN_SECONDS)
            return "waiting"
        observed = await self._look(service)
        decision = decide_inference_service(observed, time.time())
        did = await self._carry_out(service, observed, decision)
        if decision.requeue_after is not None:
            self._queue.add_after(key, decision.requeue_after)
        if not all(pod.is_prepared for pod in observed.replicas):
            self._queue.add_after(key, STUCK_SECONDS)
        return "written" if did else "unchanged"

    async def refresh(self, key: ObjectKey) -> None:
        service = self._store.services.get(key)
        if service is not None:
            await self._safety_net.refresh(key, service.uid)

    async def _look(self, service: ObjectRecord) -> ObservedServing:
        """The snapshot. That the proven revision's Deployment is gone has consequences, and a Deployment that only lost
        its label looks the same: it is asked for, and labelled again."""
        observed = self._store.observe(service.key)
        assert observed is not None
        stable = observed.service.status.stable
        is_there = observed.ray_service is not None or any(one.name == stable for one in observed.deployments)
        if stable is None or is_there:
            return observed
        labels = {LABEL_MANAGED_BY: MANAGED_BY}
        lost = Cause("LabelLost", f"Deployment {stable} is there without its label", service.key, service.uid)
        try:
            with because(lost):
                await self._children.reclaim(DEPLOYMENTS, stable, observed.service, labels, lane=Lane.REPAIR)
        except ApiError as error:
            if error.is_refusal:
                await self._tell(service, observed, observed.service.status, (), error)
            raise
        return self._store.observe(service.key) or observed

    async def _carry_out(self, service: ObjectRecord, observed: ObservedServing, decision: ServingDecision) -> bool:
        """In the order a ServingDecision promises. Returns whether anything was done.

        Raises what the API server refused, after everything else was done and status says so.
        """
        with because(Cause.of(service, decision.status)):
            refused = await self._write_children(observed, decision)
        has_written = await self._tell(service, observed, decision.status, decision.events, refused)
        if refused is not None:
            raise refused
        parts = (decision.apply, decision.scale, decision.delete, decision.create, decision.delete_pods)
        return any(parts) or has_written

    async def _tell(
        self,
        service: ObjectRecord,
        observed: ObservedServing,
        status: InferenceServiceStatus,
        events: tuple[EventNote, ...],
        refused: ApiError | None,
    ) -> bool:
        """Write status, with what was refused in it, and the events. Returns whether there was anything to write."""
        old = observed.service.status
        if refused is not None:
            reason, message = (
                _REFUSALS.get(type(refused), ServingReason.CHILDREN_REFUSED),
                refused.message[:MAX_MESSAGE],
            )
            is_passing = reason is ServingReason.PREDECESSOR_LEAVING
            status = with_refusal(
                status,
                old,
                InferenceServiceCondition.PROGRESSING,
                is_passing=is_passing,
                reason=reason,
                message=message,
                now=time.time(),
                generation=observed.service.generation,
            )
            if (status.reason, status.message) != (old.reason, old.message):
                events = (*events, EventNote("Normal" if is_passing else "Warning", reason.value, message))
        with because(Cause.of(service, status)):
            has_written = await self._statuses.write(service, old, status, Lane.STATUS)
        for note in events:
            self._events.note(ObjectRef(service.key, service.uid, service.version), note)
        return has_written

    async def _write_children(self, observed: ObservedServing, decision: ServingDecision) -> ApiError | None:
        """All of it, in order. What the API server refuses, because of a quota or a name that is taken, keeps nothing
        else from being done; the first such refusal is returned. Raises any other ApiError at once.

        Who takes traffic from a broken revision, or mends one, does not wait for a burst of new objects.
        """
        owner, lane = observed.service, Lane.REPAIR if observed.deployments else Lane.CREATE
        manifests = [manifest for manifest in decision.apply if manifest["kind"] != _BUDGET]
        parts = [
            *(self._children.apply(tuple(group), owner, lane=lane) for _, group in groupby(manifests, _part_of)),
            *(
                self._children.scale(DEPLOYMENTS, owner.namespace, one.deployment, one.uid, one.replicas, lane=lane)
                for one in decision.scale
            ),
            *(self._children.delete(_deletable(one, observed), one.name, owner, lane=lane) for one in decision.delete),
            self._children.create(decision.create, owner, lane=lane),
            self._children.delete_pods(owner.namespace, decision.delete_pods, lane=lane),
        ]
        refused = await _all_in_order(parts)
        budgets = tuple(manifest for manifest in decision.apply if manifest["kind"] == _BUDGET)
        unguarded = await _all_in_order([self._children.apply(budgets, owner, lane=lane)])
        if unguarded is not None:
            # A user's own budget may have the name. The service is served as well without ours.
            key = ObjectKey(owner.namespace, owner.name, INFERENCE_SERVICES.kind)
            logger.warning("no disruption budget: %s", unguarded, extra=key.log_fields())
        return refused


def _deletable(deletion: ChildDeletion, observed: ObservedServing) -> Resource:
    """What to delete. A budget was seen in the version that is served."""
    if deletion.kind == "PodDisruptionBudget":
        return APPLICABLE[observed.budget_api or "policy/v1", deletion.kind]
    return _DELETABLE[deletion.kind]


def _part_of(manifest: Manifest) -> str:
    """What is of use together only: the children of one revision; or one address."""
    metadata = manifest["metadata"]
    return str(metadata["labels"].get(LABEL_REVISION) or f"{manifest['kind']} {metadata['name']}")


async def _all_in_order(parts: Sequence[Coroutine[Any, Any, None]]) -> ApiError | None:
    """Await all of `parts`, one after the other, and return the first refusal. Raises any other error at once."""
    first: ApiError | None = None
    left = deque(parts)
    try:
        while left:
            try:
                await left.popleft()
            except ApiError as error:
                if not (error.is_refusal or isinstance(error, Predecessor)):
                    raise
                first = first or error
    finally:
        for part in left:
            part.close()
    return first
