"""A state to save, and Capstan's checkpoints behind the interface that those of other libraries have, too."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np

from capstan_runtime.checkpoint.layout import SaveName, new_attempt
from capstan_runtime.checkpoint.manifest import TrainerState
from capstan_runtime.checkpoint.open import open_store
from capstan_runtime.checkpoint.reader import OpenCheckpoint, open_checkpoint
from capstan_runtime.checkpoint.saver import Identity, Saver
from capstan_runtime.checkpoint.staging import StagingArea
from capstan_runtime.checkpoint.writer import SaveFailed
from capstan_runtime.contract.state import Checkpoint
from capstan_runtime.engine import Array, LocalTensor

State = Mapping[str, Array]
Held = Mapping[str, Any]
"""The same arrays, where a framework has them: in a GPU's memory if there is one."""
Hold = Callable[[State], Held]
"""Waits until all of them are there."""
Fetch = Callable[[Any], Array]
"""One of them, in this process's memory."""

_RUN = "benchmark"
_ITEM_BYTES = 4
_FEWEST_LAYERS = 4
_WIDTHS = (1024, 512, 256, 128, 64, 32, 16)


@dataclass(frozen=True, slots=True)
class Saved:
    """What one save took."""

    blocked_seconds: float
    """Until training could have gone on."""
    seconds: float
    """Until the checkpoint was complete, and on the disk as far as the library takes care of that."""


class Library(Protocol):
    """Saves the state it was made with. `place` is a folder, or for Capstan also the URL of one in a bucket."""

    name: str

    def save(self, place: str) -> Saved:
        """A complete checkpoint at `place`, where there is nothing yet."""
        ...

    def restore(self, place: str) -> float:
        """Seconds until the whole state was back where the framework has it."""
        ...

    def restored(self) -> State:
        """What the last restore brought back; then it is let go."""
        ...


def build_state(size: int) -> dict[str, Array]:
    """Parameters and AdamW's two moments of a transformer, fp32: `size` bytes, rounded up to a whole number.

    As wide, up to 1,024, as four layers of it allow; what is left over is one more array. No two are alike.
    """
    numbers = -(-size // _ITEM_BYTES)
    width = next((width for width in _WIDTHS if _FEWEST_LAYERS * _layer_numbers(width) <= numbers), _WIDTHS[-1])
    chance = np.random.default_rng(0)
    noise = chance.standard_normal(4 * width * width, np.float32)
    layers, rest = divmod(numbers, _layer_numbers(width))
    shapes: dict[str, tuple[int, ...]] = {
        f"{kind}/layers.{layer}/{name}": shape
        for layer in range(layers)
        for kind in ("params", "optimizer/mu", "optimizer/nu")
        for name, shape in _layer_shapes(width).items()
    }
    if rest:
        shapes["params/rest"] = (rest,)
    # Scaled noise is different everywhere, and made quicker than as many random numbers.
    return {name: np.resize(noise, shape) * np.float32(1 + chance.random()) for name, shape in shapes.items()}


def _layer_shapes(width: int) -> dict[str, tuple[int, ...]]:
    return {
        "attention/qkv": (width, 3 * width),
        "attention/out": (width, width),
        "mlp/in": (width, 4 * width),
        "mlp/out": (4 * width, width),
        "norm/scale": (width,),
    }


def _layer_numbers(width: int) -> int:
    """With both moments."""
    return 3 * sum(math.prod(shape) for shape in _layer_shapes(width).values())


def require_same(library: str, saved: State, restored: State) -> None:
    """Every bit. Raises RuntimeError, which names the first array that differs."""
    if saved.keys() != restored.keys():
        missing = sorted(saved.keys() ^ restored.keys())
        raise RuntimeError(f"{library} did not bring back the same arrays: {missing[0]} is in one of the two only")
    for name, array in saved.items():
        same = array.shape == restored[name].shape and array.dtype == restored[name].dtype
        if not same or not np.array_equal(
            array.reshape(-1).view(np.uint32), restored[name].reshape(-1).view(np.uint32)
        ):
            raise RuntimeError(f"{library} did not bring back what was saved: {name} differs")


class Capstan:
    """One rank's saver as the training loop uses it, in a world of one."""

    name = "Capstan"

    def __init__(
        self, state: State, hold: Hold, fetch: Fetch, environ: Mapping[str, str], deadline_seconds: float
    ) -> None:
        self._held, self._hold, self._fetch = hold(state), hold, fetch
        self._environ = environ
        self._deadline_seconds = deadline_seconds
        self._staging = StagingArea(None, _RUN, 0, _fail)
        self._restored: Held = {}

    def save(self, place: str) -> Saved:
        started = time.perf_counter()
        saver = self._begin(place)
        blocked = time.perf_counter() - started
        _require_committed(saver)
        return Saved(blocked, time.perf_counter() - started)

    @contextmanager
    def saving(self, place: str) -> Iterator[None]:
        """Inside, a save that has just been started goes on; afterwards it is complete."""
        saver = self._begin(place)
        yield
        _require_committed(saver)

    def restore(self, place: str) -> float:
        self._restored = {}
        started = time.perf_counter()
        tensors = self._open(place).tensors()
        self._restored = self._hold({name: tensors.read(name) for name in tensors.names()})
        return time.perf_counter() - started

    def restored(self) -> State:
        restored, self._restored = self._restored, {}
        return {name: self._fetch(array) for name, array in restored.items()}

    def verify(self, place: str) -> float:
        """Seconds in which every byte was read and compared with its digest."""
        started = time.perf_counter()
        self._open(place).verify()
        return time.perf_counter() - started

    def _begin(self, place: str) -> Saver:
        identity = Identity(
            store=open_store(place, self._environ),
            job="default/benchmark",
            run=_RUN,
            framework="benchmark",
            fence=1,
            attempt=new_attempt(_RUN),
            rank=0,
            world=1,
        )
        saver = Saver(identity, None, lambda own: [own], self._deadline_seconds, self._staging, _ignore, _fail)
        saver.begin(_trainer_state(), self._tensors(), {})
        return saver

    def _tensors(self) -> Iterator[LocalTensor]:
        for name, held in self._held.items():
            array = self._fetch(held)
            yield LocalTensor(name, array.shape, 0, array.reshape(-1))

    def _open(self, place: str) -> OpenCheckpoint:
        store = open_store(place, self._environ)
        names = [name for child in store.children() if (name := SaveName.parse(child))]
        return open_checkpoint(store, names[0])


def _require_committed(saver: Saver) -> None:
    outcome = saver.settle()
    if outcome is None or outcome.checkpoint is None:
        raise SaveFailed("nothing was saved" if outcome is None else outcome.problem)


def _ignore(_: Checkpoint) -> None:
    """There is no memory tier whose news would matter."""


def _fail(message: str) -> NoReturn:
    raise RuntimeError(message)


def _trainer_state() -> TrainerState:
    return TrainerState(
        step=1,
        seed=0,
        global_batch_size=1,
        virtual_ranks=1,
        plan_version=1,
        data_fingerprint="blake3:00",
        learning_rate_step=1,
        loss=1.0,
    )
