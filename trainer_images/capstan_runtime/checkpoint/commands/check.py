"""`verify` and `scrub`: whether the bytes are those that were committed."""

import json
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from capstan_runtime.checkpoint.candidates import quarantine
from capstan_runtime.checkpoint.commands.places import Place
from capstan_runtime.checkpoint.commands.survey import Condition, survey
from capstan_runtime.checkpoint.commands.text import Progress, size
from capstan_runtime.checkpoint.layout import COMMIT, SaveName
from capstan_runtime.checkpoint.marks import mark_verified
from capstan_runtime.checkpoint.readback import read_back
from capstan_runtime.checkpoint.reader import LaterFormat, OpenCheckpoint, open_checkpoint
from capstan_runtime.checkpoint.signing import NotSigned
from capstan_runtime.checkpoint.store import Store, is_of_one_folder
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.contract.saving import VerifyLevel
from capstan_runtime.errors import CorruptCheckpoint, StoreUnavailable

BAD_BYTES = 1
"""Exit code: something is not what was committed."""

Read = Callable[[OpenCheckpoint, VerifyLevel, Callable[[int], None]], None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one checkpoint."""

    store: Store
    name: SaveName
    opened: OpenCheckpoint | None
    """None: not even its manifests are good."""
    level: VerifyLevel
    read: int
    """Bytes hashed."""
    seconds: float
    problem: str | None
    """The first bad place; None: all is good."""
    may_be_whole: bool = False
    """The problem says nothing of its bytes: it cannot be read just now, or another key signed it."""

    def document(self) -> dict[str, Any]:
        opened = self.opened
        return {
            "place": self.store.place,
            "name": str(self.name),
            "step": self.name.step,
            "root": opened.root if opened else None,
            "logical": opened.manifest.logical if opened else None,
            "level": self.level,
            "bytes": opened.size if opened else None,
            "bytesRead": self.read,
            "seconds": round(self.seconds, 6),
            "problem": self.problem,
        }

    def line(self) -> str:
        where = f"{self.store.place}/{self.name}"
        if self.problem is not None or self.opened is None:
            return f"BAD   {where}: {self.problem}"
        speed = f" in {self.seconds:.3g} s, {size(round(self.read / max(self.seconds, 1e-9)))}/s" if self.read else ""
        what = "manifests" if self.level == "manifest" else size(self.read)
        return f"good  {where}  {self.opened.root}  {what} of {size(self.opened.size)}{speed}"


def verify(targets: Iterator["Target"], level: VerifyLevel, public_key: str | None, output: str) -> int:
    """0, or BAD_BYTES. Raises OSError, StoreUnavailable, ConfigError."""
    verdicts = []
    for target in targets:
        verdict = _verdict(target, level, OpenCheckpoint.verify, public_key)
        if verdict is not None:
            verdicts.append(_told(verdict, output))
    code = _summed_up(verdicts, output)
    for verdict in verdicts:
        if output == "table" and verdict.problem is not None and not verdict.may_be_whole:
            where = shlex.quote(f"{verdict.store.place}/{verdict.name}")
            print(f"mark it, so that no run resumes from it: capstan checkpoint scrub {where}")
    return code


def scrub(targets: Iterator["Target"], is_dry_run: bool, output: str) -> int:
    """Reads from the disk itself; what is bad is quarantined, what is good marked as verified. Returns as `verify`."""
    verdicts = []
    for target in targets:
        verdict = _verdict(target, "full", read_back, None)
        if verdict is None:
            continue
        verdicts.append(_told(verdict, output))
        if is_dry_run:
            continue
        if verdict.may_be_whole:
            continue
        if verdict.problem is not None:
            quarantine(target.store, target.name, verdict.problem)
        elif verdict.opened is not None:
            mark_verified(target.store, target.name, verdict.opened.root, time.time())
    return _summed_up(verdicts, output)


@dataclass(frozen=True, slots=True)
class Target:
    """A checkpoint to look at."""

    store: Store
    name: SaveName
    was_named: bool
    """By the user; else it was found, and may be gone by the time it is read."""


def targets(places: list[Place], is_named: bool, say: Callable[[str], None]) -> Iterator[Target]:
    """The checkpoint that was named, or every one that somebody could resume from; `say` hears of the others.

    Raises OSError, StoreUnavailable.
    """
    for place in places:
        if is_named and place.only is not None:
            yield Target(place.store, place.only, was_named=True)
            continue
        for row in survey(place.store).rows:
            if row.condition in (Condition.COMMITTED, Condition.CORRUPT, Condition.UNREADABLE):
                yield Target(place.store, row.name, was_named=False)
            else:
                say(f"skipped {place.store.place}/{row.name}: {row.condition}: {row.problem}")


def _verdict(target: Target, level: VerifyLevel, read: Read, public_key: str | None) -> Verdict | None:
    """None when the checkpoint was removed meanwhile: its run keeps only some."""
    store, name = target.store, target.name
    opened: OpenCheckpoint | None = None
    problem: str | None = None
    may_be_whole = False
    done = 0
    started = time.monotonic()
    progress = Progress(str(name), 0)

    def count(read_bytes: int) -> None:
        nonlocal done
        done += read_bytes
        progress.add(read_bytes)

    try:
        opened = open_checkpoint(store, name, public_key)
        progress = Progress(str(name), opened.size)
        read(opened, level, count)
    except CorruptCheckpoint as error:
        if not target.was_named and store.size(f"{name}/{COMMIT}") is None:
            return None
        problem, may_be_whole = str(error), isinstance(error, NotSigned)
    except (OSError, StoreUnavailable) as error:
        if target.was_named or not is_of_one_folder(error):
            raise
        problem, may_be_whole = str(error), True
    except LaterFormat:
        if target.was_named:
            raise
        return None
    finally:
        progress.end()
    return Verdict(store, name, opened, level, done, time.monotonic() - started, problem, may_be_whole)


def _told(verdict: Verdict, output: str) -> Verdict:
    if output == "table":
        print(verdict.line(), flush=True)
    return verdict


def _summed_up(verdicts: list[Verdict], output: str) -> int:
    bad = sum(verdict.problem is not None for verdict in verdicts)
    if output == "json":
        document = {"checkpoints": [each.document() for each in verdicts], "good": len(verdicts) - bad, "bad": bad}
        print(json.dumps(document, indent=2))
    elif len(verdicts) != 1:
        print(f"{len(verdicts) - bad} of {len(verdicts)} checkpoints are good")
    return BAD_BYTES if bad else ExitCode.OK
