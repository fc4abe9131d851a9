"""`capstan bench run`: a Benchmark is applied, followed to its end, and told by the exit code.

The Benchmark does the work; this only watches. Killed at any moment, it loses nothing: called again while that runs, it
follows on.
"""

import argparse
import asyncio
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml
from pydantic import ValidationError

from capstan_operator.api.benchmark import BenchmarkSpec
from capstan_operator.api.meta import GROUP
from capstan_operator.cluster.credentials import CredentialsError, load_credentials
from capstan_operator.cluster.errors import ApiError
from capstan_operator.cluster.kinds import BENCHMARKS, INFERENCE_SERVICES, PODS, TRAINING_JOBS, Resource
from capstan_operator.cluster.kube import ANYTHING, KubeClient
from capstan_operator.cluster.limiter import Lane, Limiter
from capstan_operator.metrics import Metrics
from capstan_runtime.contract import words
from capstan_runtime.contract.benchmark import VERDICT_EXIT

DONE, COULD_NOT, USAGE, INTERRUPTED = 0, 1, 2, 130
LOOK_SECONDS = 1.0
_CONFIDENCE = 0.95
"""Of intervals, where the spec has no gate."""
_ENDED = ("Succeeded", "Failed", "Invalid")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's: the one in Python takes seconds for some thousand brackets."""
_BESIDE = (
    Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim"),
    Resource("", "v1", "configmaps", "ConfigMap"),
    Resource("", "v1", "serviceaccounts", "ServiceAccount"),
    Resource("rbac.authorization.k8s.io", "v1", "roles", "Role"),
    Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding"),
    TRAINING_JOBS,
    INFERENCE_SERVICES,
)
"""What a Benchmark may need and its file may bring along: its store, a kept baseline, an account, what it measures."""

Document = dict[str, Any]


class Usage(Exception):
    """The file or a flag is wrong. One line; exit code 2."""


class Failure(Exception):
    """It could not be done, or did not end as it should. One line; exit code 1."""


@dataclass(frozen=True, slots=True)
class Manifests:
    """What a file holds."""

    benchmark: Document
    beside: list[tuple[Resource, Document]]

    @property
    def name(self) -> str:
        return str(self.benchmark["metadata"]["name"])


def main(options: argparse.Namespace) -> int:
    """The exit code: that of the verdict (0 passed, improved, or nothing to compare with; 3 regressed; 4 inconclusive),
    1 for what did not work, 2 for wrong usage, 130 after Ctrl-C."""
    try:
        manifests = read_manifests(options.file)
        return _run_until_interrupted(manifests, options)
    except (Usage, Failure, ApiError, CredentialsError) as error:
        print(f"capstan bench run: {error}", file=sys.stderr)
        return USAGE if isinstance(error, Usage) else COULD_NOT


def _run_until_interrupted(manifests: Manifests, options: argparse.Namespace) -> int:
    try:
        return asyncio.run(_run(manifests, options))
    except KeyboardInterrupt:
        print(
            f"capstan bench run: stopped looking; Benchmark {manifests.name} goes on. The same command follows it "
            f"again, kubectl delete benchmark {manifests.name} ends it",
            file=sys.stderr,
        )
        return INTERRUPTED


def read_manifests(path: Path) -> Manifests:
    """The Benchmark in a YAML file, and what it brings along. Raises Usage."""
    try:
        documents = [one for one in yaml.load_all(path.read_text("utf-8"), Loader=_LOADER) if one is not None]
    except Exception as error:  # PyYAML lets through what its constructors stumble over, of any type
        first = next(iter(str(error).splitlines()), "")
        raise Usage(f"FILE: {path} cannot be read: {first}") from error
    benchmarks, beside = [], []
    for document in documents:
        kind = document.get("kind") if isinstance(document, dict) else None
        resource = next((one for one in _BESIDE if one.kind == kind), None)
        if kind == BENCHMARKS.kind and str(document.get("apiVersion", "")).startswith(f"{GROUP}/"):
            benchmarks.append(document)
        elif resource is not None:
            beside.append((resource, document))
        else:
            kinds = ", ".join(one.kind for one in _BESIDE)
            raise Usage(f"FILE: {path} holds a {kind}; only a Benchmark and {kinds} are applied here: kubectl apply it")
    if len(benchmarks) != 1:
        raise Usage(f"FILE: {path} holds {len(benchmarks)} Benchmarks; give a file with one")
    for document in (*benchmarks, *(one for _, one in beside)):
        if not isinstance(document.get("metadata"), dict) or not document["metadata"].get("name"):
            raise Usage(f"FILE: {path}: a {document['kind']} has no metadata.name; give it one")
    _parsed(benchmarks[0], f"FILE: {path}")
    return Manifests(benchmarks[0], beside)


def _parsed(benchmark: Document, where: str) -> BenchmarkSpec:
    try:
        return BenchmarkSpec.parse(benchmark.get("spec"))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in ("spec", *first["loc"]))
        raise Usage(f"{where}: {field}: {str(first['msg']).removeprefix('Value error, ')}") from error


