"""How all ranks stop and save at the same step without asking each other at every one.

A signal reaches one pod, a clock is read on one machine; but saving is collective. So every k steps the ranks exchange
a few bytes. k follows from the slowest rank's step time by the same rule on every rank: about a second's worth of
steps, so that the exchange costs far below 1 % and a stop is at most about a second late.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass

from capstan_runtime.metrics.meter import Clock

_BALLOT = struct.Struct("<??d")
_INTERVAL_SECONDS = 1.0
_MOST_STEPS = 50
"""Bounds how late a stop is when steps suddenly become slow."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What all ranks do after this step."""

    stop: bool = False
    save: bool = False


CARRY_ON = Verdict()


def steps_between(step_seconds: float) -> int:
    """Steps until the next exchange, 1 to 50, for steps of `step_seconds` on the slowest rank."""
    return max(1, min(_MOST_STEPS, int(_INTERVAL_SECONDS / max(step_seconds, 1e-6))))


class Agreement:
    """One rank's side. Every rank calls `after` for every step."""

    def __init__(
        self,
        exchange: Callable[[bytes], list[bytes]],
        stop_wanted: Callable[[], bool],
        save_wanted: Callable[[], bool],
        clock: Clock,
        step: int,
    ) -> None:
        """`stop_wanted` counts from any rank, `save_wanted` from rank 0 alone: one clock decides."""
        self._exchange = exchange
        self._stop_wanted = stop_wanted
        self._save_wanted = save_wanted
        self._clock = clock
        self._last_step = step
        self._since = clock()
        self._next_step = step + 1

    def is_due(self, done: int) -> bool:
        """Whether the ranks exchange after step `done`; the same on all of them."""
        return done >= self._next_step

    def after(self, done: int) -> Verdict:
        """The verdict after step `done`. Collective when `is_due`, else at once `CARRY_ON`."""
        if not self.is_due(done):
            return CARRY_ON
        step_seconds = (self._clock() - self._since) / (done - self._last_step)
        ballot = _BALLOT.pack(self._stop_wanted(), self._save_wanted(), step_seconds)
        ballots = [_BALLOT.unpack(answer) for answer in self._exchange(ballot)]
        self._last_step, self._since = done, self._clock()
        self._next_step = done + steps_between(max(seconds for _, _, seconds in ballots))
        return Verdict(stop=any(stop for stop, _, _ in ballots), save=ballots[0][1])
