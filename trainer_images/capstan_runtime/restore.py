"""Where a run continues: the chosen checkpoint is put into the engine, or the run begins at step 0."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from capstan_runtime.checkpoint.candidates import Candidate
from capstan_runtime.checkpoint.choose import Choosing, choose_checkpoint, quarantine_and_report
from capstan_runtime.checkpoint.disk import Disk
from capstan_runtime.checkpoint.layout import SaveName, new_attempt
from capstan_runtime.checkpoint.manifest import TrainerState
from capstan_runtime.checkpoint.reader import MissingTensor, OpenCheckpoint
from capstan_runtime.context import TrainContext
from capstan_runtime.contract.state import Checkpoint, Phase, Quarantine
from capstan_runtime.engine import Engine
from capstan_runtime.errors import ConfigError, CorruptCheckpoint, StoreUnavailable
from capstan_runtime.trainer_state import trainer_state
from capstan_runtime.voice import Voice


@dataclass(frozen=True, slots=True)
class Start:
    """Where this attempt begins."""

    step: int
    """Steps already done."""
    attempt: str
    """The attempt's name, the same on every rank."""
    root: str | None
    """Root of the checkpoint resumed from; None at step 0."""


def restore(context: TrainContext, engine: Engine, store: Path, voice: Voice, disk: Disk) -> Start:
    """Where the run continues, with the engine in that state. Collective.

    Raises CorruptCheckpoint when nothing verifies, StoreUnavailable when the store fails, ConfigError when the
    checkpoint belongs to another configuration or the ranks see different data.
    """
    attempt = _agree(context, engine)

    def tell_quarantine(quarantined: Quarantine) -> None:
        voice.warn(f"checkpoint of step {quarantined.step} is passed over: {quarantined.reason}")
        voice.report(quarantined=quarantined)

    chosen = choose_checkpoint(
        Choosing(
            store=store,
            run=context.run.uid,
            membership=context.membership,
            attempt=attempt,
            verify=context.run.checkpoint.verify.level,
            exchange=engine.exchange,
            on_quarantine=tell_quarantine,
            disk=disk,
        )
    )
    if chosen is None:
        voice.report(phase=Phase.COMPILING, step=0, steps=context.steps)
        return Start(0, attempt, None)
    _require_same_run(context, chosen.manifest.trainer)
    _import(engine, chosen, tell_quarantine, disk)
    step, now = chosen.manifest.step, time.time()
    read_at = now if context.run.checkpoint.verify.level == "full" else None
    voice.report(
        phase=Phase.COMPILING,
        step=step,
        steps=context.steps,
        resumed_from=Checkpoint(step=step, root=chosen.root, at=now, verified_at=read_at),
    )
    how = "every byte verified" if read_at else "bytes verified as they are read"
    voice.say(
        f"resumed from step {step}, {chosen.root[:23]}, {chosen.size / 1e6:,.1f} MB, {how}; "
        f"saved by {chosen.manifest.world} ranks at fence {chosen.manifest.fence}"
    )
    return Start(step, attempt, chosen.root)


def _agree(context: TrainContext, engine: Engine) -> str:
    """The attempt's name, which rank 0 gives. Raises ConfigError when the ranks do not see the same data: each would
    train on its own, and nothing would look wrong."""
    payload = json.dumps([new_attempt(context.run.uid), context.data.fingerprint]).encode()
    answers: list[list[str]] = [json.loads(answer) for answer in engine.exchange(payload)]
    attempt, fingerprint = answers[0]
    for rank, (_, other) in enumerate(answers):
        if other != fingerprint:
            raise ConfigError(
                f"spec.data: rank {rank} sees {other[:23]} where rank 0 sees {fingerprint[:23]}; "
                "the data must be the same on every worker: mount one volume, or correct the copies"
            )
    return attempt


def _import(engine: Engine, chosen: OpenCheckpoint, tell_quarantine: Callable[[Quarantine], None], disk: Disk) -> None:
    try:
        engine.import_state(chosen.tensors())
    except MissingTensor as error:
        raise ConfigError(
            f"spec.model: the checkpoint of step {chosen.manifest.step} has no tensor {error.args[0]}; "
            "it was saved by another model: restore the old spec, or start a new job"
        ) from error
    except CorruptCheckpoint as error:
        # It verified a moment ago, or `verify: manifest` trusted it. The ranks may be half-way through a collective, so
        # the way back to an older checkpoint leads through a new attempt, which will not propose this one again.
        quarantine_and_report(_candidate(chosen), str(error), tell_quarantine, disk)
        raise StoreUnavailable(f"the checkpoint went bad while it was read: {error}") from error


def _candidate(chosen: OpenCheckpoint) -> Candidate:
    manifest = chosen.manifest
    name = SaveName(manifest.step, manifest.fence, manifest.attempt)
    return Candidate(chosen.folder, name, chosen.root, problem=None, is_quarantined=False)


_FIELDS = {
    "seed": "spec.training.seed",
    "global_batch_size": "spec.training.globalBatchSize",
    "virtual_ranks": "spec.training.virtualRanks",
    "plan_version": "the version of the data order",
    "data_fingerprint": "the content of spec.data",
}


def _require_same_run(context: TrainContext, saved: TrainerState) -> None:
    """Continuing with other data, in another order, would look like the same run and not be it."""
    now = trainer_state(context, saved.step, saved.loss)
    for name, field in _FIELDS.items():
        if getattr(now, name) != getattr(saved, name):
            raise ConfigError(
                f"{field}: {getattr(now, name)} differs from {getattr(saved, name)} in the checkpoint of step "
                f"{saved.step}; set it back, or start a new job"
            )
