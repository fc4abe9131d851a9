"""Faults that this rank suffers on purpose: told first, then done, exactly at the step that was named.

A hook after every step, and a layer in front of the engine and of the data. Without faults neither exists.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

from capstan_runtime.activity import Activity, ObservedEngine, ObservedResult
from capstan_runtime.checkpoint.layout import COMMIT, QUARANTINED, SHARDS, SaveName
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.context import JobContext
from capstan_runtime.contract.chaos import Fault, Injected, Injection
from capstan_runtime.contract.state import Section
from capstan_runtime.engine import Batch, Engine
from capstan_runtime.hooks import Step
from capstan_runtime.metrics.meter import Clock
from capstan_runtime.voice import Voice

_SLOWDOWN = 3.0
"""How many times as long a slow rank takes for a step."""
_LEAST_DELAY_SECONDS = 0.05
"""Of a slow rank's step: steps of a millisecond would be slow without anybody noticing."""
_LATE_SECONDS = 0.2
"""By which each collective of a rank with a slow network is late."""
_LOST = 128 + signal.SIGKILL


@dataclass(slots=True)
class Disturbance:
    """What is wrong right now."""

    slow_until: float = -float("inf")
    late_until: float = -float("inf")
    stall_seconds: float = 0.0
    """Of the next batch that is read."""
    lacks_memory: bool = False
    """In the next step."""
    poisons: bool = False
    """The next step."""


class Chaos:
    """The faults of one attempt of one rank, as a hook of the loop. Unlike others it need not be due on every rank."""

    section = Section.HOST

    def __init__(
        self,
        injections: tuple[Injection, ...],
        rank: int,
        tell: Callable[[Injected], None],
        find_victim: Callable[[], str | None],
        damage: Callable[[str], None],
        clock: Clock = time.monotonic,
    ) -> None:
        """`tell` reports a fault, and returns when the report can no longer be lost with this process. `find_victim`
        gives the key of a file of the newest commit, None while there is none; `damage` does what its name says."""
        self.disturbance = Disturbance()
        self._pending = list(injections)
        self._rank = rank
        self._tell = tell
        self._find_victim = find_victim
        self._damage = damage
        self._clock = clock
        self._first_step_at: float | None = None

    def is_due(self, step: Step) -> bool:
        if self._first_step_at is None:
            self._first_step_at = self._clock()
        return any(self._is_time_for(injection, step) for injection in self._pending)

    def run(self, step: Step) -> None:
        step.outcome.fetch()  # the fault comes after this step, not while the device is at it
        for injection in [each for each in self._pending if self._is_time_for(each, step)]:
            victim = self._find_victim() if injection.fault is Fault.CORRUPT_CHECKPOINT else None
            if injection.fault is Fault.CORRUPT_CHECKPOINT and victim is None:
                continue  # there will be one after some later step
            self._pending.remove(injection)
            told = Injected(name=injection.name, fault=injection.fault, rank=self._rank, step=step.done, at=time.time())
            self._tell(told)
            self._act(injection, victim)

    def _is_time_for(self, injection: Injection, step: Step) -> bool:
        """From its time on: an attempt may begin after the step that was named."""
        if injection.step is not None:
            return step.done >= injection.step
        assert self._first_step_at is not None
        return self._clock() - self._first_step_at >= (injection.seconds or 0.0)

    def _act(self, injection: Injection, victim: str | None) -> None:
        until = self._clock() + injection.duration_seconds
        match injection.fault:
            case Fault.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            case Fault.SEGFAULT:
                os.kill(os.getpid(), signal.SIGSEGV)
            case Fault.HANG:
                os.kill(os.getpid(), signal.SIGSTOP)
            case Fault.LOSE_NODE:
                os._exit(_LOST)
            case Fault.CORRUPT_CHECKPOINT:
                assert victim is not None
                self._damage(victim)
                os.kill(os.getpid(), signal.SIGKILL)
            case Fault.SLOW_RANK:
                self.disturbance.slow_until = until
            case Fault.SLOW_NETWORK:
                self.disturbance.late_until = until
            case Fault.DATA_STALL:
                self.disturbance.stall_seconds = injection.duration_seconds
            case Fault.GPU_OUT_OF_MEMORY:
                self.disturbance.lacks_memory = True
            case Fault.NAN:
                self.disturbance.poisons = True
            case Fault.DELETE_POD:
                raise AssertionError(f"{injection.name}: the operator deletes pods, no rank its own")


def chaos_of(context: JobContext, store: Store, voice: Voice) -> Chaos | None:
    """The faults this rank is to suffer; None: none, and nothing of them is anywhere in its way."""
    if not context.membership.chaos:
        return None
    return Chaos(
        context.membership.chaos,
        context.membership.rank,
        tell=lambda injected: voice.report(injected=injected),
        find_victim=lambda: newest_shard(store, context.run.uid),
        damage=lambda key: flip_a_bit(store, key),
    )


class DisturbedEngine(ObservedEngine):
    """An engine whose steps and messages suffer what `disturbance` says."""

    def __init__(
        self,
        engine: Engine,
        activity: Activity,
        disturbance: Disturbance,
        clock: Clock = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(engine, activity)
        self._disturbance = disturbance
        self._clock = clock
        self._wait = wait
        self._began: float | None = None
        self._step_seconds = 0.0

    def train_step(self, batch: Batch, learning_rate: float) -> ObservedResult:
        now = self._clock()
        if now < self._disturbance.slow_until:
            # On this rank's own account, as work would be.
            self._wait(max(_LEAST_DELAY_SECONDS, (_SLOWDOWN - 1.0) * self._step_seconds))
        elif self._began is not None:
            self._step_seconds = now - self._began
        self._began = self._clock()
        self._be_late(Section.STEP)
        if self._disturbance.lacks_memory:
            self._activity.enter(Section.STEP)
            self.exhaust_memory()
        if self._disturbance.poisons:
            self._disturbance.poisons = False
            self.poison_next_step()
        return super().train_step(batch, learning_rate)

    def exchange(self, payload: bytes) -> list[bytes]:
        self._be_late(Section.EXCHANGE)
        return super().exchange(payload)

    def _be_late(self, section: Section) -> None:
        if self._clock() < self._disturbance.late_until:
            before = self._activity.enter(section)
            self._wait(_LATE_SECONDS)
            self._activity.enter(before)


def stalling(
    read: Callable[[int], Batch], disturbance: Disturbance, wait: Callable[[float], None] = time.sleep
) -> Callable[[int], Batch]:
    """`read`, late once by as much as `disturbance` says."""

    def read_late(step: int) -> Batch:
        seconds, disturbance.stall_seconds = disturbance.stall_seconds, 0.0
        if seconds:
            wait(seconds)
        return read(step)

    return read_late


def newest_shard(store: Store, run: str) -> str | None:
    """Key of a file with tensors of run `run`'s newest commit; None: nothing is committed."""
    names = [name for name in map(SaveName.parse, store.children()) if name is not None and name.is_of_run(run)]
    for name in sorted(names, reverse=True):
        if store.size(f"{name}/{COMMIT}") is None or store.size(f"{name}/{QUARANTINED}") is not None:
            continue
        for file in store.children(f"{name}/{SHARDS}"):
            if file.endswith(".safetensors"):
                return f"{name}/{SHARDS}/{file}"
    return None


def flip_a_bit(store: Store, key: str) -> None:
    """The last byte of the object is no longer what it was; its size is."""
    data = bytearray(store.get(key))
    data[-1] ^= 1
    store.put(key, [bytes(data)])
