"""What there is to know of a set of samples: counted as they stream by, in memory that does not grow with their size
(but for eight bytes a sample, by which duplicates are found)."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from blake3 import blake3

from capstan_runtime.data.drift import shares_in_bins
from capstan_runtime.data.report import Column, Duplicates, Lengths, Range, TokenUse
from capstan_runtime.data.spec import Array, DataSpec, Ids

_MOST_COLUMNS = 64
_MOST_ROWS = 4096
"""Of which deciles are taken: a decile of so many is off by 0.5 % of the samples, one standard deviation."""
_MOST_NAMED = 20
_TOP_TOKENS = 64
_DECILES = np.arange(1, 10) / 10


class Part(Protocol):
    """One fact, gathered."""

    def add(self, ids: Ids, inputs: Array, targets: Array) -> None: ...


class Tally:
    """All facts of the samples that were added."""

    def __init__(self, spec: DataSpec) -> None:
        is_tokens = spec.kind == "tokens"
        self.duplicates = DuplicateCount(has_classes=not is_tokens)
        self.classes = None if is_tokens else ClassCount(spec.outputs)
        self.columns = None if is_tokens else ColumnStatistics(spec)
        self.tokens = TokenCount(spec.outputs) if is_tokens else None
        self.lengths = DocumentLengths(spec.end_of_text) if spec.end_of_text is not None else None
        self.scanned = 0

    def add(self, ids: Ids, inputs: Array, targets: Array) -> None:
        """The samples `ids` [n], as `Samples.fetch` gives them. Each once."""
        self.scanned += len(ids)
        parts: Sequence[Part | None] = (self.duplicates, self.classes, self.columns, self.tokens, self.lengths)
        for part in parts:
            if part is not None:
                part.add(ids, inputs, targets)


class DuplicateCount:
    """Samples whose input, to the last bit, an earlier one has."""

    def __init__(self, has_classes: bool) -> None:
        self._seen: dict[int, tuple[int, int]] = {}
        """Sample and class by digest. Of 10 million samples two have one digest by chance in 3 of a million cases."""
        self._has_classes = has_classes
        self._count = 0
        self._conflicts = 0
        self._pairs: list[tuple[int, int]] = []

    def add(self, ids: Ids, inputs: Array, targets: Array) -> None:
        for sample, row, target in zip(ids.tolist(), inputs, targets, strict=True):
            digest = int.from_bytes(blake3(np.ascontiguousarray(row).tobytes()).digest(length=8), "little")
            label = int(target) if self._has_classes else 0
            first, its_label = self._seen.setdefault(digest, (sample, label))
            if first == sample:
                continue
            self._count += 1
            self._conflicts += label != its_label
            if len(self._pairs) < _MOST_NAMED:
                self._pairs.append((first, sample))

    def result(self) -> Duplicates:
        return Duplicates(
            count=self._count, conflicts=self._conflicts if self._has_classes else None, first=list(self._pairs)
        )


class ClassCount:
    """How many samples each class has."""

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros(classes, np.int64)

    def add(self, ids: Ids, inputs: Array, targets: Array) -> None:
        self.counts += np.bincount(targets, minlength=len(self.counts))


class TokenCount:
    """How often each token is there, as an input."""

    def __init__(self, vocabulary: int) -> None:
        self._counts = np.zeros(vocabulary, np.int64)

    def add(self, ids: Ids, inputs: Array, targets: Array) -> None:
        self._counts += np.bincount(inputs.ravel(), minlength=len(self._counts))

    def shares_of(self, tokens: Sequence[int]) -> list[float]:
        """Of each of `tokens` among all."""
        total = max(1, int(self._counts.sum()))
        return [float(self._counts[token] / total) if token < len(self._counts) else 0.0 for token in tokens]

    def result(self) -> TokenUse:
        shares = self._counts / max(1, int(self._counts.sum()))
        top = np.argsort(-shares, kind="stable")[:_TOP_TOKENS]
        return TokenUse(
            vocabulary=len(shares),
            distinct=int(np.count_nonzero(self._counts)),
            entropy_bits=entropy_bits(shares),
            top=[(int(token), float(shares[token])) for token in top if shares[token] > 0],
        )


class DocumentLengths:
    """Tokens between two ends of text, in samples that follow each other without a gap. An end right after an end ends
    no document: with such ends files are filled up, and a text without a token has nothing to learn from."""

    def __init__(self, end_of_text: int) -> None:
        self._end_of_text = end_of_text
        self._open: int | None = None
        """Tokens since the last end; None: there was no token yet."""
        self._count = 0
        self._total = 0
        self._least, self._most = 0, 0
        self._kept = Thinned(_MOST_ROWS)

    def add(self, ids: Ids, inputs: Array, targets: Array) -> None:
        if not targets.size:
            return
        if self._open is None:  # the one token that nobody predicts
            self._open = int(inputs.flat[0] != self._end_of_text)
        tokens = targets.ravel()
        ends = np.flatnonzero(tokens == self._end_of_text)
        if not len(ends):
            self._open += len(tokens)
            return
        lengths = np.diff(ends, prepend=-1) - 1
        lengths[0] += self._open
        self._open = len(tokens) - 1 - int(ends[-1])
        lengths = lengths[lengths > 0]
        if not len(lengths):
            return
        least = int(lengths.min())
        self._least = min(self._least, least) if self._count else least
        self._most = max(self._most, int(lengths.max()))
        self._count += len(lengths)
        self._total += int(lengths.sum())
        self._kept.add(lengths)

    def result(self) -> Lengths | None:
        """None: no document has ended."""
        if not self._count:
            return None
        return Lengths(
            documents=self._count,
            minimum=self._least,
            median=float(np.median(self._kept.kept)),
            mean=self._total / self._count,
            maximum=self._most,
        )


class ColumnStatistics:
    """Of each feature of vectors, and of the mean of each channel of pictures: one value a sample, so that samples
    count as what they are when distributions are compared."""

    def __init__(self, spec: DataSpec) -> None:
        self._is_image = spec.kind == "image"
        noun = "channel" if self._is_image else "feature"
        self._names = [f"{noun} {number}" for number in range(min(spec.input_shape[-1], _MOST_COLUMNS))]
        self._rows = Thinned(_MOST_ROWS)
        self._low, self._high = np.inf, -np.inf
        self._count = 0
        self._mean = np.zeros(len(self._names))
        self._squares = np.zeros(len(self._names))
        """Sums of squared deviations from the mean."""
        self._least = np.full(len(self._names), np.inf)
        self._most = np.full(len(self._names), -np.inf)

    def add(self, ids: Ids, inputs: Array, targets: Array) -> None:
        if not len(inputs):
            return
        self._low, self._high = min(self._low, float(inputs.min())), max(self._high, float(inputs.max()))
        values = inputs[..., : len(self._names)].astype(np.float64)
        if self._is_image:
            values = values.mean(axis=(1, 2))
        # Chan, Golub and LeVeque (1983): means and deviations of parts, merged.
        mean, squares = values.mean(axis=0), values.var(axis=0) * len(values)
        total = self._count + len(values)
        shift = mean - self._mean
        self._squares += squares + shift**2 * (self._count * len(values) / total)
        self._mean += shift * (len(values) / total)
        self._count = total
        self._least = np.minimum(self._least, values.min(axis=0))
        self._most = np.maximum(self._most, values.max(axis=0))
        self._rows.add(values)

    def range(self) -> Range | None:
        """Of all values; None: there are none."""
        return Range(minimum=self._low, maximum=self._high) if self._count else None

    def rows(self) -> int:
        """Of how many samples the shares are."""
        return len(self._rows.kept)

    def values(self, name: str) -> np.ndarray:
        """Of one column, of the samples that were kept."""
        return self._rows.kept[:, self._names.index(name)]

    def names(self) -> list[str]:
        return self._names

    def result(self) -> list[Column]:
        if not self._count:
            return []
        columns = []
        for number, name in enumerate(self._names):
            values = self._rows.kept[:, number]
            edges = [float(edge) for edge in np.unique(np.quantile(values, _DECILES))]
            columns.append(
                Column(
                    name=name,
                    minimum=float(self._least[number]),
                    maximum=float(self._most[number]),
                    mean=float(self._mean[number]),
                    std=float(np.sqrt(self._squares[number] / self._count)),
                    edges=edges,
                    shares=shares_in_bins(values, edges),
                )
            )
        return columns


class Thinned:
    """At most `most` of all rows that were added, evenly spaced over them: when there are more, every second goes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._total = 0
        self._stride = 1
        self.kept: np.ndarray = np.zeros((0, 0))
        """Those whose number is a multiple of the stride."""

    def add(self, rows: np.ndarray) -> None:
        taken = rows[-self._total % self._stride :: self._stride]
        self._total += len(rows)
        self.kept = np.concatenate([self.kept, taken]) if len(self.kept) else taken.copy()
        while len(self.kept) > self._most:
            self.kept = self.kept[::2]
            self._stride *= 2


def entropy_bits(shares: np.ndarray) -> float:
    """Of one draw, in bits: 0 when all is one, log2(n) when n are equally likely."""
    positive = shares[shares > 0]
    return float(-(positive * np.log2(positive)).sum()) + 0.0
