"""What a tracker is told, and what it must be able to do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Point:
    """What was reported at one moment."""

    step: int
    """Optimizer steps done."""
    at: float
    """Seconds since 1970."""
    values: Mapping[str, float]
    """Finite, by name."""
    checkpoint: str | None = None
    """Root of the checkpoint of this step, which was just committed; None: that is not what is reported."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a tracker is told of the run once."""

    job: str
    """`namespace/name`."""
    uid: str
    """Of the TrainingJob: the same in every attempt, and of no other run."""
    fence: int
    """Number of this attempt."""
    world: int
    first_step: int
    """Optimizer steps done when this attempt began. What an earlier one reported of later steps is of a timeline that
    was abandoned."""
    resumed_from: str | None
    """Root of the checkpoint that the attempt goes on from; None: it begins at step 0."""
    store: str
    """Where the run's checkpoints are."""
    config: Mapping[str, Any]
    """The run's document, as `run.json` has it."""


class Sink(Protocol):
    """One tracker, used by one thread. Whatever it raises, the run goes on: what it was given then is lost."""

    def write(self, points: Sequence[Point]) -> None:
        """Takes `points`, at least one, in the order of time."""
        ...

    def close(self, is_finished: bool) -> None:
        """All that was written stays. `is_finished`: no attempt of the run will follow."""
        ...


def flat(document: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """`document` with one key for each leaf, `model.cnn.channels`; a list is one leaf, as text.

    >>> flat({"model": {"cnn": {"channels": [16, 32]}}, "seed": 1})
    {'model.cnn.channels': '[16, 32]', 'seed': 1}
    """
    leaves: dict[str, str | int | float | bool] = {}
    for name, value in document.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{name}.") if value else {f"{prefix}{name}": "{}"}
        else:
            leaves[f"{prefix}{name}"] = value if isinstance(value, str | int | float | bool) else str(value)
    return leaves
