"""`gc`, `pin` and `unpin`: what stays and what goes."""

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from capstan_runtime.checkpoint.candidates import Candidate, list_candidates
from capstan_runtime.checkpoint.claims import newest_claim
from capstan_runtime.checkpoint.commands.places import Place, Usage
from capstan_runtime.checkpoint.commands.survey import survey
from capstan_runtime.checkpoint.commands.text import Progress, print_table, short
from capstan_runtime.checkpoint.keeping import kept
from capstan_runtime.checkpoint.layout import COMMIT, SIGNATURE, VERIFIED, SaveName
from capstan_runtime.checkpoint.manifest import Claim
from capstan_runtime.checkpoint.marks import is_pinned, mark_verified, pin, registered_as, unpin, verified_at
from capstan_runtime.checkpoint.readback import read_back
from capstan_runtime.checkpoint.reader import open_checkpoint, read_manifest
from capstan_runtime.checkpoint.retention import held, proved, remove_checkpoint
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.contract import saving
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.errors import CorruptCheckpoint

NOT_SHOWN = "is not below the newest that verifies: the store may only be late to show all of it"
ABOUT_TO_RESUME = "its newest attempt has not said yet which one it resumes from"
MEANWHILE = "another attempt has begun since it was looked at; run gc again"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One save that no rule keeps: it may go, or something else keeps it."""

    store: Store
    run: str
    name: SaveName
    root: str | None
    reason: str
    """Why it may go, or why it stays all the same."""
    claim: Claim | None
    """The newest of its run when it was looked at."""

    def document(self) -> dict[str, Any]:
        return {
            "place": self.store.place,
            "run": self.run,
            "name": str(self.name),
            "step": self.name.step,
            "root": self.root,
            "reason": self.reason,
        }


@dataclass(slots=True)
class Findings:
    """What one look at some stores came to."""

    removals: list[Verdict] = field(default_factory=list)
    kept: list[Verdict] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)


def gc(places: list[Place], rules: saving.Retention, public_key: str | None, is_confirmed: bool, output: str) -> int:
    """0. Without `is_confirmed` nothing is removed, only shown. `public_key`, the text of a PEM: what its owner has not
    signed is none of the newest two that verify. Raises OSError, StoreUnavailable, ConfigError."""
    found = Findings()
    for place in places:
        if place.only is not None:
            raise Usage(f"STORE: {place.only} is one checkpoint; gc looks at a whole store")
        for run in _runs(place.store):
            _look(place.store, run, rules, public_key, is_confirmed, found)
    gone = [each for each in found.removals if not is_confirmed or _removed(each, found.kept)]
    if output == "json":
        document = {
            "removed": is_confirmed,
            "checkpoints": [each.document() for each in gone],
            "kept": [each.document() for each in found.kept],
            "bad": found.bad,
        }
        print(json.dumps(document, indent=2))
        return ExitCode.OK
    for problem in found.bad:
        print(f"passed over, kept: {problem}")
    for each in found.kept:
        print(f"kept: {each.store.place}/{each.name}: {each.reason}")
    if gone:
        print_table(("STEP", "ROOT", "WHY", "FOLDER"), map(_cells, gone))
    if is_confirmed:
        print(f"{len(gone)} removed")
    else:
        print(f"{len(gone)} would be removed; --yes removes them" if gone else "nothing to remove")
    return ExitCode.OK


def _cells(removal: Verdict) -> tuple[str, ...]:
    return str(removal.name.step), short(removal.root), removal.reason, f"{removal.store.place}/{removal.name}"


def _runs(store: Store) -> list[str]:
    return sorted({row.manifest.run for row in survey(store).rows if row.manifest is not None})


def _look(
    store: Store, run: str, rules: saving.Retention, public_key: str | None, is_confirmed: bool, found: Findings
) -> None:
    """What may go of one run, and what a job needs that may be running now: a store cannot tell whether one does.

    The run's own retention goes by the step that the operator knows to be committed. What stands for it here is the
    newest checkpoint that verifies: only what is older than that can be of no use to any attempt."""
    listing = list_candidates(store, run)
    claim = newest_claim(store, run)

    def prove(candidate: Candidate) -> bool:
        problem = _problem(store, candidate, is_confirmed)
        if problem is not None:
            found.bad.append(f"{store.place}/{candidate.name}: {problem}")
        return problem is None

    good = [each for each in listing.candidates if each.problem is None]
    of_use = _of_use(store, good, public_key)
    sound = proved(of_use, lambda each: VERIFIED in each.marks and _is_marked(store, each), prove)
    newest = next((each.name.step for each, is_proven in sound if is_proven), None)
    remains = [(name, "was committed too late") for name in listing.stale]
    remains += [(name, "was never committed") for name in listing.torn]
    for name, reason in remains:
        if is_pinned(store, name):
            continue
        needed = _why_left_alone(name, claim, newest)
        (found.kept if needed else found.removals).append(Verdict(store, run, name, None, needed or reason, claim))
    sound += [(each, False) for each in good if each not in of_use]
    stay = kept([held(each, is_proven) for each, is_proven in sound], rules, time.time())
    for candidate, _ in sorted(sound, key=lambda pair: pair[0].name):
        if candidate.name in stay:
            continue
        needed = _why_needed(candidate.root, claim)
        verdict = Verdict(store, run, candidate.name, candidate.root, needed or "no rule keeps it", claim)
        (found.kept if needed else found.removals).append(verdict)


def _of_use(store: Store, good: list[Candidate], public_key: str | None) -> list[Candidate]:
    """Those that count as verified if their bytes do. Without a key it is not known whether the run asks for
    signatures; where some are signed, it may."""
    if public_key is None:
        signed = [each for each in good if SIGNATURE in each.marks]
        return signed or good
    of_use = []
    for candidate in good:
        with suppress(CorruptCheckpoint):
            read_manifest(store, candidate.name, public_key)
            of_use.append(candidate)
    return of_use


def _why_left_alone(name: SaveName, claim: Claim | None, newest: int | None) -> str | None:
    """Why a save that is no commit, or does not count, may still be of use; None: it cannot."""
    if claim is None or name.fence >= claim.fence:
        return "may still be written"
    return NOT_SHOWN if newest is None or name.step >= newest else None


def _why_needed(root: str | None, claim: Claim | None) -> str | None:
    """Why the newest attempt of its run may need a checkpoint that no rule keeps; None: it does not."""
    if claim is None:
        return None
    if claim.resumed is None and root in claim.committed:
        return ABOUT_TO_RESUME
    return "its newest attempt resumed from it" if claim.resumed == root else None


def _is_marked(store: Store, candidate: Candidate) -> bool:
    return candidate.root is not None and verified_at(store, candidate.name, candidate.root) is not None


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


def _removed(removal: Verdict, kept: list[Verdict]) -> bool:
    """False when somebody pinned it, its own run removed it, or another attempt began, since it was looked at."""
    store, name = removal.store, removal.name
    if newest_claim(store, removal.run) != removal.claim:
        kept.append(replace(removal, reason=MEANWHILE))
        return False
    if is_pinned(store, name) or not store.children(str(name)):
        return False
    remove_checkpoint(store, name)
    return True


def set_pin(store: Store, name: SaveName, is_wanted: bool, output: str, is_forced: bool = False) -> int:
    """0. Raises Usage for a save that is not committed, which would be no use to keep, and for one that is a registered
    model, unless `is_forced`."""
    if is_wanted:
        if store.size(f"{name}/{COMMIT}") is None:
            raise Usage(f"CHECKPOINT: {name} is not committed; only a checkpoint can be pinned")
        pin(store, name)
    else:
        models = registered_as(store, name)
        if models and not is_forced:
            raise Usage(
                f"CHECKPOINT: {name} is registered as a version of {', '.join(models)}, which could not be served any "
                "more; --force unpins it all the same"
            )
        unpin(store, name)
    if output == "json":
        print(json.dumps({"place": store.place, "name": str(name), "pinned": is_wanted}, indent=2))
    else:
        print(f"{store.place}/{name} {'is pinned' if is_wanted else 'is not pinned any more'}")
    return ExitCode.OK
