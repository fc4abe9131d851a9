"""How the data is looked at before it is trained on, and what is told of it.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import Fraction, Positive, Record, cel
from capstan_runtime.contract.data import bucket_rule, require_place

REPORT = "data-quality.json"
"""Name of the report in a run's store."""


class DataReport(Record):
    """The report in short, as status tells it."""

    samples: Annotated[int, Field(description="Samples of the data, those held out included; bad ones, too.")]
    scanned: Annotated[int, Field(description="Samples that were looked at: all, or as many evenly spaced over all.")]
    bad: Annotated[int, Field(description="Of these, samples that cannot be trained on; with skip they are left out.")]
    duplicates: Annotated[int, Field(description="Of these, samples whose input an earlier one has, too.")]
    conflicts: Annotated[
        int | None, Field(description="Of the duplicates, those with another class; absent: there are no classes.")
    ] = None
    classes: Annotated[int | None, Field(description="Classes; absent: there are none.")] = None
    smallest_class_share: Annotated[float | None, Field(description="Share of the rarest class.")] = None
    largest_class_share: Annotated[float | None, Field(description="Share of the most frequent class.")] = None
    token_entropy_bits: Annotated[
        float | None, Field(description="Entropy of a single token, in bits; absent: there are no tokens.")
    ] = None
    drift: Annotated[
        float | None,
        Field(description="Largest population stability index against the reference; absent: there is no reference."),
    ] = None
    drift_of: Annotated[str | None, Field(description="What has drifted so far: a feature, the classes, tokens.")] = (
        None
    )
    warnings: Annotated[list[str], Field(description="What somebody should look at, in one line each, at most 5.")] = []
    report: Annotated[str | None, Field(description="The whole report, in the store.")] = None


class DataQuality(Record):
    """Looks at the data before the first step, and writes a report beside the checkpoints (data-quality.json)."""

    model_config = cel(bucket_rule("reference", is_optional=True))

    bad_samples: Annotated[
        Literal["fail", "skip"],
        Field(
            description="What a sample does that cannot be read, holds a NaN or an infinity, or a token outside the "
            "vocabulary. fail: the job ends before the first step and names it. skip: it is left out, named and "
            "counted; one that is met only later is replaced by the next good one."
        ),
    ] = "fail"
    max_bad_fraction: Annotated[
        Fraction,
        Field(
            description="With skip: more bad samples than this share of those looked at, and the job ends all the same."
        ),
    ] = 0.01
    scan_samples: Annotated[
        Positive,
        Field(
            description="Most samples that are looked at before the first step. Of more, as many are looked at evenly "
            "spaced over all, and the report says so. 10,000 pictures of 500 x 375 take 25 seconds of one core, "
            "vectors and tokens less than one."
        ),
    ] = 10_000
    reference: Annotated[
        str | None,
        Field(
            min_length=1,
            description="The data-quality.json of an earlier run, in the pod or in a bucket, which is reached as that "
            "of data is. The report says how far this data has drifted from it: a population stability index above "
            "0.2, and above what chance explains, is a warning.",
        ),
    ] = None

    @model_validator(mode="after")
    def _is_somewhere(self) -> Self:
        if self.reference is not None:
            require_place(reference=self.reference)
        return self
