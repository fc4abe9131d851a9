"""A look at samples before they are trained on: which of them are bad, and what the others are like."""

from collections.abc import Callable

import numpy as np

from capstan_runtime.data.drift import index_by_chance, shares_in_bins, stability_index
from capstan_runtime.data.quality import Tally
from capstan_runtime.data.report import Bad, Drift, QualityReport
from capstan_runtime.data.spec import BadSample, BadSamples, DataSpec, Ids, Samples

_BYTES_AT_ONCE = 8 << 20
_MOST_AT_ONCE = 1024


def scan_ids(samples: int, most: int) -> Ids:
    """All numbers below `samples`, or `most` of them, ascending and evenly spaced."""
    count = min(samples, most)
    return np.arange(count, dtype=np.int64) * samples // max(1, count)


def look_at(
    samples: Samples,
    spec: DataSpec,
    most: int,
    reference: QualityReport | None = None,
    alive: Callable[[], None] = lambda: None,
) -> QualityReport:
    """The report of all samples, or of `most` evenly spaced ones. A function of the data alone: every rank that looks
    finds the same. `alive` is called after each part."""
    ids = scan_ids(len(samples), most)
    at_once = min(_MOST_AT_ONCE, max(1, _BYTES_AT_ONCE // (4 * int(np.prod(spec.input_shape)))))
    tally = Tally(spec)
    bad: list[BadSample] = []
    for start in range(0, len(ids), at_once):
        part = ids[start : start + at_once]
        try:
            inputs, targets, *_ = samples.fetch(part)
        except BadSamples as error:
            bad += error.bad
            part = np.setdiff1d(part, [each.index for each in error.bad])
            inputs, targets, *_ = samples.fetch(part)
        tally.add(part, inputs, targets)
        alive()
    return QualityReport(
        fingerprint=spec.fingerprint,
        kind=spec.kind,
        samples=len(samples),
        scanned=len(ids),
        rows=tally.columns.rows() if tally.columns else 0,
        bad=[Bad(index=each.index, where=each.where, reason=each.reason) for each in bad],
        duplicates=tally.duplicates.result(),
        range=tally.columns.range() if tally.columns else None,
        columns=tally.columns.result() if tally.columns else [],
        classes=tally.classes.counts.tolist() if tally.classes else None,
        tokens=tally.tokens.result() if tally.tokens else None,
        lengths=tally.lengths.result() if tally.lengths and len(ids) == len(samples) and not bad else None,
        reference=reference.fingerprint if reference else None,
        drift=drift_from(reference, tally) if reference else [],
    )


def drift_from(reference: QualityReport, tally: Tally) -> list[Drift]:
    """Largest first: of the classes, of tokens, and of each column that both have."""
    good = reference.scanned - len(reference.bad)
    pairs: list[tuple[str, list[float], list[float], int, int]] = []
    if tally.columns and tally.columns.rows() and reference.rows:
        known = {column.name: column for column in reference.columns}
        for name in tally.columns.names():
            if name in known:
                actual = shares_in_bins(tally.columns.values(name), known[name].edges)
                pairs.append((name, known[name].shares, actual, reference.rows, tally.columns.rows()))
    if tally.classes is not None and reference.classes:
        counts = tally.classes.counts
        size = max(len(counts), len(reference.classes))
        expected = np.pad(np.asarray(reference.classes, np.float64), (0, size - len(reference.classes)))
        actual_counts = np.pad(counts.astype(np.float64), (0, size - len(counts)))
        pairs.append(("classes", _shares(expected), _shares(actual_counts), good, tally.scanned))
    if tally.tokens is not None and reference.tokens is not None:
        tokens = [token for token, _ in reference.tokens.top]
        expected_top = [share for _, share in reference.tokens.top]
        actual_top = tally.tokens.shares_of(tokens)
        pairs.append(("tokens", _with_rest(expected_top), _with_rest(actual_top), good, tally.scanned))
    drift = [
        Drift(
            of=name,
            index=stability_index(expected, actual),
            by_chance=index_by_chance(len(expected), max(1, n), max(1, m), comparisons=len(pairs)),
        )
        for name, expected, actual, n, m in pairs
    ]
    return sorted(drift, key=lambda each: -each.index)


def _shares(counts: np.ndarray) -> list[float]:
    return [float(share) for share in counts / max(1.0, float(counts.sum()))]


def _with_rest(shares: list[float]) -> list[float]:
    """And what all the others have together."""
    return [*shares, max(0.0, 1.0 - sum(shares))]
