"""A checkpoint of one job made one of another: where a job was made anew, its uid, and so its folder, is another."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from capstan_runtime.checkpoint.layout import is_beside_checkpoints, new_attempt
from capstan_runtime.checkpoint.manifest import SaveFacts
from capstan_runtime.checkpoint.reader import OpenCheckpoint, read_rank
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.checkpoint.writer import Save, SaveFailed, commit, write_rank_manifest
from capstan_runtime.contract.state import Checkpoint
from capstan_runtime.errors import ConfigError, StoreUnavailable

_RUN = re.compile(r"(?:^|/)([^/]+)/([^/]+)/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/?$")
_FENCE = 1
"""Of a job's first attempt, which finds this in its folder, and takes it over as it does its own."""
_COMMIT_SECONDS = 65.0
"""As long as a network file system may take to show what was just written."""


def run_of(place: str) -> tuple[str, str]:
    """(NAMESPACE/NAME, UID) of the TrainingJob whose folder `place` is. Raises ConfigError."""
    found = _RUN.search(place)
    if found is None:
        raise ConfigError(
            f"--to: {place} is not the folder of a TrainingJob; give STORE/NAMESPACE/NAME/UID, the uid that "
            "`kubectl get tj NAME -o jsonpath={.metadata.uid}` prints"
        )
    return f"{found[1]}/{found[2]}", found[3]


def adopt(
    opened: OpenCheckpoint,
    target: Store,
    job: str,
    run: str,
    signing_key: Path | None = None,
    done: Callable[[int], None] = lambda count: None,
) -> Checkpoint:
    """What TrainingJob `job`, of uid `run`, goes on from: the state of `opened`, every byte verified on its way into
    `target`, with the root of `opened` as its parent. `done` hears how many bytes have just been copied.

    Raises ConfigError for what no other job can go on from, and for a target that is not empty; CorruptCheckpoint,
    StoreUnavailable and OSError.
    """
    manifest = opened.manifest
    if manifest.trainer.skips:
        raise ConfigError(
            f"{opened.name}: batches were left out before step {manifest.step}, which only its own job knows; adopt a "
            "checkpoint from before that"
        )
    if not all(map(is_beside_checkpoints, target.children())):
        raise ConfigError(f"--to: {target.place} is not empty; give the folder of a job that has not trained yet")
    same = manifest.model_dump(include={"step", "world", "trainer", "metrics", "framework", "signature"})
    facts = SaveFacts(
        **same,
        job=job,
        run=run,
        fence=_FENCE,
        attempt=new_attempt(run),
        parent=opened.root,
        created_at=time.time(),
    )
    save = Save(target, facts, 0)
    try:
        _copy(opened, save, done)
        for rank in range(manifest.world):
            record = read_rank(opened.store, opened.name, manifest, rank)
            own = record.model_copy(update={"run": run, "fence": _FENCE, "attempt": facts.attempt})
            write_rank_manifest(Save(target, facts, rank), own)
        return commit(save, _COMMIT_SECONDS, signing_key=signing_key)
    except BaseException as error:
        target.remove_all(str(save.name))  # else the next try would find the folder taken
        if isinstance(error, SaveFailed):
            raise StoreUnavailable(f"{target.place}: {error}") from error
        raise


def _copy(opened: OpenCheckpoint, save: Save, done: Callable[[int], None]) -> None:
    reader = opened.reader()

    def counted(file: int) -> Iterator[memoryview]:
        for part in reader.parts_of(file):
            yield part
            done(len(part))

    for number, file in enumerate(opened.files):
        save.store.put(save.key(file.key.rpartition("/")[2]), counted(number))
