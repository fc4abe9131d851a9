"""One pass over a Benchmark: the only place that orders what is written for it."""

import time
from collections.abc import Callable
from dataclasses import replace

from capstan_operator.api.benchmark_status import BenchmarkStatus
from capstan_operator.api.meta import BenchmarkCondition
from capstan_operator.cluster.bench_store import BenchStore
from capstan_operator.cluster.children import Children
from capstan_operator.cluster.errors import ApiError, Predecessor, Stranger
from capstan_operator.cluster.events import EventWriter, ObjectRef
from capstan_operator.cluster.kept_baselines import read_kept
from capstan_operator.cluster.kinds import INFERENCE_SERVICES, PODS, TRAINING_JOBS
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.limiter import Lane
from capstan_operator.cluster.objects import ObjectRecord
from capstan_operator.cluster.safety_net import SafetyNet
from capstan_operator.cluster.serving_store import STUCK_SECONDS
from capstan_operator.cluster.statuses import StatusWriter
from capstan_operator.cluster.trail import Cause, because
from capstan_operator.cluster.work_queue import ObjectKey, WorkQueue
from capstan_operator.decide.bench.reasons import BenchReason
from capstan_operator.decide.bench.types import BenchDecision
from capstan_operator.decide.benchmark import decide_benchmark
from capstan_operator.decide.refusal import with_refusal
from capstan_operator.decide.types import EventNote
from capstan_operator.observe_benchmark import ObservedBenching
from capstan_operator.reconcile_service import MAX_MESSAGE, UNSEEN_SECONDS

KEPT_SECONDS = 10.0
"""Between two looks for a ConfigMap that is waited for."""
_REFUSALS = {Stranger: BenchReason.NAME_TAKEN, Predecessor: BenchReason.PREDECESSOR_LEAVING}
_DELETABLE = {"Pod": PODS, "TrainingJob": TRAINING_JOBS, "InferenceService": INFERENCE_SERVICES}


class BenchmarkReconciler:
    """Looks, decides and acts for Benchmarks."""

    def __init__(
        self,
        *,
        client: KubeClient,
        queue: WorkQueue,
        store: BenchStore,
        is_seen: Callable[[ObjectRecord], bool],
        children: Children,
        statuses: StatusWriter,
        safety_net: SafetyNet,
        events: EventWriter,
    ) -> None:
        self._client = client
        self._queue = queue
        self._store = store
        self._is_seen = is_seen
        self._children = children
        self._statuses = statuses
        self._safety_net = safety_net
        self._events = events

    async def reconcile(self, key: ObjectKey) -> str:
        benchmark = self._store.benchmarks.get(key)
        if benchmark is None:
            self._queue.forget(key)
            return "gone"
        if not benchmark.is_ours:
            return "foreign"
        if not self._is_seen(benchmark):
            self._queue.add_after(key, UNSEEN_SECONDS)
            return "waiting"
        observed = self._store.observe(key)
        assert observed is not None
        if observed.benchmark.status.plan is None:
            observed = replace(observed, kept=await read_kept(self._client, observed.benchmark))
        decision = decide_benchmark(observed, time.time())
        did = await self._carry_out(benchmark, observed, decision)
        if decision.requeue_after is not None:
            self._queue.add_after(key, decision.requeue_after)
        if observed.kept is not None and decision.status.plan is None:
            # Nobody watches ConfigMaps.
            self._queue.add_after(key, KEPT_SECONDS)
        if any(pod.phase == "Pending" for pod in observed.pods):
            self._queue.add_after(key, STUCK_SECONDS)
        return "written" if did else "unchanged"

    async def refresh(self, key: ObjectKey) -> None:
        benchmark = self._store.benchmarks.get(key)
        if benchmark is not None:
            await self._safety_net.refresh(key, benchmark.uid)

    async def _carry_out(self, benchmark: ObjectRecord, observed: ObservedBenching, decision: BenchDecision) -> bool:
        """In the order a BenchDecision promises. Returns whether anything was done.

        Raises what the API server refused, after status says so.
        """
        with because(Cause.of(benchmark, decision.status)):
            refused = await self._write_children(observed, decision)
        has_written = await self._tell(benchmark, observed, decision.status, decision.events, refused)
        if refused is not None:
            raise refused
        return bool(decision.create or decision.delete) or has_written

    async def _write_children(self, observed: ObservedBenching, decision: BenchDecision) -> ApiError | None:
        """What the API server refuses; None: nothing. Raises any other ApiError at once."""
        owner = observed.benchmark
        for one in decision.delete:
            await self._children.delete_exactly(
                _DELETABLE[one.kind], owner.namespace, one.name, one.uid, lane=Lane.CREATE
            )
        try:
            await self._children.create(decision.create, owner, lane=Lane.CREATE)
        except ApiError as error:
            # Not found is the kind, where the CRD of InferenceServices is missing.
            if not (error.is_refusal or error.is_not_found or isinstance(error, Predecessor)):
                raise
            return error
        return None

    async def _tell(
        self,
        benchmark: ObjectRecord,
        observed: ObservedBenching,
        status: BenchmarkStatus,
        events: tuple[EventNote, ...],
        refused: ApiError | None,
    ) -> bool:
        """Write status, with what was refused in it, and the events. Returns whether there was anything to write."""
        old = observed.benchmark.status
        if refused is not None:
            reason = _REFUSALS.get(type(refused), BenchReason.CHILDREN_REFUSED)
            message = refused.message[:MAX_MESSAGE]
            is_passing = reason is BenchReason.PREDECESSOR_LEAVING
            status = with_refusal(
                status,
                old,
                BenchmarkCondition.PROGRESSING,
                is_passing=is_passing,
                reason=reason,
                message=message,
                now=time.time(),
                generation=observed.benchmark.generation,
            )
            if (status.reason, status.message) != (old.reason, old.message):
                events = (*events, EventNote("Normal" if is_passing else "Warning", reason.value, message))
        with because(Cause.of(benchmark, status)):
            has_written = await self._statuses.write(benchmark, old, status, Lane.STATUS)
        for note in events:
            self._events.note(ObjectRef(benchmark.key, benchmark.uid, benchmark.version), note)
        return has_written
