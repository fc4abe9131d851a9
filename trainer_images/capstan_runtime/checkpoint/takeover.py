"""Rank 0's first look at the store: it is claimed, waited for where it lags, and its checkpoints are proposed."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from capstan_runtime.checkpoint.candidates import Candidate, Listing, list_candidates, look_at, newest_first
from capstan_runtime.checkpoint.claims import newer_fence, withdraw_claim, write_claim
from capstan_runtime.checkpoint.layout import SaveName
from capstan_runtime.checkpoint.manifest import Claim
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import Quarantine
from capstan_runtime.errors import ConfigError, StoreUnavailable

_FIRST_POLL_SECONDS = 0.1
_LONGEST_POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Newcomer:
    """Rank 0 of an attempt that is about to take over."""

    store: Store
    run: str
    membership: Membership
    attempt: str
    on_quarantine: Callable[[Quarantine], None]
    visible_seconds: float


@dataclass(frozen=True, slots=True)
class TakenOver:
    """What rank 0 found in the store, and the claim that says so."""

    listing: Listing
    claim: Claim


def take_over(newcomer: Newcomer, in_memory: Sequence[SaveName]) -> TakenOver:
    """Claims the store before anything in it is verified, which may take minutes: meanwhile a process that should be
    dead could commit, and its retention remove what is being verified.

    `in_memory`: saves that the pods hold. One as new as what the operator has seen need not be waited for. Raises
    OSError, StoreUnavailable, and ConfigError when a later version of Capstan has been at work.
    """
    store, fence, floor_step = newcomer.store, newcomer.membership.fence, newcomer.membership.floor_step
    newer = newer_fence(store, newcomer.run, fence)
    if newer is not None:
        raise StoreUnavailable(f"fence {newer} has taken over; fence {fence} may not train")
    listing = _look(newcomer, waits=all(name.step < floor_step for name in in_memory))
    if listing.later:
        raise ConfigError(listing.later[0].problem)
    claim = _claim(newcomer, listing)
    if listing.candidates or in_memory or floor_step == 0:
        write_own_claim(store, claim)
        late = _committed_meanwhile(newcomer, listing)
        if late:
            listing = replace(listing, candidates=newest_first((*listing.candidates, *late)))
            claim = _claim(newcomer, listing)
            write_own_claim(store, claim)
    return TakenOver(listing, claim)


def _claim(newcomer: Newcomer, listing: Listing) -> Claim:
    """What the operator has seen committed counts, whether the store shows it yet or not: else it would be taken for
    the work of a dead process as soon as it is shown, and swept up."""
    roots = tuple(each.committed_root for each in listing.candidates if each.committed_root is not None)
    fence, floor_root = newcomer.membership.fence, newcomer.membership.floor_root
    if floor_root is not None and floor_root not in roots:
        roots = (*roots, floor_root)
    return Claim(run=newcomer.run, fence=fence, attempt=newcomer.attempt, resumed=None, committed=roots)


def _committed_meanwhile(newcomer: Newcomer, listing: Listing) -> list[Candidate]:
    """Commits that came between the look and the claim: their writers found no claim, and have told of them. Whoever
    commits from now on finds it, and takes his commit back. Raises OSError, StoreUnavailable."""
    store, known = newcomer.store, {*(each.name for each in listing.candidates), *listing.stale}
    found = []
    for name in map(SaveName.parse, store.children()):
        if name is None or name in known or not name.is_of_run(newcomer.run):
            continue
        _, candidate = look_at(store, name)
        if candidate is not None and candidate.manifest is not None and candidate.manifest.run == newcomer.run:
            found.append(candidate)
    return found


def usable_in_memory(listing: Listing, in_memory: Sequence[SaveName]) -> list[SaveName]:
    """Those of the saves in memory that no checkpoint in the store makes worthless: none that counts there was made by
    a later attempt, which went on from elsewhere, and the newest is no newer."""
    sound = [candidate.name for candidate in listing.candidates if candidate.problem is None]
    fence = max((name.fence for name in sound), default=0)
    return [name for name in in_memory if name.fence >= fence]


def _look(newcomer: Newcomer, waits: bool) -> Listing:
    """The store, if it `waits` once it shows the newest checkpoint that the operator has seen; without it when it does
    not in time, which is told: the steps since the one before are done again."""
    floor_step, floor_root = newcomer.membership.floor_step, newcomer.membership.floor_root
    listing = list_candidates(newcomer.store, newcomer.run, floor_root)

    def is_shown() -> bool:
        found = (*listing.candidates, *listing.later)
        return floor_step == 0 or any(_makes_up_for(floor_step, floor_root, each) for each in found)

    def is_shown_now() -> bool:
        nonlocal listing
        if not is_shown():
            listing = list_candidates(newcomer.store, newcomer.run, floor_root)
        return is_shown()

    if waits and not wait_until(is_shown_now, newcomer.visible_seconds) and listing.candidates:
        reason = f"it was committed, but the store has not shown it for {newcomer.visible_seconds:g} s"
        # Not by its root: it is not known to be bad, and counts again as soon as it is shown.
        newcomer.on_quarantine(Quarantine(step=floor_step, root="unknown", reason=reason))
    return listing


def _makes_up_for(floor_step: int, floor_root: str | None, found: Candidate) -> bool:
    """Whether `found` is the newest checkpoint that the operator has seen, or may be, or is newer and of use."""
    step = found.name.step
    if floor_root is None:
        return step >= floor_step
    if step > floor_step:
        return found.problem is None or found.is_later
    return step == floor_step and found.committed_root in (None, floor_root)


def wait_until(is_true: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true within so many seconds. A look at a bucket costs money: it is asked ever more rarely."""
    give_up_at = time.monotonic() + seconds
    poll_seconds = _FIRST_POLL_SECONDS
    while not is_true():
        if time.monotonic() > give_up_at:
            return False
        time.sleep(poll_seconds)
        poll_seconds = min(1.5 * poll_seconds, _LONGEST_POLL_SECONDS)
    return True


def write_own_claim(store: Store, claim: Claim) -> None:
    """Raises StoreUnavailable."""
    try:
        write_claim(store, claim)
    except OSError as error:
        raise StoreUnavailable(f"checkpoint store {store.place} cannot be written: {error}") from error


def withdrawn(store: Store, taken: TakenOver) -> str:
    """Withdraws the claim of an attempt that found nothing to go on from. Empty, or why the claim stays."""
    try:
        withdraw_claim(store, taken.claim)
    except OSError as error:
        return f"; the claim of fence {taken.claim.fence} cannot be withdrawn: {error}"
    return ""
