"""Workload roofline: what the machine can do at most, and where models are under that (Williams et al., 2009,
doi:10.1145/1498765.1498785).

Ceilings are the fastest call of the fastest kernel: what the hardware can do is what it did once undisturbed, as in
STREAM (McCalpin, 1995). Models are at their median call: what they do usually.
"""

import contextlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from capstan_runtime.bench.caches import last_level_bytes
from capstan_runtime.bench.kernels import DTYPE_BYTES, Dtype, Kernel, Kernels, ModelKernel, load_kernels
from capstan_runtime.bench.measured import Measured, point, time_calls
from capstan_runtime.bench.models import RandomTensors, forward_bytes, fresh_signature, require_memory
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.contract.benchmark import Point, TrialTask
from capstan_runtime.contract.workloads import Roofline, RooflineModel
from capstan_runtime.errors import ConfigError, GpuOutOfMemory

ABOVE = 1.10
"""A model this far above its roof is an error: beyond what two measurements of one machine differ by."""
_FIELD = "workload.roofline"
_TURNS = 4
"""Kernels of a group take turns, so that a busy neighbour is in the way of all of them alike."""
_SETTLING_SECONDS = 0.03
"""Before each turn: threads of the library that was at work before spin a while, waiting for more (OpenBLAS 25 ms)."""
_TIMES_CACHE = 4
"""Arrays that no cache holds are so many times as large as the last one (STREAM's rule)."""
_OF_CACHE = 8
"""All arrays of a kernel that a cache holds are such a part of it."""
_BLAS_KERNELS = "OPENBLAS_CORETYPE"
"""What OpenBLAS asks before it looks at the CPU."""
_UNKNOWN_CACHE_BYTES = 64 * 2**20
_GPU_ARRAY_BYTES = 2**30
"""Beyond any GPU's cache (of 2025: 126 MB), and long enough that starting a kernel does not count."""


@dataclass(slots=True)
class _Timed:
    """A kernel and the seconds of its calls."""

    kernel: Kernel
    seconds: list[float] = field(default_factory=list)

    @property
    def best_flops(self) -> float:
        return self.kernel.flops / min(self.seconds)

    @property
    def best_bytes(self) -> float:
        return self.kernel.bytes / min(self.seconds)


@dataclass(frozen=True, slots=True)
class _Product:
    """A way to multiply matrices: `by` is the framework or numpy."""

    by: str
    dtype: Dtype
    side: int
    timed: _Timed


@dataclass(frozen=True, slots=True)
class _Stream:
    level: str
    """memory or cache."""
    timed: _Timed


@dataclass(frozen=True, slots=True)
class _Placed:
    """A model under the roof."""

    spec: RooflineModel
    dtype: Dtype
    model: ModelKernel
    level: str
    """What its bytes come from."""
    timed: _Timed


def run(task: TrialTask, store: Store, environ: Mapping[str, str]) -> Measured:
    """The ceilings, then the models, measured in an order that the trial's seed shuffles.

    Peaks of arithmetic by type of number (peak_flops_per_second; numpy_peak_flops_per_second and
    matmul_over_numpy_ratio in fp32 on CPUs), bandwidth from memory and from the cache (bandwidth_bytes_per_second),
    every kernel they come from, and of each model its FLOP/s, FLOP per call and bytes per call.

    Raises ConfigError for what cannot be measured here; RuntimeError when a model is above its roof.
    """
    work = task.work.roofline
    assert work is not None
    kernels = load_kernels(work.runtime, environ)
    cache = kernels.cache_bytes or (last_level_bytes() if kernels.device == "cpu" else None)
    with _names_memory():
        products = _products(work, kernels, task.seed)
        streams = _streams(work, kernels, cache)
        placed = _models(work, kernels, task.seed, cache)
    _measure_models(work, products, streams, placed)
    roof = _Roof(products, streams)
    for each in placed:
        roof.require_below(each)
    return Measured([*roof.points(), *_model_points(placed)], list(_notes(kernels, cache, environ)))


def _notes(kernels: Kernels, cache: int | None, environ: Mapping[str, str]) -> Iterator[str]:
    if kernels.device == "gpu":
        return
    if cache is None:
        yield "the size of the last cache is not known: 64 MiB were assumed"
    if kind := environ.get(_BLAS_KERNELS):
        yield f"numpy's BLAS was told to use its kernels for {kind} ({_BLAS_KERNELS}), whatever the CPU has"


