"""Workload controlPlane: how many TrainingJobs API server, scheduler, operator and nodes get through."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import aiohttp
import numpy as np

from capstan_runtime.bench.burst import Burst, nothing_left, paths, run_burst, trivial_job
from capstan_runtime.bench.cluster import Cluster, Refused, read_account
from capstan_runtime.bench.measured import Measured, can_tell, percentile, point
from capstan_runtime.bench.operator_metrics import OperatorCounters, parse_counters
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.contract.benchmark import Point, TrialTask
from capstan_runtime.contract.workloads import ControlPlane
from capstan_runtime.errors import ConfigError

_METRICS_SECONDS = 10.0
_KEPT_FOR_CLEANING = 0.3
"""Of the trial's deadline: what it made must be removed before it is ended from outside."""
_RIGHTS = """apiVersion: v1
kind: ServiceAccount
metadata: {{name: {account}, namespace: {namespace}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: {account}, namespace: {namespace}}}
rules:
  - apiGroups: [capstan.dev]
    resources: [trainingjobs]
    verbs: [create, delete, list, watch]
  - apiGroups: [""]
    resources: [pods]
    verbs: [list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: {account}, namespace: {namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: {account}}}
subjects: [{{kind: ServiceAccount, name: {account}, namespace: {namespace}}}]
"""


def run(trial: TrialTask, store: Store, environ: Mapping[str, str]) -> Measured:
    """Creates the jobs, watches them succeed, and removes them, whatever happens.

    Raises ConfigError when the pod has no service account or that lacks rights, with the manifests that give them.
    """
    access = read_account(environ)
    if access is None:
        raise _lacks_rights("the pod has no service account's token", "capstan-bench", "NAMESPACE")
    work = trial.work.control_plane
    assert work is not None

    async def measure() -> Measured:
        async with Cluster(access) as cluster:
            pod = await _own_pod(cluster, access.namespace, environ)
            return await _measure(trial, work, cluster, access.namespace, pod)

    try:
        return asyncio.run(measure())
    except Refused as error:
        if error.code in (401, 403):
            raise _lacks_rights(str(error), "capstan-bench", access.namespace) from error
        raise


async def _measure(
    trial: TrialTask, work: ControlPlane, cluster: Cluster, namespace: str, pod: dict[str, Any]
) -> Measured:
    metadata = pod["metadata"]
    mark = (metadata.get("labels") or {}).get("capstan.dev/benchmark") or metadata["name"]
    owner = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
    names = [f"{metadata['name']}-{index}" for index in range(work.jobs)]
    manifests = [trivial_job(name, work.workers, mark, [owner]) for name in names]
    notes: list[str] = []
    async with nothing_left(cluster, namespace, mark):
        before = await _counters(trial.operator_url, notes)
        seconds = trial.deadline_seconds * (1 - _KEPT_FOR_CLEANING)
        try:
            burst = await run_burst(cluster, namespace, manifests, mark, seconds)
        except TimeoutError:
            raise RuntimeError(f"{work.jobs} TrainingJobs were not done after {seconds:.0f} s") from None
        after = await _counters(trial.operator_url, notes)
    points = [*burst_points(burst)]
    if before is not None and after is not None:
        between = after.since(before)
        if between is None:
            notes.append("the operator began anew, or another replica answered: its own figures are left out")
        else:
            points += operator_points(between, work.jobs)
    return Measured(points, list(dict.fromkeys(notes)))


def burst_points(burst: Burst) -> Iterator[Point]:
    """Headline: jobs per second."""
    jobs = len(burst.job_seconds)
    yield point("jobs_per_second", "jobs/s", "higher", jobs / burst.seconds, is_headline=True)
    yield from _percentiles("job", burst.job_seconds.values())
    yield from _percentiles("first_pod", burst.first_pod_seconds.values())
    yield point("pods_per_second", "pods/s", "higher", burst.pods / burst.seconds)
    yield point("pods", "pods", "neither", float(burst.pods))


def operator_points(between: OperatorCounters, jobs: int) -> Iterator[Point]:
    """Of everything that the operator did meanwhile: keep others out of the cluster."""
    yield point("api_calls_per_job", "calls/job", "lower", between.api_calls / jobs)
    yield point("reconciles_per_job", "passes/job", "lower", between.passes / jobs)
    if between.passes:
        yield point("reconcile_mean_seconds", "s", "lower", between.pass_seconds / between.passes)
        yield point("reconcile_p99_seconds", "s", "lower", between.quantile(0.99))


def _percentiles(what: str, seconds: Iterable[float]) -> Iterator[Point]:
    samples = np.array([*seconds])
    rising = np.sort(samples)
    yield point(f"{what}_p50_seconds", "s", "lower", percentile(rising, 0.5), samples=samples.tolist())
    if can_tell(0.99, len(rising)):
        yield point(f"{what}_p99_seconds", "s", "lower", percentile(rising, 0.99))


async def _own_pod(cluster: Cluster, namespace: str, environ: Mapping[str, str]) -> dict[str, Any]:
    """The pod that this process is in: what it makes goes when it goes."""
    name = environ.get("HOSTNAME", "")
    found = (await cluster.ask("GET", paths(namespace)[1], fieldSelector=f"metadata.name={name}"))["items"]
    if not found:
        raise ConfigError(
            f"HOSTNAME: {name} is no pod of namespace {namespace}; remove hostname and hostNetwork from it"
        )
    pod: dict[str, Any] = found[0]
    return pod


async def _counters(url: str | None, notes: list[str]) -> OperatorCounters | None:
    """None: they are not known, and `notes` says why."""
    if url is None:
        notes.append("the operator's own figures are left out: it does not know its URL (capstan run --url)")
        return None
    try:
        timeout = aiohttp.ClientTimeout(total=_METRICS_SECONDS)
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{url.rstrip('/')}/metrics") as answer,
        ):
            answer.raise_for_status()
            return parse_counters(await answer.text())
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        notes.append(f"the operator's own figures are left out: {url}/metrics: {error or type(error).__name__}")
        return None


def _lacks_rights(problem: str, account: str, namespace: str) -> ConfigError:
    first = (
        f"workload.controlPlane: {problem}; apply the ServiceAccount, Role and RoleBinding below (this pod's log has "
        f"them, and examples/bench-control-plane) and set pods.serviceAccountName: {account}"
    )
    return ConfigError(f"{first}\n{_RIGHTS.format(account=account, namespace=namespace)}")
