"""All that looks after Benchmarks, put together. On a cluster whose CRDs are older than the operator, TrainingJobs and
InferenceServices go on without."""

from collections.abc import Callable

import orjson

from capstan_operator.cluster.bench_store import BenchStore
from capstan_operator.cluster.children import Children
from capstan_operator.cluster.credentials import Credentials
from capstan_operator.cluster.events import EventWriter
from capstan_operator.cluster.kinds import BENCHMARKS, PODS, TRAINING_JOBS, Resource
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.objects import ObjectRecord
from capstan_operator.cluster.pods import decode_pod
from capstan_operator.cluster.statuses import StatusWriter
from capstan_operator.cluster.store import Store
from capstan_operator.cluster.work_queue import ObjectKey, Priority, WorkQueue
from capstan_operator.metrics import Metrics
from capstan_operator.observe import OperatorSettings
from capstan_operator.own_kind import OwnKind, wait_until_served
from capstan_operator.reconcile_benchmark import BenchmarkReconciler
from capstan_operator.serving_parts import ServingParts


class BenchmarkParts:
    """`run` watches, on every replica. `store.pods` is fed by the reflector of pods that TrainingJobs have, too."""

    def __init__(
        self,
        client: KubeClient,
        credentials: Credentials,
        wake: Callable[[ObjectKey, Priority], None],
        jobs: Store,
        serving: ServingParts,
        metrics: Metrics,
        *,
        namespace: str | None,
        settings: OperatorSettings,
    ) -> None:
        self._client = client
        self._jobs = jobs
        self._serving = serving
        self._metrics = metrics
        self._is_served = False
        self.store = BenchStore(wake, jobs=jobs, services=serving.store, settings=settings, metrics=metrics)
        self._benchmarks = OwnKind(client, credentials, BENCHMARKS, self.store.benchmarks, wake, namespace)

    async def run(self) -> None:
        """Watch, as soon as the API server serves the kind."""
        await wait_until_served(self._client, BENCHMARKS, lambda problem: None)
        self._is_served = True
        await self._benchmarks.run()

    def reconciler(self, queue: WorkQueue, events: EventWriter) -> BenchmarkReconciler:
        return BenchmarkReconciler(
            client=self._client,
            queue=queue,
            store=self.store,
            is_seen=self._is_seen,
            children=Children(self._client, BENCHMARKS.kind, self._take_in),
            statuses=StatusWriter(self._client, BENCHMARKS, self.store.benchmarks, self._metrics),
            safety_net=self._benchmarks.safety_net,
            events=events,
        )

    def why_not_ready(self) -> str | None:
        """What was not seen yet; None: all Benchmarks, or the kind is not served and there are none."""
        is_ready = not self._is_served or self._benchmarks.synced.is_set()
        return None if is_ready else "not all Benchmarks have been seen"

    def _is_seen(self, benchmark: ObjectRecord) -> bool:
        """Whether all is known that may belong to it. TrainingJobs and pods were seen before any pass. Only who puts
        load on a service of its own needs those."""
        if self.why_not_ready() is not None:
            return False
        return b'"serving"' not in benchmark.spec or self._serving.why_not_ready() is None

    def _take_in(self, resource: Resource, answer: bytes) -> None:
        if resource is PODS:
            self.store.pods.put(decode_pod(answer))
        elif resource is TRAINING_JOBS:
            self._jobs.jobs.put(orjson.loads(answer))
        else:
            self._serving.store.services.put(orjson.loads(answer))
