"""What a trainer's report changes in the pod's State, and whether the operator should look at once. Pure."""

from collections.abc import Iterable

from capstan_runtime.contract.chaos import Fault, Injection
from capstan_runtime.contract.state import Phase, Progress, Quarantine, State

_QUARANTINES_KEPT = 20
_INJECTED_KEPT = 20
_NOTES_KEPT = 5
_METRICS_KEPT = 100
_LONGEST_TEXT = 300
_RECORDS = (
    "checkpoint",
    "staged",
    "resumed_from",
    "restored",
    "early_stop",
    "profile",
    "registered",
    "data",
    "compression",
)
"""Fields of a Progress that become the State's field of the same name."""
_LASTING = frozenset({Fault.SLOW_RANK, Fault.SLOW_NETWORK, Fault.DATA_STALL})
"""Faults that last for the time their injection names."""


def taken_in(state: State, progress: Progress) -> dict[str, object]:
    """The fields of `state` that one line of its trainer changes, but for the phase. All lists stay short: a State is
    copied at every report and read by the operator many times."""
    changed: dict[str, object] = progress.model_dump(exclude_none=True, include={"step", "steps", "micro_splits"})
    changed |= {name: value for name in _RECORDS if (value := getattr(progress, name)) is not None}
    if progress.metrics is not None:
        changed["metrics"] = dict(list(progress.metrics.items())[:_METRICS_KEPT])
    if progress.system is not None:
        changed["system"] = dict(list(progress.system.items())[:_METRICS_KEPT])
    if progress.quarantined is not None:
        quarantined = Quarantine(
            step=progress.quarantined.step,
            root=progress.quarantined.root,
            reason=progress.quarantined.reason[:_LONGEST_TEXT],
        )
        changed["quarantined"] = [*state.quarantined, quarantined][-_QUARANTINES_KEPT:]
    if progress.injected is not None:
        changed["injected"] = [*state.injected, progress.injected][-_INJECTED_KEPT:]
    if progress.note is not None:
        changed["notes"] = [*state.notes, progress.note[:_LONGEST_TEXT]][-_NOTES_KEPT:]
    return changed


def is_news(progress: Progress) -> bool:
    """Whether the operator should hear of this line before its next poll."""
    return any(
        value is not None
        for value in (
            progress.checkpoint,
            progress.quarantined,
            progress.injected,
            progress.registered,
            progress.compression,
            progress.profile,
            progress.note,
        )
    )


def is_under_chaos(state: State, chaos: Iterable[Injection], now: float) -> bool:
    """Whether a fault that was injected here still has its effect. A slow one lasts for its duration; any other until
    the trainer, in this attempt or the next, trains again. `now` is in seconds since 1970."""
    lasts = {each.name: each.duration_seconds for each in chaos}
    trains_since = state.timeline.get(Phase.TRAINING)
    for fault in state.injected:
        if fault.fault in _LASTING:
            if now < fault.at + lasts.get(fault.name, 0.0):
                return True
        elif trains_since is None or trains_since < fault.at:
            return True
    return False