async def _run(manifests: Manifests, options: argparse.Namespace) -> int:
    credentials = load_credentials(options.kubeconfig, options.context)
    namespace = str(manifests.benchmark["metadata"].get("namespace") or options.namespace or credentials.namespace)
    if options.namespace and namespace != options.namespace:
        raise Usage(f"--namespace: {options.namespace} is not {namespace}, which the file names; leave one out")
    async with KubeClient(credentials, Limiter(), Metrics()) as client:
        try:
            async with asyncio.timeout(options.timeout):
                await _apply(client, namespace, manifests, is_rerun=options.rerun)
                ended = await _follow(client, namespace, manifests.name)
        except TimeoutError:
            raise Failure(
                f"--timeout: Benchmark {namespace}/{manifests.name} is not done after {options.timeout:g} s, and goes "
                "on; the same command follows it again"
            ) from None
        for line in told(namespace, manifests.name, ended):
            print(line)
        status = ended.get("status", {})
        if options.output is not None and status.get("report"):
            await _fetch(client, namespace, status["report"], options.output)
    return _exit_code(namespace, manifests.name, status)


async def _apply(client: KubeClient, namespace: str, manifests: Manifests, *, is_rerun: bool) -> None:
    """Creates what is missing. A Benchmark that is there already must be the same one, and not have ended: its verdict
    is not of what is there now. `is_rerun` makes one that has ended anew."""
    for resource, document in manifests.beside:
        await _create(client, resource, namespace, document)
    if is_rerun:
        await _remove_ended(client, namespace, manifests.name)
    if await _create(client, BENCHMARKS, namespace, manifests.benchmark):
        print(f"benchmark {namespace}/{manifests.name} created")
        return
    there = await _get(client, namespace, manifests.name)
    wanted = _parsed(manifests.benchmark, "FILE")
    try:
        found = BenchmarkSpec.parse(there.get("spec"))
    except ValidationError:
        found = None
    if found != wanted:
        fields = [
            field.alias or name
            for name, field in BenchmarkSpec.model_fields.items()
            if found is None or getattr(found, name) != getattr(wanted, name)
        ]
        raise Failure(
            f"Benchmark {namespace}/{manifests.name} is there with another spec (differs in {', '.join(fields)}); give "
            f"this one a new metadata.name, or delete the other: kubectl -n {namespace} delete benchmark "
            f"{manifests.name}"
        )
    # One that is Invalid was not measured either, and says itself what is wrong.
    if _has_ended(there) and there["status"]["phase"] != "Invalid":
        when = there["status"].get("finishedAt")
        raise Failure(
            f"Benchmark {namespace}/{manifests.name} finished{f' at {when}' if when else ''}, and nothing was measured "
            "now; give this one a new metadata.name, or --rerun, which deletes that one and measures anew"
        )
    print(f"benchmark {namespace}/{manifests.name} is there already; following it")


async def _remove_ended(client: KubeClient, namespace: str, name: str) -> None:
    """Deletes the Benchmark of that name if it has ended; returns once it is gone."""
    try:
        there: Document = await _get(client, namespace, name)
        if not _has_ended(there):
            return
        uid = there["metadata"]["uid"]
        await client.delete(BENCHMARKS, namespace, name, uid=uid, grace_seconds=None, lane=Lane.CREATE)
        print(f"benchmark {namespace}/{name} has ended and is deleted", flush=True)
        while there["metadata"]["uid"] == uid:
            await asyncio.sleep(LOOK_SECONDS)
            there = await _get(client, namespace, name)
    except ApiError as error:
        if not error.is_not_found:
            raise


async def _get(client: KubeClient, namespace: str, name: str) -> Document:
    return await client.document("GET", BENCHMARKS.path(namespace, name), lane=Lane.SYSTEM)


def _has_ended(benchmark: Document) -> bool:
    return _is_current(benchmark) and benchmark.get("status", {}).get("phase") in _ENDED


async def _create(client: KubeClient, resource: Resource, namespace: str, document: Document) -> bool:
    """False: there is one of that name."""
    own = document["metadata"].get("namespace")
    body = orjson.dumps({**document, "metadata": {**document["metadata"], "namespace": own or namespace}})
    try:
        await client.create(resource, own or namespace, body, lane=Lane.CREATE)
    except ApiError as error:
        if error.is_already_exists:
            return False
        raise
    return True


async def _follow(client: KubeClient, namespace: str, name: str) -> Document:
    """The Benchmark when it has ended; a line on stdout for each change. An API server that is away is waited for."""
    said: list[str] = []
    is_away = False
    while True:
        try:
            benchmark: Document = await _get(client, namespace, name)
        except ApiError as error:
            if error.is_not_found:
                raise Failure(f"Benchmark {namespace}/{name} was deleted before it was done") from error
            if error.status != 0 and error.status < 500 and error.status != 429:
                raise
            if not is_away:
                print(f"the API server does not answer ({error.reason}); waiting for it", file=sys.stderr, flush=True)
            is_away = True
            await asyncio.sleep(LOOK_SECONDS)
            continue
        is_away = False
        for line in progress(benchmark):
            if line not in said:
                print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
                said.append(line)
        if _has_ended(benchmark):
            return benchmark
        await asyncio.sleep(LOOK_SECONDS)


