"""Workload roofline: ceilings and models of both frameworks, operations that are counted rightly, and nothing above the
roof."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from capstan_runtime.bench.analysis.collect import Trials
from capstan_runtime.bench.analysis.roofline import derive
from capstan_runtime.bench.caches import last_level_bytes
from capstan_runtime.bench.kernels import Dtype, Kernel, Kernels, ModelKernel, load_kernels
from capstan_runtime.bench.models import RandomTensors, fresh_signature
from capstan_runtime.bench.result import Ceiling, Dot, Series
from capstan_runtime.bench.threads import limit_threads
from capstan_runtime.bench.workloads import roofline
from capstan_runtime.bench.workloads.roofline import run
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.contract.benchmark import Point, TrialTask
from capstan_runtime.contract.judged import JUDGED
from capstan_runtime.contract.signature import Signature
from capstan_runtime.contract.workloads import FreshModel
from capstan_runtime.engine import TensorSource
from capstan_runtime.errors import ConfigError
from tests.support.predictors import FRAMEWORKS, Framework

MLP = {"architecture": {"mlp": {"hidden": [32]}}, "input": {"vector": {"features": 16, "classes": 8}}}
CNN = {
    "architecture": {"cnn": {"channels": [8, 16], "groups": 4}},
    "input": {"image": {"height": 8, "width": 8, "channels": 1, "classes": 10}},
}
DECODER = {
    "architecture": {"transformer": {"layers": 3, "dim": 16, "heads": 2, "kvHeads": 1, "hiddenDim": 32}},
    "input": {"tokens": {"vocabulary": 32, "sequenceLength": 16}},
}
PRODUCTS = {
    # [64, 16] [16, 32], then [64, 32] [32, 8].
    "mlp": 2 * 64 * (16 * 32 + 32 * 8),
    # Each of 64 x 16 places: queries, keys and values 32 wide, the way out, gate and up, down; twice 16 x 16 for each
    # of two heads of 8, masked places included; the vocabulary.
    "decoder": 2 * 64 * 16 * (3 * (16 * 32 + 16 * 16 + 16 * 64 + 32 * 16 + 2 * 2 * 16 * 8) + 16 * 32),
}
"""Operations of matrix products over 64 samples, by hand: two for each multiplication."""


def trial(**work: Any) -> TrialTask:
    defaults = {"runtime": "torch", "matrixSizes": [32], "seconds": 0.004}
    document = {"trial": "t00", "seed": 0, "work": {"roofline": defaults | work}, "deadlineSeconds": 60}
    return TrialTask.model_validate(document)


def place(points: Sequence[Point]) -> list[tuple[str, tuple[str, ...], bool]]:
    return [(point.metric, tuple(point.labels.values()), point.is_headline) for point in points]


@pytest.fixture
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose arrays need not be large."""
    monkeypatch.setattr(roofline, "last_level_bytes", lambda: 2**18)


WAYS = {"flax": ["matmul"], "torch": ["matmul", "oneDNN"]}


