"""What becomes of a run whose arithmetic goes wrong: the policy of `numerical`, with the same verdict on every rank.

No messages are needed for that: loss and gradient norm are global, and all ranks look at the same steps after the same
ones. Every step is looked at, but not at once: the device works on while its results wait, for about a second.
"""

import bisect
import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from capstan_runtime.contract.numerical import LossSpike, Numerical
from capstan_runtime.errors import NumericalFailure
from capstan_runtime.loss_scaling import is_overflow

_LEAST_LOSSES = 5
"""Before that many there is no saying what is usual; also the least window."""
_MOST_DROPPED = 100
"""Updates dropped in a row after which leaving them out is no help: nothing is learnt any more."""
_ADVICE = "lower the learning rate, lengthen the warm-up or set gradientClip"


class Outcome(Protocol):
    """A step's result, fetched at most once however many ask."""

    def fetch(self) -> Mapping[str, float]: ...


class Guard:
    """Looks at every step's loss and gradient norm, in order."""

    def __init__(
        self,
        numerical: Numerical,
        batch_of_step: Callable[[int], int],
        tell: Callable[[str], None],
        loss: float | None,
    ) -> None:
        """`batch_of_step` gives the index in the data order of the batch that a step (from 1) took; `tell` takes one
        line about what was ignored; `loss` is that of the last step before the first one, None if there was none."""
        self._numerical = numerical
        self._batch_of_step = batch_of_step
        self._tell = tell
        self._loss = loss
        self._recent = _Recent(numerical.loss_spike.window) if numerical.loss_spike is not None else None
        self._pending: deque[tuple[int, Outcome]] = deque()
        self._ignored: list[str] = []
        self._dropped = 0

    def note(self, done: int, outcome: Outcome) -> None:
        """Step `done` was queued; it will be looked at."""
        self._pending.append((done, outcome))

    def settle(self, through: int) -> None:
        """Looks at the steps up to `through`, and waits for them. Raises NumericalFailure where the policy says so."""
        while self._pending and self._pending[0][0] <= through:
            done, outcome = self._pending.popleft()
            self._judge(done, outcome.fetch())
        if self._ignored:
            others = f" (and {len(self._ignored) - 1} more like it)" if len(self._ignored) > 1 else ""
            self._tell(self._ignored[0] + others)
            self._ignored.clear()

    def newest_loss(self) -> float:
        """The newest loss that was a number, as of the last `settle`. Raises NumericalFailure if there was none."""
        if self._loss is None:
            raise NumericalFailure(f"no step so far has had a loss that is a number; {_ADVICE}")
        return self._loss

    def _judge(self, done: int, values: Mapping[str, float]) -> None:
        loss = values["loss"]
        if is_overflow(loss, values["gradient_norm"], values.get("loss_scale")):
            self._note_loss(done, loss)  # the engine has left the update out, and scales less from now on
            return
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(values[name]):
                self._on_non_finite(done, f"the {name.replace('_', ' ')} is {values[name]}", values)
                break
        else:
            self._dropped = 0
        if math.isfinite(loss):
            self._note_loss(done, loss)

    def _note_loss(self, done: int, loss: float) -> None:
        self._loss = loss
        if self._recent is not None and self._numerical.loss_spike is not None:
            self._look_for_spike(done, loss, self._recent, self._numerical.loss_spike)

    def _on_non_finite(self, done: int, what: str, values: Mapping[str, float]) -> None:
        match self._numerical.non_finite:
            case "halt":
                raise NumericalFailure(f"step {done}: {what}; {_ADVICE}")
            case "rewind":
                raise self._rewind(done, what)
            case "ignore" if math.isfinite(values["gradient_norm"]):
                self._ignored.append(f"step {done}: {what}; the gradient is finite, so its update was made")
            case "ignore":
                self._dropped += 1
                if self._dropped >= _MOST_DROPPED:
                    raise NumericalFailure(f"step {done}: {what}, as in {_MOST_DROPPED} steps before it; {_ADVICE}")
                self._ignored.append(f"step {done}: {what}; its update was dropped")

    def _look_for_spike(self, done: int, loss: float, recent: "_Recent", spike: LossSpike) -> None:
        usual, size = recent.median(), recent.size
        recent.add(loss)
        if usual is None or loss <= spike.factor * usual:
            return
        what = f"the loss {loss:.4g} is more than {spike.factor:g} x {usual:.4g}, the median of the last {size}"
        match spike.action:
            case "halt":
                raise NumericalFailure(f"step {done}: {what}; {_ADVICE}")
            case "rewind":
                raise self._rewind(done, what)
            case "ignore":
                self._ignored.append(f"step {done}: {what}")

    def _rewind(self, done: int, what: str) -> NumericalFailure:
        batch = self._batch_of_step(done)
        return NumericalFailure(f"step {done}: {what}; batch {batch} of the data order is to be left out", batch)


class _Recent:
    """The last losses, and the middle one of them."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._in_time: deque[float] = deque()
        self._sorted: list[float] = []

    @property
    def size(self) -> int:
        return len(self._in_time)

    def median(self) -> float | None:
        """None while there are too few to speak of."""
        count = len(self._sorted)
        if count < _LEAST_LOSSES:
            return None
        return (self._sorted[(count - 1) // 2] + self._sorted[count // 2]) / 2

    def add(self, loss: float) -> None:
        self._in_time.append(loss)
        bisect.insort(self._sorted, loss)
        if len(self._in_time) > self._window:
            del self._sorted[bisect.bisect_left(self._sorted, self._in_time.popleft())]
