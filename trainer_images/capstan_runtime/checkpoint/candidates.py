"""Which saves in a store are committed checkpoints of a run, cheaply: only names and manifests are read."""

import json
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from pydantic import ValidationError

from capstan_runtime.checkpoint.claims import newest_claim
from capstan_runtime.checkpoint.layout import COMMIT, MANIFEST, QUARANTINED, SaveName
from capstan_runtime.checkpoint.manifest import Claim, Commit, Manifest
from capstan_runtime.checkpoint.reader import LaterFormat, read_manifest, read_note
from capstan_runtime.checkpoint.store import ObjectMissing, Store, is_of_one_folder
from capstan_runtime.errors import CorruptCheckpoint, StoreUnavailable


@dataclass(frozen=True, slots=True)
class Candidate:
    """A save with a COMMIT that this run may resume from, unless something is wrong with it."""

    name: SaveName
    root: str | None
    """None when the manifest does not verify, or cannot be read by this version."""
    manifest: Manifest | None
    """None when `root` is."""
    problem: str | None
    """Why it must not be used: quarantined before, a manifest that does not verify, or a later format. None: nothing
    known."""
    marks: frozenset[str]
    """Names of the objects directly in it: COMMIT, MANIFEST.json, QUARANTINED, …"""
    is_later: bool = False
    """A later version of Capstan wrote it."""
    is_unreadable: bool = False
    """It may be whole: its folder cannot be read, which may pass. It is told and left alone."""
    note_root: str | None = None
    """What COMMIT says `root` was, where it is all that is left: MANIFEST.json is missing."""

    @property
    def committed_root(self) -> str | None:
        """By which claims know it; None: nothing that can be believed says so."""
        return self.root or self.note_root

    @property
    def is_quarantined(self) -> bool:
        return QUARANTINED in self.marks


@dataclass(frozen=True, slots=True)
class Listing:
    """One look at a store."""

    candidates: tuple[Candidate, ...]
    """Of this run, newest step first, at equal steps the newest fence first."""
    later: tuple[Candidate, ...]
    """Of this run, written by a later version of Capstan."""
    torn: tuple[SaveName, ...]
    """Saves of this run that were never committed."""
    stale: tuple[SaveName, ...]
    """Commits of an attempt that had been superseded."""
    foreign: tuple[str, ...]
    """Names of everything else. Left alone."""


def list_candidates(store: Store, run: str, counted: str | None = None) -> Listing:
    """What is in `store` for the run with uid `run`. An absent store is an empty one. `counted`: a root that counts
    whatever the newest claim says; None: the claim alone decides.

    A save whose folder cannot be read is a candidate with a problem, if there is another without: else nobody could
    tell the store from an empty one. Raises OSError, StoreUnavailable.
    """
    candidates: list[Candidate] = []
    later: list[Candidate] = []
    torn: list[SaveName] = []
    stale: list[SaveName] = []
    foreign: list[str] = []
    claim = newest_claim(store, run)
    for text in store.children():
        name = SaveName.parse(text)
        if name is None:
            foreign.append(text)
            continue
        marks, candidate = look_at(store, name)
        if COMMIT not in marks:
            if name.is_of_run(run) and (marks or store.size(text) is None):
                torn.append(name)
            else:
                foreign.append(text)
        elif candidate is None:
            continue  # removed just now
        elif not _is_of_run(store, candidate, run):
            foreign.append(text)
        elif candidate.is_later:
            later.append(candidate)
        elif claim is not None and is_superseded(candidate, claim) and candidate.committed_root != counted:
            stale.append(name)
        else:
            candidates.append(candidate)
    unreadable = [candidate for candidate in candidates if candidate.is_unreadable]
    if unreadable and all(candidate.problem is not None for candidate in candidates):
        raise StoreUnavailable(f"{store.place}/{unreadable[0].name}: {unreadable[0].problem}")
    return Listing(newest_first(candidates), tuple(later), tuple(torn), tuple(stale), tuple(foreign))


