"""A look at the data before it is trained on: laws of what it counts, and what it says of data that is wrong."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.contract import env
from capstan_runtime.contract.data_quality import REPORT
from capstan_runtime.contract.run_config import RunConfig
from capstan_runtime.contract.state import Progress
from capstan_runtime.data.drift import index_by_chance, shares_in_bins, stability_index
from capstan_runtime.data.look import look_at, scan_ids
from capstan_runtime.data.open import open_dataset, open_samples
from capstan_runtime.data.plan import SamplePlan
from capstan_runtime.data.quality import Thinned, entropy_bits
from capstan_runtime.data.report import QualityReport
from capstan_runtime.data.spec import Array, BadSample, BadSamples, Dataset, DataSpec, Ids, Rows
from capstan_runtime.data.subsets import Chosen, Replacing, Without
from capstan_runtime.data_check import check_of, tell_of_data
from capstan_runtime.errors import ConfigError
from capstan_runtime.report import Reporter
from capstan_runtime.voice import Voice

shares = st.lists(st.floats(0, 1), min_size=1, max_size=12).filter(lambda each: sum(each) > 0.01)


class Numbers:
    """Sample i is the number i; some are bad."""

    def __init__(self, count: int, bad: set[int]) -> None:
        self._count = count
        self._bad = bad

    def __len__(self) -> int:
        return self._count

    def fetch(self, ids: Ids) -> tuple[Array, Array]:
        assert ((ids >= 0) & (ids < self._count)).all()
        if found := sorted(self._bad & set(ids.tolist())):
            raise BadSamples("spec.data.x", [BadSample(each, f"sample {each}", "is bad") for each in found])
        return ids.astype(np.float32)[:, None], ids.astype(np.int32)


@given(shares)
def test_a_distribution_is_no_distance_from_itself(distribution: list[float]) -> None:
    assert stability_index(distribution, distribution) == 0


@given(shares, st.randoms(use_true_random=False))
def test_the_distance_is_never_negative_and_the_same_both_ways(distribution: list[float], random: Any) -> None:
    other = random.sample(distribution, len(distribution))
    there, back = stability_index(distribution, other), stability_index(other, distribution)
    assert there >= 0
    assert there == pytest.approx(back)


def test_a_known_shift_has_a_known_index() -> None:
    expected = (0.3 - 0.2) * math.log(0.3 / 0.2) + (0.7 - 0.8) * math.log(0.7 / 0.8)
    assert stability_index([0.2, 0.8], [0.3, 0.7]) == pytest.approx(expected)


def test_samples_of_one_distribution_are_called_drifted_in_one_case_of_a_hundred() -> None:
    random = np.random.default_rng(0)
    limit = index_by_chance(10, 300, 200)
    above = 0
    for _ in range(2000):
        first, second = random.normal(size=300), random.normal(size=200)
        edges = np.quantile(first, np.arange(1, 10) / 10).tolist()
        above += stability_index(shares_in_bins(first, edges), shares_in_bins(second, edges)) > limit
    assert 0.002 < above / 2000 < 0.025


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=50), st.lists(st.floats(-5, 5), max_size=9, unique=True))
def test_every_value_is_in_one_bin(values: list[float], edges: list[float]) -> None:
    found = shares_in_bins(np.asarray(values), sorted(edges))
    assert len(found) == len(edges) + 1
    assert sum(found) == pytest.approx(1)


@given(st.integers(0, 500), st.integers(1, 60))
def test_what_is_looked_at_is_evenly_spaced_and_none_twice(samples: int, most: int) -> None:
    ids = scan_ids(samples, most)
    assert len(ids) == min(samples, most)
    gaps = np.diff([*ids.tolist(), samples])
    assert len(ids) == 0 or (ids[0] == 0 and gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)


@given(st.lists(st.integers(0, 30), max_size=12), st.integers(1, 16))
def test_rows_that_are_kept_are_evenly_spaced_however_they_come(parts: list[int], most: int) -> None:
    thinned, first = Thinned(most), 0
    for part in parts:
        thinned.add(np.arange(first, first + part)[:, None])
        first += part
    kept = thinned.kept.ravel().tolist()
    stride = 1
    while len(range(0, first, stride)) > most:
        stride *= 2
    assert kept == list(range(0, first, stride))


def test_entropy_is_that_of_equally_likely_draws() -> None:
    assert entropy_bits(np.full(8, 1 / 8)) == 3
    assert entropy_bits(np.asarray([1.0, 0.0])) == 0


subsets = st.integers(2, 40).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), max_size=n - 1)))


@given(subsets)
def test_samples_that_are_left_out_leave_the_order_of_the_others(case: tuple[int, set[int]]) -> None:
    count, bad = case
    left_out = np.asarray(sorted(bad), np.int64)
    kept = Without(Numbers(count, bad), left_out)
    _, numbers = kept.fetch(np.arange(len(kept)))
    assert numbers.tolist() == [number for number in range(count) if number not in bad]
    others = Chosen(Numbers(count, set()), left_out)
    assert others.fetch(np.arange(len(others)))[1].tolist() == left_out.tolist()


@given(subsets, st.integers(1, 7), st.sets(st.integers(0, 39), max_size=10))
def test_a_bad_sample_is_replaced_by_the_next_good_one_whoever_reads_it_with_whichever_others(
    case: tuple[int, set[int]], at_once: int, left_out: set[int]
) -> None:
    count, bad = case
    kept = [number for number in range(count) if number not in left_out]
    good = [number for number in kept if number not in bad]
    if not good:
        return
    told: list[str] = []
    samples = Replacing(Without(Numbers(count, bad), np.asarray(sorted(left_out & set(range(count))), np.int64)))
    samples.tell = lambda each: told.append(each.where)
    expected = [next(n for n in [*kept[at:], *kept] if n not in bad) for at in range(len(kept))]
    parts = [np.arange(len(kept))[start : start + at_once] for start in range(0, len(kept), at_once)]
    assert np.concatenate([samples.fetch(part)[1] for part in parts]).tolist() == expected
    assert sorted(told) == sorted(f"sample {number}" for number in kept if number in bad)


def test_where_no_sample_is_good_there_is_none_to_replace_by() -> None:
    with pytest.raises(BadSamples, match="sample 0 is bad, and 2 more"):
        Replacing(Numbers(3, {0, 1, 2})).fetch(np.arange(3))


def test_the_report_says_what_is_in_the_data() -> None:
    inputs = np.asarray([[0, 1], [1, 1], [0, 1], [2, 1], [2, 1]], np.float32)
    spec = DataSpec("vector", (2,), 4, "blake3:x")
    report = look_at(Rows(inputs, np.asarray([0, 1, 0, 1, 2], np.int32)), spec, 10)
    assert (report.samples, report.scanned, report.bad) == (5, 5, [])
    assert report.duplicates.model_dump() == {"count": 2, "conflicts": 1, "first": [(0, 2), (3, 4)]}
    assert report.classes == [2, 2, 1, 0]
    assert report.range is not None
    assert (report.range.minimum, report.range.maximum) == (0, 2)
    assert [(each.name, each.mean, each.minimum, each.maximum) for each in report.columns] == [
        ("feature 0", 1.0, 0.0, 2.0),
        ("feature 1", 1.0, 1.0, 1.0),
    ]
    assert report.columns[0].std == pytest.approx(inputs[:, 0].std())
    assert report.warnings() == [
        "1 samples have the input of another one and not its class",
        "2 samples have the input of an earlier one",
        "of the classes 3 there is no sample among those looked at",
        "the features 1 have the same value in every sample",
    ]
    summary = report.summary()
    assert (summary.classes, summary.smallest_class_share, summary.largest_class_share) == (4, 0.0, 0.4)


def test_moments_of_parts_are_those_of_the_whole() -> None:
    inputs = np.random.default_rng(0).normal(1e4, 1e-2, (5000, 3)).astype(np.float32)
    spec = DataSpec("vector", (3,), 2, "blake3:x")
    columns = look_at(Rows(inputs, np.zeros(5000, np.int32)), spec, 5000).columns
    exact = inputs.astype(np.float64)
    np.testing.assert_allclose([each.mean for each in columns], exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose([each.std for each in columns], exact.std(axis=0), rtol=1e-6)


def test_tokens_are_counted_and_their_entropy_told() -> None:
    tokens = np.tile(np.asarray([0, 1, 2, 2], np.int32), (6, 1))
    spec = DataSpec("tokens", (4,), 10, "blake3:x")
    report = look_at(Rows(tokens, tokens), spec, 10)
    assert report.tokens is not None
    assert report.tokens.entropy_bits == 1.5
    assert (report.tokens.distinct, report.tokens.top) == (3, [(2, 0.5), (0, 0.25), (1, 0.25)])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 5), st.sampled_from([1, 2]))
def test_documents_are_as_long_as_they_are_however_they_are_cut_into_samples_and_filled_up(
    texts: list[int], width: int, filling: int
) -> None:
    stream = [token for length in texts for token in [*[1] * length, 2]]
    samples = max(1, -(-(len(stream) - 1) // width))
    stream += [filling] * (samples * width + 1 - len(stream))
    windows = np.asarray([stream[n * width : (n + 1) * width + 1] for n in range(samples)], np.int32)
    spec = DataSpec("tokens", (width,), 3, "blake3:x", end_of_text=2)
    lengths = [length for length in texts if length]
    for most in (samples, max(1, samples - 1)):
        found = look_at(Rows(windows[:, :-1], windows[:, 1:]), spec, most).lengths
        if not lengths or most < samples:
            assert found is None
        else:
            assert found is not None
            assert (found.documents, found.minimum, found.maximum) == (len(lengths), min(lengths), max(lengths))
            assert (found.median, found.mean) == (np.median(lengths), pytest.approx(np.mean(lengths)))


def test_data_that_has_drifted_is_told_from_data_that_has_not() -> None:
    random = np.random.default_rng(0)
    spec = DataSpec("vector", (3,), 2, "blake3:x")

    def report_of(shift: float, share: float, reference: QualityReport | None = None) -> QualityReport:
        inputs = random.normal(size=(2000, 3)).astype(np.float32)
        inputs[:, 1] += shift
        labels = (random.random(2000) < share).astype(np.int32)
        return look_at(Rows(inputs, labels), spec, 2000, reference)

    reference = report_of(0, 0.5)
    reference = QualityReport.model_validate_json(reference.model_dump_json(by_alias=True))
    same = report_of(0, 0.5, reference)
    assert same.reference == "blake3:x"
    assert {each.of for each in same.drift} == {"feature 0", "feature 1", "feature 2", "classes"}
    assert same.warnings() == []
    other = report_of(1.0, 0.9, reference)
    assert [each.of for each in other.drift if each.is_large] == ["classes", "feature 1"]
    assert other.warnings()[0].startswith("classes drifted from the reference: population stability index ")
    assert other.summary().drift_of == "classes"


# `spec.dataQuality`


def a_run(folder: Path, **quality: Any) -> RunConfig:
    return RunConfig.parse(
        {
            "job": "default/j",
            "uid": "u",
            "framework": {"flax": {}},
            "model": {"mlp": {"hidden": [4]}},
            "data": {"arrays": {"path": str(folder / "data.npz")}},
            "dataQuality": quality,
            "optimizer": {"sgd": {"learningRate": 0.1}},
            "schedule": {"constant": {}},
            "training": {"steps": 1, "globalBatchSize": 4, "virtualRanks": 2},
            "checkpoint": {"interval": {"steps": 1}},
        }
    )


def write_data(folder: Path, bad: tuple[int, ...] = (), count: int = 200) -> None:
    inputs = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    inputs[list(bad), 1] = np.nan
    np.savez(folder / "data.npz", inputs=inputs, labels=np.arange(count) % 2)


def opened(run: RunConfig, folder: Path, rank: int | None = 0) -> Dataset:
    member = {} if rank is None else {env.MEMBERSHIP: json.dumps({"rank": rank})}
    environ = {env.STORE: str(folder / "store"), **member}
    return open_dataset(run.data, 0, environ, check_of(run, environ, lambda: None))


def test_bad_samples_end_the_job_before_its_first_step_and_are_named(tmp_path: Path) -> None:
    write_data(tmp_path, bad=(3, 7, 11, 150))
    with pytest.raises(ConfigError) as caught:
        opened(a_run(tmp_path), tmp_path)
    nan = "holds a NaN or an infinity"
    assert str(caught.value) == (
        f"spec.data.arrays: 4 of 200 samples cannot be trained on: sample 3 {nan}; sample 7 {nan}; sample 11 {nan}; "
        "and 1 more; mend the data, or set spec.dataQuality.badSamples to skip; data-quality.json names all of them"
    )
    report = QualityReport.model_validate_json((tmp_path / "store" / REPORT).read_bytes())
    assert [(each.index, each.where) for each in report.bad] == [(n, f"sample {n}") for n in (3, 7, 11, 150)]


def test_bad_samples_are_left_out_where_that_is_asked_for_and_it_is_other_data_then(tmp_path: Path) -> None:
    write_data(tmp_path, bad=(3, 7))
    dataset = opened(a_run(tmp_path, badSamples="skip"), tmp_path)
    plain = open_samples(a_run(tmp_path).data, {})[1]
    assert len(dataset.train) + len(dataset.validation) == 198
    assert dataset.spec.fingerprint != plain.fingerprint
    numbers = [samples.fetch(np.arange(len(samples)))[0][:, 0] / 3 for samples in (dataset.train, dataset.validation)]
    assert sorted(np.concatenate(numbers).tolist()) == [n for n in range(200) if n not in (3, 7)]
    # The plan of the order knows nothing of them.
    assert SamplePlan(0, len(dataset.train), 4, 2).steps_per_epoch == len(dataset.train) // 4
    with pytest.raises(
        ConfigError, match=r"they are more than spec.dataQuality.maxBadFraction 0.005 allows to leave out"
    ):
        opened(a_run(tmp_path, badSamples="skip", maxBadFraction=0.005), tmp_path)


def test_one_that_is_met_only_later_is_replaced(tmp_path: Path) -> None:
    write_data(tmp_path, bad=(3,))
    run = a_run(tmp_path, badSamples="skip", scanSamples=20)
    dataset = opened(run, tmp_path)
    assert dataset.report is not None
    assert (dataset.report.samples, dataset.report.scanned, dataset.report.bad) == (200, 20, [])
    met: list[BadSample] = []
    for samples in (dataset.train, dataset.validation):
        assert isinstance(samples, Replacing)
        samples.tell = met.append
        inputs, _ = samples.fetch(np.arange(len(samples)))
        assert np.isfinite(inputs).all()
    assert [each.where for each in met] == ["sample 3"]


def told(dataset: Dataset, folder: Path, rank: int = 0) -> list[Progress]:
    """What a rank that begins an attempt reports."""
    sent: list[Progress] = []

    class Heard(Reporter):
        def send(self, progress: Progress) -> None:
            sent.append(progress)

    tell_of_data(dataset, FolderStore(folder / "store"), Voice(Heard(None), rank, 1))
    return sent


def test_rank_0_keeps_the_report_and_nobody_looks_a_second_time_at_the_same_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path)
    run = a_run(tmp_path)
    first = opened(run, tmp_path, rank=None)  # a spare, which becomes one of them
    assert told(first, tmp_path, rank=1) == []
    assert not (tmp_path / "store" / REPORT).exists()
    assert first.report is not None
    assert told(first, tmp_path) == [Progress(data=first.report.summary())]
    looked: list[None] = []

    def look(*arguments: Any) -> QualityReport:
        looked.append(None)
        return look_at(*arguments)

    monkeypatch.setattr("capstan_runtime.data_check.look_at", look)
    assert opened(run, tmp_path, rank=1).report == first.report
    assert looked == []
    assert opened(a_run(tmp_path, scanSamples=50), tmp_path).report != first.report
    write_data(tmp_path, count=100)
    other = opened(run, tmp_path)
    assert len(looked) == 2
    told(other, tmp_path)
    assert opened(run, tmp_path).report == other.report != first.report
    assert len(looked) == 2
    (tmp_path / "store" / REPORT).write_text("{")
    assert opened(run, tmp_path).report == other.report
    assert len(looked) == 3


def test_a_sample_that_is_replaced_is_told_once(tmp_path: Path) -> None:
    write_data(tmp_path, bad=(3,))
    dataset = opened(a_run(tmp_path, badSamples="skip", scanSamples=20), tmp_path)
    sent = told(dataset, tmp_path, rank=1)
    for samples in (dataset.train, dataset.validation):
        for _ in range(2):
            samples.fetch(np.arange(len(samples)))
    line = "bad sample, replaced by the next good one: sample 3 holds a NaN or an infinity"
    assert sent == [Progress(note=line)]


def test_the_reference_is_read_and_one_that_is_none_is_refused(tmp_path: Path) -> None:
    write_data(tmp_path)
    told(opened(a_run(tmp_path), tmp_path), tmp_path)
    reference = tmp_path / "reference.json"
    (tmp_path / "store" / REPORT).rename(reference)
    report = opened(a_run(tmp_path, reference=str(reference)), tmp_path).report
    assert report is not None
    assert [each.index for each in report.drift] == [0.0] * 4
    reference.write_text('{"version": 1}')
    with pytest.raises(
        ConfigError, match=r"reference: .*reference.json is no data-quality.json of version 1 \(fingerprint"
    ):
        opened(a_run(tmp_path, reference=str(reference)), tmp_path)
    with pytest.raises(
        ConfigError, match=r"nowhere.json cannot be read: No such file or directory; mount it, or correct"
    ):
        opened(a_run(tmp_path, reference=str(tmp_path / "nowhere.json")), tmp_path)
