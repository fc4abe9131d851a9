"""Matrices as products of two smaller ones: which, by what names, and the two that come nearest to a given one.

A matrix [O, I] is the product of [O, r] and [r, I]. A kernel [O, I, height, width] is taken for a matrix of O rows: one
kernel to r channels, and one of 1 x 1 from there (Zhang et al., 1505.06798). Where several matrices are one parameter,
each is two. What is done with them to tensors is in `flax_trainer/components/low_rank.py` and its twin.

Axes: O outputs, I inputs, r rank; s and l the shorter and the longer of O and I.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from capstan_runtime.contract.models import Model
from capstan_runtime.contract.signature import Signature
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.errors import ConfigError
from capstan_runtime.model_signature import data_spec_of
from capstan_runtime.model_spec import Normal, ParameterSpec, parameter_table
from capstan_runtime.pruning import is_pruned

_WEIGHT = ".weight"


def model_table(model: Model, data: DataSpec, rank: int | None) -> tuple[ParameterSpec, ...]:
    """Every parameter and buffer of `model` for `data`, with factors of `rank` in the place of what they make smaller;
    None: matrices are whole. Raises ConfigError if the model cannot take such data, or no matrix becomes smaller."""
    table = parameter_table(model, data)
    if rank is None:
        return table
    if not any(is_factored(spec, rank) for spec in table):
        largest = max((_largest_rank(spec) for spec in table if is_pruned(spec)), default=0)
        fix = f"choose at most {largest}" if largest else "leave it out"
        raise ConfigError(f"spec.compression.lowRank.rank: {rank} makes no matrix of {model.kind} smaller; {fix}")
    return tuple(part for spec in table for part in (factors_of(spec, rank) if is_factored(spec, rank) else (spec,)))


def table_of(signature: Signature) -> tuple[ParameterSpec, ...]:
    """`model_table` of what a signature describes."""
    return model_table(signature.model, data_spec_of(signature), signature.low_rank)


def is_factored(spec: ParameterSpec, rank: int) -> bool:
    """Whether factors of `rank` are in the place of this parameter of a whole model."""
    return is_pruned(spec) and rank <= _largest_rank(spec)


def factored_layers(table: Iterable[ParameterSpec], rank: int | None) -> Iterator[str]:
    """Names of the layers of a whole model, of that `table`, that have two matrices instead of one."""
    for spec in table:
        if rank is not None and is_factored(spec, rank):
            yield spec.name.removesuffix(_WEIGHT)


def factors_of(spec: ParameterSpec, rank: int) -> tuple[ParameterSpec, ParameterSpec]:
    """The two parameters in the place of `spec`, by the way that activations take. Elements of their product vary at
    first as those of the one they are in the place of."""
    assert isinstance(spec.init, Normal)
    init = Normal(math.sqrt(spec.init.std / math.sqrt(rank)))
    several, (outputs, inputs, *kernel) = spec.shape[: spec.matrix_dims], spec.shape[spec.matrix_dims :]
    layer = spec.name.removesuffix(_WEIGHT)
    first = replace(spec, name=f"{layer}.first{_WEIGHT}", shape=(*several, rank, inputs, *kernel), init=init)
    one_by_one = (1,) * len(kernel)
    return first, replace(
        spec, name=f"{layer}.second{_WEIGHT}", shape=(*several, outputs, rank, *one_by_one), init=init
    )


def nearest_factors(
    spec: ParameterSpec, whole: npt.NDArray[np.float32], rank: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The factors of which the product is nearest to `whole`, by the sum of squares (Eckart and Young, 1936): of the
    `rank` largest singular values, in equal parts in both (Khodak et al., 2105.01029). Of each pair of vectors, which
    could both be turned round, the second's largest element is positive."""
    first, second = factors_of(spec, rank)
    matrices = whole.reshape(-1, spec.shape[spec.matrix_dims], math.prod(spec.shape[spec.matrix_dims + 1 :]))
    pairs = [_nearest(matrix.astype(np.float64), rank) for matrix in matrices]
    factors = (np.stack(each).astype(np.float32) for each in zip(*pairs, strict=True))
    return next(factors).reshape(first.shape), next(factors).reshape(second.shape)


def _nearest(matrix_OI: npt.NDArray[np.float64], rank: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    # By eigenvectors of the shorter side's products, in a fifth of the time that the matrix' own values take. What
    # squaring loses is below 1e-8 of the largest, and what float32 loses below 1e-7. Values are lengths: exact.
    is_wide = matrix_OI.shape[0] <= matrix_OI.shape[1]
    wide_sl = matrix_OI if is_wide else matrix_OI.T
    short_sr = np.linalg.eigh(wide_sl @ wide_sl.T)[1][:, : -rank - 1 : -1]
    long_rl = short_sr.T @ wide_sl
    values_r = np.linalg.norm(long_rl, axis=1)
    long_rl = long_rl / np.where(values_r > 0, values_r, 1)[:, None]
    left_Or, right_rI = (short_sr, long_rl) if is_wide else (long_rl.T, short_sr.T)
    root_r = np.sqrt(values_r)
    largest = np.abs(left_Or).argmax(axis=0)
    root_sign_r = np.sign(left_Or[largest, np.arange(rank)])
    return (root_r * root_sign_r)[:, None] * right_rI, left_Or * (root_r * root_sign_r)


def _largest_rank(spec: ParameterSpec) -> int:
    """The largest with which two matrices are smaller than the one; 0: there is none."""
    outputs, *inputs = spec.shape[spec.matrix_dims :]
    size = math.prod(inputs)
    return (outputs * size - 1) // (outputs + size)
