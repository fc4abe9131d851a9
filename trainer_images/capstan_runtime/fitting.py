"""Whether a step fits into the device's memory is asked before the first one is made, and not found out by it."""

import json
from collections.abc import Callable
from dataclasses import replace

from capstan_runtime.context import TrainContext
from capstan_runtime.engine import Batch, Engine
from capstan_runtime.errors import ConfigError
from capstan_runtime.voice import Voice


def fitted(context: TrainContext, engine: Engine, read: Callable[[TrainContext], Batch], voice: Voice) -> TrainContext:
    """`context` in whose micro-steps every rank's step fits, as far as that can be told: as it is or, if they are too
    large anywhere, with the largest that its memory has room for, at most half as large. Collective.

    Each look may compile a program, for minutes, and is told of before: whoever watches sees that it goes on, and the
    next attempt begins there. `read` gives a batch as large as any of a run. Raises ConfigError when nothing is left to
    halve, or the model needs a virtual rank's samples together.
    """
    limits = _told_by_all(engine, engine.memory_limit())
    if None in limits:
        return context
    limit = min(each for each in limits if each is not None)
    peak = _peak(engine, read(context))
    while peak is None or peak > limit:
        smaller = _with_smaller_micro_steps(context, engine.devices, peak, limit)
        smaller.require_whole_slices(devices=1)
        _tell(context, smaller, _needs(peak, limit), voice)
        context, peak = smaller, _peak(engine, read(smaller))
    return context


def _peak(engine: Engine, batch: Batch) -> int | None:
    """Of the rank that needs most; None: more than it has."""
    peaks = _told_by_all(engine, engine.step_memory(batch))
    return None if None in peaks else max(each for each in peaks if each is not None)


def _told_by_all(engine: Engine, number: int | None) -> list[int | None]:
    return [json.loads(answer) for answer in engine.exchange(json.dumps(number).encode())]


def _with_smaller_micro_steps(context: TrainContext, devices: int, peak: int | None, limit: int) -> TrainContext:
    """In the fewest equal parts, two at least, for which there is room if all of `peak` is in proportion to samples.
    What is not, such as weights, takes as much with each part: these may be too few, and are no more than it takes."""
    samples = context.samples_per_micro_step
    equal = [parts for parts in range(2, samples + 1) if samples % parts == 0 and samples // parts % devices == 0]
    if not equal:
        least = "a single sample" if samples == 1 else f"{samples} samples over {devices} devices"
        raise ConfigError(
            f"spec.model: a micro-step of {least} {_needs(peak, limit)}; choose a smaller model or a larger device"
        )
    enough = 2 if peak is None else -(-peak // max(limit, 1))
    parts = next((each for each in equal if each >= enough), equal[-1])
    splits = context.samples_of_slice // (samples // parts)
    return replace(context, membership=context.membership.model_copy(update={"micro_splits": splits}))


def _needs(peak: int | None, limit: int) -> str:
    return f"needs {'more' if peak is None else f'{peak:,} bytes'}, and the device has {limit:,}"


def _tell(before: TrainContext, after: TrainContext, needs: str, voice: Voice) -> None:
    """The operator gives the next attempt what has been found."""
    samples, fewer = before.samples_per_micro_step, after.samples_per_micro_step
    note = f"a micro-step of {samples} samples {needs}; from now on it is of {fewer}"
    is_told = after.membership.rank == 0  # all ranks have found the same; one says so
    voice.report(micro_splits=after.membership.micro_splits, note=note if is_told else None)
    voice.say(note)
