"""Which checkpoint an attempt resumes from: the newest whose bytes verify, the same on every rank.

Rank 0 claims the store, so that older attempts can neither add to it nor remove from it any more, and proposes, newest
first; every rank checks its share of the bytes and votes with the root it saw. One bad vote
quarantines the checkpoint and the next one is proposed. If there were candidates and none verifies, the run halts:
it never starts again from step 0 unasked.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from capstan_runtime.checkpoint.candidates import Candidate, Listing, list_candidates, quarantine
from capstan_runtime.checkpoint.claims import newer_fence, withdraw_claim, write_claim
from capstan_runtime.checkpoint.disk import Disk
from capstan_runtime.checkpoint.layout import COMMIT
from capstan_runtime.checkpoint.manifest import Claim
from capstan_runtime.checkpoint.reader import OpenCheckpoint, open_checkpoint
from capstan_runtime.contract.config import VerifyLevel
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import Quarantine
from capstan_runtime.errors import CorruptCheckpoint, StoreUnavailable

Exchange = Callable[[bytes], list[bytes]]
"""`Engine.exchange`: every rank's payload, in rank order."""

_MOST_PROPOSED = 200
"""Candidates proposed at most; with short problems, the proposal stays below the 64 KiB of one exchange."""
_LONGEST_PROBLEM = 120
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Choosing:
    """What choosing needs to know and whom it tells."""

    store: Path
    run: str
    membership: Membership
    attempt: str
    verify: VerifyLevel
    exchange: Exchange
    on_quarantine: Callable[[Quarantine], None]
    """Called on rank 0 alone."""
    disk: Disk
    visible_seconds: float = 10.0
    """How long a network file system may take to show on one node what another wrote."""


def choose_checkpoint(choosing: Choosing) -> OpenCheckpoint | None:
    """The checkpoint to resume from, verified; None: there is none and never was, start from step 0. Collective.

    Afterwards the store is claimed for this fence. Raises CorruptCheckpoint when there were checkpoints and none
    verifies, StoreUnavailable when ranks see different stores or a newer attempt has taken over.
    """
    taken, proposals = _propose(choosing)
    chosen: OpenCheckpoint | None = None
    failed: list[str] = []
    for name, problem in proposals:
        opened, problem = _vote(choosing, name) if problem is None else (None, problem)
        if opened is not None:
            chosen = opened
            break
        failed.append(f"{name}: {problem}")
        if taken is not None:
            _pass_over(choosing, taken.listing, name, problem or "does not verify")
    if chosen is None and (proposals or choosing.membership.floor_step > 0):
        raise CorruptCheckpoint(_nothing_left(choosing, failed) + _withdrawn(choosing, taken))
    if taken is not None and chosen is not None:
        _claim(choosing, taken.claim.model_copy(update={"resumed": chosen.root}))
    return chosen


@dataclass(frozen=True, slots=True)
class _TakenOver:
    """What rank 0 found in the store, and the claim that says so."""

    listing: Listing
    claim: Claim


def _take_over(choosing: Choosing) -> _TakenOver:
    """Claims the store before anything in it is verified, which may take minutes: meanwhile a process that should be
    dead could commit, and its retention remove what is being verified. Raises OSError, StoreUnavailable."""
    fence = choosing.membership.fence
    newer = newer_fence(choosing.store, choosing.run, fence)
    if newer is not None:
        raise StoreUnavailable(f"fence {newer} has taken over; fence {fence} may not train")
    listing = _look(choosing)
    roots = tuple(candidate.root for candidate in listing.candidates if candidate.root is not None)
    claim = Claim(run=choosing.run, fence=fence, attempt=choosing.attempt, resumed=None, committed=roots)
    if listing.candidates or choosing.membership.floor_step == 0:
        _claim(choosing, claim)
    return _TakenOver(listing, claim)


def _look(choosing: Choosing) -> Listing:
    """The store, once it shows the newest checkpoint that the operator has seen; without it when it does not in time,
    which is told: the steps since the one before are lost."""
    floor_step = choosing.membership.floor_step
    give_up_at = time.monotonic() + choosing.visible_seconds
    while True:
        listing = list_candidates(choosing.store, choosing.run)
        newest_step = max((candidate.name.step for candidate in listing.candidates), default=0)
        if newest_step >= floor_step:
            return listing
        if time.monotonic() > give_up_at:
            break
        time.sleep(_POLL_SECONDS)
    if listing.candidates:
        reason = "it was committed, but the store does not hold it any more"
        choosing.on_quarantine(Quarantine(step=floor_step, root="unknown", reason=reason))
    return listing