def _products(work: Roofline, kernels: Kernels, seed: int) -> list[_Product]:
    """All sizes and types, measured; numpy's in turns with the framework's."""
    cases = [(dtype, side) for dtype in work.dtypes for side in work.matrix_sizes]
    products: list[_Product] = []
    for index in np.random.default_rng(seed).permutation(len(cases)):
        dtype, side = cases[index]
        if kernels.device == "cpu":
            needed = 4 * 3 * side * side * DTYPE_BYTES[dtype]
            require_memory(needed, f"{_FIELD}.matrixSizes: {side}", "choose a smaller one")
        group = [_Product(work.runtime, dtype, side, _Timed(one)) for one in kernels.matrix_products(dtype, side)]
        if dtype == "fp32" and kernels.device == "cpu":
            group.append(_Product("numpy", dtype, side, _Timed(_numpy_product(side))))
        _take_turns([each.timed for each in group], work.seconds)
        products += group
    return products


def _numpy_product(side: int) -> Kernel:
    """The reference: the BLAS that numpy was built with."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((side, side), np.float32) for _ in range(2))
    out = np.empty_like(a)
    return Kernel("numpy", lambda: np.matmul(a, b, out=out), 2.0 * side**3, 3 * 4 * side * side)


def _streams(work: Roofline, kernels: Kernels, cache: int | None) -> list[_Stream]:
    large = _GPU_ARRAY_BYTES if kernels.device == "gpu" else _TIMES_CACHE * (cache or _UNKNOWN_CACHE_BYTES)
    if kernels.device == "cpu":
        require_memory(
            3 * large, f"{_FIELD}: an array of {_TIMES_CACHE} times the last cache", "give the pod more memory"
        )
    streams: list[_Stream] = []
    sizes = {"memory": large} | ({"cache": cache // _OF_CACHE // 2} if cache else {})
    for level, size in sizes.items():
        group = [_Stream(level, _Timed(kernel)) for kernel in kernels.streams(size // 4)]
        _take_turns([each.timed for each in group], work.seconds)
        streams += group
    return streams


def _models(work: Roofline, kernels: Kernels, seed: int, cache: int | None) -> list[_Placed]:
    """Ready to be measured. What fits into the last cache stays there from call to call."""
    placed: list[_Placed] = []
    for spec in work.models:
        signature = fresh_signature(spec.architecture, spec.input)
        if kernels.device == "cpu":
            needed = forward_bytes(signature, spec.batch_size)
            require_memory(
                needed, f"{_FIELD}.models: batchSize {spec.batch_size} of {spec.name}", "choose a smaller one"
            )
        for dtype in work.dtypes:
            model = kernels.forward(signature, RandomTensors(signature, seed), spec.batch_size, dtype)
            level = "cache" if cache and model.touched_bytes <= cache else "memory"
            placed.append(_Placed(spec, dtype, model, level, _Timed(model.kernel)))
    return placed


def _measure_models(
    work: Roofline, products: Sequence[_Product], streams: Sequence[_Stream], placed: Sequence[_Placed]
) -> None:
    """In turns with the kernels that made the ceilings: a machine that was slow then, and is not now, would put models
    above a roof that is too low."""
    if not placed:
        return
    ceilings = [_fastest_product(products, dtype).timed for dtype in dict.fromkeys(one.dtype for one in products)]
    levels = dict.fromkeys(one.level for one in streams)
    ceilings += [_fastest_stream(streams, level).timed for level in levels]
    _take_turns([*(each.timed for each in placed), *ceilings], work.seconds)


def _take_turns(group: Sequence[_Timed], seconds: float) -> None:
    """Times each for `seconds` in all."""
    for _ in range(_TURNS):
        for timed in group:
            timed.seconds += time_calls(timed.kernel.call, seconds / _TURNS, _SETTLING_SECONDS, fewest=1)


def _fastest_product(products: Sequence[_Product], dtype: str, by_numpy: bool = False) -> _Product:
    those = [one for one in products if one.dtype == dtype and (one.by == "numpy") == by_numpy]
    return max(those, key=lambda one: one.timed.best_flops)


def _fastest_stream(streams: Sequence[_Stream], level: str) -> _Stream:
    return max((one for one in streams if one.level == level), key=lambda one: one.timed.best_bytes)


@dataclass(frozen=True, slots=True)
class _Roof:
    products: Sequence[_Product]
    streams: Sequence[_Stream]

    def require_below(self, placed: _Placed) -> None:
        """Raises RuntimeError if the model is above: then its operations are miscounted, its call does not wait until
        it is done, or the ceilings are too low. Bytes may come from the cache where a model as a whole does not fit, so
        the highest bandwidth is the one that holds."""
        peak = _fastest_product(self.products, placed.dtype).timed.best_flops
        bandwidth = max(one.timed.best_bytes for one in self.streams)
        kernel = placed.model.kernel
        performance = kernel.flops / statistics.median(placed.timed.seconds)
        allowed = min(peak, bandwidth * kernel.flops / kernel.bytes)
        if performance > ABOVE * allowed:
            raise RuntimeError(
                f"{placed.spec.name} in {placed.dtype} is above the roof: {performance:.4g} FLOP/s, {allowed:.4g} are "
                f"possible at {kernel.flops / kernel.bytes:.3g} FLOP per byte (tolerance {ABOVE - 1:.0%}); the machine "
                "was disturbed while its ceilings were measured, or operations are miscounted"
            )

    def points(self) -> Iterator[Point]:
        for dtype in dict.fromkeys(one.dtype for one in sorted(self.products, key=lambda one: one.dtype)):
            yield from self._peaks(dtype)
        for level in dict.fromkeys(one.level for one in self.streams):
            best = _fastest_stream(self.streams, level)
            yield _rate(
                "bandwidth_bytes_per_second", {"level": level}, best.timed, best.timed.best_bytes, level == "memory"
            )
        for one in sorted(self.products, key=lambda one: (one.dtype, one.side)):
            labels = {"dtype": one.dtype, "side": str(one.side), "kernel": one.timed.kernel.name}
            yield _rate("matmul_flops_per_second", labels, one.timed, one.timed.best_flops)
        for each in self.streams:
            labels = {"level": each.level, "kernel": each.timed.kernel.name}
            yield _rate("stream_bytes_per_second", labels, each.timed, each.timed.best_bytes)

    def _peaks(self, dtype: str) -> Iterator[Point]:
        best = _fastest_product(self.products, dtype)
        peak = best.timed.best_flops
        yield _rate("peak_flops_per_second", {"dtype": dtype}, best.timed, peak, is_headline=True)
        if any(one.by == "numpy" and one.dtype == dtype for one in self.products):
            reference = _fastest_product(self.products, dtype, by_numpy=True)
            numpy_peak = reference.timed.best_flops
            yield _rate("numpy_peak_flops_per_second", {"dtype": dtype}, reference.timed, numpy_peak)
            yield point("matmul_over_numpy_ratio", "x", "higher", peak / numpy_peak, labels={"dtype": dtype})


def _rate(metric: str, labels: dict[str, str], timed: _Timed, value: float, is_headline: bool = False) -> Point:
    unit = "FLOP/s" if "flops" in metric else "B/s"
    return point(
        metric,
        unit,
        "higher",
        value,
        labels=labels,
        samples=timed.seconds if is_headline else (),
        samples_unit="s" if is_headline else None,
        is_headline=is_headline,
    )


def _model_points(placed: Sequence[_Placed]) -> Iterator[Point]:
    for each in placed:
        labels = {"model": each.spec.name, "dtype": each.dtype}
        kernel, seconds = each.model.kernel, each.timed.seconds
        yield point(
            "model_flops_per_second",
            "FLOP/s",
            "higher",
            kernel.flops / statistics.median(seconds),
            labels=labels | {"level": each.level},
            samples=seconds,
            samples_unit="s",
        )
        yield point("model_flops", "FLOP", "neither", kernel.flops, labels=labels)
        yield point("model_bytes", "B", "neither", kernel.bytes, labels=labels | {"traffic": each.model.traffic})


@contextlib.contextmanager
def _names_memory() -> Iterator[None]:
    """Says that memory was too small for what was to be measured."""
    try:
        yield
    except (GpuOutOfMemory, MemoryError) as error:
        raise ConfigError(
            f"{_FIELD}: matrixSizes or a model's batchSize are too large for the memory here ({error}); choose "
            "smaller ones"
        ) from error
