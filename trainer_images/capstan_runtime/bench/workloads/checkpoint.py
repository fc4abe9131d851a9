"""Workload `checkpoint`: seconds to save, restore and verify a state, Capstan's beside those of other libraries.

All of them take turns on the same state and the same disk, in one process. Every library has saved and restored once
before it counts, and whatever it restores is compared with what was saved, bit by bit.
"""

import errno
import importlib
import random
import shutil
import statistics
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from capstan_runtime.bench.checkpoints import Capstan, Library, State, build_state, require_same
from capstan_runtime.bench.measured import Measured, median_point, point
from capstan_runtime.bench.page_cache import forget_pages
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.contract.benchmark import TASK, BenchTask, Point, TrialTask
from capstan_runtime.contract.sizes import size_bytes
from capstan_runtime.contract.workloads import CheckpointIo
from capstan_runtime.errors import ConfigError

ROUNDS = 3
"""That count, in each trial; one more goes before them."""
_MODULES = {
    "flax": "capstan_runtime.flax_trainer.bench_checkpoint",
    "torch": "capstan_runtime.deepspeed_trainer.bench_checkpoint",
    "Orbax": "capstan_runtime.flax_trainer.bench_checkpoint",
    "TorchDCP": "capstan_runtime.deepspeed_trainer.bench_checkpoint",
}
_WARM, _DROPPED, _NO_CACHE = "warm", "dropped", "none"
_SPARE = 1.1
"""So many times the state must be free: one checkpoint at a time, with its headers and manifests."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXTS = ("No space left on device", "Disk quota exceeded")
"""What libraries keep of an error whose number they lose."""

Times = dict[tuple[str, str, str], list[float]]
"""Seconds by (library, what, state of the page cache or empty)."""


def run(trial: TrialTask, store: Store, environ: Mapping[str, str]) -> Measured:
    """The figures. Raises ConfigError for a library that is not here or needs a folder, and for a disk that is too
    small; RuntimeError when something else came back than was saved; SaveFailed, CorruptCheckpoint, StoreUnavailable.

    What it writes is below the benchmark's own folder of the store, and is removed whatever happens. A trial that was
    killed could not: the next one of the benchmark does it first.
    """
    task = trial.work.checkpoint
    assert task is not None
    whole = BenchTask.model_validate_json(environ[TASK])
    scratch = Scratch(store, f"{whole.benchmark}/{whole.uid}/scratch")
    _require_folder(task, store)
    scratch.clear()
    try:
        with full_disk_explained(task, store):
            _require_room(task, store)
            state = build_state(size_bytes(task.state))
            libraries = _libraries(task, state, environ, trial.deadline_seconds)
            times = take_turns(libraries, state, scratch, trial.seed)
    finally:
        scratch.clear()
    size = sum(array.nbytes for array in state.values())
    return Measured(list(_points(times, size)), list(_notes(task, state, size, scratch)))


class Scratch:
    """The place for checkpoints that nobody keeps, one after the other."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self.has_page_cache = isinstance(store, FolderStore)
        self.kept_in_memory = 0.0
        """The largest share of a checkpoint that the kernel kept when it was asked to let go of it."""

    def place(self, name: str) -> str:
        """Folder or URL."""
        return f"{self._store.place}/{self._key}/{name}"

    def forget(self, name: str) -> None:
        """It will be read from the disk, if the kernel does what it is asked."""
        self.kept_in_memory = max(self.kept_in_memory, forget_pages(Path(self.place(name))))

    def remove(self, name: str) -> None:
        self._store.remove_all(f"{self._key}/{name}")

    def clear(self) -> None:
        self._store.remove_all(self._key)


def take_turns(libraries: list[Library], state: State, scratch: Scratch, seed: int, rounds: int = ROUNDS) -> Times:
    """Seconds of everything in each of `rounds` rounds, after one that does not count. In every round each library has
    its turn, in an order that `seed` shuffles: nobody always goes first, or after the same one."""
    chance = random.Random(seed)  # nosec B311  # a seed repeats it
    times: Times = {}
    for number in range(-1, rounds):
        for library in chance.sample(libraries, len(libraries)):
            name = f"{library.name}-{number + 1}"
            for what, cache, seconds in _turn(library, state, scratch, name):
                if number >= 0:
                    times.setdefault((library.name, what, cache), []).append(seconds)
            scratch.remove(name)
    return times