def look_at(store: Store, name: SaveName) -> tuple[frozenset[str], Candidate | None]:
    """The names directly in a save's folder, and what was committed there; None: nothing was, or it was removed
    meanwhile. A folder that cannot be read counts as one with a COMMIT. Raises OSError, StoreUnavailable."""
    try:
        marks = frozenset(store.children(str(name)))
        return marks, inspect(store, name, marks) if COMMIT in marks else None
    except (OSError, StoreUnavailable) as error:
        if not is_of_one_folder(error):
            raise
        problem = f"it cannot be read: {error.__cause__ or error}"
        return frozenset({COMMIT}), Candidate(name, None, None, problem, frozenset(), is_unreadable=True)


def newest_first(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    return tuple(sorted(candidates, key=lambda candidate: candidate.name, reverse=True))


def inspect(store: Store, name: SaveName, marks: Collection[str]) -> Candidate | None:
    """A save with a COMMIT, of whatever run; None when it was removed meanwhile. `marks`: the store's `children` of it.

    Raises OSError, StoreUnavailable.
    """
    marks = frozenset(marks)
    try:
        root, manifest = read_manifest(store, name)
    except CorruptCheckpoint as error:
        if store.size(f"{name}/{COMMIT}") is None:
            return None
        return Candidate(name, None, None, str(error), marks, note_root=_left_over(store, name, marks))
    except LaterFormat as error:
        return Candidate(name, None, None, str(error), marks, is_later=True)
    problem = _reason_of(store, name) if QUARANTINED in marks else None
    return Candidate(name, root, manifest, problem, marks)


def _is_of_run(store: Store, candidate: Candidate, run: str) -> bool:
    if candidate.manifest is not None:
        return candidate.manifest.run == run
    return candidate.name.is_of_run(run) or (not candidate.is_later and _claims_to_be_of(store, candidate.name, run))


def is_superseded(candidate: Candidate, claim: Claim) -> bool:
    """Whether it was committed after the attempt of `claim`, its run's newest, had taken over: then it does not count.

    Only what verifies can be told to be a latecomer, and a COMMIT on its own: one that was on its way to a bucket when
    its process died arrives where the torn save has been swept up. Whatever else is broken stays a candidate, so that
    it is reported."""
    root = candidate.committed_root
    is_known = root is None or candidate.is_quarantined or root in claim.committed
    return candidate.name.fence < claim.fence and not is_known


def _left_over(store: Store, name: SaveName, marks: Collection[str]) -> str | None:
    """The root that COMMIT names when there is no manifest beside it; None when there is, or COMMIT is broken too."""
    if MANIFEST in marks:
        return None
    try:
        return read_note(store, name).root
    except CorruptCheckpoint:
        return None


def _claims_to_be_of(store: Store, name: SaveName, run: str) -> bool:
    """Whether what is left of a broken checkpoint still names `run`."""
    for file, kind in ((COMMIT, Commit), (MANIFEST, Manifest)):
        try:
            if kind.model_validate_json(store.get(f"{name}/{file}")).run == run:
                return True
        except (ValidationError, ObjectMissing, OSError):
            continue  # it is known to be broken: the question is only what can still be read
    return False


def quarantine(store: Store, name: SaveName, reason: str) -> None:
    """Marks the checkpoint so that no later attempt tries it again. Raises OSError."""
    note = json.dumps({"reason": reason, "at": time.time()}, sort_keys=True).encode()
    store.put(f"{name}/{QUARANTINED}", [note])
    store.settle(str(name))


def _reason_of(store: Store, name: SaveName) -> str:
    try:
        return str(json.loads(store.get(f"{name}/{QUARANTINED}"))["reason"])
    except (OSError, ObjectMissing, ValueError, KeyError, TypeError, RecursionError):
        return "quarantined; the marker does not say why"