@pytest.mark.usefixtures("small_cache")
@pytest.mark.parametrize("runtime", FRAMEWORKS)
def test_a_trial_tells_ceilings_and_models_and_what_they_come_from(runtime: Framework, tmp_path: Path) -> None:
    models = [{"name": "small", **MLP, "batchSize": 4}]
    task = trial(runtime=runtime, dtypes=["fp32", "bf16"], matrixSizes=[32, 48], models=models)
    measured = run(task, FolderStore(tmp_path), {})
    traffic = "counted" if runtime == "flax" else "least"
    ways = WAYS[runtime]
    assert place(measured.points) == [
        ("peak_flops_per_second", ("bf16",), True),
        ("peak_flops_per_second", ("fp32",), True),
        ("numpy_peak_flops_per_second", ("fp32",), False),
        ("matmul_over_numpy_ratio", ("fp32",), False),
        ("bandwidth_bytes_per_second", ("memory",), True),
        ("bandwidth_bytes_per_second", ("cache",), False),
        *[("matmul_flops_per_second", ("bf16", side, way), False) for side in ("32", "48") for way in ways],
        *[("matmul_flops_per_second", ("fp32", side, way), False) for side in ("32", "48") for way in [*ways, "numpy"]],
        *[
            ("stream_bytes_per_second", (level, kernel), False)
            for level in ("memory", "cache")
            for kernel in ("scale", "axpy", "sum")
        ],
        *[
            one
            for dtype in ("fp32", "bf16")
            for one in (
                ("model_flops_per_second", ("small", dtype, "cache"), False),
                ("model_flops", ("small", dtype), False),
                ("model_bytes", ("small", dtype, traffic), False),
            )
        ],
    ]
    assert all(point.value > 0 for point in measured.points)
    assert {point.metric for point in measured.points if point.better != "neither"} == set(JUDGED["roofline"])
    by_name = {(point.metric, *point.labels.values()): point.value for point in measured.points}
    peak = by_name["peak_flops_per_second", "fp32"]
    assert peak == max(
        value for key, value in by_name.items() if key[:2] == ("matmul_flops_per_second", "fp32") and key[3] != "numpy"
    )
    ratio = by_name["matmul_over_numpy_ratio", "fp32"]
    assert ratio == pytest.approx(peak / by_name["numpy_peak_flops_per_second", "fp32"])


def forward(runtime: Framework, model: dict[str, Any], batch: int, dtype: Dtype = "fp32") -> ModelKernel:
    fresh = FreshModel.model_validate(model)
    signature = fresh_signature(fresh.architecture, fresh.input)
    return load_kernels(runtime, {}).forward(signature, RandomTensors(signature, 0), batch, dtype)


@pytest.mark.parametrize(("name", "model"), [("mlp", MLP), ("decoder", DECODER)])
def test_torch_counts_matrix_products_and_nothing_else(name: str, model: dict[str, Any]) -> None:
    assert forward("torch", model, 64).kernel.flops == PRODUCTS[name]


@pytest.mark.parametrize(("name", "model"), [("mlp", MLP), ("decoder", DECODER)])
def test_jax_counts_matrix_products_of_every_layer_and_what_is_between_them(name: str, model: dict[str, Any]) -> None:
    counted = forward("flax", model, 64).kernel.flops
    # An error function alone is some 60 operations.
    assert PRODUCTS[name] < counted < 3 * PRODUCTS[name]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_convolutions_count_alike_in_both(dtype: Dtype) -> None:
    torch, flax = (forward(runtime, CNN, 4, dtype).kernel.flops for runtime in ("torch", "flax"))
    # JAX leaves out what falls on the border, and counts what is between convolutions.
    assert torch == pytest.approx(flax, rel=0.2)


def test_the_least_traffic_is_weights_inputs_and_outputs_once() -> None:
    weights = 32 * 16 + 32 + 8 * 32 + 8
    model = forward("torch", MLP, 64)
    assert (model.traffic, model.kernel.bytes) == ("least", 4 * (weights + 64 * 16 + 64 * 8))
    counted = forward("flax", MLP, 64)
    assert counted.traffic == "counted"
    assert counted.kernel.bytes >= model.kernel.bytes


@pytest.mark.parametrize("runtime", FRAMEWORKS)
def test_streams_and_products_count_what_they_do(runtime: Framework) -> None:
    kernels = load_kernels(runtime, {})
    streams = [(one.name, one.flops, one.bytes) for one in kernels.streams(1000)]
    assert streams == [("scale", 1000, 8000), ("axpy", 2000, 12000), ("sum", 1000, 4000)]
    products = [(one.name, one.flops, one.bytes) for one in kernels.matrix_products("bf16", 16)]
    assert products == [(way, 2 * 16**3, 3 * 16 * 16 * 2) for way in WAYS[runtime]]
    for one in (*kernels.streams(1000), *kernels.matrix_products("bf16", 16)):
        one.call()
        one.call()


