"""Results of every workload such as a Benchmark leaves behind: made up, but of a likely size and shape."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from capstan_runtime.bench.result import (
    Baseline,
    BenchmarkResult,
    Ceiling,
    CollectiveFit,
    Dot,
    Law,
    LawFit,
    LawParameter,
    ScalingRow,
)
from capstan_runtime.contract.benchmark import GateTask, Repeat, Verdict
from capstan_runtime.contract.reference import REFERENCE_ROWS
from tests.support.bench_maker import CPU, GPU, RUNS, Maker


def inference(
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32), runs: int = RUNS, spread: float = 0.02
) -> BenchmarkResult:
    """Throughput and latency over batch sizes, beside a reference row."""
    make = Maker()
    for batch in batches:
        labels = {"batchSize": str(batch)}
        seconds = 0.0006 + 0.00005 * batch
        make.measure(
            "samples_per_second",
            "samples/s",
            "higher",
            batch / seconds,
            labels,
            is_headline=True,
            runs=runs,
            spread=spread,
        )
        make.measure("latency_p50_seconds", "s", "lower", seconds, labels, runs=runs, spread=spread)
        make.measure("latency_p99_seconds", "s", "lower", 1.8 * seconds, labels, runs=runs, spread=2 * spread)
        make.distribute("call_seconds", "s", seconds, labels, 0.1)
    return make.result(
        "inference",
        "14,545 samples/s ±1.3 % at batch 32",
        reference=REFERENCE_ROWS["flax-cnn"],
        baseline=Baseline(
            kind="reference",
            name="flax-cnn",
            is_comparable=False,
            problem="it was measured on an unnamed GPU, and this on AMD EPYC 9654 96-Core Processor",
        ),
    )


def training(verdict: Verdict = "Regressed", effect: float = -10.4, width: float = 1.5) -> BenchmarkResult:
    """Against a rerun, with a verdict."""
    make = Maker(1)
    for batch in (16, 64, 256):
        labels = {"batchSize": str(batch)}
        seconds = 0.004 + 0.0003 * batch
        for arm, slower in (("candidate", 1.1), ("baseline", 1.0)):
            assert arm == "candidate" or arm == "baseline"
            make.measure(
                "samples_per_second", "samples/s", "higher", batch / seconds / slower, labels, is_headline=True, arm=arm
            )
            make.measure("step_seconds", "s", "lower", seconds * slower, labels, arm=arm)
        make.distribute("step_seconds", "s", seconds, labels, 0.05)
    make.compare(lambda at: effect + at, verdict, width)
    return make.result(
        "training",
        "3,137 samples/s ±0.9 % at batch 256",
        verdict=verdict,
        reason=f"samples_per_second at batchSize=256: {effect:+.1f} % [{effect - width:+.1f}, {effect + width:+.1f}], "
        "and 5 % counts",
        gate=GateTask(minimum_effect_percent=5, confidence=0.95),
        baseline=Baseline(
            kind="rerun",
            name="train-main",
            environment=CPU,
            is_comparable=True,
            differences=("jax 0.10.1 -> 0.10.2", "numpy 2.4.5 -> 2.4.6"),
        ),
        repeats=(
            Repeat(trial="t03", attempt=1, reason="pod training-nightly-t03-worker-0 was preempted (Evicted)"),
            Repeat(trial="t07", attempt=1, reason="was not done after 3600 s (spec.trialDeadlineSeconds)"),
        ),
        notes=("the first 10 steps of each run are left out (warmupSteps)",),
    )


def scaling() -> BenchmarkResult:
    """Strong and weak, up to 8 workers."""
    make = Maker(2)
    rows = []
    for mode, loss in (("strong", 0.06), ("weak", 0.03)):
        for workers in (1, 2, 4, 8):
            speedup = workers / (1 + loss * (workers - 1))
            labels = {"mode": mode, "workers": str(workers)}
            make.measure("samples_per_second", "samples/s", "higher", 800 * speedup, labels, is_headline=True)
            rows.append(
                ScalingRow(
                    mode=mode,
                    workers=workers,
                    speedup=speedup,
                    speedup_low=speedup * 0.97,
                    speedup_high=speedup * 1.03,
                    efficiency=speedup / workers,
                    efficiency_low=speedup / workers * 0.97,
                    efficiency_high=speedup / workers * 1.03,
                    serial_fraction=loss if mode == "strong" and workers > 1 else None,
                )
            )
    return make.result("scaling", "5.63x ±3 % on 8 workers (70 % efficient)", scaling=tuple(rows), environments=(GPU,))


def roofline() -> BenchmarkResult:
    """Two types, three caches, kernels and a model."""
    make = Maker(3)
    peaks = {"fp32 matmul": 9.1e10, "bf16 matmul": 3.4e10}
    roofs = [
        Ceiling(name=name, kind="compute", unit="FLOP/s", median=peak, low=0.98 * peak, high=1.02 * peak)
        for name, peak in peaks.items()
    ]
    for name, width in (("L2 copy", 1.5e11), ("memory triad", 1.9e10), ("memory copy", 1.7e10)):
        roofs.append(
            Ceiling(name=name, kind="bandwidth", unit="B/s", median=width, low=0.96 * width, high=1.05 * width)
        )
    dots = []
    for name, intensity, share, ceiling in (
        ("axpy", 0.0833, 0.92, "fp32 matmul"),
        ("layer norm", 0.62, 0.55, "fp32 matmul"),
        ("softmax", 0.5, 0.35, "fp32 matmul"),
        ("matmul 512", 85.3, 0.97, "fp32 matmul"),
        ("matmul 1024", 170.7, 1.0, "fp32 matmul"),
        ("matmul 1024 bf16", 341.3, 1.0, "bf16 matmul"),
        ("cnn batch 32", 6.4, 0.41, "fp32 matmul"),
        ("a transformer with a long name, 12 layers, batch 8", 21.0, 0.62, "fp32 matmul"),
    ):
        performance = share * min(peaks[ceiling], intensity * 1.9e10)
        dots.append(
            Dot(
                name=name,
                intensity=intensity,
                performance=performance,
                low=0.96 * performance,
                high=1.03 * performance,
                ceiling=ceiling,
                bound="compute" if intensity * 1.9e10 > peaks[ceiling] else "bandwidth",
                share=share,
            )
        )
    for name, peak in peaks.items():
        make.measure("peak_flops_per_second", "FLOP/s", "higher", peak, {"kernel": name}, is_headline=True)
    make.measure("bandwidth_bytes_per_second", "B/s", "higher", 1.9e10, {"kernel": "triad"}, is_headline=True)
    return make.result("roofline", "91 GFLOP/s ±1.1 % in fp32, 19 GB/s ±2 %", roofs=tuple(roofs), dots=tuple(dots))


def scaling_law(is_trusted: bool = True) -> BenchmarkResult:
    """Chinchilla and Kaplan over 5 x 5 runs; the numbers of the first are those of Besiroglu et al. (2024)."""
    rng = np.random.default_rng(4)
    make = Maker(4)
    points, residuals = [], []
    for parameters in np.geomspace(4e7, 1.6e10, 5):
        for tokens in np.geomspace(4e8, 3e11, 5):
            residual = float(rng.normal(0, 0.004))
            loss = (1.8172 + 482.01 / parameters**0.3478 + 2085.43 / tokens**0.3658) * np.exp(residual)
            points.append((float(parameters), float(tokens), float(loss)))
            residuals.append(residual)
    chinchilla = LawFit(
        form="chinchilla",
        formula="L(N, D) = E + A / N^alpha + B / D^beta",
        parameters=(
            LawParameter(name="E", value=1.8172, low=1.76, high=1.86),
            LawParameter(name="A", value=482.01, low=210, high=1100),
            LawParameter(name="B", value=2085.43, low=850, high=5200),
            LawParameter(name="alpha", value=0.3478, low=0.31, high=0.38),
            LawParameter(name="beta", value=0.3658, low=0.33, high=0.40),
        ),
        derived=(LawParameter(name="exponent of the best N in compute", value=0.5126, low=0.46, high=0.56),),
        objective=0.00102,
        gradient_norm=3e-9,
        is_trusted=is_trusted,
        warnings=() if is_trusted else ("the points span 3x in parameters; a law needs 10x or more",),
        residuals=tuple(residuals),
    )
    kaplan = LawFit(
        form="kaplan",
        formula="L(N, D) = ((Nc / N)^(alphaN / alphaD) + Dc / D)^alphaD",
        parameters=(
            LawParameter(name="alphaN", value=0.076, low=0.07, high=0.08),
            LawParameter(name="alphaD", value=0.095, low=0.09, high=0.1),
            LawParameter(name="Nc", value=8.8e13, low=5e13, high=2e14),
            LawParameter(name="Dc", value=5.4e13, low=2e13, high=9e13),
        ),
        objective=0.0041,
        gradient_norm=2e-8,
        is_trusted=is_trusted,
        residuals=tuple(residual * 3 - 0.003 for residual in residuals),
    )
    largest = points[-1]
    law = Law(points=tuple(points), fits=(chinchilla, kaplan), held_out=((*largest, largest[2] * 1.006),))
    return make.result("scalingLaw", "alpha 0.348, beta 0.366, E 1.817 over 25 runs", law=law)


def serving(rates: tuple[float, ...] = (50, 100, 200, 300, 400, 500)) -> BenchmarkResult:
    """A ladder that saturates near 400/s, against a kept result, too noisy to tell."""
    make = Maker(5)
    for rate in rates:
        labels = {"rate": f"{rate:g}"}
        achieved = min(rate, 410.0)
        wait = 0.004 / max(0.06, 1 - rate / 430)
        make.measure("requests_per_second", "requests/s", "higher", achieved, labels, spread=0.004)
        for name, factor in (("p50", 1.0), ("p90", 1.6), ("p99", 3.0), ("p999", 7.0)):
            is_headline = name == "p50" and rate == rates[0]
            make.measure(
                f"latency_{name}_seconds", "s", "lower", wait * factor, labels, is_headline=is_headline, spread=0.08
            )
        make.measure("error_ratio", "failed/request", "lower", max(0.0, (rate - 380) / 1000), labels)
        make.distribute("latency_p50_seconds", "s", wait, labels)
    make.measure("sustained_requests_per_second", "requests/s", "higher", 350, {}, is_headline=True)
    make.compare(lambda at: 3.0 - 2 * at, "Inconclusive", 9.0)
    return make.result(
        "serving",
        "350 requests/s within 50 ms p99",
        spec={
            "workload": {"serving": {"rates": list(rates), "objective": {"p99Milliseconds": 50}}},
            "repetitions": RUNS,
        },
        verdict="Inconclusive",
        reason="latency_p99_seconds at rate=50: +3.0 % [-6.0, +12.0] is neither within nor beyond 5 %; more "
        "repetitions would tell",
        gate=GateTask(minimum_effect_percent=5, confidence=0.95),
        baseline=Baseline(kind="benchmark", name="serve-last-week", environment=CPU, is_comparable=True),
        notes=("the generator was late by 1.4 ms at rate=500 (p99)",),
    )


def collectives() -> BenchmarkResult:
    """Four operations over seven sizes."""
    make = Maker(6)
    fits = []
    for operation, factor, latency in (
        ("allReduce", 1.0, 9e-5),
        ("allGather", 0.5, 6e-5),
        ("reduceScatter", 0.5, 7e-5),
        ("allToAll", 0.5, 1.1e-4),
    ):
        for exponent in range(12, 25, 2):
            size = 2**exponent
            seconds = latency + size / 2.4e9
            labels = {"operation": operation, "size": f"{size // 1024}KiB" if size < 2**20 else f"{size // 2**20}MiB"}
            make.measure(
                "bus_bandwidth_bytes_per_second",
                "B/s",
                "higher",
                factor * size / seconds,
                labels,
                is_headline=exponent == 24,
                spread=0.05,
            )
            make.measure("algorithm_bandwidth_bytes_per_second", "B/s", "higher", size / seconds, labels, spread=0.05)
            make.measure("seconds", "s", "lower", seconds, labels, spread=0.05)
        fits.append(
            CollectiveFit(
                operation=operation,
                latency_seconds=latency,
                latency_low=0.9 * latency,
                latency_high=1.15 * latency,
                bandwidth_bytes_per_second=2.4e9,
                bandwidth_low=2.3e9,
                bandwidth_high=2.5e9,
            )
        )
    return make.result("collectives", "2.31 GB/s ±2 % all-reduce at 16 MiB", collectives=tuple(fits))


def checkpoint() -> BenchmarkResult:
    """Beside two other libraries."""
    make = Maker(7)
    for library, save, restore in (("capstan", 0.21, 0.12), ("TorchDCP", 0.34, 0.22), ("Orbax", 0.62, 0.41)):
        labels = {"library": library}
        is_ours = library == "capstan"
        make.measure("save_seconds", "s", "lower", save, labels, is_headline=is_ours, spread=0.05)
        make.measure("restore_seconds", "s", "lower", restore, labels, is_headline=is_ours, spread=0.05)
        make.measure("save_bytes_per_second", "B/s", "higher", 2.68e8 / save, labels, spread=0.05)
    make.measure("verify_seconds", "s", "lower", 0.08, {"library": "capstan"}, spread=0.05)
    return make.result("checkpoint", "save 1.28 GB/s, restore 2.24 GB/s", notes=("Orbax verifies no bytes on restore",))


def control_plane() -> BenchmarkResult:
    """An improvement."""
    make = Maker(8)
    make.measure("jobs_per_second", "jobs/s", "higher", 23.5, is_headline=True)
    make.measure("reconcile_p99_seconds", "s", "lower", 0.041, is_headline=True, spread=0.1)
    make.measure("calls_per_job", "calls", "lower", 7.0, spread=0.001)
    make.compare(lambda at: 18.0 if at == 0 else -22.0, "Improved", 4.0)
    return make.result(
        "controlPlane",
        "23.5 jobs/s ±2 %",
        verdict="Improved",
        reason="jobs_per_second: +18.0 % [+14.0, +22.0], and 5 % counts",
        gate=GateTask(minimum_effect_percent=5, confidence=0.95),
        baseline=Baseline(kind="file", name="/etc/capstan/baseline/result.json", environment=CPU, is_comparable=True),
    )


RESULTS: dict[str, Callable[[], BenchmarkResult]] = {
    "training": training,
    "inference": inference,
    "serving": serving,
    "scaling": scaling,
    "collectives": collectives,
    "roofline": roofline,
    "scalingLaw": scaling_law,
    "checkpoint": checkpoint,
    "controlPlane": control_plane,
}
