"""Saves and restores of one state, ours verified, beside torch DCP and Orbax on the same folder in the same run.

Ours is the trainer's own path: staged in memory, hashed and written behind the loop, fsynced and committed; restored by
reading each byte once and comparing its digest. DCP (which syncs its files, too) and Orbax run with their defaults and
check nothing. The three take turns, every figure is a median, and every library has saved once before it counts. It is
what workload `checkpoint` of a Benchmark measures, and what only a developer wants to know besides.
"""

from __future__ import annotations

import hashlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from benchmarks.report import Figure
from capstan_runtime.bench.checkpoints import Capstan, Library, State, build_state
from capstan_runtime.bench.workloads.checkpoint import Scratch, take_turns
from capstan_runtime.checkpoint.digest import LEAF_BYTES, digest_of
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.deepspeed_trainer.bench_checkpoint import TorchDCP, fetch, hold
from capstan_runtime.flax_trainer.bench_checkpoint import Orbax

REPETITIONS = 5
STEPS_AFTER = 20
SAVE_INTERVAL_SECONDS = 60.0
DEADLINE_SECONDS = 600.0
STEP_SIZE = 1536
"""Of the square matrices whose product stands in for a training step: some 0.1 s on two cores."""
HASHED_BYTES = 256 << 20


def measure(gb: float = 1.0, folder: Path | None = None) -> list[Figure]:
    command = f"python -m benchmarks checkpoints --gb {gb:g}" + (f" --folder {folder}" if folder else "")
    state = build_state(round(gb * 1e9))
    size = sum(array.nbytes for array in state.values())
    with tempfile.TemporaryDirectory(prefix="capstan-bench-", dir=folder) as home:
        ours = Capstan(state, hold, fetch, {}, DEADLINE_SECONDS)
        libraries: list[Library] = [ours, TorchDCP(state, DEADLINE_SECONDS), Orbax(state, DEADLINE_SECONDS)]
        seen = take_turns(libraries, state, Scratch(FolderStore(Path(home)), "turns"), seed=0, rounds=REPETITIONS)
        times = {key: statistics.median(seconds) for key, seconds in seen.items()}
        excess, step_seconds = _excess_of_steps(ours, Path(home) / "excess")
    figures = [*_throughputs(times, size, command), *_stalls(times, state, size, command)]
    share = excess / SAVE_INTERVAL_SECONDS
    note = f"steps of {1000 * step_seconds:.0f} ms, all cores busy"
    figures += [
        Figure(
            f"excess time of the {STEPS_AFTER} steps after a save of {size / 1e9:.2f} GB ({note})", excess, "s", command
        ),
        Figure("the same as a share, at one save per 60 s", 100 * share, "%", command),
        *_hashing(command),
    ]
    return figures


Times = Mapping[tuple[str, str, str], float]
"""(library, what, state of the page cache or empty) -> median seconds"""


def _throughputs(times: Times, size: int, command: str) -> Iterator[Figure]:
    for what, cache, title in (
        ("save", "", "save, durable"),
        ("restore", "dropped", "restore, page cache dropped"),
        ("restore", "warm", "restore, page cache warm"),
    ):
        ours = times[Capstan.name, what, cache]
        kind = "hashed" if what == "save" else "every byte verified"
        yield Figure(f"{title}: Capstan, {kind}", size / 1e9 / ours, "GB/s", command)
        for library in (TorchDCP, Orbax):
            theirs = times[library.name, what, cache]
            yield Figure(f"{title}: {library.name}", size / 1e9 / theirs, "GB/s", command)
            yield Figure(f"{title}: Capstan / {library.name}", theirs / ours, "x", command)


def _stalls(times: Times, state: State, size: int, command: str) -> Iterator[Figure]:
    copy = copy_seconds(state)
    for library, call in ((Capstan, ""), (TorchDCP, " async_save"), (Orbax, "")):
        blocked = 1000 * times[library.name, "save_blocked", ""]
        yield Figure(f"loop blocked per save: {library.name}{call}", blocked, "ms", command)
    yield Figure(f"memcpy of the state ({size / 1e9:.2f} GB, into memory in use)", 1000 * copy, "ms", command)
    beyond = times[Capstan.name, "save_blocked", ""] - copy
    yield Figure("loop blocked per save: Capstan, beyond memcpy", 1000 * beyond, "ms", command)


def copy_seconds(state: State) -> float:
    """Of copying every array into memory that was touched before."""
    targets = {name: np.zeros_like(array) for name, array in state.items()}
    for target in targets.values():
        target.fill(1)

    def copy() -> None:
        for name, array in state.items():
            np.copyto(targets[name], array)

    return statistics.median(_seconds(copy) for _ in range(REPETITIONS))


def _excess_of_steps(library: Capstan, folder: Path) -> tuple[float, float]:
    """(seconds that the steps right after a save's start took longer than as many undisturbed ones, seconds of one)."""
    left, right = (np.random.default_rng(seed).random((STEP_SIZE, STEP_SIZE), np.float32) for seed in (1, 2))
    product = np.empty_like(left)

    def steps() -> None:
        for _ in range(STEPS_AFTER):
            np.matmul(left, right, out=product)

    steps()
    excess, undisturbed = [], []
    for repetition in range(REPETITIONS):
        undisturbed.append(_seconds(steps))
        with library.saving(str(folder / str(repetition))):
            disturbed = _seconds(steps)
        excess.append(disturbed - undisturbed[-1])
        shutil.rmtree(folder / str(repetition))
    return statistics.median(excess), statistics.median(undisturbed) / STEPS_AFTER


def _hashing(command: str) -> Iterator[Figure]:
    data = memoryview(np.random.default_rng(0).bytes(HASHED_BYTES))
    leaves = [data[at : at + LEAF_BYTES] for at in range(0, len(data), LEAF_BYTES)]
    algorithms: Mapping[str, Callable[[memoryview], object]] = {
        "BLAKE3": digest_of,
        "SHA-256": lambda leaf: hashlib.sha256(leaf).digest(),
    }
    seen: dict[str, list[float]] = {name: [] for name in algorithms}
    for _ in range(REPETITIONS):
        for name, digest in algorithms.items():
            started = time.thread_time()  # of this thread's own work, whatever else the machine does
            for leaf in leaves:
                digest(leaf)
            seen[name].append(time.thread_time() - started)
    seconds = {name: statistics.median(values) for name, values in seen.items()}
    for name in algorithms:
        yield Figure(f"{name} over 4 MiB leaves, one core", HASHED_BYTES / 1e9 / seconds[name], "GB/s", command)
    yield Figure("BLAKE3 / SHA-256", seconds["SHA-256"] / seconds["BLAKE3"], "x", command)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
