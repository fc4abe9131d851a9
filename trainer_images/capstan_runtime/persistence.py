"""What saves an attempt's state and keeps it: made in one way for every trainer, and for users' own programs."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from capstan_runtime.agreement import wait_for_rank_0
from capstan_runtime.checkpoint.retention import Retention
from capstan_runtime.checkpoint.saver import Identity, Saver
from capstan_runtime.checkpoint.staging import StagingArea
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.context import JobContext
from capstan_runtime.contract import env
from capstan_runtime.contract.signature import Signature
from capstan_runtime.contract.state import Phase
from capstan_runtime.engine import Stateful
from capstan_runtime.errors import PeerLost
from capstan_runtime.metrics.meter import Meter
from capstan_runtime.restore import Start
from capstan_runtime.saving import SaveClock, SaveState
from capstan_runtime.scratch import scratch_folder
from capstan_runtime.trainer_state import Carried
from capstan_runtime.voice import Voice


def make_save_state(
    context: JobContext,
    state: Stateful,
    store: Store,
    voice: Voice,
    meter: Meter,
    start: Start,
    retention: Retention | None,
    newest_loss: Callable[[], float | None],
    framework: str,
    signature: Signature | None,
    carried: Sequence[Carried] = (),
    judged_from: int = 0,
) -> SaveState:
    """What saves `state`. `framework` is who wrote a checkpoint, as its manifest says; `signature` None: what is saved
    cannot be served. Raises ConfigError if manifests are to be signed and cannot be."""
    run, membership, environ = context.run, context.membership, context.environ
    identity = Identity(
        store=store,
        job=run.job,
        run=run.uid,
        framework=framework,
        fence=membership.fence,
        attempt=start.attempt,
        rank=membership.rank,
        world=membership.world,
        signing_key=Path(environ[env.SIGNING_KEY]) if environ.get(env.SIGNING_KEY) else None,
        signature=signature,
    )
    memory = Path(environ[env.MEMORY]) if run.memory_tier and environ.get(env.MEMORY) else None
    saver = Saver(
        identity,
        parent=start.root,
        exchange=state.exchange,
        deadline_seconds=run.deadlines.save,
        staging=StagingArea(
            memory, run.uid, membership.rank, lambda note: voice.report(note=note), scratch_folder(environ)
        ),
        on_staged=lambda checkpoint: voice.report(staged=checkpoint),
        on_trouble=voice.warn,
    )
    save_clock = SaveClock(run.checkpoint.interval.seconds, time.monotonic, is_owed=not start.is_in_store)
    return SaveState(voice, meter, context, state, saver, save_clock, retention, newest_loss, carried, judged_from)


def settle(
    context: JobContext,
    exchange: Callable[[bytes], list[bytes]],
    voice: Voice,
    wait: Callable[[float], bool] | None,
    is_finished: bool,
) -> None:
    """Waits for what rank 0 still does with the last checkpoint: for `wait`, which is None on all others. All ranks
    wait: one that left, and was ended for taking long to leave, would look like a lost peer to rank 0, and end a run
    that has been won. Collective.

    A run that was stopped waits for a moment only. It has its save, and whoever resumes from that reads all of it; but
    a pod that is being deleted has not long to live, and the others are to go on.
    """
    voice.report(phase=Phase.SAVING if is_finished else Phase.STOPPING)
    deadlines = context.deadlines
    patience_seconds = deadlines.save if is_finished else deadlines.stop / 2
    try:
        wait_for_rank_0(exchange, wait, patience_seconds, time.monotonic)
    except PeerLost as error:
        if is_finished:
            raise
        voice.warn(f"{error}; it was to stop anyway")
