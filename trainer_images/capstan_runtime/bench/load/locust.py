"""A rung as the file that `locust --csv` calls `*_stats.csv`, for tools that read it.

A request of the scenario is what locust calls a task: its name and weight mean the same, method is Type. Times are in
milliseconds. Two things are better here than there: they count from when a request was due, and what failed counts as
the timeout, not as how quickly it failed. Columns as of locust 2.x, docs.locust.io/en/stable/retrieving-stats.html.
"""

import csv
import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from capstan_runtime.bench.load.ladder import Rung
from capstan_runtime.bench.measured import percentile
from capstan_runtime.contract.workloads import Request

COLUMNS = (
    "Type",
    "Name",
    "Request Count",
    "Failure Count",
    "Median Response Time",
    "Average Response Time",
    "Min Response Time",
    "Max Response Time",
    "Average Content Size",
    "Requests/s",
    "Failures/s",
)
SHARES = (0.5, 0.66, 0.75, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 0.9999, 1.0)


def locust_stats(rung: Rung, scenario: Sequence[Request], timeout_seconds: float) -> str:
    """A row for each kind of request that was due, and the row Aggregated."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"{100 * share:g}%" for share in SHARES)])
    milliseconds = 1e3 * np.minimum(rung.latency, timeout_seconds)
    is_failed = np.isinf(rung.latency)
    for kind, request in enumerate(scenario):
        of_kind = rung.kinds == kind
        if of_kind.any():
            size = rung.body_bytes.get(kind, 0)
            row = _row(milliseconds[of_kind], is_failed[of_kind], size, rung.duration)
            writer.writerow([request.method, _as_text(request.name), *row])
    size = sum(rung.body_bytes.values())
    writer.writerow(["", "Aggregated", *_row(milliseconds, is_failed, size, rung.duration)])
    return text.getvalue()


def _as_text(name: str) -> str:
    """Spreadsheets run what begins like a formula (OWASP, CSV Injection)."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name


def _row(
    milliseconds: npt.NDArray[np.float64], is_failed: npt.NDArray[np.bool_], body_bytes: int, seconds: float
) -> list[object]:
    count, failed = len(milliseconds), int(is_failed.sum())
    if not count:
        return [0, 0, 0, 0.0, 0, 0, 0, 0.0, 0.0, *("N/A" for _ in SHARES)]
    rising = np.sort(milliseconds)
    return [
        count,
        failed,
        round(percentile(rising, 0.5)),
        float(milliseconds.mean()),
        float(rising[0]),
        float(rising[-1]),
        body_bytes / count,
        count / seconds,
        failed / seconds,
        *(round(percentile(rising, share)) for share in SHARES),
    ]
