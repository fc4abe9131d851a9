"""What a Grafana dashboard is made of: panels, each with what it asks Prometheus for, and why one looks at it.

Series of the operator come through the chart's ServiceMonitor, those of jobs and services through its PodMonitor, which
adds `namespace`, `pod` and the labels capstan_dev_job, capstan_dev_service and capstan_dev_revision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture."""

    title: str
    description: str
    queries: Mapping[str, str]
    """PromQL by the name of its line; `{{label}}` in it stands for a label's value."""
    unit: str = "short"
    """Of Grafana's unit ids."""
    kind: str = "timeseries"
    """timeseries, stat, table or states."""
    width: int = 8
    """Of 24."""
    colours: Sequence[tuple[float | None, str]] = ()
    """Colour by the value that it begins at, smallest first; None for the first. Empty: no value is good or bad."""
    is_stacked: bool = False


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of a dashboard, of the values that a label has."""

    name: str
    label: str
    query: str
    is_multiple: bool = False
    """Whether several, or all, may be chosen at a time."""


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One file. `uid` never changes: links and Grafana's own folders know it by that."""

    uid: str
    title: str
    description: str
    variables: Sequence[Variable]
    rows: Mapping[str, Sequence[Panel]] = field(default_factory=dict)


def quantiles(metric: str, where: str, *shares: float, by: str = "") -> dict[str, str]:
    """Quantiles of a histogram over the chosen time step, by their names."""
    labels, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
    rates = f"sum by ({labels}) (rate({metric}_bucket{{{where}}}[$__rate_interval]))"
    return {f"p{share * 100:g}{legend}": f"histogram_quantile({share}, {rates})" for share in shares}


def rate(metric: str, where: str, by: str) -> dict[str, str]:
    """Per second, by the values of a label."""
    return {f"{{{{{by}}}}}": f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))"}
