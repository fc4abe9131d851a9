"""Puts the operator together, runs it, and takes it down again.

kopf ──objects of our kinds──▶                       ┌▶ API server (children, status, events)
reflectors ──children────────▶ stores ─wake▶ queue ─▶ reconciler
poller ──states──────────────▶                       └▶ supervisors (memberships)

Caches fill on every replica; only the one that holds the lease works on the queue and asks supervisors.
"""

import asyncio
import contextlib
import gc
import logging
import resource
import secrets
import signal
import socket
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from capstan_operator.api.meta import LABEL_MANAGED_BY, MANAGED_BY
from capstan_operator.benchmark_parts import BenchmarkParts
from capstan_operator.cluster.children import Children
from capstan_operator.cluster.credentials import Credentials, CredentialsError, load_credentials
from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.events import EventWriter
from capstan_operator.cluster.front import Front
from capstan_operator.cluster.kinds import (
    BENCHMARKS,
    INFERENCE_SERVICES,
    NAMESPACES,
    POD_GROUPS,
    PODS,
    TRAINING_JOBS,
    Resource,
)
from capstan_operator.cluster.kube import KubeClient
from capstan_operator.cluster.lease import Elector, LeaseTimes
from capstan_operator.cluster.limiter import Limiter
from capstan_operator.cluster.namespaces import SELECTOR, ChaosNamespaces, Namespace
from capstan_operator.cluster.operator_key import OperatorKeyError, fetch_or_create_key
from capstan_operator.cluster.pods import Pod, decode_pod
from capstan_operator.cluster.poller import INTERVAL_SECONDS, Poller
from capstan_operator.cluster.reflector import Fan, Reflector
from capstan_operator.cluster.served import LOOK_SECONDS, ServedKinds
from capstan_operator.cluster.statuses import StatusWriter
from capstan_operator.cluster.store import Store
from capstan_operator.cluster.supervisor_client import SupervisorClient, job_token
from capstan_operator.cluster.trail import Trail
from capstan_operator.cluster.work_queue import ObjectKey, Priority, WorkQueue
from capstan_operator.decide.training_job import decide_training_job
from capstan_operator.logging_setup import set_up_logging
from capstan_operator.metrics import Metrics
from capstan_operator.observe import OperatorSettings
from capstan_operator.own_kind import OwnKind, wait_until_served
from capstan_operator.reconcile import KindReconciler, Reconciler
from capstan_operator.reconcile_job import Decide, JobReconciler
from capstan_operator.serving_parts import ServingParts
from capstan_runtime.contract.env import SUPERVISOR_PORT
from capstan_runtime.contract.state import Hint

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 3.0
"""How long passes under way may go on after the signal; with all else the stop takes less than 10 s."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """How this process runs; what it does for all jobs is in `operator`."""

    kubeconfig: Path | None = None
    """None: $KUBECONFIG, the pod's service account, or ~/.kube/config."""
    context: str | None = None
    """None: the kubeconfig's current context."""
    namespace: str | None = None
    """Look after the objects of this namespace only; None: of all."""
    operator_namespace: str | None = None
    """Where the Lease and the operator's key live; None: the namespace of the context or of the pod."""
    http_host: str = "127.0.0.1"
    http_port: int = 8080
    lease: LeaseTimes = field(default_factory=LeaseTimes)
    operator: OperatorSettings = field(default_factory=OperatorSettings)
    supervisor_port: int = SUPERVISOR_PORT
    poll_seconds: float = INTERVAL_SECONDS


class OperatorCrash(Exception):
    """A part of the operator ended that never should; the text says which and why."""


async def run_operator(
    settings: RunSettings, stop: asyncio.Event, *, decide: Decide = decide_training_job, metrics: Metrics | None = None
) -> None:
    """Run until `stop` is set, then stop within 10 s: passes under way end, the lease is given back.

    Raises CredentialsError, OperatorKeyError, OSError (the port is taken), or OperatorCrash.
    """
    operator = _Operator(
        settings, load_credentials(settings.kubeconfig, settings.context), decide, metrics or Metrics()
    )
    await operator.run(stop)


def main(settings: RunSettings, *, log_level: str = "INFO") -> int:
    """Run until SIGTERM or SIGINT. The exit code: 0, or 1 after a line that says what is wrong."""
    set_up_logging(log_level)
    _allow_open_files()

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await run_operator(settings, stop)

    try:
        asyncio.run(run())
    except (CredentialsError, OperatorKeyError, OSError) as error:
        logger.critical("%s", error)
        return 1
    except OperatorCrash as error:
        logger.critical("%s", error, exc_info=error.__cause__)
        return 1
    return 0


