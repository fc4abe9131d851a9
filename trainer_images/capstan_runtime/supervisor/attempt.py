"""One life of the trainer: from its start for one membership to its end."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from signal import SIGKILL, SIGTERM, SIGUSR1, SIGUSR2

from capstan_runtime.contract.run_config import Membership, ProgramConfig
from capstan_runtime.contract.state import Exit, Phase, Progress
from capstan_runtime.supervisor.child import Child
from capstan_runtime.supervisor.ending import Evidence, exit_of
from capstan_runtime.supervisor.hang import (
    Hang,
    can_dump,
    judge_hang,
    judge_unkillable,
    read_process_state,
    read_stuck_state,
)
from capstan_runtime.supervisor.log import Log
from capstan_runtime.supervisor.memory import oom_kills
from capstan_runtime.supervisor.settings import Settings
from capstan_runtime.supervisor.watch import Overdue, Watch

_TICK_SECONDS = 0.25
_DUMP_SECONDS = 1.0
"""Left to a hung trainer to write its stacks."""
_LEAVE_SECONDS = 10.0
"""Left to a trainer that said why it fails, to go. Exit hooks of frameworks wait for lost peers for minutes."""
_DIE_SECONDS = 10.0
"""Left to a killed trainer to be gone: the kernel has its memory to give back, on the device too."""
_LAST_LINE_SECONDS = 5.0
"""For the line that makes an exit code of 0 a success."""
_DRAIN_SECONDS = 0.3
"""For what a dead trainer left in its pipes; only a grandchild that escaped, or a log nobody reads, makes it wait."""

_NOTHING_TO_SAVE = frozenset({Phase.STARTING, Phase.RESTORING, Phase.COMPILING})


class Attempt:
    """Runs one trainer. `run` ends when the trainer has ended, for whatever reason, or cannot be ended."""

    def __init__(
        self,
        child: Child,
        settings: Settings,
        membership: Membership,
        on_progress: Callable[[Progress], None],
        log: Log,
    ) -> None:
        """`child` was started for, or has become the trainer of, `membership`."""
        self.child = child
        self._deadlines = settings.run.deadlines
        self._is_program = isinstance(settings.run, ProgramConfig)
        self._membership = membership
        self._on_progress = on_progress
        self._log = log
        self._memory_events = settings.memory_events
        self._oom_kills = oom_kills(settings.memory_events)
        self._has_spoken = False
        self._hang: Hang | None = None
        self._lines_before_hang: list[str] = []
        self._failed: Progress | None = None
        """The line with which it said why it fails."""
        self._leaves_at_checkpoint = membership.leave_at_checkpoint
        self._must_tell_to_leave = False
        self._is_abandoned = False
        self._killed_at: float | None = None
        self.cannot_be_killed = False
        """It is still there long after a SIGKILL, and holds what the next trainer would need."""
        self._stop_by: float | None = None
        self._leave_by: float | None = None
        self._watch = Watch(self._deadlines, time.monotonic(), splits=membership.micro_splits)

    @property
    def came_to_nothing(self) -> bool:
        """It ended before it said a word, and not because anybody here wanted it to."""
        is_unwanted = self._is_abandoned or self._stop_by is not None or self._hang is not None
        return not self._has_spoken and not is_unwanted

    @property
    def of_start(self) -> dict[str, object]:
        """What a state says of a trainer that starts: of its data, and then of its micro-steps."""
        watch, began = self._watch, time.time() - time.monotonic()
        if watch.phase is Phase.STARTING and watch.data_at is not None:
            return {"has_data": watch.has_data, "data_at": began + watch.data_at}
        if watch.phase is Phase.COMPILING and watch.split_at is not None:
            return {"split_at": began + watch.split_at}
        return {}

    async def run(self) -> Exit | None:
        """How the trainer failed; None when it succeeded."""
        listening = asyncio.create_task(self._listen())
        watching = asyncio.create_task(self._keep_watch())
        exited = asyncio.create_task(self.child.wait())
        try:
            await asyncio.wait((exited, watching), return_when=asyncio.FIRST_COMPLETED)
            ended_at = time.time()
            if not exited.done():
                watching.result()  # it came to its end, or this raises
                self._give_up()
            status = exited.result() if exited.done() else -SIGKILL
        finally:
            exited.cancel()
            watching.cancel()
            self.child.kill_group()
        patience_seconds = _LAST_LINE_SECONDS if status == 0 else _DRAIN_SECONDS
        with contextlib.suppress(TimeoutError):  # a grandchild that left the group may hold the pipe open
            await asyncio.wait_for(listening, patience_seconds)
        await asyncio.to_thread(self.child.output.drain, _DRAIN_SECONDS)
        sign = self.child.page.read()
        end = exit_of(
            Evidence(
                fence=self._membership.fence,
                status=status,
                at=ended_at,
                has_succeeded=self._has_succeeded(status),
                failure=self._failed.failure if self._failed else None,
                message=self._failed.message if self._failed else None,
                bad_batch=self._failed.bad_batch if self._failed else None,
                hang=self._hang,
                step=max(self._watch.step, sign.step) if sign is not None else self._watch.step or None,
                sign=sign,
                has_spoken=self._has_spoken,
                is_program=self._is_program,
                was_asked_to_stop=self._stop_by is not None,
                was_asked_to_leave=self._leaves_at_checkpoint,
                was_out_of_memory=oom_kills(self._memory_events) > self._oom_kills,
                lines=self._lines_before_hang if self._hang else self.child.output.last_lines(),
            )
        )
        self.child.close()
        return end

    def _has_succeeded(self, status: int) -> bool:
        """It has said that all is done and committed. What a program does after that is its own, and part of it: it has
        not succeeded if it then exits with a code of failure."""
        return self._watch.phase is Phase.SUCCEEDED and not (self._is_program and status > 0)

    def stop(self) -> None:
        """Asks the trainer to save and leave; kills it if it takes longer than the deadlines allow."""
        if self._stop_by is not None:
            return
        save = 0.0 if self._watch.phase in _NOTHING_TO_SAVE else self._deadlines.save
        self._stop_by = time.monotonic() + self._deadlines.stop + save
        self.child.signal_leader(SIGTERM)

    def leave_at_checkpoint(self) -> None:
        """Asks the trainer to leave after its next committed save."""
        self._leaves_at_checkpoint = self._must_tell_to_leave = True
        self._tell_to_leave()

    def _tell_to_leave(self) -> None:
        # Before it has spoken it may not know the signal yet, and would die of it.
        if self._must_tell_to_leave and self._has_spoken:
            self._must_tell_to_leave = False
            self.child.signal_leader(SIGUSR2)

    def abandon(self) -> None:
        """Kills the trainer at once: its world has ended, and a broken world cannot save."""
        self._is_abandoned = True
        if not self.child.has_exited:  # else its number may belong to somebody else by now
            self._kill()

    def _kill(self) -> None:
        self._killed_at = self._killed_at or time.monotonic()
        self.child.kill_group()

    def forgive_oom_kill(self) -> None:
        """What the kernel has killed for memory so far was not the trainer."""
        self._oom_kills = oom_kills(self._memory_events)

    async def _listen(self) -> None:
        async for progress in self.child.progress():
            if isinstance(progress, str):
                self._log.say(progress)
                continue
            self._has_spoken = True
            self._tell_to_leave()
            self._watch.note(progress, time.monotonic())
            if progress.failure is not None:
                self._failed = progress
                self._leave_by = time.monotonic() + _LEAVE_SECONDS
            self._on_progress(progress)

    async def _keep_watch(self) -> None:
        """Ends what goes on for too long. Returns when that cannot be ended."""
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self.child.reap()
            now = time.monotonic()
            sign = self.child.page.read()
            if sign is not None:
                self._watch.glance(sign.step, now)
                self._watch.stir(sign.section, sign.since_ns / 1e9)
            if self._killed_at is not None:
                if now > self._killed_at + _DIE_SECONDS:
                    return
                continue
            deadline = min((by for by in (self._stop_by, self._leave_by) if by is not None), default=None)
            if deadline is not None:
                if now > deadline:
                    self._kill()
                continue
            overdue = self._watch.overdue(now)
            if overdue is None:
                continue
            if overdue.phase is not Phase.SUCCEEDED:
                await self._examine(overdue)
            self._kill()

    async def _examine(self, overdue: Overdue) -> None:
        """Finds out what the hung trainer is doing; every thread's stack goes to its output, if it still can."""
        sign, state = self.child.page.read(), read_process_state(self.child.pid)
        self._lines_before_hang = self.child.output.last_lines()
        dump: list[str] = []
        # A program that has not attached would die of the signal.
        if can_dump(state) and (self._has_spoken or not self._is_program):
            self._log.say(f"{overdue}; its stacks follow")
            self.child.output.forget()
            self.child.signal_leader(SIGUSR1)
            await asyncio.sleep(_DUMP_SECONDS)
            dump = self.child.output.last_lines()
        self._hang = judge_hang(overdue, sign, state, dump)
        if self._is_program and not self._has_spoken:
            advice = "the program has not called capstan_runtime.attach(): call it first, after the imports"
            self._hang = replace(self._hang, message=f"{self._hang.message}; {advice}")

    def _give_up(self) -> None:
        """What the trainer said of its failure, or that all is committed, is still true."""
        self.cannot_be_killed = True
        if self._hang is None:
            self._lines_before_hang = self.child.output.last_lines()
        if self._failed is None:
            self._hang = judge_unkillable(self._hang, read_stuck_state(self.child.pid), _DIE_SECONDS)
