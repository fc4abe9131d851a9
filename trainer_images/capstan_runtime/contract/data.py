"""What is trained on.

Embedded in the CRD's `spec`, and in what pods are told: each fact has one definition. Every field carries the
description that `kubectl explain` shows.
"""

from typing import Annotated, Literal

from pydantic import Field

from capstan_runtime.contract.base import OneOf, Record

Held = Annotated[
    float,
    Field(gt=0.0, lt=1.0, description="Share of the samples held out for validation, chosen by the training seed."),
]


class Digits(Record):
    """The UCI handwritten digits that scikit-learn ships: 1,797 grey images of 8 x 8, ten classes."""

    validation_fraction: Held = 0.2


class Arrays(Record):
    """Labelled arrays in one file: .npz, .h5/.hdf5, or a .zarr folder."""

    path: Annotated[str, Field(min_length=1, description="File in the pod. The ending names the format.")]
    inputs: Annotated[str, Field(min_length=1, description="Name of the input array; its first axis is samples.")] = (
        "inputs"
    )
    labels: Annotated[str, Field(min_length=1, description="Name of the integer label array.")] = "labels"
    validation_fraction: Held = 0.1


class Text(Record):
    """Text files read as bytes: 256 symbols, no tokenizer, cut into sequences of equal length."""

    path: Annotated[
        str,
        Field(
            min_length=1,
            description="File or folder in the pod. $(PYTHON_STDLIB) stands for the image's Python standard library.",
        ),
    ]
    pattern: Annotated[str, Field(min_length=1, description="Which files of a folder, as a glob.")] = "**/*.py"
    sequence_length: Annotated[int, Field(ge=2, description="Tokens per sample.")]
    validation_fraction: Held = 0.05


class Tokens(Record):
    """One file of token ids, little-endian, no header, read through the page cache."""

    path: Annotated[str, Field(min_length=1, description="File in the pod.")]
    dtype: Annotated[Literal["uint16", "uint32"], Field(description="Type of one token id.")] = "uint16"
    vocabulary: Annotated[int, Field(ge=2, description="Number of distinct tokens; every id is below it.")]
    sequence_length: Annotated[int, Field(ge=2, description="Tokens per sample.")]
    validation_fraction: Held = 0.01


class Data(OneOf):
    """What the model is trained on. Set exactly one key."""

    digits: Annotated[Digits | None, Field(description="The UCI handwritten digits shipped with scikit-learn.")] = None
    arrays: Annotated[Arrays | None, Field(description="Labelled arrays from npz, HDF5 or Zarr.")] = None
    text: Annotated[Text | None, Field(description="Text files, byte by byte.")] = None
    tokens: Annotated[Tokens | None, Field(description="A file of token ids.")] = None