def _turn(library: Library, state: State, scratch: Scratch, name: str) -> Iterator[tuple[str, str, float]]:
    place = scratch.place(name)
    saved = library.save(place)
    yield "save", "", saved.seconds
    yield "save_blocked", "", saved.blocked_seconds
    # Right after the save the kernel holds every page of it.
    for cache in (_WARM, _DROPPED) if scratch.has_page_cache else (_NO_CACHE,):
        if cache == _DROPPED:
            scratch.forget(name)
        yield "restore", cache, library.restore(place)
        require_same(library.name, state, library.restored())
    if isinstance(library, Capstan):
        if scratch.has_page_cache:
            scratch.forget(name)
        yield "verify", _DROPPED if scratch.has_page_cache else _NO_CACHE, library.verify(place)


def _points(times: Times, size: int) -> Iterator[Point]:
    """Capstan's first, then the others' by name."""
    for library, what, cache in sorted(times, key=lambda key: (key[0] != Capstan.name, key[0])):
        seconds = times[library, what, cache]
        labels = {"library": library} | ({"cache": cache} if cache else {})
        is_ours = library == Capstan.name
        if what == "save_blocked":
            yield median_point("save_blocked_seconds", seconds, labels=labels, is_headline=is_ours)
            continue
        rate = size / statistics.median(seconds)
        is_judged = is_ours and what != "verify" and cache != _WARM
        yield point(f"{what}_bytes_per_second", "B/s", "higher", rate, labels=labels, is_headline=is_judged)
        yield median_point(f"{what}_seconds", seconds, labels=labels)


def _notes(task: CheckpointIo, state: State, size: int, scratch: Scratch) -> Iterator[str]:
    yield (
        f"{size:,} bytes in {len(state)} fp32 arrays, held by {'JAX' if task.runtime == 'flax' else 'torch'}; medians "
        f"of {ROUNDS} rounds after one that does not count; every bit that was restored was compared"
    )
    yield "Capstan saves until committed and synced, and checks every byte that it restores against its digest"
    if "TorchDCP" in task.beside:
        yield "TorchDCP with its defaults: save_seconds of save, save_blocked_seconds of async_save; checks no digest"
    if "Orbax" in task.beside:
        yield "Orbax' StandardCheckpointer with its defaults; checks no digest"
    if scratch.has_page_cache:
        yield (
            "cache warm: read right after the save. cache dropped: the kernel was asked to let go of the files first "
            f"(posix_fadvise), and kept up to {100 * scratch.kept_in_memory:.0f} % of them; caches of disks and file "
            "servers are out of reach"
        )


def _libraries(task: CheckpointIo, state: State, environ: Mapping[str, str], deadline_seconds: float) -> list[Library]:
    runtime = _module("runtime", task.runtime)
    beside = [_module("beside", name).library(state, deadline_seconds) for name in task.beside]
    return [Capstan(state, runtime.hold, runtime.fetch, environ, deadline_seconds), *beside]


def _module(field: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(_MODULES[name])
    except ImportError as error:
        raise ConfigError(
            f"checkpoint.{field}: {name} is not installed here ({error}); set pods.image to one that has it, or "
            f"{'choose the other runtime' if field == 'runtime' else 'leave it out'}"
        ) from error


def _require_folder(task: CheckpointIo, store: Store) -> None:
    if task.beside and not isinstance(store, FolderStore):
        raise ConfigError(
            f"checkpoint.beside: {', '.join(task.beside)} would be measured in a folder, and results.store is "
            f"{store.place}; use a volume, or leave beside out"
        )


def _require_room(task: CheckpointIo, store: Store) -> None:
    if isinstance(store, FolderStore):
        Path(store.place).mkdir(parents=True, exist_ok=True)
        needed, free = _needed(task), shutil.disk_usage(store.place).free
        if free < needed:
            raise ConfigError(_too_small(task, store, f"{free:,} are free"))


@contextmanager
def full_disk_explained(task: CheckpointIo, store: Store) -> Iterator[None]:
    """Whatever a library makes of a full disk, the user is told what is needed."""
    try:
        yield
    except Exception as error:
        if any(_is_full(each) for each in _chain(error)):
            raise ConfigError(_too_small(task, store, "it is full")) from error
        raise


def _too_small(task: CheckpointIo, store: Store, found: str) -> str:
    return (
        f"checkpoint.state: {task.state} takes {_needed(task):,} bytes in results.store, {store.place}, where {found}; "
        "use a smaller state or a larger volume"
    )


def _needed(task: CheckpointIo) -> int:
    return round(_SPARE * size_bytes(task.state))


def _is_full(error: BaseException) -> bool:
    return getattr(error, "errno", None) in _FULL or any(text in str(error) for text in _FULL_TEXTS)


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
