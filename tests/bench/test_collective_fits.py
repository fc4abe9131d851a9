"""Latency and bandwidth of a collective operation from its sweep."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_runtime.bench.analysis.collect import Trials
from capstan_runtime.bench.analysis.collectives import derive, fit
from capstan_runtime.bench.result import CollectiveFit, Series
from capstan_runtime.contract.benchmark import Arm

SIZES = [4**k * 1024 for k in range(8)]
"""1 KiB to 16 MiB."""


def test_a_line_through_two_points_is_the_line() -> None:
    # 100 us + 1,000 B / (1 GB/s) = 101 us; 100 us + 1,000,000 B / (1 GB/s) = 1,100 us.
    assert fit([1000, 1_000_000], [101e-6, 1100e-6]) == pytest.approx((100e-6, 1e-9))


@given(st.floats(1e-7, 1e-1), st.floats(1e3, 1e12))
def test_what_was_planted_is_found(latency: float, bandwidth: float) -> None:
    found_latency, per_byte = fit(SIZES, [latency + size / bandwidth for size in SIZES])
    # What is too small beside the other cannot be seen, nor does it matter.
    assert found_latency == pytest.approx(latency, rel=1e-4, abs=1e-9 * SIZES[0] / bandwidth)
    assert per_byte == pytest.approx(1 / bandwidth, rel=1e-4, abs=1e-9 * latency / SIZES[-1])


@given(st.sampled_from(range(4, 8)), st.floats(0.9, 1.1))
def test_a_large_size_that_is_off_does_not_move_the_latency(which: int, factor: float) -> None:
    latency, bandwidth = 100e-6, 1e9
    seconds = [latency + size / bandwidth for size in SIZES]
    seconds[which] *= factor  # of 16 MiB a tenth is 1.7 ms: 17 times the latency
    assert fit(SIZES, seconds)[0] == pytest.approx(latency, rel=0.1)


def test_neither_is_ever_negative() -> None:
    # A line through (1, 1) and (2, 4) would begin at -2. Through the origin, sqrt(2) a byte is off by the same factor,
    # sqrt(2), above the one and below the other. Through (1, 4) and (2, 1) a line would fall, and 2 is off by 2 twice.
    assert fit([1, 2], [1.0, 4.0]) == pytest.approx((0.0, 2**0.5))
    assert fit([1, 2], [4.0, 1.0]) == pytest.approx((2.0, 0.0))


def test_a_size_that_is_off_by_a_factor_pulls_as_much_up_as_down() -> None:
    seconds = [100e-6 + size / 1e9 for size in SIZES]
    per_byte = []
    for factor in (2.0, 0.5):
        off = [*seconds[:-1], factor * seconds[-1]]
        per_byte.append(fit(SIZES, off)[1] * 1e9)
    assert per_byte[0] > 1.2
    assert per_byte[1] == pytest.approx(1 / per_byte[0], rel=0.05)


@pytest.mark.parametrize(("sizes", "seconds"), [([8, 8], [1.0, 2.0]), ([8, 16], [0.0, 1.0])])
def test_what_makes_no_line_is_refused(sizes: list[int], seconds: list[float]) -> None:
    with pytest.raises(ValueError, match=r"two|above 0"):
        fit(sizes, seconds)


def series_of(operation: str, size: str, values: list[float], arm: Arm = "candidate") -> Series:
    return Series(
        metric="seconds",
        labels={"operation": operation, "size": size},
        unit="s",
        better="lower",
        arm=arm,
        values=tuple(values),
        trials=tuple(f"t{number}" for number in range(len(values))),
    )


def test_fits_are_medians_over_trials_and_are_series_of_their_own() -> None:
    # Three trials with 1, 2 and 3 us of latency and 1, 2 and 4 B/us of bandwidth; sizes of 2 and 4 bytes.
    candidate = [
        series_of("allReduce", "2B", [1 + 2 / 1, 2 + 2 / 2, 3 + 2 / 4]),
        series_of("allReduce", "4B", [1 + 4 / 1, 2 + 4 / 2, 3 + 4 / 4]),
    ]
    baseline = [series_of("allReduce", "2B", [2.0], "baseline"), series_of("allReduce", "4B", [3.0], "baseline")]
    other = Series(metric="x", unit="s", better="lower", arm="candidate", values=(1.0,), trials=("t0",))
    found = derive((*candidate, *baseline, other), Trials(), 0.95, 7)
    (line,) = found["collectives"]
    assert line.model_dump() == pytest.approx(
        CollectiveFit(
            operation="allReduce",
            latency_seconds=2.0,
            latency_low=1.0,
            latency_high=3.0,
            bandwidth_bytes_per_second=2.0,
            bandwidth_low=1.0,
            bandwidth_high=4.0,
        ).model_dump()
    )
    told = [(each.arm, each.metric, each.labels, each.unit, each.better, each.trials) for each in found["series"]]
    labels, trials = {"operation": "allReduce"}, ("t0", "t1", "t2")
    assert told == [
        ("candidate", "fitted_latency_seconds", labels, "s", "lower", trials),
        ("candidate", "fitted_bandwidth_bytes_per_second", labels, "B/s", "higher", trials),
        ("baseline", "fitted_latency_seconds", labels, "s", "lower", ("t0",)),
        ("baseline", "fitted_bandwidth_bytes_per_second", labels, "B/s", "higher", ("t0",)),
    ]
    # Of the baseline: 2 s for 2 bytes, 3 s for 4 are 1 s and 2 B/s.
    assert [value for each in found["series"] for value in each.values] == pytest.approx([1, 2, 3, 1, 2, 4, 1, 2])


def test_an_operation_without_a_line_has_no_fit() -> None:
    one_size = series_of("allGather", "4KiB", [1.0, 1.1])
    faster_when_larger = [series_of("allToAll", "4KiB", [2.0]), series_of("allToAll", "8KiB", [1.0])]
    assert derive((one_size, *faster_when_larger), Trials(), 0.95, 7) == {"collectives": (), "series": ()}
