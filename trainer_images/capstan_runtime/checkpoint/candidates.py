"""Which folders of a store are committed checkpoints of a run, cheaply: only names and manifests are read."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from capstan_runtime.checkpoint.claims import newest_claim
from capstan_runtime.checkpoint.disk import Disk, write_file
from capstan_runtime.checkpoint.layout import COMMIT, MANIFEST, QUARANTINED, SaveName
from capstan_runtime.checkpoint.manifest import Commit, Manifest
from capstan_runtime.checkpoint.reader import read_manifest
from capstan_runtime.errors import ConfigError, CorruptCheckpoint


@dataclass(frozen=True, slots=True)
class Candidate:
    """A folder with a COMMIT that this run may resume from, unless something is wrong with it."""

    folder: Path
    name: SaveName
    root: str | None
    """None when the manifest does not verify."""
    problem: str | None
    """Why it must not be used: quarantined before, or a manifest that does not verify. None: nothing known."""
    is_quarantined: bool


@dataclass(frozen=True, slots=True)
class Listing:
    """One look at a store."""

    candidates: tuple[Candidate, ...]
    """Of this run, newest step first, at equal steps the newest fence first."""
    torn: tuple[Path, ...]
    """Saves of this run that were never committed."""
    stale: tuple[Path, ...]
    """Commits of an attempt that had been superseded."""
    foreign: tuple[Path, ...]
    """Everything else. Left alone."""


def list_candidates(store: Path, run: str) -> Listing:
    """What is in `store` for the run with uid `run`. An absent store is an empty one.

    Raises OSError, StoreUnavailable, and ConfigError for a checkpoint of this run that a later version has written.
    """
    candidates: list[Candidate] = []
    torn: list[Path] = []
    stale: list[Path] = []
    foreign: list[Path] = []
    claim = newest_claim(store, run)
    for folder in sorted(store.iterdir()) if store.is_dir() else []:
        name = SaveName.parse(folder.name)
        if name is None or not folder.is_dir():
            foreign.append(folder)
        elif not (folder / COMMIT).exists():
            (torn if name.is_of_run(run) else foreign).append(folder)
        elif (candidate := _inspect(folder, name, run)) is None:
            foreign.append(folder)
        elif claim is not None and name.fence < claim.fence and _is_stale(candidate, claim.committed):
            stale.append(folder)
        else:
            candidates.append(candidate)
    candidates.sort(key=lambda candidate: candidate.name, reverse=True)
    return Listing(tuple(candidates), tuple(torn), tuple(stale), tuple(foreign))


def _is_stale(candidate: Candidate, committed: tuple[str, ...]) -> bool:
    """Only what verifies can be told to be a latecomer; a broken one stays a candidate, so that it is reported."""
    return candidate.root is not None and not candidate.is_quarantined and candidate.root not in committed


def _inspect(folder: Path, name: SaveName, run: str) -> Candidate | None:
    """None when the checkpoint belongs to another run."""
    quarantined = folder / QUARANTINED
    try:
        root, manifest = read_manifest(folder)
    except CorruptCheckpoint as error:
        if not name.is_of_run(run) and not _claims_to_be_of(folder, run):
            return None
        return Candidate(folder, name, None, str(error), quarantined.exists())
    except ConfigError:  # of a later version of Capstan
        if not name.is_of_run(run):
            return None
        raise
    if manifest.run != run:
        return None
    if quarantined.exists():
        return Candidate(folder, name, root, _reason_of(quarantined), True)
    return Candidate(folder, name, root, None, False)


def _claims_to_be_of(folder: Path, run: str) -> bool:
    """Whether what is left of a broken checkpoint still names `run`."""
    for path, kind in ((folder / COMMIT, Commit), (folder / MANIFEST, Manifest)):
        try:
            if kind.model_validate_json(path.read_bytes()).run == run:
                return True
        except (ValidationError, OSError):
            continue  # it is known to be broken: the question is only what can still be read
    return False


def quarantine(candidate: Candidate, reason: str, disk: Disk) -> None:
    """Marks the checkpoint so that no later attempt tries it again. Raises OSError."""
    note = json.dumps({"reason": reason, "at": time.time()}, sort_keys=True).encode()
    write_file(disk, candidate.folder / QUARANTINED, [note])
    disk.sync_folder(candidate.folder)


def _reason_of(marker: Path) -> str:
    try:
        return str(json.loads(marker.read_bytes())["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return "quarantined; the marker does not say why"
