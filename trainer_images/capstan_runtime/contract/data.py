"""What is trained on.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from capstan_runtime.contract.base import OneOf, Record, cel
from capstan_runtime.contract.sizes import Size, require_sizes, size_rule

Held = Annotated[
    float,
    Field(gt=0.0, lt=1.0, description="Share of the samples held out for validation, chosen by the training seed."),
]


BUCKET_URL = "^(s3|gs|az)://[^/]+(/.*)?$"


def bucket_rule(field: str, *, is_optional: bool = False) -> tuple[str, str]:
    """The twin of `require_place` in CEL."""
    absent = f"!has(self.{field}) || " if is_optional else ""
    return (
        f"{absent}!self.{field}.contains('://') || self.{field}.matches('{BUCKET_URL}')",
        f"'{field}: ' + self.{field} + ' is neither a path in the pod nor the URL of a bucket; give s3://bucket/key, "
        "gs://bucket/key or az://container/key'",
    )


def require_place(**places: str) -> None:
    """Raises ValueError, which names the field, for the first that is neither a path nor the URL of a bucket."""
    for field, place in places.items():
        if "://" in place and re.fullmatch(BUCKET_URL, place) is None:
            raise ValueError(
                f"{field}: {place} is neither a path in the pod nor the URL of a bucket; give s3://bucket/key, "
                "gs://bucket/key or az://container/key"
            )


class Bucket(Record):
    """How a bucket is reached, and how much of it may be copied."""

    model_config = cel(
        (f"!has(self.cacheSize) || ({size_rule('cacheSize')[0]})", size_rule("cacheSize")[1]),
    )

    endpoint: Annotated[
        str | None,
        Field(pattern=r"^https?://", description="Of an S3-compatible server. Left out: the provider's own."),
    ] = None
    region: Annotated[str | None, Field(min_length=1, description="Of the bucket, for S3.")] = None
    secret_name: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Secret in the job's namespace with the provider's usual variables as keys, such as "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Left out: the account of a checkpoint store that has a "
            "Secret, or else the pods' own identity.",
        ),
    ] = None
    cache_size: Annotated[
        Size | None,
        Field(
            description="Most that a pod may keep of the bucket on its node's disk, as B, KiB, MiB or GiB. Left out: "
            "what is free there."
        ),
    ] = None

    @model_validator(mode="after")
    def _is_size(self) -> Self:
        if self.cache_size is not None:
            require_sizes(cacheSize=self.cache_size)
        return self


class Located(Record):
    """Files in the pod, or in a bucket: those are copied once into a folder of the pod, and checked to be the objects
    that were listed."""

    # No `pattern`: the API server would answer with the bare expression.
    model_config = cel(
        bucket_rule("path"),
        (
            "!has(self.bucket) || self.path.contains('://')",
            "'bucket: is for a path in a bucket, not for ' + self.path + '; remove it, or give the URL'",
        ),
        (
            "!has(self.bucket) || self.path.startsWith('s3://')"
            " || !(has(self.bucket.endpoint) || has(self.bucket.region))",
            "'bucket: endpoint and region are for s3:// only, not for ' + self.path + '; remove them'",
        ),
    )

    path: Annotated[
        str, Field(min_length=1, description="In the pod, or s3://bucket/key, gs://bucket/key, az://container/key.")
    ]
    bucket: Annotated[
        Bucket | None,
        Field(
            description="How the bucket of path is reached. Left out: by the variables that the pods have anyway, "
            "those of a checkpoint store in a bucket included."
        ),
    ] = None

    @property
    def is_in_bucket(self) -> bool:
        return "://" in self.path

    @model_validator(mode="after")
    def _bucket_fits_path(self) -> Self:
        require_place(path=self.path)
        if self.bucket is None:
            return self
        if not self.is_in_bucket:
            raise ValueError(f"bucket: is for a path in a bucket, not for {self.path}; remove it, or give the URL")
        if not self.path.startswith("s3://") and (self.bucket.endpoint or self.bucket.region):
            raise ValueError(f"bucket: endpoint and region are for s3:// only, not for {self.path}; remove them")
        return self


class Digits(Record):
    """The UCI handwritten digits that scikit-learn ships: 1,797 grey images of 8 x 8, ten classes."""

    validation_fraction: Held = 0.2


class Arrays(Located):
    """Labelled arrays in one file: .npz, .h5/.hdf5, or a .zarr folder. The ending of path names the format."""

    inputs: Annotated[str, Field(min_length=1, description="Name of the input array; its first axis is samples.")] = (
        "inputs"
    )
    labels: Annotated[str, Field(min_length=1, description="Name of the integer label array.")] = "labels"
    condition: Annotated[
        str | None,
        Field(
            min_length=1,
            description="Name of an array [N, K] that says something of each sample beside its input, for the model's "
            "conditionalScaling or adaptiveNorm. Left out: nothing does.",
        ),
    ] = None
    validation_fraction: Held = 0.1


class Images(Located):
    """A folder of pictures: each folder in it is a class, and holds the pictures of it, in folders of its own or not.

    Classes are numbered in the order of their names. Files are .bmp, .jpeg, .jpg, .png and .webp; others are passed
    over. Each is decoded when its sample is read, turned upright as its EXIF says, resized, and scaled to [0, 1].
    """

    size: Annotated[int, Field(ge=1, le=4096, description="Height and width of a sample, in pixels.")]
    channels: Annotated[Literal[1, 3], Field(description="3: red, green, blue. 1: grey.")] = 3
    fit: Annotated[
        Literal["crop", "stretch"],
        Field(description="crop scales the shorter side to size and cuts out the middle; stretch scales both sides."),
    ] = "crop"
    validation_fraction: Held = 0.1


class Text(Located):
    """Text files read as bytes: 256 symbols, no tokenizer, cut into sequences of equal length. In path,
    $(PYTHON_STDLIB) stands for the image's Python standard library."""

    pattern: Annotated[str, Field(min_length=1, description="Which files of a folder, as a glob.")] = "**/*.py"
    sequence_length: Annotated[int, Field(ge=2, description="Tokens per sample.")]
    validation_fraction: Held = 0.05


