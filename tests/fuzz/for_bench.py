"""What Benchmarks read: kept results, raw samples, runs made elsewhere, and the answers of what they load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from capstan_runtime.bench.load.answer import AnswerReader, BadAnswer
from capstan_runtime.bench.operator_metrics import parse_counters
from capstan_runtime.bench.reporting import parse_result
from capstan_runtime.bench.workloads.scaling_law import parse_runs
from capstan_runtime.errors import ConfigError
from tests.fuzz.target import Target


def _result(data: bytes) -> bool:
    try:
        result = parse_result(data, "spec.baseline.file")
    except ConfigError as error:
        return _is_one_line(error)
    again = type(result).parse(result.model_dump(by_alias=True))
    assert repr(again) == repr(result), "it is read as it is written"
    return True


def _is_one_line(error: ConfigError) -> bool:
    assert "\n" not in str(error), "it goes on the status"
    return False


def _kept_results() -> Sequence[bytes]:
    return [path.read_bytes() for path in sorted(Path("examples").glob("bench-*/report/result.json"))][:1]


def _runs(data: bytes) -> bool:
    try:
        runs = parse_runs("runs.csv", data.decode(errors="replace").splitlines())
    except ConfigError as error:
        return _is_one_line(error)
    assert all(number > 0 for run in runs for number in run)
    return True


def _counters(data: bytes) -> bool:
    try:
        parse_counters(data.decode(errors="replace"))
    except ValueError:
        return False
    return True


def _answers(data: bytes) -> bool:
    """All that comes on one connection, in one piece and byte by byte: the same answers."""
    whole, pieces = AnswerReader(), AnswerReader()
    told: list[tuple[int, int] | str] = []
    for reader, parts in ((whole, [data]), (pieces, [data[at : at + 1] for at in range(len(data))])):
        try:
            is_complete = False
            for part in parts:
                is_complete = reader.feed(part)
            told.append((reader.status, reader.size) if is_complete or reader.end() else "unfinished")
        except BadAnswer:
            told.append("bad")
    return told[0] not in ("bad", "unfinished")


_ANSWERS = (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 404 Not Found\r\nConnection: close\r\n\r\nno",
    b"HTTP/1.1 204 No Content\r\n\r\n",
)
_COUNTERS = b"""\
capstan_operator_api_requests_total{method="GET",code="200"} 7.0
capstan_operator_reconcile_seconds_bucket{le="0.1"} 3.0
capstan_operator_reconcile_seconds_bucket{le="+Inf"} 4.0
capstan_operator_reconcile_seconds_count 4.0
capstan_operator_reconcile_seconds_sum 0.5
"""
_RUNS = b"parameters,tokens,loss\n" + b"".join(b"%de6,%de9,3.%d\n" % (at, at, 9 - at) for at in range(1, 8))

TARGETS = (
    Target("result", "whoever keeps a baseline", "bench.reporting.parse_result", "ConfigError", "json", _kept_results,
           _result, cpu_seconds=5.0),
    Target("runs", "users", "bench.workloads.scaling_law.parse_runs", "ConfigError", "lines", lambda: [_RUNS], _runs),
    Target("operator-metrics", "an operator", "bench.operator_metrics.parse_counters", "ValueError", "lines",
           lambda: [_COUNTERS], _counters),
    Target("answers", "the server under load", "bench.load.answer.AnswerReader", "BadAnswer", "bytes",
           lambda: _ANSWERS, _answers),
)  # fmt: skip
