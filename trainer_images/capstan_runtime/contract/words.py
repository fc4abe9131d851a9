"""How figures look to people: numbers with units, and names in words; the same on status and in reports."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence

_DIGITS = 4
_FINE = ((1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))
_COARSE = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_PREFIXED = ("B", "B/s", "FLOP", "FLOP/s")
_RATIOS = ("ratio", "failed/request")
_TIGHT = ("x", "×")
"""Units that stand at their number without a space."""
_MILLIONS_FROM = 1e7
_WORDS = {
    "batchSize": "batch size",
    "flops": "FLOP",
    "p50": "p50",
    "allReduce": "all-reduce",
    "allGather": "all-gather",
    "reduceScatter": "reduce-scatter",
    "allToAll": "all-to-all",
}


def scale_of(value: float, unit: str) -> tuple[float, str]:
    """What numbers near `value` are divided by to be read well, and the unit they then have.

    >>> scale_of(0.0021, "s"), scale_of(3.2e9, "B/s"), scale_of(1204, "samples/s")
    ((0.001, 'ms'), (1000000000.0, 'GB/s'), (1.0, 'samples/s'))
    """
    size = abs(value)
    if unit in _RATIOS:
        return 0.01, "%"
    if not math.isfinite(size) or size == 0:
        return 1.0, unit
    if unit == "s":
        return next(((scale, f"{prefix}s") for scale, prefix in _FINE if size >= scale), (1e-9, "ns"))
    if unit in _PREFIXED:
        return next(((scale, f"{prefix}{unit}") for scale, prefix in _COARSE if size >= scale), (1.0, unit))
    if size >= _MILLIONS_FROM and unit not in _TIGHT:
        return 1e6, f"million {unit}".rstrip()
    return 1.0, unit


def number(value: float, digits: int = _DIGITS) -> str:
    """With `digits` digits that count, and thousands set apart.

    >>> [number(value) for value in (1204.4, 12.3456, 0.01, 0, float("inf"), 1e-7, 8.8e13)]
    ['1,204', '12.35', '0.01', '0', '∞', '1e-07', '8.8e+13']
    """
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4 or magnitude >= 12:
        return f"{value:.{digits - 1}g}"
    text = f"{value:,.{max(0, digits - 1 - magnitude)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(value: float) -> str:
    """Of weights and tokens, as people write it.

    >>> count(1.6e10), count(40000), count(17)
    ('16B', '40K', '17')
    """
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= scale:
            return f"{number(value / scale)}{letter}" if value < 1e16 else f"{value:.3e}"
    return number(value)


def quantity(value: float, unit: str) -> str:
    """A number with its unit, scaled to be read well.

    >>> [quantity(0.0123456, "s"), quantity(3.2e9, "B/s"), quantity(1204.4, "samples/s"), quantity(1.7999, "x")]
    ['12.35 ms', '3.2 GB/s', '1,204 samples/s', '1.8x']
    """
    scale, scaled = scale_of(value, unit)
    return join(number(value / scale), scaled)


def one_line(text: str) -> str:
    """Without line breaks, control characters and half letters."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def shortened(text: str, most: int) -> str:
    """At most so many letters, the end of it left out.

    >>> shortened("a transformer, 12 layers", 15)
    'a transformer,…'
    """
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def interval(low: float, high: float, unit: str, near: float) -> str:
    """Both ends in the scale of `near`, which stands beside them.

    >>> interval(0.0091, 0.0124, "s", 0.0102)
    '9.1 – 12.4 ms'
    """
    scale, scaled = scale_of(near, unit)
    return join(f"{number(low / scale)} – {number(high / scale)}", scaled)


def few_runs(numbers: Iterable[int], confidence: float) -> list[str]:
    """What the interval of a median is where it cannot have that confidence: of `n` values smallest to largest, the
    widest there is, holds the true median unless all are on one side of it, in 1 - 2^(1-n) of cases.

    >>> few_runs([3, 8, 3], 0.95)
    ['n = 3: the interval is from smallest to largest run; it holds the true median in 75 % of cases']
    """
    return [
        f"n = {n}: the interval is from smallest to largest run; it holds the true median in "
        f"{number(100 * held_by_all(n), 3)} % of cases"
        for n in sorted(set(numbers))
        if n > 1 and held_by_all(n) < confidence
    ]


def held_by_all(n: int) -> float:
    """How often the true median is between the smallest and the largest of `n` values."""
    return float(1 - 2.0 ** (1 - n))


def percent(value: float, is_signed: bool = True) -> str:
    """
    >>> [percent(4.26), percent(-0.04), percent(1234)]
    ['+4.3 %', '0.0 %', '+1,234.0 %']
    """
    if not math.isfinite(value):
        return f"{number(value)} %"
    text = f"{value:+,.1f}" if is_signed else f"{value:,.1f}"
    return f"{text.lstrip('+-') if float(text.replace(',', '')) == 0 else text} %"


def join(text: str, unit: str) -> str:
    """
    >>> join("3", "x"), join("3", "s"), join("0.9", "1")
    ('3x', '3 s', '0.9')
    """
    if unit == "1":
        return text
    return f"{text}{unit}" if unit in _TIGHT else f"{text} {unit}".rstrip()


def words(name: str) -> str:
    """A metric's or label's name for people.

    >>> words("bus_bandwidth_bytes_per_second"), words("batchSize"), words("allReduce")
    ('bus bandwidth bytes per second', 'batch size', 'all-reduce')
    """
    return _WORDS.get(name, name.replace("_", " "))


def title(metric: str) -> str:
    """A metric's name without its unit, for where the unit stands beside it.

    >>> [title(name) for name in ("step_seconds", "latency_p99_seconds", "samples_per_second", "seconds")]
    ['Step time', 'Latency p99', 'Samples per second', 'Time']
    """
    text = words(metric)
    if text.endswith("bytes per second"):
        text = text.removesuffix("bytes per second").strip()
        text = text if text.endswith("bandwidth") else f"{text} bandwidth".strip()
    text = text.replace("flops per second", "FLOP/s")
    text = re.sub(r" ?\bseconds$", "" if "latency" in text else " time", text).strip()
    return text[:1].upper() + text[1:]


def told_apart(cases: Sequence[Mapping[str, str]]) -> list[str]:
    """A short name for each case: only what differs between them.

    >>> told_apart([{"dtype": "fp32", "batchSize": "1"}, {"dtype": "fp32", "batchSize": "8"}])
    ['batch size 1', 'batch size 8']
    >>> told_apart([{"operation": "allReduce", "size": "4KiB"}, {"operation": "allToAll", "size": "1MiB"}])
    ['all-reduce, 4KiB', 'all-to-all, 1MiB']
    """
    names = list(dict.fromkeys(name for labels in cases for name in labels))
    differing = [name for name in names if len({labels.get(name) for labels in cases}) > 1]
    if len(differing) == 1:
        only = differing[0]
        return [f"{words(only)} {words(labels.get(only, '–'))}" for labels in cases]
    return [", ".join(words(labels[name]) for name in differing if name in labels) for labels in cases]


def case(labels: Mapping[str, str]) -> str:
    """What a figure was measured at, as status writes it.

    >>> case({"workers": "2", "mode": "strong"}), case({})
    ('workers=2, mode=strong', '')
    """
    return ", ".join(f"{name}={value}" for name, value in labels.items())