class Pretended:
    """Kernels that take a millisecond, whatever they claim to do in it."""

    device = "cpu"
    cache_bytes = None

    def __init__(self, model_flops: float) -> None:
        self._model_flops = model_flops
        self.calls: list[str] = []

    def kernel(self, name: str, flops: float, size: float) -> Kernel:
        def call() -> None:
            self.calls.append(name)
            time.sleep(0.001)

        return Kernel(name, call, flops, size)

    def matrix_products(self, dtype: Dtype, side: int) -> Sequence[Kernel]:
        return [self.kernel("matmul", 1e6, 1e3)]

    def streams(self, elements: int) -> Sequence[Kernel]:
        return [self.kernel("sum", 1e3, 1e6)]

    def forward(self, signature: Signature, source: TensorSource, batch: int, dtype: Dtype) -> ModelKernel:
        return ModelKernel(self.kernel("forward", self._model_flops, 1e6), "counted", 1e6)


def pretend(monkeypatch: pytest.MonkeyPatch, model_flops: float) -> Pretended:
    kernels = Pretended(model_flops)
    monkeypatch.setattr(roofline, "load_kernels", lambda *_: cast(Kernels, kernels))
    return kernels


@pytest.mark.usefixtures("small_cache")
def test_a_model_above_the_roof_fails_the_trial(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, 1e9)
    with pytest.raises(
        RuntimeError, match=r"^fast in fp32 is above the roof: .* FLOP/s, .* are possible at 1e\+03 FLOP"
    ):
        run(trial(dtypes=["fp32"], models=[{"name": "fast", **MLP}]), FolderStore(tmp_path), {})


@pytest.mark.usefixtures("small_cache")
def test_a_model_takes_turns_with_the_kernels_that_are_its_roof(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernels = pretend(monkeypatch, 1.0)
    run(trial(models=[{"name": "slow", **MLP}]), FolderStore(tmp_path), {})
    turns = [name for index, name in enumerate(kernels.calls) if index == 0 or kernels.calls[index - 1] != name]
    assert turns[-12:] == ["forward", "matmul", "sum"] * 4


def test_without_a_known_cache_the_reader_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, 1.0)
    monkeypatch.setattr(roofline, "last_level_bytes", lambda: None)
    measured = run(trial(), FolderStore(tmp_path), {"OPENBLAS_CORETYPE": "Haswell"})
    assert measured.notes == [
        "the size of the last cache is not known: 64 MiB were assumed",
        "numpy's BLAS was told to use its kernels for Haswell (OPENBLAS_CORETYPE), whatever the CPU has",
    ]
    assert [point.labels for point in measured.points if point.metric == "bandwidth_bytes_per_second"] == [
        {"level": "memory"}
    ]


@pytest.mark.usefixtures("small_cache")
@pytest.mark.parametrize(
    ("work", "message"),
    [
        (
            {"matrixSizes": [65536]},
            "workload.roofline.matrixSizes: 65536 needs at least 192.0 GiB, and 1.0 GiB are free",
        ),
        (
            {"models": [{"name": "wide", **MLP, "batchSize": 10**9}]},
            "workload.roofline.models: batchSize 1000000000 of wide needs at least 327.8 GiB, and 1.0 GiB are free",
        ),
    ],
)
def test_what_does_not_fit_into_memory_is_refused(
    work: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, 1.0)
    monkeypatch.setattr("capstan_runtime.bench.models.available_bytes", lambda: 2**30)
    with pytest.raises(ConfigError) as refused:
        run(trial(**work), FolderStore(tmp_path), {})
    assert str(refused.value) == f"{message} here; choose a smaller one"


def test_a_type_of_number_without_arithmetic_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = load_kernels("torch", {})
    import torch

    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(ConfigError) as refused:
        kernels.matrix_products("bf16", 64)
    assert str(refused.value) == (
        "workload.roofline.dtypes: bf16 has no matrix product in torch on this CPU (oneDNN has none for its "
        "instructions); leave it out, or measure a GPU"
    )


def cache(cpus: Path, cpu: int, index: int, **files: str) -> None:
    folder = cpus / f"cpu{cpu}" / "cache" / f"index{index}"
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text + "\n")


