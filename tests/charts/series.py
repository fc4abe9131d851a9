"""Every series that Capstan's parts offer, asked of the parts themselves: its labels, and their values where known."""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from capstan_operator.metrics import Metrics
from capstan_runtime.bench.reports.prometheus import exposition
from capstan_runtime.contract.chaos import Fault, Injected
from capstan_runtime.contract.serving import AdaptiveLimit, Anomaly, Cache, Guards
from capstan_runtime.contract.state import Checkpoint, Phase, Restored, Source, State
from capstan_runtime.supervisor.exposition import Facts, render
from tests.serving.asgi import classifier_app, running
from tests.support import bench_results
from tests.support.training_runs import Run, run_trainers

Series = dict[str, dict[str, set[str]]]
"""By name, the values seen of each label; none for a label that nothing was counted under yet."""

TARGET = {"namespace", "pod"}
"""What Prometheus adds to every series."""
OF_PODS = {"capstan_dev_job", "capstan_dev_worker", "capstan_dev_service", "capstan_dev_revision"}
"""What the PodMonitor's podTargetLabels add to those of pods, written as Prometheus writes them."""


async def all_series() -> Series:
    """Of operator, supervisor, replica and report."""
    operator = Metrics()
    checks = Guards(adaptive_limit=AdaptiveLimit(), cache=Cache(), anomaly=Anomaly(confidence_below=0.1))
    async with running(classifier_app(checks)) as client:
        replica = (await client.request("GET", "/metrics")).body.decode()
    reports = [exposition(result) for result in (bench_results.training(), bench_results.serving())]
    of_pods = _read(_supervisor(), OF_PODS) | _read(replica, OF_PODS)
    return (
        of_pods
        | _declared(operator.registry)
        | _read(operator.render().decode())
        | functools.reduce(lambda one, other: one | other, map(_read, reports))
    )


def _supervisor() -> str:
    """What a supervisor shows of a job in which everything has happened, with the metrics that a trainer reports."""
    with tempfile.TemporaryDirectory(prefix="capstan-series-") as folder:
        (ended,) = run_trainers(Run(Path(folder)), 1)
    assert ended.code == 0, ended.output
    metrics: dict[str, float] = {}
    for line in ended.progress:
        metrics |= line.metrics or {}
    checkpoint = Checkpoint(step=1, root="blake3:" + "0" * 64, at=1.0)
    state = State(
        pod="p",
        uid="u",
        rank=0,
        world=1,
        steps=30,
        metrics=metrics,
        checkpoint=checkpoint,
        staged=checkpoint,
        seconds=dict.fromkeys(Phase, 1.0),
        restored=Restored(source=Source.STORE, bytes=1, seconds=1.0, verify_seconds=1.0),
        injected=[Injected(name="k", fault=Fault.KILL, rank=0, step=3, at=1.0)],
    )
    return render(state, Facts(restarts=0, has_warm_spare=False, is_under_chaos=False))


def _read(text: str, more: Iterable[str] = ()) -> Series:
    found: Series = {}
    for sample in itertools.chain.from_iterable(family.samples for family in text_string_to_metric_families(text)):
        labels = found.setdefault(sample.name, {name: set() for name in TARGET | set(more)})
        for name, value in sample.labels.items():
            labels.setdefault(name, set()).add(value)
    return found


def _declared(registry: CollectorRegistry) -> Series:
    """What has labels appears only once it was counted: names and labels are asked of the collectors instead."""
    found: Series = {}
    for collector, names in registry._collector_to_names.items():
        labels = {*getattr(collector, "_labelnames", ()), *TARGET}
        for name in names:
            found[name] = {label: set() for label in (labels | {"le"} if name.endswith("_bucket") else labels)}
    return found