class Tokens(Located):
    """Files of token ids, little-endian, no header, read through the page cache: one, or a folder of them. No sample
    reaches from one file into the next. `capstan data tokenize` and `pack` write such folders."""

    pattern: Annotated[
        str | None, Field(min_length=1, description="Which files of a folder, as a glob. Left out: *.bin.")
    ] = None
    dtype: Annotated[Literal["uint16", "uint32"], Field(description="Type of one token id.")] = "uint16"
    vocabulary: Annotated[int, Field(ge=2, description="Number of distinct tokens; every id is below it.")]
    end_of_text: Annotated[
        int | None,
        Field(ge=0, description="Id after each document: dataQuality tells their lengths. Left out: it does not."),
    ] = None
    sequence_length: Annotated[int, Field(ge=2, description="Tokens per sample.")]
    validation_fraction: Held = 0.01


class Data(OneOf):
    """What the model is trained on. Set exactly one key."""

    digits: Annotated[Digits | None, Field(description="The UCI handwritten digits shipped with scikit-learn.")] = None
    arrays: Annotated[Arrays | None, Field(description="Labelled arrays from npz, HDF5 or Zarr.")] = None
    images: Annotated[Images | None, Field(description="Pictures, a folder for each class.")] = None
    text: Annotated[Text | None, Field(description="Text files, byte by byte.")] = None
    tokens: Annotated[Tokens | None, Field(description="Files of token ids.")] = None

    @property
    def is_in_bucket(self) -> bool:
        """It is copied to each pod before it is read."""
        return isinstance(self.value, Located) and self.value.is_in_bucket
