"""One life of the trainer: from its start for one membership to its end."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from signal import SIGTERM, SIGUSR1

from capstan_runtime.contract.exit_codes import FailureClass
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import Exit, Phase, Progress
from capstan_runtime.supervisor.child import Child
from capstan_runtime.supervisor.ending import Evidence, exit_of
from capstan_runtime.supervisor.log import Log
from capstan_runtime.supervisor.memory import oom_kills
from capstan_runtime.supervisor.settings import Settings
from capstan_runtime.supervisor.watch import Watch

_TICK_SECONDS = 0.25
_DUMP_SECONDS = 1.0
"""Left to a hung trainer to write its stacks."""
_LEAVE_SECONDS = 10.0
"""Left to a trainer that said why it fails, to go. Exit hooks of frameworks wait for lost peers for minutes."""
_DRAIN_SECONDS = 2.0

_NOTHING_TO_SAVE = frozenset({Phase.STARTING, Phase.RESTORING, Phase.COMPILING})


class Attempt:
    """Runs one trainer. `run` ends when the trainer has ended, for whatever reason."""

    def __init__(
        self, settings: Settings, membership: Membership, on_progress: Callable[[Progress], None], log: Log
    ) -> None:
        """Starts the trainer. Raises OSError when its command cannot be run."""
        self._deadlines = settings.run.deadlines
        self._membership = membership
        self._on_progress = on_progress
        self._log = log
        self._memory_events = settings.memory_events
        self._oom_kills = oom_kills(settings.memory_events)
        self._has_spoken = False
        self._hang: str | None = None
        self._failure: FailureClass | None = None
        self._message: str | None = None
        self._stop_by: float | None = None
        self._leave_by: float | None = None
        self._watch = Watch(self._deadlines, time.monotonic())
        self.child = Child(settings, membership)

    async def run(self) -> Exit | None:
        """How the trainer failed; None when it succeeded."""
        listening = asyncio.create_task(self._listen())
        watching = asyncio.create_task(self._keep_watch())
        try:
            status = await self.child.wait()
            ended_at = time.time()
        finally:
            watching.cancel()
            self.child.kill_group()
        with contextlib.suppress(TimeoutError):  # a grandchild that left the group may hold the pipe open
            await asyncio.wait_for(listening, _DRAIN_SECONDS)
        lines = await asyncio.to_thread(self.child.output.last_lines, _DRAIN_SECONDS)
        return exit_of(
            Evidence(
                fence=self._membership.fence,
                status=status,
                at=ended_at,
                has_succeeded=self._watch.phase is Phase.SUCCEEDED,
                failure=self._failure,
                message=self._message,
                hang=self._hang,
                has_spoken=self._has_spoken,
                was_asked_to_stop=self._stop_by is not None,
                was_out_of_memory=oom_kills(self._memory_events) > self._oom_kills,
                lines=lines,
            )
        )

    def stop(self) -> None:
        """Asks the trainer to save and leave; kills it if it takes longer than the deadlines allow."""
        if self._stop_by is not None:
            return
        save = 0.0 if self._watch.phase in _NOTHING_TO_SAVE else self._deadlines.save
        self._stop_by = time.monotonic() + self._deadlines.stop + save
        self.child.signal_leader(SIGTERM)

    def abandon(self) -> None:
        """Kills the trainer at once: its world has ended, and a broken world cannot save."""
        if not self.child.has_exited:  # else its number may belong to somebody else by now
            self.child.kill_group()

    async def _listen(self) -> None:
        async for progress in self.child.progress():
            if isinstance(progress, str):
                self._log.say(progress)
                continue
            self._has_spoken = True
            self._watch.note(progress, time.monotonic())
            if progress.failure is not None:
                self._failure, self._message = progress.failure, progress.message
                self._leave_by = time.monotonic() + _LEAVE_SECONDS
            self._on_progress(progress)

    async def _keep_watch(self) -> None:
        """Ends what goes on for too long."""
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self.child.reap()
            now = time.monotonic()
            deadline = min((by for by in (self._stop_by, self._leave_by) if by is not None), default=None)
            if deadline is not None:
                if now > deadline:
                    self.child.kill_group()
                continue
            reason = self._watch.overdue(now)
            if reason is None:
                continue
            if self._watch.phase is not Phase.SUCCEEDED:
                await self._dump(reason)
            self.child.kill_group()
            return

    async def _dump(self, reason: str) -> None:
        """Has the trainer write every thread's stack to its output."""
        self._hang = reason
        self._log.say(f"{reason}; its stacks follow")
        self.child.signal_leader(SIGUSR1)
        await asyncio.sleep(_DUMP_SECONDS)
