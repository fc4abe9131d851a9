"""Speed-up and efficiency over numbers of workers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_runtime.bench.analysis.collect import Trials
from capstan_runtime.bench.analysis.scaling import derive
from capstan_runtime.bench.result import ScalingRow, Series
from capstan_runtime.contract.benchmark import Arm, Environment, TrainingRecord, TrialRef
from capstan_runtime.contract.judged import JUDGED

HERE = Environment(cpu="a CPU", cores=2, memory_bytes=2**34, kernel="6.1", python="3.11.2")
Throughputs = dict[tuple[str, int], dict[int, float]]
"""By mode and workers: by repetition."""


def measured(throughputs: Throughputs, arm: Arm = "candidate") -> tuple[tuple[Series, ...], Trials]:
    """Series and trials as the store gives them."""
    records, series = [], []
    for (mode, workers), values in throughputs.items():
        labels = {"mode": mode, "workers": str(workers)}
        ids = {repetition: f"{mode}-{workers}-{repetition}" for repetition in values}
        for repetition, trial in ids.items():
            ref = TrialRef(trial=trial, attempt=1, arm=arm, repetition=repetition, labels=labels, job=f"{trial}/u")
            records.append((ref, record(workers)))
        common = {"labels": labels, "arm": arm, "values": tuple(values.values()), "trials": tuple(ids.values())}
        series.append(Series(metric="samples_per_second", unit="samples/s", better="higher", **common))
        series.append(Series(metric="step_seconds", unit="s", better="lower", **common))
    return tuple(series), Trials(records=tuple(records))


def record(workers: int) -> TrainingRecord:
    return TrainingRecord(
        job="j",
        fence=1,
        rank=0,
        world=workers,
        first_step=0,
        steps=(1,),
        step_seconds=(1.0,),
        samples_per_step=8,
        parameters=1,
        environment=HERE,
        is_complete=True,
    )


def row(mode: str, workers: int, speedup: tuple[float, float, float], serial: float | None) -> ScalingRow:
    value, low, high = speedup
    return ScalingRow(
        mode=mode,
        workers=workers,
        speedup=value,
        speedup_low=low,
        speedup_high=high,
        efficiency=value / workers,
        efficiency_low=low / workers,
        efficiency_high=high / workers,
        serial_fraction=serial,
    )


def test_speedup_is_over_one_worker_of_the_same_mode_in_the_same_repetition() -> None:
    # The machine was half as fast in the second repetition: pairs do not see it.
    series, trials = measured(
        {
            ("strong", 2): {0: 180.0, 1: 90.0, 2: 180.0},
            ("strong", 1): {0: 100.0, 1: 50.0, 2: 100.0},
            ("weak", 1): {0: 80.0, 1: 40.0, 2: 80.0},
            ("weak", 4): {0: 240.0, 1: 120.0, 2: 256.0},
        }
    )
    derived = derive(series, trials, 0.95, seed=0)
    assert derived["headline"] == "1.80x with 2 workers, efficiency 0.90 (0.90 – 0.90)"
    assert derived["scaling"] == (
        row("strong", 1, (1.0, 1.0, 1.0), None),
        row("strong", 2, (1.8, 1.8, 1.8), (1 / 1.8 - 1 / 2) / (1 - 1 / 2)),
        row("weak", 1, (1.0, 1.0, 1.0), None),
        row("weak", 4, (3.0, 3.0, 3.2), None),
    )

    def added(metric: str, unit: str, mode: str, workers: int, values: tuple[float, ...]) -> Series:
        return Series(
            metric=metric,
            labels={"mode": mode, "workers": str(workers)},
            unit=unit,
            better="higher",
            arm="candidate",
            values=values,
            trials=tuple(f"{mode}-{workers}-{repetition}" for repetition in range(3)),
            is_headline=metric == "efficiency",
        )

    assert derived["series"] == (
        added("speedup", "x", "strong", 2, (1.8, 1.8, 1.8)),
        added("efficiency", "1", "strong", 2, (0.9, 0.9, 0.9)),
        added("speedup", "x", "weak", 4, (3.0, 3.0, 3.2)),
        added("efficiency", "1", "weak", 4, (0.75, 0.75, 0.8)),
    )
    assert {one.metric for one in derived["series"]} == set(JUDGED["scaling"]) - set(JUDGED["training"])


def test_one_run_of_one_worker_is_the_base_of_both_modes() -> None:
    strong = {("strong", 1): {0: 100.0, 1: 50.0}, ("strong", 2): {0: 180.0, 1: 90.0}}
    both = strong | {("weak", 2): {0: 190.0, 1: 95.0}}
    derived = derive(*measured(both), 0.95, seed=0)
    assert derived["scaling"] == (
        row("strong", 1, (1.0, 1.0, 1.0), None),
        row("strong", 2, (1.8, 1.8, 1.8), (1 / 1.8 - 1 / 2) / (1 - 1 / 2)),
        row("weak", 1, (1.0, 1.0, 1.0), None),
        row("weak", 2, (1.9, 1.9, 1.9), None),
    )
    assert [(one.metric, one.labels["mode"], one.values) for one in derived["series"]] == [
        ("speedup", "strong", (1.8, 1.8)),
        ("efficiency", "strong", (0.9, 0.9)),
        ("speedup", "weak", (1.9, 1.9)),
        ("efficiency", "weak", (0.95, 0.95)),
    ]
    # Of weak scaling alone it is weak scaling's, and no row is told of a mode that nobody asked for.
    weak = {("weak", 1): {0: 100.0}, ("weak", 2): {0: 190.0}}
    assert [(one.mode, one.workers) for one in derive(*measured(weak), 0.95, seed=0)["scaling"]] == [
        ("weak", 1),
        ("weak", 2),
    ]


def test_without_pairs_medians_are_divided_and_both_are_resampled() -> None:
    series, trials = measured(
        {("strong", 1): {0: 90.0, 1: 100.0, 2: 110.0}, ("strong", 2): {3: 150.0, 4: 160.0, 5: 170.0}}
    )
    derived = derive(series, trials, 0.95, seed=0)
    _, two = derived["scaling"]
    assert two.speedup == 1.6
    # Medians of three are any of the three: the interval reaches from the least ratio to the greatest.
    assert (two.speedup_low, two.speedup_high) == pytest.approx((150 / 110, 170 / 90))
    assert derived["series"] == ()
    assert derived["headline"] == "1.60x with 2 workers, efficiency 0.80 (0.68 – 0.94)"


def test_series_of_the_baseline_are_those_of_the_baseline() -> None:
    series, trials = measured({("strong", 1): {0: 4.0, 1: 4.0}, ("strong", 2): {0: 6.0, 1: 6.0}}, arm="baseline")
    assert [(each.metric, each.arm, each.values) for each in derive(series, trials, 0.95, seed=0)["series"]] == [
        ("speedup", "baseline", (1.5, 1.5)),
        ("efficiency", "baseline", (0.75, 0.75)),
    ]


def test_without_a_single_worker_there_is_nothing_to_compare_with() -> None:
    series, trials = measured({("strong", 2): {0: 4.0}, ("strong", 4): {0: 6.0}})
    assert derive(series, trials, 0.95, seed=0) == {}


@given(serial=st.floats(0.01, 0.9), workers=st.integers(2, 64))
def test_amdahls_serial_part_is_found_from_the_speedup(serial: float, workers: int) -> None:
    speedup = 1 / (serial + (1 - serial) / workers)
    series, trials = measured(
        {("strong", 1): {0: 10.0, 1: 10.0}, ("strong", workers): dict.fromkeys((0, 1), 10 * speedup)}
    )
    many = derive(series, trials, 0.95, seed=0)["scaling"][-1]
    assert many.serial_fraction is not None
    assert math.isclose(many.serial_fraction, serial, rel_tol=1e-9)


@given(
    throughputs=st.lists(st.tuples(st.floats(1, 1e6), st.floats(1, 1e6)), min_size=2, max_size=7),
    unit=st.floats(1e-3, 1e3),
)
def test_the_value_is_within_its_interval_and_units_of_throughput_do_not_matter(
    throughputs: list[tuple[float, float]], unit: float
) -> None:
    one, two = ({at: pair[side] for at, pair in enumerate(throughputs)} for side in (0, 1))
    rows = derive(*measured({("strong", 1): one, ("strong", 2): two}), 0.9, seed=1)["scaling"]
    assert rows[1].speedup_low <= rows[1].speedup <= rows[1].speedup_high
    scaled = ({at: value * unit for at, value in each.items()} for each in (one, two))
    other = derive(*measured(dict(zip((("strong", 1), ("strong", 2)), scaled, strict=True))), 0.9, seed=1)["scaling"]
    assert other[1].speedup == pytest.approx(rows[1].speedup)
    assert (other[1].speedup_low, other[1].speedup_high) == pytest.approx((rows[1].speedup_low, rows[1].speedup_high))
