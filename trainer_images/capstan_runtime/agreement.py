"""How all ranks stop and save at the same step without asking each other at every one.

A signal reaches one pod, a clock is read on one machine, a save takes longer on one disk; but stopping and saving are
collective. So every k steps, and at every step at which a save is due, the ranks exchange a few bytes. k follows from
the slowest rank's step time by the same rule on every rank: about a second's worth of steps, so that the exchange costs
far below 1 % and a stop is at most about a second late.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from capstan_runtime.metrics.meter import Clock

_BALLOT = struct.Struct("<????d")
_STOP_BALLOT = struct.Struct("<?d")
_INTERVAL_SECONDS = 1.0
_OWED_INTERVAL_SECONDS = 0.05
"""Until a save that is owed can begin."""
_MOST_STEPS = 50
"""Bounds how late a stop is when steps suddenly become slow."""
_ROUND_SECONDS = 1.0
"""Between two messages of ranks that wait for rank 0: far below anybody's patience with a message."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What all ranks do after this step."""

    stop: bool = False
    save: bool = False
    leave: bool = False
    """Only with `save`: stop after it if it is committed, because the world is about to change."""
    profile: bool = False
    """Trace the steps that follow."""


CARRY_ON = Verdict()


class Saves(Protocol):
    """What the agreement needs to know of the saving."""

    def is_due_by_step(self, done: int) -> bool:
        """Whether a save is due after step `done`, whatever the time; the same on every rank."""
        ...

    def is_due_by_time(self) -> bool:
        """Counts from rank 0 alone: one clock decides."""
        ...

    def report(self) -> str:
        """How the save that is on its way fares on this rank; empty if there is none."""
        ...

    def hear(self, reports: list[str]) -> bool:
        """Takes in every rank's report. Whether another save may begin; the same on every rank."""
        ...


@dataclass(frozen=True, slots=True)
class Wishes:
    """What this process was asked to do; counts from any rank."""

    stop: Callable[[], bool]
    leave: Callable[[], bool] = lambda: False
    """Stop after the next save."""
    profile: Callable[[], bool] = lambda: False


@dataclass(frozen=True, slots=True)
class _Ballot:
    stop: bool
    leave: bool
    profile: bool
    save: bool
    step_seconds: float
    saving: str

    def pack(self) -> bytes:
        return _BALLOT.pack(self.stop, self.leave, self.profile, self.save, self.step_seconds) + self.saving.encode()

    @classmethod
    def unpack(cls, data: bytes) -> "_Ballot":
        stop, leave, profile, save, step_seconds = _BALLOT.unpack_from(data)
        return cls(stop, leave, profile, save, step_seconds, data[_BALLOT.size :].decode())


def steps_between(step_seconds: float, interval_seconds: float = _INTERVAL_SECONDS) -> int:
    """Steps until the next exchange, 1 to 50, for steps of `step_seconds` on the slowest rank."""
    return max(1, min(_MOST_STEPS, int(interval_seconds / max(step_seconds, 1e-6))))


class Agreement:
    """One rank's side. Every rank calls `after` for every step."""

    def __init__(
        self, exchange: Callable[[bytes], list[bytes]], wishes: Wishes, saves: Saves, clock: Clock, step: int
    ) -> None:
        self._exchange = exchange
        self._wishes = wishes
        self._saves = saves
        self._clock = clock
        self._last_step = step
        self._since = clock()
        self._next_step = step + 1
        self._is_save_owed = False
        """A save was due when the one before was not through. It is made as soon as that is, at a later step, and
        stands for all that were due meanwhile; a run that ends, stops or leaves has saved its last step anyway."""

    def is_due(self, done: int) -> bool:
        """Whether the ranks exchange after step `done`; the same on all of them."""
        return done >= self._next_step or self._saves.is_due_by_step(done)

    def after(self, done: int) -> Verdict:
        """The verdict after step `done`. Collective when `is_due`, else at once `CARRY_ON`."""
        if not self.is_due(done):
            return CARRY_ON
        step_seconds = (self._clock() - self._since) / (done - self._last_step)
        wishes = self._wishes
        ballot = _Ballot(
            wishes.stop(),
            wishes.leave(),
            wishes.profile(),
            self._saves.is_due_by_time(),
            step_seconds,
            self._saves.report(),
        )
        ballots = [_Ballot.unpack(answer) for answer in self._exchange(ballot.pack())]
        self._last_step, self._since = done, self._clock()
        may_save = self._saves.hear([each.saving for each in ballots])
        is_save_due = self._is_save_owed or ballots[0].save or self._saves.is_due_by_step(done)
        self._is_save_owed = is_save_due and not may_save
        interval_seconds = _OWED_INTERVAL_SECONDS if self._is_save_owed else _INTERVAL_SECONDS
        self._next_step = done + steps_between(max(each.step_seconds for each in ballots), interval_seconds)
        save = is_save_due and may_save
        return Verdict(
            stop=any(each.stop for each in ballots),
            save=save,
            leave=save and any(each.leave for each in ballots),
            profile=any(each.profile for each in ballots),
        )


class StopVote:
    """Whether any rank was asked to stop amid other work, which all of them do in equally many pieces. What has become
    of a save that began before is heard on the way."""

    def __init__(
        self,
        exchange: Callable[[bytes], list[bytes]],
        wants_stop: Callable[[], bool],
        clock: Clock,
        saves: Saves | None = None,
    ) -> None:
        """`saves` None: nothing is being saved."""
        self._exchange = exchange
        self._wants_stop = wants_stop
        self._clock = clock
        self._saves = saves
        self._last, self._next = 0, 1
        self._since = clock()

    def after(self, pieces: int) -> bool:
        """After so many are done, each time one is. Collective about once a second, at the same piece on all ranks."""
        if pieces < self._next:
            return False
        seconds = (self._clock() - self._since) / (pieces - self._last)
        saving = self._saves.report() if self._saves is not None else ""
        answers = self._exchange(_STOP_BALLOT.pack(self._wants_stop(), seconds) + saving.encode())
        ballots = [_STOP_BALLOT.unpack_from(answer) for answer in answers]
        self._last, self._since = pieces, self._clock()
        self._next = pieces + steps_between(max(each for _, each in ballots))
        if self._saves is not None:
            self._saves.hear([answer[_STOP_BALLOT.size :].decode() for answer in answers])
        return any(stop for stop, _ in ballots)


def wait_for_rank_0(
    exchange: Callable[[bytes], list[bytes]],
    wait: Callable[[float], bool] | None,
    patience_seconds: float,
    clock: Clock,
) -> None:
    """Returns on all ranks together, once rank 0's `wait` is over or its patience is. Collective.

    `wait(seconds)` is whether it is over, after at most so long; None on all other ranks. They hear from rank 0 every
    second, so that it may take longer than anybody would wait for one message, and whoever is lost is noticed.
    """
    give_up_at = clock() + patience_seconds
    is_over = False
    while not is_over:
        left = give_up_at - clock()
        goes_on = wait is not None and left > 0 and not wait(min(_ROUND_SECONDS, left))
        is_over = not exchange(struct.pack("?", goes_on))[0][0]