def _propose(choosing: Choosing) -> tuple[_TakenOver | None, list[tuple[str, str | None]]]:
    """Folder names and known problems, newest first: rank 0's look at the store, told to all. Only rank 0 gets what
    it has taken over."""
    taken: _TakenOver | None = None
    message = b""
    if choosing.membership.rank == 0:
        try:
            taken = _take_over(choosing)
        except (OSError, StoreUnavailable) as error:
            message = json.dumps({"unavailable": str(error)}).encode()
        else:
            newest = taken.listing.candidates[:_MOST_PROPOSED]
            rows = [
                [str(candidate.name), candidate.problem and candidate.problem[:_LONGEST_PROBLEM]]
                for candidate in newest
            ]
            message = json.dumps({"candidates": rows}).encode()
    answer = json.loads(choosing.exchange(message)[0])
    if "unavailable" in answer:
        raise StoreUnavailable(f"checkpoint store {choosing.store} on rank 0: {answer['unavailable']}")
    return taken, [(name, problem) for name, problem in answer["candidates"]]


def _vote(choosing: Choosing, name: str) -> tuple[OpenCheckpoint | None, str | None]:
    """The checkpoint if every rank verified it under the same root, else why not. Collective."""
    opened, ballot = _own_ballot(choosing, name)
    ballots = [json.loads(answer) for answer in choosing.exchange(json.dumps(ballot).encode())]
    for rank, each in enumerate(ballots):
        if "unavailable" in each:
            raise StoreUnavailable(f"rank {rank}: {each['unavailable']}")
    for each in ballots:
        if "corrupt" in each:
            return None, each["corrupt"]
    roots = {each["root"] for each in ballots}
    if len(roots) > 1:
        raise StoreUnavailable(
            f"checkpoint {name} is not the same on every rank; is {choosing.store} one shared store?"
        )
    return opened, None


def _own_ballot(choosing: Choosing, name: str) -> tuple[OpenCheckpoint | None, dict[str, str]]:
    folder = choosing.store / name
    give_up_at = time.monotonic() + choosing.visible_seconds
    while not (folder / COMMIT).exists():
        if time.monotonic() > give_up_at:
            reason = f"{folder} is not there, but rank 0 sees it; the store must be one volume shared by all workers"
            return None, {"unavailable": reason}
        time.sleep(_POLL_SECONDS)
    try:
        opened = open_checkpoint(folder)
        if choosing.verify == "full":
            opened.verify(choosing.membership.rank, choosing.membership.world)
    except CorruptCheckpoint as error:
        if not (folder / COMMIT).exists():
            return None, {"unavailable": f"{name} was removed while it was read"}
        return None, {"corrupt": str(error)[:500]}
    except StoreUnavailable as error:
        return None, {"unavailable": str(error)[:500]}
    return opened, {"root": opened.root}


def _pass_over(choosing: Choosing, listing: Listing, name: str, reason: str) -> None:
    candidate = next(candidate for candidate in listing.candidates if str(candidate.name) == name)
    if not candidate.is_quarantined:
        quarantine_and_report(candidate, reason, choosing.on_quarantine, choosing.disk)


def quarantine_and_report(
    candidate: Candidate, reason: str, on_quarantine: Callable[[Quarantine], None], disk: Disk
) -> None:
    """Marks the checkpoint and says so. A store that refuses the marker only makes the next attempt look again."""
    try:
        quarantine(candidate, reason, disk)
    except OSError as error:
        reason = f"{reason} (could not be marked: {error})"
    on_quarantine(Quarantine(step=candidate.name.step, root=candidate.root or "unknown", reason=reason))


def _nothing_left(choosing: Choosing, failed: list[str]) -> str:
    if not failed:
        return (
            f"checkpoint store {choosing.store} holds no checkpoint of this run, but step "
            f"{choosing.membership.floor_step} was committed; restore the store, or delete the job and start a new one"
        )
    return (
        f"none of {len(failed)} committed checkpoints verifies, newest {failed[0]}; "
        "restore the store from a copy, or delete the job and start a new one"
    )


def _claim(choosing: Choosing, claim: Claim) -> None:
    try:
        write_claim(choosing.store, claim, choosing.disk)
    except OSError as error:
        raise StoreUnavailable(f"checkpoint store {choosing.store} cannot be written: {error}") from error


def _withdrawn(choosing: Choosing, taken: _TakenOver | None) -> str:
    """Empty, or why the claim stays."""
    if taken is None or not taken.listing.candidates:
        return ""
    try:
        withdraw_claim(choosing.store, taken.claim, choosing.disk)
    except OSError as error:
        return f"; the claim of fence {taken.claim.fence} cannot be withdrawn: {error}"
    return ""