def _is_current(benchmark: Document) -> bool:
    """Status speaks of the spec as it is now."""
    return bool(
        benchmark.get("status", {}).get("observedGeneration") == benchmark.get("metadata", {}).get("generation")
    )


def progress(benchmark: Document) -> Iterator[str]:
    """Lines of how far it is: each is the same for as long as it is true."""
    status: Document = benchmark.get("status", {})
    for repeat in status.get("repeats", []):
        yield f"{repeat['trial']} attempt {repeat['attempt']} failed and is repeated: {repeat['reason']}"
    count, running = status.get("progress", {}), status.get("running")
    phase = status.get("phase", "Pending")
    if phase == "Running" and running:
        case = f" {running['case']}" if running.get("case") else ""
        again = f", attempt {running['attempt']}" if running.get("attempt", 1) > 1 else ""
        yield f"run {count.get('done', 0) + 1}/{count.get('total', 0)} ({running['trial']}){case}{again}"
    elif phase == "Reporting":
        yield "every run is done; the report is made"
    elif phase not in _ENDED:
        yield f"{phase}: {status.get('message') or 'the operator has not seen it yet'}"


def told(namespace: str, name: str, benchmark: Document) -> Iterator[str]:
    """What came of it."""
    status: Document = benchmark.get("status", {})
    if status.get("phase") != "Succeeded":
        return
    yield ""
    yield f"{status.get('verdict') or 'Measured'}: {status.get('verdictReason') or status.get('result') or ''}"
    if status.get("verdict"):
        yield str(status.get("result") or "")
    yield from _table(
        ("METRIC", "AT", "MEDIAN", "INTERVAL", "N"),
        [
            (
                one["metric"],
                one.get("case") or "-",
                words.quantity(_number(one, "median"), one["unit"]),
                words.interval(_number(one, "low"), _number(one, "high"), one["unit"], _number(one, "median"))
                if one["n"] > 1
                else "one run: none",
                str(one["n"]),
            )
            for one in status.get("figures", [])
        ],
    )
    confidence = benchmark["spec"].get("gate", {}).get("confidence", _CONFIDENCE)
    yield from words.few_runs((one["n"] for one in status.get("figures", [])), confidence)
    yield from _table(
        ("METRIC", "AT", "BASELINE", "NOW", "EFFECT", "P", "VERDICT"),
        [
            (
                one["metric"],
                one.get("case") or "-",
                words.number(_number(one, "baseline")),
                words.number(_number(one, "candidate")),
                _effect(one),
                f"{_number(one, 'pValue'):.3f}",
                one["verdict"],
            )
            for one in status.get("comparisons", [])
        ],
    )
    if report := status.get("report"):
        yield ""
        yield f"report: {report['place']}/report.html, in {_store(benchmark)}"
        yield f"        kubectl -n {namespace} logs {report['log']}"


def _store(benchmark: Document) -> str:
    store = benchmark["spec"]["results"]["store"]
    kind, value = next(iter(store.items()))
    return f"{kind} {value.get('name') or value.get('path') or value.get('url') or ''}".rstrip()


def _number(one: Mapping[str, Any], name: str) -> float:
    """Absent: it was no number, which JSON has no word for."""
    value = one.get(name)
    return float(value) if isinstance(value, int | float) else math.nan


def _effect(one: Mapping[str, Any]) -> str:
    effect, low, high = (words.percent(_number(one, name)) for name in ("effectPercent", "lowPercent", "highPercent"))
    return f"{effect} [{low.removesuffix(' %')}, {high.removesuffix(' %')}]"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    if not rows:
        return
    yield ""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


async def _fetch(client: KubeClient, namespace: str, report: Document, folder: Path) -> None:
    """All reports where the store can be reached from here, else the Markdown, which the report pod has printed."""
    command = [sys.executable, "-m", "capstan_runtime.bench.cli", "report", report["place"], "--output", str(folder)]
    ended = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    if ended.returncode == 0:
        print(f"        {folder}/report.html")
        return
    path = PODS.path(namespace, report["log"], "log")
    try:
        text = await client.call("GET", path, lane=Lane.SYSTEM, accept=ANYTHING)
    except ApiError as error:
        raise Failure(
            f"--output: neither {report['place']} nor the log of pod {report['log']} can be read from here"
        ) from error
    await asyncio.to_thread(_write, folder, text)
    print(f"        {folder}/report.md; the rest is in the store, which cannot be read from here")


def _write(folder: Path, markdown: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_bytes(markdown)


def _exit_code(namespace: str, name: str, status: Document) -> int:
    """Raises Failure for one that did not end well."""
    if status.get("phase") != "Succeeded":
        said = " ".join(str(status.get("message", "")).split())
        raise Failure(f"Benchmark {namespace}/{name} is {status.get('phase')}: {said}")
    verdict = status.get("verdict")
    return DONE if verdict is None else VERDICT_EXIT[verdict]
