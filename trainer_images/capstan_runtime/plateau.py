"""When the learning rate falls because evaluations no longer improve: as torch's ReduceLROnPlateau, with its relative
threshold."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from capstan_runtime.checkpoint.manifest import Value
from capstan_runtime.contract.schedules import Plateau


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the evaluations so far have come to."""

    fraction: float = 1.0
    """The learning rate, as a share of the peak."""
    best: float | None = None
    """The best figure so far; None: there was none that is finite."""
    misses: int = 0
    """Evaluations in a row that were no better."""
    cooldown: int = 0
    """Evaluations to come that count for nothing."""


def judged(plateau: Plateau, before: Judgement, figure: float) -> Judgement:
    """After one more evaluation, which gave `figure`. One that is not finite is no better than any."""
    is_better = _is_better(plateau, before.best, figure)
    best = figure if is_better else before.best
    misses = 0 if is_better or before.cooldown else before.misses + 1
    if misses > plateau.patience:
        fraction = max(before.fraction * plateau.factor, plateau.minimum_fraction)
        return Judgement(fraction, best, 0, plateau.cooldown)
    return replace(before, best=best, misses=misses, cooldown=max(0, before.cooldown - 1))


def _is_better(plateau: Plateau, best: float | None, figure: float) -> bool:
    if best is None or not math.isfinite(figure):
        return math.isfinite(figure)
    if plateau.metric == "accuracy":
        return figure > best * (1.0 + plateau.threshold)
    return figure < best * (1.0 - plateau.threshold)


class PlateauFollower:
    """Follows the evaluations of a run whose schedule is a plateau."""

    name = "plateau"

    def __init__(
        self, plateau: Plateau, saved: Mapping[str, Value], say: Callable[[str], None], judged_from: int = 0
    ) -> None:
        """`saved` is what `state` returned before, empty at step 0; `say` takes a line for people; `judged_from` is the
        run's."""
        self._plateau = plateau
        self._judged_from = judged_from
        self._say = say
        self._judgement = Judgement(
            fraction=float(saved.get("fraction", 1.0)),
            best=float(saved["best"]) if "best" in saved else None,
            misses=int(saved.get("misses", 0)),
            cooldown=int(saved.get("cooldown", 0)),
        )

    @property
    def fraction(self) -> float:
        """The learning rate after the warm-up, as a share of the peak."""
        return self._judgement.fraction

    def after_evaluation(self, done: int, metrics: Mapping[str, float]) -> None:
        """Those in the warm-up count for nothing: a rate that is still growing has not been tried. Nor do those of a
        model that pruning has yet to cut."""
        if done <= self._plateau.warmup_steps or done < self._judged_from:
            return
        before, metric = self._judgement, self._plateau.metric
        self._judgement = judged(self._plateau, before, metrics[metric])
        if self._judgement.fraction < before.fraction:
            self._say(
                f"step {done}: evaluations without a better {metric}: {before.misses + 1}; "
                f"the learning rate falls to {self._judgement.fraction:.6g} of its peak"
            )

    def state(self) -> dict[str, Value]:
        kept = self._judgement
        best = {} if kept.best is None else {"best": kept.best}
        return {"fraction": kept.fraction, **best, "misses": kept.misses, "cooldown": kept.cooldown}
