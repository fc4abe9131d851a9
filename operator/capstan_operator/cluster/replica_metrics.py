"""Reads what a serving replica says of itself at `/metrics`: the few families that decisions need, and no others.

A general parser of Prometheus' text format takes nine times as long, for families that nobody asks for. This one reads
what our replicas write, a sample a line with at most one label; other lines are as if they were not there, and an
answer that lacks what it must have is refused.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from math import inf, isfinite

from capstan_operator.cluster.errors import ScrapeError
from capstan_operator.cluster.serving_traffic import Counts, Reading

IS_FAILURE: Mapping[str, bool | None] = {
    "ok": False,
    "failed": True,
    "timeout": True,
    "unavailable": True,
    "invalid": None,
    "unauthorized": None,
    "shed": None,
    "gone": None,
}
"""By the outcome of a request (`capstan_runtime.serving.refusal`): True, the model or the server failed; False, it
answered; None, it is not among the requests of a revision, since it says nothing of what that serves:

ok            answered                                              a request
failed        500                                                   a request and an error
timeout       504; 408 too, which clients of all revisions earn     a request and an error
unavailable   503: the model is not ready, or the replica leaves    a request and an error
              503: the circuit is open, since the model fails       a request and an error
shed          429                                                   neither: turned away before the model
invalid       4xx, as the client deserved                           neither
unauthorized  401                                                   neither
gone          the client did not wait for an answer                 neither

An outcome that is not in the table is of a newer replica, and not counted."""
NO_ROOM = (b"queue", b"adaptive_limit")
"""The reasons that say that a replica is full. `rate_limit` says something about one client."""
MOST_BUCKETS = 256

_SAMPLE = re.compile(
    rb"^capstan_serving_(requests_total|shed_total|latency_seconds_bucket|latency_seconds_count"
    rb"|latency_seconds_created|ongoing_requests|compared_total)"
    rb'(?:\{(?:outcome|reason|le|result)="([^"\\\n]{1,64})"\})? (\S{1,32})$',
    re.MULTILINE,
)
_INFO = re.compile(rb"^capstan_serving_model_info\{([^}\n]{0,1024})\} ", re.MULTILINE)
_VERSION = re.compile(rb'(?:^|,)version="([^"\\]{1,253})"')
"""All repetitions are bounded: an answer may be made to be slow to read."""


def read_metrics(body: bytes) -> Reading:
    """What one answer says. Raises ScrapeError: it is not a replica's, or numbers in it cannot be true."""
    outcomes: dict[bytes, int] = {}
    shed: dict[bytes, int] = {}
    compared: dict[bytes, int] = {}
    bounds: list[bytes] = []
    within: list[int] = []
    timed = began = ongoing = None
    for name, label, value in _SAMPLE.findall(body):
        match name:
            case b"latency_seconds_bucket":
                bounds.append(label)
                within.append(_count(value))
            case b"requests_total":
                outcomes[label] = _count(value)
            case b"shed_total":
                shed[label] = _count(value)
            case b"latency_seconds_count":
                timed = _count(value)
            case b"compared_total":
                compared[label] = _count(value)
            case b"ongoing_requests":
                ongoing = _count(value)
            case _:
                began = _number(value)
    if timed is None or began is None or b"ok" not in outcomes:
        raise ScrapeError("capstan_serving_requests_total or capstan_serving_latency_seconds is missing")
    edges = _edges(tuple(bounds))
    if any(lower > higher for lower, higher in pairwise(within)) or within[-1] != timed:
        raise ScrapeError("the buckets of capstan_serving_latency_seconds do not add up")
    counts = Counts(
        requests=sum(outcomes.get(name, 0) for name in _ALL),
        errors=sum(outcomes.get(name, 0) for name in _FAILURES),
        turned_away=sum(shed.get(reason, 0) for reason in NO_ROOM),
        timed=timed,
        bounds=edges,
        within=tuple(within[:-1]),
        compared=compared.get(b"same", 0) + compared.get(b"different", 0),
        different=compared.get(b"different", 0),
    )
    return Reading(_revision(body), began, counts, ongoing)


_ALL = [outcome.encode() for outcome, is_failure in IS_FAILURE.items() if is_failure is not None]
_FAILURES = [outcome.encode() for outcome, is_failure in IS_FAILURE.items() if is_failure]


def _revision(body: bytes) -> str:
    info = _INFO.search(body)
    version = _VERSION.search(info[1]) if info else None
    if version is None:
        raise ScrapeError("capstan_serving_model_info is missing")
    return version[1].decode(errors="replace")


@lru_cache(maxsize=64)
def _edges(labels: tuple[bytes, ...]) -> tuple[float, ...]:
    """The buckets' upper bounds without the last, which is infinite. The same object for the same labels."""
    edges = tuple(map(_number_or_inf, labels))
    is_ascending = all(lower < higher for lower, higher in pairwise(edges))
    if not 2 <= len(edges) <= MOST_BUCKETS or edges[0] <= 0 or edges[-1] != inf or not is_ascending:
        raise ScrapeError("the bounds of capstan_serving_latency_seconds do not ascend from above 0 to +Inf")
    return edges[:-1]


def _number_or_inf(text: bytes) -> float:
    return inf if text == b"+Inf" else _number(text)


def _number(text: bytes) -> float:
    try:
        number = float(text)
    except ValueError:
        number = inf
    if not isfinite(number):
        raise ScrapeError(f"{text.decode(errors='replace')} is not a finite number")
    return number


def _count(text: bytes) -> int:
    number = _number(text)
    if not 0 <= number <= 2**53 or not number.is_integer():
        raise ScrapeError(f"{text.decode(errors='replace')} does not count anything")
    return int(number)