def _allow_open_files() -> None:
    """As many as the system permits: with thousands of pods, supervisors and replicas are asked over a thousand
    connections at a time, and the usual soft limit is 1,024 files."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Operator:
    """One replica."""

    def __init__(self, settings: RunSettings, credentials: Credentials, decide: Decide, metrics: Metrics) -> None:
        self._settings = settings
        self._credentials = credentials
        self._decide = decide
        self._metrics = metrics
        self._namespace = settings.operator_namespace or credentials.namespace
        self._identity = f"{socket.gethostname()}-{secrets.token_hex(4)}"
        self._key = b""
        self._problem: str | None = "starting"
        limiter = Limiter()
        metrics.api_rate.set_function(lambda: limiter.rate)
        trail = Trail(self._identity)
        self._client = KubeClient(credentials, limiter, metrics, trail)
        self._supervisors = SupervisorClient(settings.supervisor_port, trail)
        self._queue = WorkQueue(metrics)
        self._chaos_namespaces = ChaosNamespaces(lambda namespace: self._store.wake_namespace(namespace))
        self._store = Store(
            self._wake,
            token_of=self._token_of,
            settings=settings.operator,
            metrics=metrics,
            allows_chaos=self._chaos_namespaces.allows,
            gang_schedulers=lambda: self._gangs.names,
            roots_in_use=lambda job: self._serving.roots_in_use(job),
        )
        self._poller = Poller(
            self._store,
            self._supervisors,
            self._wake,
            self._token_of,
            metrics,
            interval_seconds=settings.poll_seconds,
        )
        self._serving = ServingParts(
            self._client,
            credentials,
            self._wake,
            self._store,
            metrics,
            token_of=self._token_of,
            namespace=settings.namespace,
            settings=settings.operator,
            scrape_seconds=settings.poll_seconds,
        )
        self._benchmarks = BenchmarkParts(
            self._client,
            credentials,
            self._wake,
            self._store,
            self._serving,
            metrics,
            namespace=settings.namespace,
            settings=settings.operator,
        )
        self._pods = Reflector(
            self._client,
            PODS,
            Pod,
            Fan(self._store, self._serving.store.replicas, self._serving.store.resolvers, self._benchmarks.store.pods),
            metrics,
            namespace=settings.namespace,
            selector=f"{LABEL_MANAGED_BY}={MANAGED_BY}",
        )
        self._namespaces = (
            Reflector(self._client, NAMESPACES, Namespace, self._chaos_namespaces, metrics, selector=SELECTOR)
            if settings.operator.allow_chaos
            else None
        )
        """None: nobody asks, because no fault is ever injected."""
        self._jobs = OwnKind(self._client, credentials, TRAINING_JOBS, self._store.jobs, self._wake, settings.namespace)
        self._gangs = ServedKinds(self._client, POD_GROUPS, lambda: self._store.wake_gangs(), LOOK_SECONDS)
        self._elector = Elector(self._client, self._namespace, self._identity, metrics, settings.lease)
        self._events = EventWriter(self._client, self._identity, metrics)
        self._reconciler = Reconciler(self._kinds(), self._queue, metrics)

    def _kinds(self) -> dict[str, KindReconciler]:
        """Who looks after the objects of which kind."""
        jobs = JobReconciler(
            decide=self._decide,
            queue=self._queue,
            store=self._store,
            children=Children(self._client, TRAINING_JOBS.kind, self._take_pod),
            statuses=StatusWriter(self._client, TRAINING_JOBS, self._store.jobs, self._metrics),
            supervisors=self._supervisors,
            poller=self._poller,
            safety_net=self._jobs.safety_net,
            events=self._events,
            metrics=self._metrics,
        )
        return {
            TRAINING_JOBS.kind: jobs,
            INFERENCE_SERVICES.kind: self._serving.reconciler(self._queue, self._events),
            BENCHMARKS.kind: self._benchmarks.reconciler(self._queue, self._events),
        }

    async def run(self, stop: asyncio.Event) -> None:
        front = Front(self._metrics, self._why_not_ready, self._take_hint)
        async with front.serve(self._settings.http_host, self._settings.http_port), self._client, self._supervisors:
            logger.info("starting against %s", self._credentials.server, extra={"identity": self._identity})
            starting = asyncio.create_task(self._start())
            if not await _wait_unless(stop, starting):
                return
            await self._run_parts(stop)

    async def _start(self) -> None:
        """Wait for the API server and for TrainingJobs, and get the operator's key."""
        await wait_until_served(self._client, TRAINING_JOBS, self._report)
        delay = 1.0
        while True:
            try:
                self._key = await fetch_or_create_key(self._client, self._namespace)
                self._problem = None
                return
            except ApiError as error:
                self._problem = f"the operator's key: {error}"
                logger.warning("%s", self._problem)
            await asyncio.sleep(delay)
            delay = min(15.0, delay * 2)

    def _report(self, problem: str) -> None:
        self._problem = problem

    async def _run_parts(self, stop: asyncio.Event) -> None:
        """Run all parts; when one ends by itself, end all and say which."""
        parts: dict[str, Coroutine[Any, Any, None]] = {
            "pod reflector": self._pods.run(),
            "watch of TrainingJobs": self._jobs.run(),
            "watch of InferenceServices": self._serving.run(),
            "watch of Benchmarks": self._benchmarks.run(),
            "look for gang schedulers": self._gangs.run(),
            "elector": self._elector.run(),
            "events": self._events.run(),
            "term": self._serve_terms(),
        }
        if self._namespaces is not None:
            parts["namespace reflector"] = self._namespaces.run()
        tasks = [asyncio.create_task(part, name=name) for name, part in parts.items()]
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            done, _ = await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
            if stopping in done:
                logger.info("stopping")
                await self._drain()
        finally:
            for task in (stopping, *tasks):
                task.cancel()
            await asyncio.gather(stopping, *tasks, return_exceptions=True)
            await self._elector.release()
        for task in done - {stopping}:
            cause = None if task.cancelled() else task.exception()
            raise OperatorCrash(f"the {task.get_name()} ended: {cause!r}") from cause

    async def _drain(self) -> None:
        """Let the passes under way come to their end."""
        self._reconciler.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                await self._queue.wait_until_nothing_in_flight()

    async def _serve_terms(self) -> None:
        """While this replica leads, work; when the lease is lost, interrupt everything at once."""
        await self._pods.synced.wait()
        await self._jobs.synced.wait()
        await self._gangs.synced.wait()
        if self._namespaces is not None:
            await self._namespaces.synced.wait()
        # What was loaded stays: keep the collector from walking it again and again.
        gc.collect()
        gc.freeze()
        while True:
            await self._elector.leading.wait()
            self._poller.begin_term()
            self._serving.begin_term()
            own = (self._store.jobs, self._serving.store.services, self._benchmarks.store.benchmarks)
            for record in (record for objects in own for record in objects.all()):
                self._queue.add(record.key)
            for key in self._store.queued_keys():
                self._queue.add(key)
            term = asyncio.create_task(self._work())
            lost = asyncio.create_task(self._elector.standing_by.wait())
            try:
                await asyncio.wait([term, lost], return_when=asyncio.FIRST_COMPLETED)
                if term.done():
                    term.result()
            finally:
                term.cancel()
                lost.cancel()
                await asyncio.gather(term, lost, return_exceptions=True)
                self._metrics.of_jobs.reset()

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._reconciler.run())
            group.create_task(self._poller.run())
            group.create_task(self._serving.work())

    def _wake(self, key: ObjectKey, priority: Priority) -> None:
        """A term begins with a look at every object. A standby that queued what it sees would keep the key of every one
        there ever was."""
        if self._elector.leading.is_set():
            self._queue.add(key, priority)

    def _take_pod(self, _: Resource, answer: bytes) -> None:
        self._store.put(decode_pod(answer))

    def _take_hint(self, hint: Hint) -> bool:
        """Whether this replica acts; what the hint leads to is not the pod's business."""
        if self._elector.leading.is_set():
            self._poller.take_hint(ObjectKey(hint.namespace, hint.job), hint.pod)
        return self._elector.leading.is_set()

    def _token_of(self, job_uid: str) -> str:
        return job_token(self._key, job_uid)

    def _why_not_ready(self) -> str | None:
        if self._problem is not None:
            return self._problem
        if not self._jobs.synced.is_set():
            return "not all TrainingJobs have been seen"
        if not self._pods.synced.is_set():
            return "pods have not been listed"
        if not self._pods.is_alive():
            return f"the watch of pods has been silent for {self._pods.silent_seconds():.0f} s"
        if self._namespaces is not None and not self._namespaces.synced.is_set():
            return "namespaces have not been listed, which --allow-chaos needs"
        return self._serving.why_not_ready() or self._benchmarks.why_not_ready()


async def _wait_unless(stop: asyncio.Event, task: asyncio.Task[None]) -> bool:
    """Whether `task` ended before `stop` was set; if not, it is cancelled. Raises what the task raised."""
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        for one in (task, stopping):
            one.cancel()
        await asyncio.gather(task, stopping, return_exceptions=True)
