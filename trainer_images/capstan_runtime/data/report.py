"""The report of a look at the data: what is kept, what status tells of it, and what somebody is warned of."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import Record
from capstan_runtime.contract.data_quality import REPORT, DataReport
from capstan_runtime.data.drift import LARGE

REPORT_VERSION = 1
_MOST_WARNINGS = 5
_LONGEST_WARNING = 200
_MOST_LISTED = 10

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0, le=2**53)]
"""As many as any reader of JSON can tell apart."""
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Bad(Record):
    """A sample that cannot be trained on."""

    index: Count
    """Its number in the data, from 0."""
    where: str
    reason: str


class Duplicates(Record):
    """Samples whose input an earlier one has."""

    count: Count
    conflicts: Count | None
    """Of these, with another class; None: there are no classes."""
    first: list[tuple[Count, Count]]
    """At most 20 of them, each with the earlier one."""


class Range(Record):
    """Of all values of the inputs."""

    minimum: Finite
    maximum: Finite


class Column(Record):
    """A feature, or the mean of a channel of a picture: one value of each sample."""

    name: str
    minimum: Finite
    maximum: Finite
    mean: Finite
    std: Finite
    edges: Annotated[list[Finite], Field(min_length=1, max_length=9)]
    """Its deciles, ascending, equal ones once."""
    shares: list[Share]
    """Of the values in each bin that the edges make: one more than there are edges."""

    @model_validator(mode="after")
    def _bins_fit(self) -> Self:
        if len(self.shares) != len(self.edges) + 1 or sorted(set(self.edges)) != self.edges:
            raise ValueError(f"{self.name}: {len(self.edges)} edges do not make {len(self.shares)} bins")
        return self


class TokenUse(Record):
    """How tokens are used."""

    vocabulary: Count
    distinct: Count
    """Tokens that are there at all."""
    entropy_bits: Finite
    """Of a single token: what a model without memory could reach, as a loss in bits."""
    top: Annotated[list[tuple[Count, Share]], Field(max_length=64)]
    """The most frequent tokens with their shares."""


class Lengths(Record):
    """Of documents that have a token, in tokens, their ends not counted."""

    documents: Count
    minimum: Count
    median: Finite
    """Of at most 4,096 of them, evenly spaced."""
    mean: Finite
    maximum: Count


class Drift(Record):
    """How far something is from the reference."""

    of: str
    index: Finite
    """Population stability index."""
    by_chance: Finite
    """What it stays below in 99 % of cases when nothing has changed."""

    @property
    def is_large(self) -> bool:
        return self.index > max(LARGE, self.by_chance)


class QualityReport(Record):
    """All that a look at the data has found. Equal data give equal reports."""

    version: int = REPORT_VERSION
    fingerprint: str
    """Of the data, bad samples included."""
    kind: str
    samples: Count
    scanned: Count
    """Samples that were looked at: all, or so many evenly spaced over all."""
    rows: Count
    """Of how many samples, evenly spaced, the deciles of columns are."""
    bad: list[Bad]
    duplicates: Duplicates
    range: Range | None
    columns: list[Column]
    classes: list[Count] | None
    """Samples of each class; None: there are none."""
    tokens: TokenUse | None
    lengths: Lengths | None
    """None: nobody says where documents end, not all samples were looked at, or no document ends in them."""
    reference: str | None
    """Fingerprint of the data of the report that this one's was compared with; None: with none."""
    drift: list[Drift]
    """Largest first."""

    def warnings(self) -> list[str]:
        """What somebody should look at, what matters most first."""
        found = [
            f"{each.of} drifted from the reference: population stability index {each.index:.3g}, where chance explains "
            f"{each.by_chance:.2g}"
            for each in self.drift
            if each.is_large
        ]
        if self.bad:
            found.insert(0, f"{len(self.bad)} of {self.scanned:,} samples are bad, the first: {_shown(self.bad[0])}")
        if self.duplicates.conflicts:
            found.append(f"{self.duplicates.conflicts} samples have the input of another one and not its class")
        if self.duplicates.count:
            found.append(f"{self.duplicates.count} samples have the input of an earlier one")
        empty = [str(number) for number, count in enumerate(self.classes or []) if not count]
        if empty:
            found.append(f"of the classes {_listed(empty)} there is no sample among those looked at")
        constant = [column.name.split()[-1] for column in self.columns if column.minimum == column.maximum]
        if constant and self.kind == "vector":
            found.append(f"the features {_listed(constant)} have the same value in every sample")
        return found

    def summary(self) -> DataReport:
        """What status tells."""
        classes = [count / max(1, sum(self.classes)) for count in self.classes] if self.classes else None
        worst = self.drift[0] if self.drift else None
        return DataReport(
            samples=self.samples,
            scanned=self.scanned,
            bad=len(self.bad),
            duplicates=self.duplicates.count,
            conflicts=self.duplicates.conflicts,
            classes=len(classes) if classes else None,
            smallest_class_share=_rounded(min(classes)) if classes else None,
            largest_class_share=_rounded(max(classes)) if classes else None,
            token_entropy_bits=_rounded(self.tokens.entropy_bits) if self.tokens else None,
            drift=_rounded(worst.index) if worst else None,
            drift_of=worst.of if worst else None,
            warnings=[warning[:_LONGEST_WARNING] for warning in self.warnings()[:_MOST_WARNINGS]],
            report=REPORT,
        )


def _shown(bad: Bad) -> str:
    return f"{bad.where} {bad.reason}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more


def _rounded(value: float) -> float:
    """Four significant digits: more are noise on status."""
    return float(f"{value:.4g}")
