"""`gc`, `pin` and `unpin`: what stays and what goes."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from capstan_runtime.checkpoint.candidates import Candidate, list_candidates
from capstan_runtime.checkpoint.claims import newest_claim
from capstan_runtime.checkpoint.commands.places import Place, Usage
from capstan_runtime.checkpoint.commands.survey import survey
from capstan_runtime.checkpoint.commands.text import Progress, print_table, short
from capstan_runtime.checkpoint.keeping import kept
from capstan_runtime.checkpoint.layout import COMMIT, VERIFIED, SaveName
from capstan_runtime.checkpoint.marks import is_pinned, mark_verified, pin, unpin, verified_at
from capstan_runtime.checkpoint.readback import read_back
from capstan_runtime.checkpoint.reader import open_checkpoint
from capstan_runtime.checkpoint.retention import held, proved, remove_checkpoint
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.contract import config
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.errors import CorruptCheckpoint


@dataclass(frozen=True, slots=True)
class Removal:
    """One save that may go, and why."""

    store: Store
    run: str
    name: SaveName
    root: str | None
    reason: str

    def document(self) -> dict[str, Any]:
        return {
            "place": self.store.place,
            "run": self.run,
            "name": str(self.name),
            "step": self.name.step,
            "root": self.root,
            "reason": self.reason,
        }


def gc(places: list[Place], rules: config.Retention, is_confirmed: bool, output: str) -> int:
    """0. Without `is_confirmed` nothing is removed, only shown. Raises OSError, StoreUnavailable."""
    removals: list[Removal] = []
    bad: list[str] = []
    for place in places:
        if place.only is not None:
            raise Usage(f"STORE: {place.only} is one checkpoint; gc looks at a whole store")
        for run in _runs(place.store):
            removals += _planned(place.store, run, rules, is_confirmed, bad)
    done = [removal for removal in removals if is_confirmed and _removed(removal)]
    if output == "json":
        document = {
            "removed": is_confirmed,
            "checkpoints": [each.document() for each in (done if is_confirmed else removals)],
            "bad": bad,
        }
        print(json.dumps(document, indent=2))
        return ExitCode.OK
    for problem in bad:
        print(f"passed over, kept: {problem}")
    if removals:
        print_table(("STEP", "ROOT", "WHY", "FOLDER"), map(_cells, removals))
    if is_confirmed:
        print(f"{len(done)} removed")
    else:
        print(f"{len(removals)} would be removed; --yes removes them" if removals else "nothing to remove")
    return ExitCode.OK


def _cells(removal: Removal) -> tuple[str, ...]:
    return str(removal.name.step), short(removal.root), removal.reason, f"{removal.store.place}/{removal.name}"


def _runs(store: Store) -> list[str]:
    return sorted({row.manifest.run for row in survey(store).rows if row.manifest is not None})


def _planned(store: Store, run: str, rules: config.Retention, is_confirmed: bool, bad: list[str]) -> Iterator[Removal]:
    """What may go of one run. What its newest attempt resumed from, or may be writing, stays whatever the rules say."""
    listing = list_candidates(store, run)
    claim = newest_claim(store, run)
    remains = [(name, "was committed too late") for name in listing.stale]
    remains += [(name, "was never committed") for name in listing.torn]
    for name, reason in remains:
        if claim is not None and name.fence < claim.fence and not is_pinned(store, name):
            yield Removal(store, run, name, None, reason)

    def prove(candidate: Candidate) -> bool:
        problem = _problem(store, candidate, is_confirmed)
        if problem is not None:
            bad.append(f"{store.place}/{candidate.name}: {problem}")
        return problem is None

    sound = proved(
        [each for each in listing.candidates if each.problem is None],
        lambda each: VERIFIED in each.marks and each.root is not None and _is_marked(store, each.name, each.root),
        prove,
    )
    stay = kept([held(each, is_proven) for each, is_proven in sound], rules, time.time())
    for candidate, _ in reversed(sound):
        is_in_use = claim is not None and claim.resumed == candidate.root
        if candidate.name not in stay and not is_in_use:
            yield Removal(store, run, candidate.name, candidate.root, "no rule keeps it")


def _is_marked(store: Store, name: SaveName, root: str) -> bool:
    return verified_at(store, name, root) is not None


def _problem(store: Store, candidate: Candidate, may_mark: bool) -> str | None:
    """Why the checkpoint does not verify; None: it does. All of it is read from the disk."""
    assert candidate.root is not None
    progress = Progress(f"reading {candidate.name}", 0)
    try:
        opened = open_checkpoint(store, candidate.name)
        progress = Progress(f"reading {candidate.name}", opened.size)
        read_back(opened, "full", progress.add)
    except CorruptCheckpoint as error:
        return str(error)
    finally:
        progress.end()
    if may_mark:
        mark_verified(store, candidate.name, candidate.root, time.time())
    return None


def _removed(removal: Removal) -> bool:
    """False when somebody pinned it, or its own run removed it, since it was looked at."""
    store, name = removal.store, removal.name
    if is_pinned(store, name) or not store.children(str(name)):
        return False
    remove_checkpoint(store, name)
    return True


def set_pin(store: Store, name: SaveName, is_wanted: bool, output: str) -> int:
    """0. Raises Usage for a save that is not committed: it would be no use to keep it."""
    if is_wanted:
        if store.size(f"{name}/{COMMIT}") is None:
            raise Usage(f"CHECKPOINT: {name} is not committed; only a checkpoint can be pinned")
        pin(store, name)
    else:
        unpin(store, name)
    if output == "json":
        print(json.dumps({"place": store.place, "name": str(name), "pinned": is_wanted}, indent=2))
    else:
        print(f"{store.place}/{name} {'is pinned' if is_wanted else 'is not pinned any more'}")
    return ExitCode.OK
