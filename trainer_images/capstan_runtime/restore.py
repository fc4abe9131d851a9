"""Where a run continues: the chosen checkpoint is put in place, or the run begins at step 0."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from capstan_runtime.checkpoint.choose import Choosing, choose_checkpoint
from capstan_runtime.checkpoint.generations import Memory
from capstan_runtime.checkpoint.layout import new_attempt
from capstan_runtime.checkpoint.manifest import TrainerState, Value
from capstan_runtime.checkpoint.reader import OpenCheckpoint
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.checkpoint.verified import MissingTensor, VerifyingReader
from capstan_runtime.checkpoint.vote import Loaded, UnusableForGood, Voters
from capstan_runtime.context import JobContext
from capstan_runtime.contract import env
from capstan_runtime.contract.saving import VerifyLevel
from capstan_runtime.contract.state import Checkpoint, Phase, Quarantine, Restored, Source
from capstan_runtime.engine import Stateful
from capstan_runtime.errors import ConfigError
from capstan_runtime.trainer_state import trainer_state
from capstan_runtime.voice import Voice

_MOST_WAITED = 0.5
"""Of the deadline of the first step: what is seen at last is still to be read, and the step to be compiled."""


@dataclass(frozen=True, slots=True)
class Start:
    """Where this attempt begins."""

    step: int
    """Steps already done."""
    attempt: str
    """The attempt's name, the same on every rank."""
    root: str | None
    """Root of the checkpoint resumed from; None at step 0."""
    is_in_store: bool
    """Nothing needs to be saved for it to be found again. At step 0 there is nothing; what was read from memory may
    never have been committed."""
    is_proven: bool
    """The ranks together have checked every byte of it in the store."""
    loss: float | None
    """Of the last step done; None at step 0, and where nobody has told it."""
    callbacks: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    """State of each callback that the checkpoint holds, by name."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the checkpoint says was measured."""
    has_integers: bool = False
    """It is a finished model: there are no weights in it that could be updated."""


def restore(context: JobContext, state: Stateful, store: Store, voice: Voice) -> Start:
    """Where the run continues, with `state` as it was saved. Collective.

    Raises CorruptCheckpoint when nothing verifies, StoreUnavailable when the store fails, ConfigError when the
    checkpoint belongs to another configuration or the ranks see different data.
    """
    attempt = _agree(context, state)

    def tell_quarantine(quarantined: Quarantine) -> None:
        voice.warn(f"checkpoint of step {quarantined.step} is passed over: {quarantined.reason}")
        voice.report(quarantined=quarantined)

    verify = context.run.checkpoint.verify
    loaded = choose_checkpoint(
        Choosing(
            store=store,
            run=context.run.uid,
            membership=context.membership,
            attempt=attempt,
            voters=Voters(
                rank=context.membership.rank,
                level=verify.level,
                exchange=state.exchange,
                load=lambda opened, reader: _load(context, state, opened, reader),
            ),
            on_quarantine=tell_quarantine,
            on_trouble=voice.warn,
            visible_seconds=min(store.lag_seconds, context.deadlines.first_step * _MOST_WAITED),
            memory=_memory(context),
            public_key=verify.public_key,
        )
    )
    if loaded is None:
        voice.report(phase=Phase.COMPILING, step=0, steps=context.steps)
        return Start(0, attempt, None, is_in_store=True, is_proven=False, loss=None)
    _tell(context, loaded, voice)
    manifest = loaded.opened.manifest
    is_proven = loaded.is_verified and loaded.source is Source.STORE
    trainer = manifest.trainer
    return Start(
        manifest.step,
        attempt,
        loaded.opened.root,
        loaded.is_in_store,
        is_proven,
        trainer.loss,
        trainer.callbacks,
        manifest.figures,
        manifest.has_integers,
    )


def _memory(context: JobContext) -> Memory | None:
    """The pods' memory; None when this run has no memory tier. Raises ConfigError."""
    if not context.run.memory_tier:
        return None
    folder, token = context.environ.get(env.MEMORY), read_token(context.environ)
    return Memory(
        folder=Path(folder) if folder else None,
        rank=context.membership.rank,
        peers=context.membership.peers if token else (),
        token=token or "",
    )


