"""From `spec.data` to samples: finds and checks the data before any training starts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from capstan_runtime.contract.data import Arrays, Data, Digits, Images, Text, Tokens
from capstan_runtime.data.arrays import open_arrays
from capstan_runtime.data.digits import open_digits
from capstan_runtime.data.fingerprint import fingerprint_of
from capstan_runtime.data.images import open_images
from capstan_runtime.data.plan import Permutation
from capstan_runtime.data.report import QualityReport
from capstan_runtime.data.spec import Dataset, DataSpec, Ids, Samples
from capstan_runtime.data.subsets import Chosen, Replacing, Without
from capstan_runtime.data.tokens import open_text, open_tokens
from capstan_runtime.errors import ConfigError

_SPLIT = 0x5B11
"""Keeps the permutation that splits apart from those that order the epochs, which share the seed."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What is left of samples that were looked at."""

    left_out: Ids
    """Numbers of bad samples, ascending."""
    replaces: bool
    """Whether a bad sample that is met only later is replaced by the next good one."""
    report: QualityReport


_GLANCE = 1 << 20
"""Tokens that are looked at where nobody looks at all: as many take some milliseconds."""

Check = Callable[[Samples, DataSpec], Checked]


def open_dataset(
    data: Data,
    seed: int,
    environ: Mapping[str, str],
    check: Check | None = None,
    alive: Callable[[], None] = lambda: None,
) -> Dataset:
    """The samples of `data`, split into training and validation by `seed` alone: the world size plays no part.

    `check` looks at them first, and says which are left out; None: nobody does. `environ` tells where the pod's paths
    really are (`contract.env.host_path`). `alive` is called now and then while files are looked for. Raises
    ConfigError, naming the field, its value, the rule it breaks and the remedy, for missing files, shapes and types
    that do not fit, labels or tokens out of range, and sets too small to split.
    """
    samples, spec = open_samples(data, environ, alive)
    if check is None and spec.kind == "tokens":
        # A vocabulary that is too small is seen at once, not at step 9,000.
        samples.fetch(np.arange(min(len(samples), max(1, _GLANCE // spec.input_shape[0])), dtype=np.int64))
    checked = check(samples, spec) if check is not None else None
    if checked is not None and len(checked.left_out):
        samples = Without(samples, checked.left_out)
        spec = replace(spec, fingerprint=fingerprint_of(spec.fingerprint, "without", checked.left_out.tobytes()))
    fraction: float = data.value.validation_fraction
    held_out = max(1, round(len(samples) * fraction))
    if held_out >= len(samples):
        raise ConfigError(
            f"spec.data.{data.kind}.validationFraction: {fraction} of {len(samples)} samples leaves none to train on; "
            "give more data or a smaller fraction"
        )
    order = Permutation(len(samples), seed, _SPLIT)
    chosen = np.sort(order(np.arange(held_out, dtype=np.int64)))
    train: Samples = Without(samples, chosen)
    validation: Samples = Chosen(samples, chosen)
    if checked is None:
        return Dataset(train, validation, spec)
    if not checked.replaces:
        return Dataset(train, validation, spec, checked.report)
    replacing = Replacing(train), Replacing(validation)
    return Dataset(*replacing, spec, checked.report, replacing)


def open_samples(
    data: Data, environ: Mapping[str, str], alive: Callable[[], None] = lambda: None
) -> tuple[Samples, DataSpec]:
    """All samples of `data`, under the numbers that they have in it. `alive` is called now and then while files are
    looked for. Raises ConfigError."""
    match data.value:
        case Digits():
            return open_digits()
        case Arrays() as config:
            return open_arrays(config, environ, alive)
        case Images() as config:
            return open_images(config, environ, alive)
        case Text() as config:
            return open_text(config, environ, alive)
        case Tokens() as config:
            return open_tokens(config, environ, alive)
        case other:  # pragma: no cover - a new kind of data without a reader
            raise TypeError(f"no reader for {type(other).__name__}")
