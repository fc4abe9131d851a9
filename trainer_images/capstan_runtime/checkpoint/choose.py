"""Which checkpoint an attempt resumes from: the newest whose bytes verify, the same on every rank.

Rank 0 claims the store, so that older attempts can neither add to it nor remove from it any more, and proposes, newest
first. Every rank opens what is proposed, reads what it needs of it into its engine, checking the bytes as they come,
and votes. One bad vote quarantines the checkpoint, and the next one is read over it. If there were candidates and none
verifies, the run halts: it never starts again from step 0 unasked.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from capstan_runtime.checkpoint.candidates import Listing, list_candidates, quarantine
from capstan_runtime.checkpoint.claims import newer_fence, withdraw_claim, write_claim
from capstan_runtime.checkpoint.layout import COMMIT, SaveName
from capstan_runtime.checkpoint.manifest import Claim
from capstan_runtime.checkpoint.reader import OpenCheckpoint, open_checkpoint
from capstan_runtime.checkpoint.signing import require_signature
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.checkpoint.vote import Loaded, Unusable, UnusableForGood, Voters, vote
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import Quarantine
from capstan_runtime.errors import ConfigError, CorruptCheckpoint, StoreUnavailable

_MOST_PROPOSED = 200
"""Candidates proposed at most; with short problems, the proposal stays below the 64 KiB of one exchange."""
_LONGEST_PROBLEM = 120
_FIRST_POLL_SECONDS = 0.1
_LONGEST_POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Choosing:
    """What choosing needs to know and whom it tells."""

    store: Store
    run: str
    membership: Membership
    attempt: str
    voters: Voters
    on_quarantine: Callable[[Quarantine], None]
    """Called on rank 0 alone, for whatever is passed over; not everything is marked in the store."""
    public_key: str | None = None
    """PEM. Given: a checkpoint counts only if its manifest is signed by this key."""
    visible_seconds: float = 10.0
    """How long a network file system may take to show on one node what another wrote."""


def choose_checkpoint(choosing: Choosing) -> Loaded | None:
    """The checkpoint resumed from, in place; None: there is none and never was, start from step 0. Collective.

    Afterwards the store is claimed for this fence. Raises CorruptCheckpoint when there were checkpoints and none
    can be resumed from, StoreUnavailable when ranks see different stores or a newer attempt has taken over, and
    ConfigError.
    """
    taken, proposals = _propose(choosing)
    chosen: Loaded | None = None
    failed: list[str] = []
    for name, problem in proposals:
        try:
            chosen = _vote(choosing, name, problem)
            break
        except (Unusable, CorruptCheckpoint) as error:
            failed.append(f"{name}: {error}")
            if taken is not None:
                _pass_over(choosing, taken.listing, name, error)
    if chosen is None and (proposals or choosing.membership.floor_step > 0):
        raise CorruptCheckpoint(_nothing_left(choosing, failed) + _withdrawn(choosing, taken))
    if taken is not None and chosen is not None:
        _claim(choosing, taken.claim.model_copy(update={"resumed": chosen.opened.root}))
    return chosen


@dataclass(frozen=True, slots=True)
class _TakenOver:
    """What rank 0 found in the store, and the claim that says so."""

    listing: Listing
    claim: Claim


def _take_over(choosing: Choosing) -> _TakenOver:
    """Claims the store before anything in it is verified, which may take minutes: meanwhile a process that should be
    dead could commit, and its retention remove what is being verified. Raises OSError, StoreUnavailable, and
    ConfigError."""
    fence = choosing.membership.fence
    newer = newer_fence(choosing.store, choosing.run, fence)
    if newer is not None:
        raise StoreUnavailable(f"fence {newer} has taken over; fence {fence} may not train")
    listing = _look(choosing)
    if listing.later:
        raise ConfigError(listing.later[0].problem)
    roots = tuple(candidate.root for candidate in listing.candidates if candidate.root is not None)
    claim = Claim(run=choosing.run, fence=fence, attempt=choosing.attempt, resumed=None, committed=roots)
    if listing.candidates or choosing.membership.floor_step == 0:
        _claim(choosing, claim)
    return _TakenOver(listing, claim)


def _look(choosing: Choosing) -> Listing:
    """The store, once it shows the newest checkpoint that the operator has seen; without it when it does not in time,
    which is told: the steps since the one before are lost."""
    floor_step = choosing.membership.floor_step
    listing = list_candidates(choosing.store, choosing.run)

    def is_shown() -> bool:
        nonlocal listing
        if max((each.name.step for each in (*listing.candidates, *listing.later)), default=0) < floor_step:
            listing = list_candidates(choosing.store, choosing.run)
        return max((each.name.step for each in (*listing.candidates, *listing.later)), default=0) >= floor_step

    if not _wait_until(is_shown, choosing.visible_seconds) and listing.candidates:
        reason = "it was committed, but the store does not hold it any more"
        choosing.on_quarantine(Quarantine(step=floor_step, root="unknown", reason=reason))
    return listing


def _wait_until(is_true: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true within so many seconds. A look at a bucket costs money: it is asked ever more rarely."""
    give_up_at = time.monotonic() + seconds
    poll_seconds = _FIRST_POLL_SECONDS
    while not is_true():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(poll_seconds)
        poll_seconds = min(1.5 * poll_seconds, _LONGEST_POLL_SECONDS)
    return True


