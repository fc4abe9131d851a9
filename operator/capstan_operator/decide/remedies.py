"""What the next attempt does differently, so that it does not end like the last: smaller micro-batches, batches left
out."""

from capstan_operator.api.training_job_status import SkipStatus, TrainingJobStatus
from capstan_operator.build.run_config import room_digest
from capstan_operator.decide.situation import Situation, has_changed_pods, is_changed
from capstan_runtime.contract.run_config import Skip


def samples_of_slice(situation: Situation) -> int:
    """Samples of one virtual rank in one optimizer step."""
    virtual_ranks = situation.status.virtual_ranks or situation.blueprint.spec.virtual_ranks
    return situation.blueprint.spec.training.global_batch_size // virtual_ranks


def next_splits(samples: int, splits: int) -> int | None:
    """The least number of equal micro-steps for `samples` that at least halves those of `splits`; None: there is none.

    >>> next_splits(8, 1), next_splits(8, 4), next_splits(8, 8), next_splits(6, 2), next_splits(7, 1)
    (2, 8, None, 6, 7)
    """
    return next((parts for parts in range(2 * splits, samples + 1) if samples % parts == 0), None)


def learn_splits(situation: Situation) -> TrainingJobStatus:
    """Status with the micro-steps that the ranks of the attempt that is on have found to fit into their memory, so that
    the next one begins with them."""
    status = situation.status
    words = [worker.word for worker in situation.members]
    found = max((word.micro_splits for word in words if word and word.fence == status.fence), default=1)
    return status.model_copy(update=_splits(situation, found)) if found > (status.micro_splits or 1) else status


def forget_splits(situation: Situation) -> TrainingJobStatus:
    """Status of a job without pods: micro-steps that other devices, or another share of the model on each, had no room
    for are tried again. Any other change leaves them: to find them anew may cost restarts, of which there are few."""
    status = situation.status
    if status.micro_splits_for in (None, room_digest(situation.blueprint.spec)):
        return status
    return status.model_copy(update={"micro_splits": None, "micro_splits_for": None})


def _splits(situation: Situation, parts: int) -> dict[str, object]:
    """What changes in status with so many micro-steps per virtual rank."""
    status, blueprint = situation.status, situation.blueprint
    # What the pods were made of is not known once the spec says something else.
    is_late = is_changed(status, blueprint) or has_changed_pods(status, blueprint)
    return {
        "micro_splits": parts,
        "micro_splits_for": status.micro_splits_for if is_late else room_digest(blueprint.spec),
    }


def largest_splits_reached(situation: Situation) -> bool:
    """A micro-batch cannot be made smaller."""
    return next_splits(samples_of_slice(situation), situation.status.micro_splits or 1) is None


def split_micro_batch(situation: Situation) -> tuple[dict[str, object], str]:
    """(what changes in status from now on, that in words). Only if `largest_splits_reached` is false."""
    samples, splits = samples_of_slice(situation), situation.status.micro_splits or 1
    parts = next_splits(samples, splits)
    assert parts is not None
    after, before = samples // parts, samples // splits
    words = f"micro-batches of {after} sample{'s' if after > 1 else ''} from now on, of {before} before"
    return _splits(situation, parts), words


def skip_batches(status: TrainingJobStatus, first: int, count: int) -> tuple[list[SkipStatus], str]:
    """(what is left out from now on, in the order of the data and disjoint; the new part in words)."""
    spans = sorted([*((skip.first, skip.first + skip.count) for skip in status.skips), (first, first + count)])
    merged: list[tuple[int, int]] = []
    for begin, end in spans:
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    words = f"batch {first} is left out" if count == 1 else f"batches {first} to {first + count - 1} are left out"
    return [SkipStatus(first=begin, count=end - begin) for begin, end in merged], words


def skips_of(status: TrainingJobStatus) -> tuple[Skip, ...]:
    """What is left out, as the ranks are told."""
    return tuple(Skip(first=skip.first, count=skip.count) for skip in status.skips)
