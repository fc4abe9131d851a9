"""One proposed checkpoint: opened, read and checked by every rank; in place on all of them, or used by none."""

import base64
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar, cast

from capstan_runtime.checkpoint.reader import OpenCheckpoint
from capstan_runtime.checkpoint.signing import NotSigned
from capstan_runtime.checkpoint.verified import VerifyingReader
from capstan_runtime.contract.saving import VerifyLevel
from capstan_runtime.contract.state import Source
from capstan_runtime.errors import ConfigError, CorruptCheckpoint, StoreUnavailable

Exchange = Callable[[bytes], list[bytes]]
"""`Engine.exchange`: every rank's payload, in rank order."""
_LONGEST_MESSAGE = 500
Result = TypeVar("Result")


class Unusable(Exception):
    """This checkpoint cannot be resumed from, though nothing is wrong with its bytes. One line."""


class UnusableForGood(Unusable):
    """Nor will any later attempt of the run be able to."""


@dataclass(frozen=True, slots=True)
class Voters:
    """The ranks of an attempt, as one of them sees them."""

    rank: int
    level: VerifyLevel
    exchange: Exchange
    load: Callable[[OpenCheckpoint, VerifyingReader], None]
    """Puts the state that the reader gives in place. Not collective; may be called again with another checkpoint.
    Raises CorruptCheckpoint, StoreUnavailable, ConfigError, Unusable."""


@dataclass(frozen=True, slots=True)
class Proposed:
    """A checkpoint that might be resumed from."""

    source: Source
    open: Callable[[], OpenCheckpoint]
    """Raises CorruptCheckpoint, StoreUnavailable, ConfigError."""
    is_gone: Callable[[], bool] = lambda: False
    """Whether it has been removed meanwhile: then nothing that was wrong with it was damage. Raises OSError."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint that is in place on every rank."""

    source: Source
    opened: OpenCheckpoint
    reader: VerifyingReader
    """With what this rank has read."""
    seconds: float
    """It took to read it into place, verification included."""
    is_verified: bool
    """The ranks together have checked every byte."""
    is_in_store: bool
    """It is committed there, wherever it was read from."""


def vote(voters: Voters, proposed: Proposed) -> Loaded:
    """The proposed checkpoint, in place on every rank. Collective; raises the same on every rank.

    Raises CorruptCheckpoint when bytes are wrong, Unusable, StoreUnavailable, also when the ranks see different
    checkpoints, and ConfigError.
    """
    started = time.monotonic()
    poll = _Poll(voters, proposed.is_gone)
    opened = poll.result(proposed.open)
    if len(set(poll.say(opened.root))) > 1:
        raise StoreUnavailable(
            f"checkpoint {opened.name} is not the same on every rank; is {opened.store.place} one shared store?"
        )
    reader = opened.reader(voters.level)
    poll.result(lambda: voters.load(opened, reader))
    is_verified = voters.level == "full" and _check_the_rest(poll, voters, reader)
    return Loaded(
        proposed.source, opened, reader, time.monotonic() - started, is_verified, proposed.source is Source.STORE
    )


def _check_the_rest(poll: "_Poll", voters: Voters, reader: VerifyingReader) -> bool:
    """What no rank's state needed, such as the header of a file that holds nothing: shared out. Collective. False when
    some rank has read in too many places to say where."""
    packed = poll.say(base64.b64encode(reader.coverage.packed()).decode())
    if "" in packed:
        return False
    reader.coverage.add_packed(map(base64.b64decode, packed))
    rest = reader.coverage.missing()
    if rest:
        poll.result(lambda: _check_pieces(reader, rest[voters.rank :: len(packed)]))
    return True


def _check_pieces(reader: VerifyingReader, pieces: Iterable[tuple[int, int]]) -> None:
    for file, number in pieces:
        reader.read_pieces(file, [number])


class _Poll:
    """Questions that all ranks answer at the same time, each having done its part, or failed to."""

    def __init__(self, voters: Voters, is_gone: Callable[[], bool]) -> None:
        self._voters = voters
        self._is_gone = is_gone

    def say(self, answer: str) -> list[str]:
        """Every rank's answer. Collective."""
        return [each.decode() for each in self._voters.exchange(answer.encode())]

    def result(self, action: Callable[[], Result]) -> Result:
        """What `action` returns here, once every rank has succeeded. Collective; raises the same on every rank."""
        result: Result | None = None
        problem: tuple[str, str] | None = None
        try:
            result = action()
        except (CorruptCheckpoint, StoreUnavailable, OSError, ConfigError, Unusable) as error:
            problem = self._told(error)
        answers = [json.loads(answer) for answer in self.say(json.dumps(problem))]
        for kind, (error_type, names_rank) in _KINDS.items():
            for rank, answer in enumerate(answers):
                if answer is not None and answer[0] == kind:
                    raise error_type(f"rank {rank}: {answer[1]}" if names_rank else answer[1])
        return cast(Result, result)

    def _told(self, error: Exception) -> tuple[str, str]:
        """The error as the other ranks are told it."""
        message = str(error)[:_LONGEST_MESSAGE]
        try:
            if isinstance(error, CorruptCheckpoint) and not isinstance(error, NotSigned) and self._is_gone():
                return "unavailable", f"it was removed while it was read: {message}"
        except OSError as unavailable:
            return "unavailable", str(unavailable)[:_LONGEST_MESSAGE]
        if isinstance(error, ConfigError):
            return "config", message
        if isinstance(error, (NotSigned, Unusable)):
            return "spoilt" if isinstance(error, UnusableForGood) else "unusable", message
        return "corrupt" if isinstance(error, CorruptCheckpoint) else "unavailable", message


_KINDS: dict[str, tuple[type[Exception], bool]] = {
    "unavailable": (StoreUnavailable, True),
    "config": (ConfigError, False),
    "spoilt": (UnusableForGood, False),
    "unusable": (Unusable, False),
    "corrupt": (CorruptCheckpoint, False),
}
"""What a rank may answer instead of success, the gravest first: the exception, and whether it names the rank."""
