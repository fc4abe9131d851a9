"""What the pods told about steps, metrics and checkpoints, and how often status repeats it."""

import math
from collections.abc import Iterable, Mapping

from capstan_operator.api.meta import Condition, TrainingJobCondition
from capstan_operator.api.training_job_status import (
    CheckpointStatus,
    ProfileStatus,
    QuarantineStatus,
    RegisteredStatus,
    TrainingJobStatus,
    WorkersStatus,
)
from capstan_operator.decide.situation import Situation, word_of
from capstan_operator.decide.times import rfc3339, seconds_after
from capstan_runtime.contract.compression import CompressionReport, ModelFigures
from capstan_runtime.contract.state import Checkpoint, Phase, Source, State

MAKES_STEPS = frozenset({Phase.TRAINING, Phase.SAVING, Phase.SUCCEEDED})
"""Phases in which `step` is that of the present attempt. Before them it may be the last attempt's, and may be so in an
evaluation: what the attempt before owed is measured before the first step."""
RATES = frozenset(
    {"samples_per_second", "tokens_per_second", "step_seconds", "busy_seconds", "model_flops_per_second", "mfu"}
)
"""Metrics that say nothing once the steps stop."""
UNKNOWN_ROOT = "unknown"
"""What the trainer calls a checkpoint whose manifest it could not read."""
QUARANTINES_KEPT = 20
QUARANTINE_REASON_LENGTH = 300
METRIC_DIGITS = 6
"""Significant digits kept of a metric: more are noise, and make status differ for nothing."""


def learn(situation: Situation) -> TrainingJobStatus:
    """Status with everything added that the pods say: rank 0 speaks for all, last words count as words."""
    status = _learn_checkpoints(situation)
    images = {worker.pod.image_id for worker in situation.members if worker.pod and worker.pod.image_id}
    if images:
        status = status.model_copy(update={"images": sorted(images)})
    speaker = situation.speaker
    word = speaker.word if speaker else None
    if speaker is None or word is None or word.fence != status.fence or status.fence == 0:
        return status
    resumed = _describe(word.resumed_from) if word.resumed_from else status.resumed_from
    update: dict[str, object] = {"resumed_from": resumed}
    if made_progress(status):
        update["attempts_without_progress"] = 0
    if word.registered is not None:
        registered = word.registered
        update["registered"] = RegisteredStatus(
            name=registered.name, version=registered.version, digest=registered.root
        )
    if word.compression is not None:
        update["compression"] = _readable(word.compression)
    if word.profile is not None:
        update["profile"] = ProfileStatus(**word.profile.model_dump())
    if word.steps is not None:
        update["steps"] = word.steps
    if word.data is not None:
        update["data"] = word.data
    if has_stepped(word):
        metrics = word.metrics or (speaker.answer.metrics if speaker.answer else {})
        update |= {"step": last_step(word), "metrics": status.metrics | rounded(metrics)}
    elif word.phase in (Phase.COMPILING, Phase.EVALUATING) and word.resumed_from:
        # Lower than the newest checkpoint if that one did not verify.
        update["step"] = word.resumed_from.step
    return status.model_copy(update=update)


def _readable(report: CompressionReport) -> CompressionReport:
    """With as many digits as metrics have."""

    def rounded_figures(figures: ModelFigures | None) -> ModelFigures | None:
        if figures is None:
            return None
        known = {name: getattr(figures, name) for name in ("loss", "accuracy", "sparsity")}
        return figures.model_copy(update=rounded({name: value for name, value in known.items() if value is not None}))

    return CompressionReport(before=rounded_figures(report.before), after=rounded_figures(report.after))


def has_stepped(word: State) -> bool:
    """It has done a step in its attempt, or had none left to do."""
    return word.phase in MAKES_STEPS or bool(MAKES_STEPS & word.timeline.keys())


def is_making_steps(word: State) -> bool:
    """It has done a step in its attempt, and is not ending."""
    return word.phase in MAKES_STEPS or (word.phase is Phase.EVALUATING and has_stepped(word))


def last_step(word: State) -> int:
    """The last step it is known to have done: its end may tell of one that it had not reported."""
    told = word.exit.step if word.exit is not None and word.exit.fence == word.fence else None
    return max(word.step, told or 0)


def made_progress(status: TrainingJobStatus) -> bool:
    """A newer checkpoint than the newest when the attempt began is known."""
    return status.checkpoint is not None and status.checkpoint.step > (status.base_step or 0)


