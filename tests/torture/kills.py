"""Writers that die: between any two operations, at any moment, alone and beside one another.

What must hold of a reader afterwards, in the order in which it is asked:
 * It takes some checkpoint, accuses none, and what it reads is bit by bit what was saved under that root.
 * What was acknowledged is there: nothing older than the last commit that the writer was told of is taken. Where a
   second attempt had taken over, that is its last commit or, before it had any, what was there when it took over.
"""

import os
import random
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from capstan_runtime.checkpoint.claims import newest_claim
from capstan_runtime.checkpoint.disk import Disk
from capstan_runtime.checkpoint.folder_store import FolderStore
from capstan_runtime.checkpoint.layout import new_attempt
from capstan_runtime.checkpoint.writer import SaveFailed
from tests.support.checkpoints import RUN, arrays_of, choose, retention, save, steps_in
from tests.support.crashing_disk import PowerCut, TickingDisk, killed_before, operations_of, restore
from tests.torture.scenes import Stage, read, scratch

FIRST, OWN, SECOND = 10, 20, 30
"""Steps: of the commit that was there before, of the writer that dies, of the attempt that takes over."""
_EXIT_KILLED = 7


@dataclass(frozen=True, slots=True)
class Tally:
    """What came of many deaths of one kind."""

    name: str
    points: int
    read: dict[str, int]
    """What was read afterwards, and how often."""
    misses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Point:
    """What came of one death."""

    read: str
    problem: str
    """Empty: the law holds."""


def _tally(name: str, points: list[Point]) -> Tally:
    read = {what: sum(point.read == what for point in points) for what in sorted({point.read for point in points})}
    return Tally(name, len(points), read, tuple(point.problem for point in points if point.problem))


class Ring:
    """One store after the other, each with a commit of step FIRST, and those who die in it."""

    def __init__(self, world: int) -> None:
        self._world = world
        self._pristine, self._place = scratch() / "store", scratch()
        self.attempts = (new_attempt(RUN), new_attempt(RUN))
        save(self._pristine, FIRST, world=world)
        self._number = 0

    def fresh(self) -> Path:
        """A new copy of the store."""
        shutil.rmtree(self._place / str(self._number), ignore_errors=True)
        self._number += 1
        shutil.copytree(self._pristine, self._place / str(self._number))
        return self._place / str(self._number)

    def save_own(self, store: Path, disk: Disk) -> None:
        """The first attempt's save."""
        save(store, OWN, fence=1, attempt=self.attempts[0], world=self._world, disk=disk)

    def take_over(self, store: Path, disk: Disk) -> None:
        """The second attempt: takes the store over, resumes, and saves."""
        choose(FolderStore(store, disk), fence=2)
        save(store, SECOND, fence=2, attempt=self.attempts[1], world=self._world, disk=disk)


_WHAT = {0: "nothing", FIRST: "the commit before", OWN: "its own commit", SECOND: "the second attempt's"}


class _AnyStep(dict[int, dict[str, np.ndarray]]):
    """The state of every step there is."""

    def __contains__(self, step: object) -> bool:
        return True

    def __missing__(self, step: int) -> dict[str, np.ndarray]:
        return arrays_of(step)


def _step_read(store: Path) -> tuple[int, str]:
    """0 when everything was refused; and what was wrong with it whichever it is."""
    reading = read(Stage(store, {}, {}, {}, _AnyStep(), None), fence=9, floor_step=FIRST)
    if reading.root is None:
        return 0, f"everything was refused: {reading.message}"
    if reading.reported:
        return reading.step, f"falsely accused: {reading.message}"
    return reading.step, reading.differs and f"not what was saved of step {reading.step}: {reading.differs}"


def _judged(store: Path, allowed: tuple[int, ...], context: str) -> tuple[int, Point]:
    """The step that is read, and whether it is one of `allowed`, with all its bytes."""
    step, problem = _step_read(store)
    if not problem and step not in allowed:
        problem = f"step {step} was read, not one of {allowed}"
    return step, Point(_WHAT[step], problem and f"{context}: {problem}")