def test_the_last_level_of_cache_is_counted_once_for_cores_that_share_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert last_level_bytes(tmp_path) is None
    for cpu, shared in ((0, "0-1"), (1, "0-1"), (2, "2-3")):
        cache(tmp_path, cpu, 0, type="Instruction", level="9", shared_cpu_list=str(cpu), size="32K")
        cache(tmp_path, cpu, 1, type="Unified", level="2", shared_cpu_list=str(cpu), size="1024K")
        cache(tmp_path, cpu, 2, type="Unified", level="3", shared_cpu_list=shared, size="32M")
    assert last_level_bytes(tmp_path) == 2 * 32 * 2**20


@pytest.mark.parametrize(("given", "limit"), [({"OMP_NUM_THREADS": "3"}, "3"), ({}, None)])
def test_jax_computes_with_as_many_threads_as_all_else(
    given: dict[str, str], limit: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PJRT_NPROC", raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    limit_threads(given)
    assert os.environ.get("PJRT_NPROC") == limit


def series(metric: str, *values: float, **labels: str) -> Series:
    trials = tuple(f"t{index:02}" for index in range(len(values)))
    unit = "B/s" if metric.startswith("bandwidth") else "FLOP/s"
    return Series(
        metric=metric, labels=labels, unit=unit, better="higher", arm="candidate", values=values, trials=trials
    )


def model_series(name: str, flops: float, size: float, level: str, *rates: float) -> list[Series]:
    return [
        series("model_flops_per_second", *rates, model=name, dtype="fp32", level=level),
        series("model_flops", *([flops] * 3), model=name, dtype="fp32"),
        series("model_bytes", *([size] * 3), model=name, dtype="fp32", traffic="counted"),
    ]


def test_the_roof_and_what_is_under_it_follow_from_the_medians_of_the_trials() -> None:
    measured = (
        series("peak_flops_per_second", 100.0, 90.0, 110.0, dtype="fp32"),
        series("numpy_peak_flops_per_second", 80.0, 85.0, 81.0, dtype="fp32"),
        series("bandwidth_bytes_per_second", 10.0, 12.0, 8.0, level="memory"),
        series("bandwidth_bytes_per_second", 40.0, 41.0, 39.0, level="cache"),
        *model_series("wide", 400.0, 20.0, "cache", 50.0, 60.0, 40.0),
        *model_series("long", 40.0, 20.0, "memory", 10.0, 11.0, 9.0),
        *model_series("blocked", 40.0, 20.0, "memory", 40.0, 41.0, 39.0),
        series("peak_flops_per_second", 1.0, 1.0, 1.0, dtype="fp32").model_copy(update={"arm": "baseline"}),
    )
    assert derive(measured, Trials(), 0.95, 0) == {
        "roofs": (
            Ceiling(name="matmul fp32", kind="compute", unit="FLOP/s", median=100.0, low=90.0, high=110.0),
            Ceiling(name="numpy matmul fp32", kind="compute", unit="FLOP/s", median=81.0, low=80.0, high=85.0),
            Ceiling(name="memory", kind="bandwidth", unit="B/s", median=10.0, low=8.0, high=12.0),
            Ceiling(name="cache", kind="bandwidth", unit="B/s", median=40.0, low=39.0, high=41.0),
        ),
        "dots": (
            dot("wide", 20.0, (50.0, 40.0, 60.0), "compute", 0.5),
            dot("long", 2.0, (10.0, 9.0, 11.0), "bandwidth", 0.5),
            # Faster than memory allows: its bytes came from the cache.
            dot("blocked", 2.0, (40.0, 39.0, 41.0), "bandwidth", 0.5),
        ),
    }


def dot(name: str, intensity: float, estimate: tuple[float, float, float], bound: str, share: float) -> Dot:
    performance, low, high = estimate
    return Dot(
        name=name,
        intensity=intensity,
        performance=performance,
        low=low,
        high=high,
        ceiling="matmul fp32",
        bound=bound,
        share=share,
    )
