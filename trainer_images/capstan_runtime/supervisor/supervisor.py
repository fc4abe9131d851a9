"""The supervisor itself: one membership after the other, one trainer for each, until success or SIGTERM."""

import asyncio
import os
import signal
import time

from aiohttp import web

from capstan_runtime.contract.exit_codes import ExitCode, FailureClass
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import Exit, Phase, Progress, State
from capstan_runtime.supervisor.attempt import Attempt
from capstan_runtime.supervisor.child import reap_orphans
from capstan_runtime.supervisor.hint import Hints
from capstan_runtime.supervisor.last_words import fit
from capstan_runtime.supervisor.log import Log
from capstan_runtime.supervisor.server import Refused, make_app
from capstan_runtime.supervisor.settings import Settings

_QUARANTINES_KEPT = 20
_RECORDS = ("metrics", "checkpoint", "resumed_from")
"""Fields of a Progress that become the State's field of the same name."""
_KEEP_ALIVE_SECONDS = 10.0
_CONNECTION_SECONDS = 60.0
_FLUSH_SECONDS = 2.0


class Supervisor:
    """PID 1 of one pod."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._state = State(pod=settings.pod, uid=settings.run.uid)
        self._membership: Membership | None = None
        """The newest accepted."""
        self._ran_fence = 0
        """Of the newest membership for which a trainer was started."""
        self._started = 0
        self._is_stopping = False
        self._attempt: Attempt | None = None
        self._news = asyncio.Event()
        """Set when there is a newer membership or a wish to stop."""
        self._hints = Hints(settings)
        self._log = Log()

    @property
    def state(self) -> State:
        return self._state

    @property
    def restarts(self) -> int:
        return max(0, self._started - 1)

    def accept(self, membership: Membership) -> None:
        """Makes `membership` the one to run; a trainer of an older one is killed. Repeating it changes nothing."""
        known = self._membership
        if known == membership:
            return
        if known is not None and membership.fence <= known.fence:
            same = "with another place in the world " if membership.fence == known.fence else ""
            raise Refused(f"fence: {membership.fence} {same}is not newer than {known.fence}, which this pod follows")
        if self._is_stopping or self._state.phase is Phase.SUCCEEDED:
            raise Refused(f"this pod is leaving: it is in phase {self._state.phase}")
        self._membership = membership
        self._update(
            fence=membership.fence,
            rank=membership.rank,
            world=membership.world,
            phase=Phase.STARTING,
            step=0,
            steps=None,
            metrics={},
            resumed_from=None,
            exit=None,
        )
        if self._attempt is not None:
            self._attempt.abandon()
        self._news.set()

    def stop(self) -> None:
        """The pod is being deleted: the trainer may save and leave."""
        self._is_stopping = True
        if self._attempt is not None:
            self._update(phase=Phase.STOPPING)
            self._attempt.stop()
        self._news.set()

    async def run(self) -> int:
        """The exit code of the pod: 0 after success, STOPPED after SIGTERM."""
        runner = web.AppRunner(
            make_app(self, self._settings.token), access_log=None, keepalive_timeout=_KEEP_ALIVE_SECONDS
        )
        await runner.setup()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: _short_lived(runner, loop), self._settings.address, self._settings.port
        )
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        loop.add_signal_handler(signal.SIGINT, self.stop)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        try:
            return await self._run_memberships()
        finally:
            self._say_last_words()
            await self._hints.flush()
            server.close()
            await runner.cleanup()
            await self._log.flush(_FLUSH_SECONDS)

    async def _run_memberships(self) -> int:
        while True:
            await self._news.wait()
            self._news.clear()
            if self._is_stopping:
                return ExitCode.STOPPED
            if self._membership is None or self._membership.fence == self._ran_fence:
                continue
            if await self._run_attempt(self._membership):
                return ExitCode.OK

    async def _run_attempt(self, membership: Membership) -> bool:
        """True when the trainer succeeded in the newest membership."""
        self._ran_fence = membership.fence
        self._started += 1
        self._clear_last_words()
        try:
            self._attempt = Attempt(
                self._settings, membership, lambda progress: self._take_in(membership.fence, progress), self._log
            )
        except OSError as error:
            self._end(membership.fence, _cannot_start(membership.fence, self._settings.command, error))
            return False
        end = await self._attempt.run()
        self._attempt = None
        return self._end(membership.fence, end)

    def _take_in(self, fence: int, progress: Progress) -> None:
        """Makes a trainer's report part of the state, unless its membership is over."""
        if fence != self._state.fence:
            return
        was = self._state.phase
        given = progress.model_dump(exclude_none=True, include={"step", "steps"})
        given |= {name: value for name in _RECORDS if (value := getattr(progress, name)) is not None}
        if progress.phase is not None and not self._is_stopping:
            # What SUCCEEDED means is decided when the process has ended.
            given["phase"] = Phase.TRAINING if progress.phase is Phase.SUCCEEDED else progress.phase
        if progress.quarantined is not None:
            given["quarantined"] = [*self._state.quarantined, progress.quarantined][-_QUARANTINES_KEPT:]
        self._update(**given)
        is_first_step = was is Phase.COMPILING and self._state.phase is Phase.TRAINING
        if is_first_step or progress.checkpoint is not None or progress.quarantined is not None:
            self._hints.send()

    def _end(self, fence: int, end: Exit | None) -> bool:
        """Takes in how an attempt ended; True when it was the newest and succeeded."""
        if fence != self._state.fence:
            return False
        self._update(phase=Phase.EXITED if end else Phase.SUCCEEDED, exit=end)
        if end is not None:
            self._log.say(f"{end.failure}: {end.message}")
        self._say_last_words()
        self._hints.send()
        return end is None

    def _update(self, **changed: object) -> None:
        self._state = self._state.model_copy(update=changed)

    def _reap(self) -> None:
        trainer: int | None = None
        if self._attempt is not None:
            self._attempt.child.reap()
            trainer = None if self._attempt.child.has_exited else self._attempt.child.pid
        if os.getpid() == 1:
            reap_orphans(trainer)

    def _say_last_words(self) -> None:
        """Leaves the state where it outlives this process, at every end: the pod may be killed at any time."""
        self._write_last_words(fit(self._state))

    def _clear_last_words(self) -> None:
        """The words of an attempt that is over must not be taken for those of the next."""
        self._write_last_words(b"")

    def _write_last_words(self, words: bytes) -> None:
        if self._settings.termination_log is None:
            return
        try:
            self._settings.termination_log.write_bytes(words)
        except OSError as error:
            self._log.say(f"the termination message cannot be written: {error}")


def _short_lived(runner: web.AppRunner, loop: asyncio.AbstractEventLoop) -> asyncio.BaseProtocol:
    """A connection that ends, between two requests, a minute after it was opened: one that never sends a request,
    or never ends one, would otherwise stay for ever."""
    assert runner.server is not None
    connection = runner.server()
    loop.call_later(_CONNECTION_SECONDS, connection.close)
    return connection


def _cannot_start(fence: int, command: tuple[str, ...], error: OSError) -> Exit:
    return Exit(
        fence=fence,
        code=ExitCode.CONFIG,
        failure=FailureClass.CONFIG,
        message=f"the trainer cannot be started: {' '.join(command)}: {error}",
        at=time.time(),
    )