def every_operation_of_a_save(world: int) -> Tally:
    """Alone. Once its own commit has been read after a death, it is read after every later one."""
    ring = Ring(world)
    scratch_store = ring.fresh()
    operations = operations_of(lambda disk: ring.save_own(scratch_store, disk))
    points: list[Point] = []
    allowed: tuple[int, ...] = (FIRST, OWN)
    for operation in range(operations):
        store = ring.fresh()
        assert killed_before(operation, lambda disk, store=store: ring.save_own(store, disk))
        step, point = _judged(store, allowed, f"operation {operation} of {operations}")
        allowed = (OWN,) if step == OWN else allowed
        points.append(point)
    store = ring.fresh()
    ring.save_own(store, Disk())
    points.append(_judged(store, (OWN,), "after the last operation")[1])
    return _tally(f"save of {_ranks(world)}, killed between any two operations", points)


def _ranks(world: int) -> str:
    return "1 rank" if world == 1 else f"{world} ranks"


def every_operation_under_a_power_cut(world: int) -> Tally:
    """As above, and the machine goes down: only what was synced is left, and any one name that was not."""
    volume = scratch() / "volume"
    volume.mkdir()
    cut = PowerCut(volume)
    save(volume / "store", FIRST, world=world, disk=cut.disk())
    committed = len(cut.snapshots)
    save(volume / "store", OWN, world=world, disk=cut.disk())
    points: list[Point] = []
    allowed: tuple[int, ...] = (FIRST, OWN)
    for operation, surely in list(enumerate(cut.snapshots))[committed - 1 :]:
        for snapshot in (surely, *cut.strays[operation]):
            after = scratch() / "after"
            restore(snapshot, after)
            step, point = _judged(after / "store", allowed, f"operation {operation - committed + 1}")
            points.append(point)
            if snapshot is surely and step == OWN:
                allowed = (OWN,)
            shutil.rmtree(after.parent)
    return _tally(f"save of {_ranks(world)}, power cut between any two operations", points)


def every_operation_of_a_sweep(stride: int = 1) -> Tally:
    """Retention of the newest 2 of 6: what must be kept is there after every death, or every `stride`-th."""
    pristine, place = scratch() / "store", scratch()
    for step in (FIRST, 12, 14, 16, 18, OWN):
        save(pristine, step)

    def sweep(store: Path, disk: Disk, fence: int = 2) -> None:
        retention(FolderStore(store, disk), 2, [], fence=fence).sweep()

    shutil.copytree(pristine, place / "whole")
    operations = operations_of(lambda disk: sweep(place / "whole", disk))
    points: list[Point] = []
    for operation in range(0, operations, stride):
        store = place / str(operation)
        shutil.copytree(pristine, store)
        assert killed_before(operation, lambda disk, store=store: sweep(store, disk))
        _, point = _judged(store, (OWN,), f"operation {operation} of {operations}")
        if not point.problem and steps_in(store)[:2] != [OWN, 18]:
            point = Point(point.read, f"operation {operation}: left are {steps_in(store)}")
        sweep(store, Disk(), fence=10)
        if not point.problem and steps_in(store) != [OWN, 18]:
            point = Point(point.read, f"operation {operation}: the next sweep leaves {steps_in(store)}")
        points.append(point)
        shutil.rmtree(store)
    return _tally("retention, killed between any two operations", points)


def two_writers(world: int, points: int, seed: int) -> Tally:
    """A second attempt takes over between two operations of the first one's save; it dies, or is done and the first
    goes on as if nothing had happened, and dies later or not at all."""
    ring, chance = Ring(world), random.Random(seed)
    scratch_store = ring.fresh()
    own = operations_of(lambda disk: ring.save_own(scratch_store, disk))
    scratch_store = ring.fresh()
    second = operations_of(lambda disk: ring.take_over(scratch_store, disk))
    judged: list[Point] = []
    for _ in range(points):
        begins = chance.randrange(own)
        dies = chance.choice([chance.randrange(second), None])
        ends = None if dies is not None else chance.choice([chance.randrange(begins, own + 1), None])
        store = ring.fresh()
        acknowledged = _run_both(ring, store, begins, dies, ends)
        allowed = (SECOND,) if SECOND in acknowledged else (FIRST, OWN, SECOND)
        context = f"taken over at operation {begins} of {own}, died at {dies} of {second}, the first ended at {ends}"
        judged.append(_judged(store, allowed, context)[1])
    return _tally(f"save of {_ranks(world)}, a second attempt takes over in the middle", judged)