def percent_done(status: TrainingJobStatus) -> int | None:
    """Whole percents of the steps that are done, rounded down; None: not known yet."""
    if status.step is None or not status.steps:
        return None
    return min(100, status.step * 100 // status.steps)


def estimate_finish(status: TrainingJobStatus, now: float) -> str | None:
    """When the steps left will be done at the present speed; None: the speed is not known yet."""
    step_seconds = status.metrics.get("step_seconds")
    if status.step is None or status.steps is None or not step_seconds:
        return None
    return rfc3339(now + max(0, status.steps - status.step) * step_seconds)


def rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    """`metrics` with six significant digits; what is not finite is left out, because JSON has no word for it."""
    return {
        name: float(f"{value:.{METRIC_DIGITS}g}") for name, value in sorted(metrics.items()) if math.isfinite(value)
    }


def without_rates(metrics: Mapping[str, float]) -> dict[str, float]:
    """`metrics` as they stand when no steps are made."""
    return {name: value for name, value in metrics.items() if name not in RATES}


def hold_back(
    old: TrainingJobStatus, new: TrainingJobStatus, now: float, every_seconds: float
) -> tuple[TrainingJobStatus, float | None]:
    """(the status to write, seconds until it is worth another look or None).

    What matters is written at once and takes the progress along. Progress alone is written when a reader would see a
    difference, and not more often than every `every_seconds`; otherwise `old` comes back, which means: write nothing.
    """
    if without_progress(old) == without_progress(new):
        if glance(old) == glance(new):
            return old, None
        wait = every_seconds - seconds_after(old.progress_at, now)
        if wait > 0:
            return old, wait
    return new.model_copy(update={"progress_at": rfc3339(now)}), None


def without_progress(status: TrainingJobStatus) -> TrainingJobStatus:
    """`status` without all that moves while nothing happens: how far, how fast, and sentences about it."""
    return status.model_copy(
        update={
            "message": None,
            "conditions": [_without_message(c) for c in status.conditions if c.type != _VERIFIED],
            "step": None,
            "steps": None,
            "percent": None,
            "metrics": {},
            "workers": WorkersStatus(desired=status.workers.desired),
            "checkpoint": None,
            "resumed_from": None,
            "size_message": None,
            "estimated_finish_at": None,
            "progress_at": None,
            "first_step_at": None,
            "goodput": None,
            "attempts_without_progress": 0,
        }
    )


def glance(status: TrainingJobStatus) -> tuple[object, ...]:
    """The part of progress whose change is worth a write."""
    verified = next(((c.status, c.reason) for c in status.conditions if c.type == _VERIFIED), None)
    sentences = (status.message, status.size_message)
    return (status.percent, status.checkpoint, status.resumed_from, status.workers, *sentences, verified)


_VERIFIED = TrainingJobCondition.CHECKPOINT_VERIFIED


def _without_message(condition: Condition) -> Condition:
    return condition.model_copy(update={"message": ""})


def _learn_checkpoints(situation: Situation) -> TrainingJobStatus:
    """The newest committed checkpoint that nobody found corrupt, and the list of those found so."""
    status, observed = situation.status, situation.observed
    words = [word for pod in observed.pods if (word := word_of(pod, observed))]
    quarantined = _quarantined(status.quarantined, words)
    bad_roots = {entry.root for entry in quarantined}
    known = [status.checkpoint] if status.checkpoint else []
    for word in words:
        if word.rank == 0 and word.checkpoint:
            known.append(_describe(word.checkpoint))
        # What was restored from the pods' memory may have been committed, or not: the store alone makes it so.
        restored = word.restored
        if word.rank == 0 and word.resumed_from and restored is not None:
            if restored.source is Source.STORE:
                known.append(_describe(word.resumed_from))
            elif restored.is_in_store:  # whose bytes nobody has read there
                known.append(_describe(word.resumed_from.model_copy(update={"verified_at": None})))
    good = [checkpoint for checkpoint in known if checkpoint.root not in bad_roots]
    newest = max(good, key=lambda c: (c.step, c.committed_at or "", c.verified_at or ""), default=None)
    return status.model_copy(update={"checkpoint": _complete(newest, good), "quarantined": quarantined})


def _complete(newest: CheckpointStatus | None, known: list[CheckpointStatus]) -> CheckpointStatus | None:
    """`newest` with the times from every mention of it: one knows the commit, another the verification."""
    if newest is None:
        return None
    mentions = [checkpoint for checkpoint in known if checkpoint.root == newest.root]
    committed = min((c.committed_at for c in mentions if c.committed_at), default=None)
    verified = max((c.verified_at for c in mentions if c.verified_at), default=None)
    return newest.model_copy(update={"committed_at": committed, "verified_at": verified})


def _quarantined(known: list[QuarantineStatus], words: Iterable[State]) -> list[QuarantineStatus]:
    """The quarantined checkpoints of the highest steps, a bounded number: an object has no room for all, and which
    ones are kept may not depend on who told of them first."""
    entries = {(entry.step, entry.root): entry for entry in known}
    for word in words:
        for entry in word.quarantined:
            is_known = any(step == entry.step for step, _ in entries)
            if entry.root == UNKNOWN_ROOT and is_known:
                continue  # of which checkpoint it speaks has been told before
            reason = entry.reason[:QUARANTINE_REASON_LENGTH]
            told = QuarantineStatus(step=entry.step, root=entry.root, reason=reason)
            entries.setdefault((entry.step, entry.root), told)
    kept = sorted(entries.values(), key=lambda entry: (entry.step, entry.root))[-QUARANTINES_KEPT:]
    return [entry for entry in entries.values() if entry in kept]


def _describe(checkpoint: Checkpoint) -> CheckpointStatus:
    verified = checkpoint.verified_at
    return CheckpointStatus(
        step=checkpoint.step,
        root=checkpoint.root,
        committed_at=rfc3339(checkpoint.at),
        verified_at=None if verified is None else rfc3339(verified),
        summary=summary(checkpoint.step, checkpoint.root),
    )


def summary(step: int, root: str) -> str:
    """`120@3fa9c1d2`: enough to tell checkpoints apart in a table."""
    return f"{step}@{short_root(root)}"


def short_root(root: str) -> str:
    """The first eight digits of a root."""
    return root.rpartition(":")[2][:8]
