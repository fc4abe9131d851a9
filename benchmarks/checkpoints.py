"""Saves and restores of one state, ours verified, beside torch DCP and Orbax on the same folder in the same run.

Ours is the trainer's own path: staged in memory, hashed and written behind the loop, fsynced and committed; restored by
reading each byte once and comparing its digest. DCP (which syncs its files, too) and Orbax run with their defaults and
check nothing. The three take turns, every figure is a median, and every library has saved once before it counts. "Cold"
restores find none of the files in the page cache.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from benchmarks.checkpoint_libraries import DCP, Capstan, Library, Orbax, State
from benchmarks.report import Figure
from capstan_runtime.checkpoint.digest import LEAF_BYTES, digest_of

REPETITIONS = 5
STEPS_AFTER = 20
SAVE_INTERVAL_SECONDS = 60.0
STEP_SIZE = 1536
"""Of the square matrices whose product stands in for a training step: some 0.1 s on two cores."""
HASHED_BYTES = 256 << 20


def build_state(gb: float) -> dict[str, np.ndarray]:
    """Parameters and AdamW's two moments of a transformer, float32, of about `gb` gigabytes (10^9) in all."""
    width = 1024
    layer = {
        "attention/qkv": (width, 3 * width),
        "attention/out": (width, width),
        "mlp/in": (width, 4 * width),
        "mlp/out": (4 * width, width),
        "norm/scale": (width,),
    }
    layer_bytes = 3 * 4 * sum(int(np.prod(shape)) for shape in layer.values())
    random = np.random.default_rng(0)
    noise = random.standard_normal(4 * width * width, np.float32)
    state = {}
    for number in range(max(1, round(gb * 1e9 / layer_bytes))):
        for kind in ("params", "optimizer/mu", "optimizer/nu"):
            for name, shape in layer.items():
                # Different everywhere, and quicker than as many random numbers.
                values = noise[: int(np.prod(shape))] * np.float32(random.random())
                state[f"{kind}/layers.{number}/{name}"] = values.reshape(shape)
    return state


def measure(gb: float = 1.0, folder: Path | None = None) -> list[Figure]:
    command = f"python -m benchmarks checkpoints --gb {gb:g}" + (f" --folder {folder}" if folder else "")
    state = build_state(gb)
    size = sum(array.nbytes for array in state.values())
    with tempfile.TemporaryDirectory(prefix="capstan-bench-", dir=folder) as home:
        libraries: list[Library] = [Capstan(state), DCP(state), Orbax(state)]
        times = _take_turns(libraries, Path(home))
        excess, step_seconds = _excess_of_steps(libraries[0], Path(home) / "excess")
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


Times = dict[tuple[str, str], float]
"""(library, what) -> median seconds"""


def _take_turns(libraries: list[Library], home: Path) -> Times:
    seen: dict[tuple[str, str], list[float]] = {}

    def note(library: Library, what: str, seconds: float) -> None:
        seen.setdefault((library.name, what), []).append(seconds)

    for repetition in range(-1, REPETITIONS):
        for library in _rotated(libraries, repetition):
            folder = home / f"{library.name}-{repetition + 1}"
            saved = library.save(folder)
            if repetition >= 0:
                note(library, "blocked", saved.blocked_seconds)
                note(library, "save", saved.seconds)
                for what, is_cold in (("warm restore", False), ("cold restore", True)):
                    if is_cold:
                        forget_pages(folder)
                    note(library, what, library.restore(folder))
            else:
                library.restore(folder)
                library.check()
            shutil.rmtree(folder)
    return {key: statistics.median(values) for key, values in seen.items()}


def _rotated(libraries: list[Library], turn: int) -> list[Library]:
    """Nobody always goes first, or after the same one."""
    at = turn % len(libraries)
    return [*libraries[at:], *libraries[:at]]


def forget_pages(folder: Path) -> None:
    """Drops the files of `folder`, which must be on disk already, from the page cache. Does nothing in memory."""
    for path in (path for path in folder.rglob("*") if path.is_file()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _throughputs(times: Times, size: int, command: str) -> Iterator[Figure]:
    for what, title in (
        ("save", "save, durable"),
        ("cold restore", "restore, cold"),
        ("warm restore", "restore, page cache warm"),
    ):
        ours = times[Capstan.name, what]
        kind = "hashed" if what == "save" else "every byte verified"
        yield Figure(f"{title}: Capstan, {kind}", size / 1e9 / ours, "GB/s", command)
        for library in (DCP, Orbax):
            theirs = times[library.name, what]
            yield Figure(f"{title}: {library.name}", size / 1e9 / theirs, "GB/s", command)
            yield Figure(f"{title}: Capstan / {library.name}", theirs / ours, "x", command)


def _stalls(times: Times, state: State, size: int, command: str) -> Iterator[Figure]:
    copy = copy_seconds(state)
    for library, call in ((Capstan, ""), (DCP, " async_save"), (Orbax, "")):
        blocked = 1000 * times[library.name, "blocked"]
        yield Figure(f"loop blocked per save: {library.name}{call}", blocked, "ms", command)
    yield Figure(f"memcpy of the state ({size / 1e9:.2f} GB, into memory in use)", 1000 * copy, "ms", command)
    beyond = times[Capstan.name, "blocked"] - copy
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


def _excess_of_steps(library: Library, folder: Path) -> tuple[float, float]:
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
        with library.saving(folder / str(repetition)):
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