def _run_both(ring: Ring, store: Path, begins: int, dies: int | None, ends: int | None) -> set[int]:
    """Steps that were acknowledged before the end of a process in which the second attempt runs inside the first."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            _be_both(ring, store, begins, dies, ends, writing)
        except SaveFailed:
            os._exit(0)  # superseded, as it should be
        except BaseException:
            os._exit(1)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        acknowledged = set(pipe.read())
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, _EXIT_KILLED), f"a writer failed with {code}"
    return acknowledged


def _be_both(ring: Ring, store: Path, begins: int, dies: int | None, ends: int | None, told: int) -> None:
    ticks = 0

    def tick_of_second(left: list[int | None]) -> None:
        if left[0] == 0:
            os._exit(_EXIT_KILLED)
        left[0] = None if left[0] is None else left[0] - 1

    def tick_of_own() -> None:
        nonlocal ticks
        if ticks == begins:
            left = [dies]
            ring.take_over(store, TickingDisk(lambda: tick_of_second(left)))
            os.write(told, bytes([SECOND]))
        if ends is not None and ticks == ends:
            os._exit(_EXIT_KILLED)
        ticks += 1

    ring.save_own(store, TickingDisk(tick_of_own))
    os.write(told, bytes([OWN]))


def killed_processes(world: int, points: int, seed: int, is_second: bool) -> Tally:
    """Real processes that save step after step, killed by SIGKILL at a moment of chance; with `is_second`, a second
    attempt takes the store over meanwhile."""
    chance = random.Random(seed)
    place = scratch()
    judged: list[Point] = []
    seconds = _seconds_of_a_save(place / "measured", world)
    for number in range(points):
        store = place / str(number)
        save(store, FIRST, world=world)
        first = _Writer(store, 1, world)
        time.sleep(chance.uniform(0, 3 * seconds))
        floor = first.acknowledged()
        writers = [first]
        if is_second:
            writers.append(_Writer(store, 2, world))
            time.sleep(chance.uniform(0, 8 * seconds))
        for writer in chance.sample(writers, len(writers)):
            writer.kill()
        has_taken_over = newest_claim(FolderStore(store), RUN) is not None
        least = max(FIRST, floor, writers[-1].last if has_taken_over else first.last)
        judged.append(_judged_least(store, least, f"kill {number}"))
        shutil.rmtree(store)
    return _tally(f"processes of {_ranks(world)}{', two attempts' if is_second else ''}, SIGKILL at any moment", judged)


def _seconds_of_a_save(store: Path, world: int) -> float:
    save(store, 1, world=world)
    started = time.perf_counter()
    save(store, 2, world=world)
    return time.perf_counter() - started


def _judged_least(store: Path, least: int, context: str) -> Point:
    step, problem = _step_read(store)
    if not problem and step < least:
        problem = f"step {step} was read, {least} was acknowledged"
    what = "the last acknowledged" if step == least else "a commit not yet acknowledged"
    return Point(what, problem and f"{context}: {problem}")


class _Writer:
    """A process that saves steps until it is killed or superseded, and says which were committed."""

    def __init__(self, store: Path, fence: int, world: int) -> None:
        self._told, writing = os.pipe()
        os.set_blocking(self._told, False)
        self.last = 0
        """Step it said it had committed, as far as heard; 0: none yet."""
        self._child = os.fork()
        if self._child == 0:
            try:
                _save_for_ever(store, fence, world, writing)
            except SaveFailed:
                os._exit(0)
            except BaseException:
                os._exit(1)
        os.close(writing)

    def acknowledged(self) -> int:
        """`last`, up to now."""
        try:
            while data := os.read(self._told, 4):
                self.last = int.from_bytes(data, "little")
        except BlockingIOError:
            pass
        return self.last

    def kill(self) -> None:
        """It is dead, and all it said has been heard. Raises AssertionError if it had failed."""
        os.kill(self._child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])
        assert code in (0, -signal.SIGKILL), f"a writer failed with {code}"
        self.acknowledged()
        os.close(self._told)


def _save_for_ever(store: Path, fence: int, world: int, told: int) -> None:
    attempt = new_attempt(RUN)
    step = FIRST
    if fence > 1:
        chosen = choose(store, fence=fence)
        assert chosen is not None
        step = chosen.manifest.step
    while True:
        step += 1
        save(store, step, fence=fence, attempt=attempt, world=world)
        os.write(told, step.to_bytes(4, "little"))