def read_token(environ: Mapping[str, str]) -> str | None:
    """What the job's supervisors ask for; None: nobody has said. Raises ConfigError if it cannot be read."""
    token_file = environ.get(env.TOKEN_FILE)
    try:
        return Path(token_file).read_text().strip() if token_file else None
    except OSError as error:
        raise ConfigError(f"{env.TOKEN_FILE}: {token_file} cannot be read: {error}") from error


def _tell(context: JobContext, loaded: Loaded, voice: Voice) -> None:
    opened, tally = loaded.opened, loaded.reader.tally
    manifest = opened.manifest
    voice.report(
        phase=Phase.COMPILING,
        step=manifest.step,
        steps=context.steps,
        resumed_from=Checkpoint(
            step=manifest.step,
            root=opened.root,
            at=manifest.created_at,
            verified_at=time.time() if loaded.is_verified else None,
            logical=manifest.logical,
        ),
        restored=Restored(
            source=loaded.source,
            bytes=tally.bytes,
            seconds=loaded.seconds,
            verify_seconds=tally.hashing_seconds,
            is_in_store=loaded.is_in_store,
        ),
    )
    voice.say(
        f"resumed from step {manifest.step}, {opened.root[:23]}, {opened.size / 1e6:,.1f} MB from "
        f"{opened.store.place} in {loaded.seconds:.1f} s, {_verified(loaded, context.run.checkpoint.verify.level)}; "
        f"saved by {manifest.world} rank{'s' if manifest.world > 1 else ''} at fence {manifest.fence}"
    )


def _verified(loaded: Loaded, level: VerifyLevel) -> str:
    """What of the checkpoint has been verified, and no more than that."""
    if loaded.is_verified:
        return "every byte verified"
    if level == "full":
        return "every byte that was read verified, not known whether that is all of them"
    return "a sample of what was read verified" if level == "sampled" else "its manifests verified, its bytes not"


def _load(context: JobContext, state: Stateful, opened: OpenCheckpoint, reader: VerifyingReader) -> None:
    """Puts the checkpoint's state in place. Raises CorruptCheckpoint, StoreUnavailable, ConfigError, and
    UnusableForGood."""
    _require_same_run(context, opened.manifest.trainer)
    try:
        state.import_state(opened.tensors(reader))
    except MissingTensor as error:
        raise ConfigError(
            f"spec.model: the checkpoint of step {opened.manifest.step} has no tensor {error.args[0]}; "
            "it was saved by another model: restore the old spec, or start a new job"
        ) from error


def _agree(context: JobContext, state: Stateful) -> str:
    """The attempt's name, which rank 0 gives. Raises ConfigError when the ranks do not see the same data: each would
    train on its own, and nothing would look wrong."""
    payload = json.dumps([new_attempt(context.run.uid), context.data_fingerprint]).encode()
    answers: list[list[str]] = [json.loads(answer) for answer in state.exchange(payload)]
    attempt, fingerprint = answers[0]
    for rank, (_, other) in enumerate(answers):
        if other != fingerprint:
            raise ConfigError(
                f"spec.data: rank {rank} sees {other[:23]} where rank 0 sees {fingerprint[:23]}; "
                "the data must be the same on every worker: mount one volume, or correct the copies"
            )
    return attempt


_FIELDS = {
    "seed": "spec.training.seed",
    "global_batch_size": "spec.training.globalBatchSize",
    "virtual_ranks": "spec.training.virtualRanks",
    "plan_version": "the version of the data order",
    "data_fingerprint": "the content of spec.data",
}


def _require_same_run(context: JobContext, saved: TrainerState) -> None:
    """Continuing with other data, in another order, would look like the same run and not be it. Raises ConfigError, and
    UnusableForGood when a batch went into it that the run has been rewound to leave out."""
    now = trainer_state(context, saved.step, saved.loss)
    for name, place in _FIELDS.items():
        if getattr(now, name) != getattr(saved, name):
            raise ConfigError(
                f"{place}: {getattr(now, name)} differs from {getattr(saved, name)} in the checkpoint of step "
                f"{saved.step}; set it back, or start a new job"
            )
    if now.skips != saved.skips:
        raise UnusableForGood(
            f"it was saved with other batches left out than this run leaves out before step {saved.step} since"
        )
