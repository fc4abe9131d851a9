"""Which checkpoints stay: a pure function of what there is, of the rules, and of the time."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from capstan_runtime.checkpoint.layout import SaveName
from capstan_runtime.contract.saving import Best, Retention

PROVEN = 2
"""So many checkpoints must have been read back and found whole before any other may go, and they stay."""


@dataclass(frozen=True, slots=True)
class Held:
    """A committed checkpoint that nobody has found broken."""

    name: SaveName
    committed_at: float
    """Seconds since 1970."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    is_pinned: bool = False
    is_proven: bool = False
    """All its bytes were read back, and were what was committed."""


def kept(saves: Collection[Held], rules: Retention, now: float, judged_from: int = 0) -> frozenset[SaveName]:
    """Those that stay: the newest `rules.last`, those of which any other rule says so, the pinned ones, and the newest
    two that are proven. As long as fewer than two are proven, all of them. None from before step `judged_from` is best.

    What has once been let go never comes to be kept by later saves, or as time passes.
    """
    newest_first = sorted(saves, key=lambda save: save.name, reverse=True)
    proven = [save for save in newest_first if save.is_proven][:PROVEN]
    if len(proven) < PROVEN:
        return frozenset(save.name for save in saves)
    stay = [*newest_first[: rules.last], *proven, *(save for save in saves if save.is_pinned)]
    if rules.every_steps is not None:
        stay += _one_of_each_step(save for save in newest_first if save.name.step % rules.every_steps == 0)
    if rules.best is not None:
        stay += _best((save for save in newest_first if save.name.step >= judged_from), rules.best)
    if rules.newer_than_seconds is not None:
        stay += [save for save in saves if now - save.committed_at <= rules.newer_than_seconds]
    return frozenset(save.name for save in stay)


def _one_of_each_step(newest_first: Iterable[Held]) -> list[Held]:
    """A step that was done twice, after a restart from before it, is kept once: the later one is the run's history."""
    return list({save.name.step: save for save in reversed(list(newest_first))}.values())


def _best(newest_first: Iterable[Held], best: Best) -> list[Held]:
    """Of equally good ones the earlier: it was reached with less work. One whose metric is unknown is never best."""
    sign = -1.0 if best.mode == "max" else 1.0
    measured = [save for save in newest_first if math.isfinite(save.metrics.get(best.metric, math.nan))]
    measured.sort(key=lambda save: (sign * save.metrics[best.metric], save.name))
    return measured[: best.keep]
