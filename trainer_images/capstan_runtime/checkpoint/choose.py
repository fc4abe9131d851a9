"""Which checkpoint an attempt resumes from: the newest whose bytes verify, the same on every rank.

Rank 0 claims the store, so that older attempts can neither add to it nor remove from it any more, and proposes what is
in the store and what the pods still hold in memory, newest first. Every rank opens what is proposed, reads what it
needs of it into its engine, checking the bytes as they come, and votes. One bad vote quarantines the checkpoint, and
the next is read over it. If there were checkpoints and none verifies, the run halts: it never starts from step 0
unasked.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from capstan_runtime.checkpoint.candidates import Listing, quarantine
from capstan_runtime.checkpoint.generations import Generation, Memory, complete_generations, open_generation
from capstan_runtime.checkpoint.layout import COMMIT, SaveName
from capstan_runtime.checkpoint.reader import OpenCheckpoint, open_checkpoint
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.checkpoint.takeover import (
    Newcomer,
    TakenOver,
    take_over,
    usable_in_memory,
    wait_until,
    withdrawn,
    write_own_claim,
)
from capstan_runtime.checkpoint.vote import Loaded, Proposed, Unusable, UnusableForGood, Voters, vote
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import Quarantine, Source
from capstan_runtime.errors import ConfigError, CorruptCheckpoint, StoreUnavailable

_MOST_PROPOSED = 200
"""Candidates without a problem, and with one, that are proposed at most; with short problems, the proposal stays below
the 64 KiB of one exchange. However many are broken, they do not crowd out a good one."""
_LONGEST_PROBLEM = 120


@dataclass(frozen=True, slots=True)
class Choosing:
    """What choosing needs to know and whom it tells."""

    store: Store
    run: str
    membership: Membership
    attempt: str
    voters: Voters
    on_quarantine: Callable[[Quarantine], None]
    """Called on rank 0 alone, for whatever of the store is passed over; not everything is marked there."""
    on_trouble: Callable[[str], None]
    """Called on every rank: why a save that is in memory is not used."""
    visible_seconds: float
    """How long is waited for what must be in the store and is not seen there."""
    memory: Memory | None = None
    """None: only the store is looked at."""
    public_key: str | None = None
    """PEM. Given: a checkpoint counts only if its manifest is signed by this key; what is in memory is never signed."""


@dataclass(frozen=True, slots=True)
class _Proposal:
    """One row of what rank 0 proposes."""

    name: SaveName
    problem: str | None
    """Why it must not be used; None: nothing known."""
    source: Source


def choose_checkpoint(choosing: Choosing) -> Loaded | None:
    """The checkpoint resumed from, in place; None: there is none and never was, start from step 0. Collective.

    Afterwards the store is claimed for this fence. Raises CorruptCheckpoint when there were checkpoints and none
    can be resumed from, StoreUnavailable when ranks see different stores or a newer attempt has taken over, and
    ConfigError.
    """
    generations: list[Generation] = []
    if choosing.memory is not None and choosing.public_key is None:
        generations = complete_generations(choosing.memory, choosing.run, choosing.voters.exchange)
    taken, proposals = _propose(choosing, [each.name for each in generations])
    chosen: Loaded | None = None
    failed: list[str] = []
    for proposal in proposals:
        if proposal.source is Source.MEMORY:
            chosen = _from_memory(choosing, next(each for each in generations if each.name == proposal.name))
            if chosen is not None:
                chosen = replace(chosen, is_in_store=replace(proposal, source=Source.STORE) in proposals)
        else:
            try:
                chosen = _from_store(choosing, proposal)
            except (Unusable, CorruptCheckpoint) as error:
                failed.append(f"{proposal.name}: {error}")
                if taken is not None:
                    _pass_over(choosing, taken.listing, proposal.name, error)
        if chosen is not None:
            break
    if chosen is None and (failed or choosing.membership.floor_step > 0):
        raise CorruptCheckpoint(_nothing_left(choosing, failed) + (withdrawn(choosing.store, taken) if taken else ""))
    if taken is not None and chosen is not None:
        _claim_resumed(choosing, taken, chosen.opened.root)
    return chosen


def _claim_resumed(choosing: Choosing, taken: TakenOver, root: str) -> None:
    """What was resumed from counts, even if it was in memory and its commit is still on its way to the store."""
    committed = taken.claim.committed if root in taken.claim.committed else (root, *taken.claim.committed)
    write_own_claim(choosing.store, taken.claim.model_copy(update={"resumed": root, "committed": committed}))


def _propose(choosing: Choosing, in_memory: Sequence[SaveName]) -> tuple[TakenOver | None, list[_Proposal]]:
    """What might be resumed from, in the order in which it is tried: rank 0's look at the store, told to all. Only
    rank 0 gets what it has taken over. Raises StoreUnavailable, ConfigError."""
    taken: TakenOver | None = None
    message = b""
    if choosing.membership.rank == 0:
        try:
            taken = take_over(_newcomer(choosing), in_memory)
            message = json.dumps({"proposals": _rows(taken.listing, in_memory)}).encode()
        except ConfigError as error:
            message = json.dumps({"config": str(error)}).encode()
        except (OSError, StoreUnavailable) as error:
            message = json.dumps({"unavailable": str(error)}).encode()
    answer = json.loads(choosing.voters.exchange(message)[0])
    if "config" in answer:
        raise ConfigError(answer["config"])
    if "unavailable" in answer:
        raise StoreUnavailable(f"checkpoint store {choosing.store.place} on rank 0: {answer['unavailable']}")
    return taken, [_Proposal(_parsed(name), problem, Source(source)) for name, problem, source in answer["proposals"]]


def _newcomer(choosing: Choosing) -> Newcomer:
    return Newcomer(
        store=choosing.store,
        run=choosing.run,
        membership=choosing.membership,
        attempt=choosing.attempt,
        on_quarantine=choosing.on_quarantine,
        visible_seconds=choosing.visible_seconds,
    )


def _rows(listing: Listing, in_memory: Sequence[SaveName]) -> list[tuple[str, str | None, str]]:
    """By step, the newest first; what is in memory before what is in the store, which takes longer to read."""
    good = [each for each in listing.candidates if each.problem is None]
    bad = [each for each in listing.candidates if each.problem is not None]
    rows: list[tuple[SaveName, str | None, Source]] = [
        (each.name, each.problem and each.problem[:_LONGEST_PROBLEM], Source.STORE)
        for each in (*good[:_MOST_PROPOSED], *bad[:_MOST_PROPOSED])
    ]
    rows += [(name, None, Source.MEMORY) for name in usable_in_memory(listing, in_memory)]
    rows.sort(key=lambda row: (row[0].step, row[2] is Source.MEMORY, row[0].fence), reverse=True)
    return [(str(name), problem, source.value) for name, problem, source in rows]


def _parsed(text: str) -> SaveName:
    name = SaveName.parse(text)
    assert name is not None, "rank 0 proposes names of saves"
    return name


def _from_memory(choosing: Choosing, generation: Generation) -> Loaded | None:
    """None when it cannot be had: a peer may have died with its part, and the store still has what was committed.
    Collective. Raises ConfigError."""
    memory = choosing.memory
    assert memory is not None
    try:
        return vote(choosing.voters, Proposed(Source.MEMORY, lambda: open_generation(generation, memory)))
    except (CorruptCheckpoint, StoreUnavailable, Unusable) as error:
        choosing.on_trouble(f"the save of step {generation.name.step} in the pods' memory is not used: {error}")
        return None


def _from_store(choosing: Choosing, proposal: _Proposal) -> Loaded:
    """Collective. Raises CorruptCheckpoint, Unusable, StoreUnavailable, ConfigError, the same on every rank."""
    name = proposal.name
    if proposal.problem is not None:
        raise CorruptCheckpoint(proposal.problem)

    def is_committed() -> bool:
        return choosing.store.size(f"{name}/{COMMIT}") is not None

    def open_it() -> OpenCheckpoint:
        if not wait_until(is_committed, choosing.visible_seconds):
            raise StoreUnavailable(
                f"{name} is not in {choosing.store.place}, but rank 0 sees it; "
                "the store must be one volume shared by all workers"
            )
        # Every rank looks at the signature itself: none reads what a stranger's manifest makes it read.
        return open_checkpoint(choosing.store, name, choosing.public_key)

    return vote(choosing.voters, Proposed(Source.STORE, open_it, lambda: not is_committed()))


def _pass_over(choosing: Choosing, listing: Listing, name: SaveName, error: Exception) -> None:
    """What is whole, or may be, and only of no use to this attempt, is told and not marked."""
    candidate = next(candidate for candidate in listing.candidates if candidate.name == name)
    if candidate.is_unreadable or (isinstance(error, Unusable) and not isinstance(error, UnusableForGood)):
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