def _propose(choosing: Choosing) -> tuple[_TakenOver | None, list[tuple[SaveName, str | None]]]:
    """Names of saves and known problems, newest first: rank 0's look at the store, told to all. Only rank 0 gets what
    it has taken over."""
    taken: _TakenOver | None = None
    message = b""
    if choosing.membership.rank == 0:
        try:
            taken = _take_over(choosing)
        except ConfigError as error:
            message = json.dumps({"config": str(error)}).encode()
        except (OSError, StoreUnavailable) as error:
            message = json.dumps({"unavailable": str(error)}).encode()
        else:
            newest = taken.listing.candidates[:_MOST_PROPOSED]
            rows = [[str(each.name), each.problem and each.problem[:_LONGEST_PROBLEM]] for each in newest]
            message = json.dumps({"candidates": rows}).encode()
    answer = json.loads(choosing.voters.exchange(message)[0])
    if "config" in answer:
        raise ConfigError(answer["config"])
    if "unavailable" in answer:
        raise StoreUnavailable(f"checkpoint store {choosing.store.place} on rank 0: {answer['unavailable']}")
    return taken, [(_parsed(name), problem) for name, problem in answer["candidates"]]


def _parsed(text: str) -> SaveName:
    name = SaveName.parse(text)
    assert name is not None, "rank 0 proposes names of saves"
    return name


def _vote(choosing: Choosing, name: SaveName, problem: str | None) -> Loaded:
    """Collective. Raises CorruptCheckpoint, Unusable, StoreUnavailable, ConfigError, the same on every rank."""
    if problem is not None:
        raise CorruptCheckpoint(problem)

    def is_committed() -> bool:
        return choosing.store.size(f"{name}/{COMMIT}") is not None

    def open_it() -> OpenCheckpoint:
        if not _wait_until(is_committed, choosing.visible_seconds):
            raise StoreUnavailable(
                f"{name} is not in {choosing.store.place}, but rank 0 sees it; "
                "the store must be one volume shared by all workers"
            )
        opened = open_checkpoint(choosing.store, name)
        if choosing.public_key is not None and choosing.membership.rank == 0:
            require_signature(opened, choosing.public_key)  # one rank looks; that all have one root is voted upon
        return opened

    return vote(choosing.voters, open_it, lambda: not is_committed())


def _pass_over(choosing: Choosing, listing: Listing, name: SaveName, error: Exception) -> None:
    """What is whole, and only of no use to this attempt, is told and not marked."""
    candidate = next(candidate for candidate in listing.candidates if candidate.name == name)
    if isinstance(error, Unusable) and not isinstance(error, UnusableForGood):
        choosing.on_quarantine(Quarantine(step=name.step, root=candidate.root or "unknown", reason=str(error)))
    elif not candidate.is_quarantined:
        quarantine_and_report(choosing.store, name, candidate.root, str(error), choosing.on_quarantine)


def quarantine_and_report(
    store: Store, name: SaveName, root: str | None, reason: str, on_quarantine: Callable[[Quarantine], None]
) -> None:
    """Marks the checkpoint and says so. A store that refuses the marker only makes the next attempt look again."""
    try:
        quarantine(store, name, reason)
    except OSError as error:
        reason = f"{reason} (could not be marked: {error})"
    on_quarantine(Quarantine(step=name.step, root=root or "unknown", reason=reason))


def _nothing_left(choosing: Choosing, failed: list[str]) -> str:
    place = choosing.store.place
    if not failed:
        return (
            f"checkpoint store {place} holds no checkpoint of this run, but step "
            f"{choosing.membership.floor_step} was committed; restore the store, or delete the job and start a new one"
        )
    return (
        f"none of {len(failed)} committed checkpoints verifies, newest {failed[0]}; "
        "restore the store from a copy, or delete the job and start a new one"
    )


def _claim(choosing: Choosing, claim: Claim) -> None:
    try:
        write_claim(choosing.store, claim)
    except OSError as error:
        raise StoreUnavailable(f"checkpoint store {choosing.store.place} cannot be written: {error}") from error


def _withdrawn(choosing: Choosing, taken: _TakenOver | None) -> str:
    """Empty, or why the claim stays."""
    if taken is None or not taken.listing.candidates:
        return ""
    try:
        withdraw_claim(choosing.store, taken.claim)
    except OSError as error:
        return f"; the claim of fence {taken.claim.fence} cannot be withdrawn: {error}"
    return ""
