"""A result for Prometheus: a file for node_exporter's textfile collector, or for a push.

Names, units and labels follow Prometheus' rules: base units, no timestamps, and a HELP that depends on nothing but the
name, because the collector reads the files of many benchmarks together and refuses two texts for one name.
"""

import re
from collections.abc import Iterable, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from capstan_runtime.bench.result import BenchmarkResult
from capstan_runtime.contract.benchmark import Verdict

PREFIX = "capstan_benchmark_"
_OWN = ("namespace", "benchmark", "workload")
_STATISTICS = ("median", "low", "high")


def exposition(result: BenchmarkResult) -> str:
    """The text of metrics.prom; the same result gives the same text."""
    registry = CollectorRegistry()
    registry.register(_Found(result))
    return generate_latest(registry).decode()


class _Found(Collector):
    def __init__(self, result: BenchmarkResult) -> None:
        self._result = result
        self._own = {"namespace": result.namespace, "benchmark": result.name, "workload": result.workload}

    def collect(self) -> Iterable[GaugeMetricFamily]:
        yield self._verdict()
        yield self._info()
        yield self._gauge("started_timestamp_seconds", "When its first trial began.", self._result.started_at)
        yield self._gauge("finished_timestamp_seconds", "When it ended.", self._result.finished_at)
        yield self._gauge("repeated_trials", "Trials that failed and were run again.", float(len(self._result.repeats)))
        yield from self._figures()
        yield from self._comparisons()

    def _verdict(self) -> GaugeMetricFamily:
        """One series for each verdict there is, so that an alert needs no absent()."""
        rows = [
            ({**self._own, "verdict": verdict}, float(verdict == self._result.verdict)) for verdict in get_args(Verdict)
        ]
        return _family("verdict", "1 for the verdict on it; 0 for all where it was compared with nothing.", rows)

    def _info(self) -> GaugeMetricFamily:
        result = self._result
        first = result.environments[0] if result.environments else None
        labels = {
            "uid": result.uid,
            "seed": str(result.seed),
            "cpu": first.cpu if first else "",
            "gpus": ", ".join(first.gpus) if first else "",
            "fingerprint": first.fingerprint if first else "",
        }
        return _family("info", "Always 1; what it ran on.", [({**self._own, **labels}, 1.0)])

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        return _family(name, text, [(self._own, value)])

    def _figures(self) -> Iterable[GaugeMetricFamily]:
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for figure in self._result.figures:
            labels = {**self._own, **_foreign(figure.labels)}
            for statistic in _STATISTICS:
                found.setdefault(figure.metric, []).append(
                    ({**labels, "statistic": statistic}, getattr(figure, statistic))
                )
        for metric, rows in found.items():
            yield _family(metric, f"{metric.replace('_', ' ').capitalize()}, over trials, with its interval.", rows)

    def _comparisons(self) -> Iterable[GaugeMetricFamily]:
        effects: list[tuple[dict[str, str], float]] = []
        chances: list[tuple[dict[str, str], float]] = []
        for one in self._result.comparisons:
            labels = {**self._own, "metric": one.metric, **_foreign(one.labels)}
            ends = zip(_STATISTICS, (one.effect_percent, one.low_percent, one.high_percent), strict=True)
            effects += [({**labels, "statistic": name}, percent / 100) for name, percent in ends]
            chances.append((labels, one.p_value))
        if effects:
            yield _family("effect_ratio", "Difference from the baseline, as a part of it, with its interval.", effects)
            yield _family("p_value", "How likely such a difference is when there is none.", chances)


def _foreign(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels of a case, under names that Prometheus takes and that mean nothing else here.

    >>> _foreign({"batchSize": "32", "metric": "a"})
    {'batch_size': '32', 'case_metric': 'a'}
    """
    named = {}
    for name, value in labels.items():
        snake = re.sub(r"[^a-z0-9_]", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()).strip("_")
        is_taken = snake in (*_OWN, "metric", "statistic", "verdict") or not snake[:1].isalpha()
        named[f"case_{snake}" if is_taken else snake] = value
    return named


def _family(name: str, text: str, rows: list[tuple[dict[str, str], float]]) -> GaugeMetricFamily:
    """A family has one set of label names; what a case does not have is empty, which to Prometheus is absent."""
    names = list(dict.fromkeys(name for labels, _ in rows for name in labels))
    family = GaugeMetricFamily(PREFIX + name, text, labels=names)
    for labels, value in rows:
        family.add_metric([labels.get(name, "") for name in names], value)
    return family
