"""The supervisor itself: one membership after the other, one trainer for each, until success or SIGTERM."""

import asyncio
import os
import signal
import time
from typing import NoReturn

from capstan_runtime.contract.chaos import Fault
from capstan_runtime.contract.exit_codes import ExitCode, FailureClass
from capstan_runtime.contract.run_config import Membership
from capstan_runtime.contract.state import Exit, Phase, Progress, State
from capstan_runtime.supervisor.attempt import Attempt
from capstan_runtime.supervisor.child import Child, reap_orphans
from capstan_runtime.supervisor.exposition import Facts
from capstan_runtime.supervisor.hint import Hints
from capstan_runtime.supervisor.last_words import fit
from capstan_runtime.supervisor.ledger import Ledger
from capstan_runtime.supervisor.log import Log
from capstan_runtime.supervisor.memory_tier import MemoryTier
from capstan_runtime.supervisor.news import is_news, is_under_chaos, taken_in
from capstan_runtime.supervisor.server import Refused, make_listener
from capstan_runtime.supervisor.settings import Settings
from capstan_runtime.supervisor.warm_spare import WarmSpare

_FLUSH_SECONDS = 2.0
_LONGEST_REASON = 300
_NO_SUCCESS = 1
"""Exit code of a pod whose trainer failed and ended with 0."""


class Supervisor:
    """PID 1 of one pod."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._state = State(pod=settings.pod, uid=settings.run.uid, keep_roots=())
        self._membership: Membership | None = None
        """The newest accepted."""
        self._ran_fence = 0
        """Of the newest membership for which a trainer was started."""
        self._started = 0
        self._is_stopping = False
        self._is_over = False
        """The job has failed for good, and so did this pod's trainer."""
        self._is_dark = False
        """It plays a pod on a lost node: it does nothing any more that anybody could see."""
        self._is_stuck = False
        """A trainer is still there that cannot be killed."""
        self._attempt: Attempt | None = None
        self._ledger: Ledger | None = None
        """Of the newest attempt."""
        self._news = asyncio.Event()
        """Set when there is a newer membership or a wish to stop."""
        self._hints = Hints(settings)
        self._log = Log()
        self._spare = WarmSpare(settings, self._log, self._tell_of_spare)
        self._memory = MemoryTier(settings.memory) if settings.memory is not None else None
        self._listener = make_listener(self, settings.token, self._memory)

    @property
    def state(self) -> State:
        of_start = self._attempt.of_start if self._attempt is not None else {}
        return self._state.model_copy(update={"is_warm": self._spare.is_ready, **of_start})

    @property
    def facts(self) -> Facts:
        chaos = self._membership.chaos if self._membership is not None else ()
        return Facts(
            restarts=max(0, self._started - 1),
            has_warm_spare=bool(self._spare.is_ready),
            is_under_chaos=is_under_chaos(self._state, chaos, time.time()),
        )

    def accept(self, membership: Membership) -> None:
        """Makes `membership` the one to run; a trainer of an older one is killed. Repeating it changes nothing, and the
        three things that may come later are the wish that the trainer leave at its next checkpoint, other checkpoints
        that must stay, and a trace that is asked for."""
        try:
            self._accept(membership)
        except Refused as error:
            if membership.fence >= self._state.fence:  # an older one is not the newest that this pod was told
                self.refuse(str(error))
            raise
        self._update(refused=None)

    def refuse(self, reason: str) -> None:
        """Shows why the newest membership was not taken, until one is."""
        self._update(refused=reason[:_LONGEST_REASON])

    def _accept(self, membership: Membership) -> None:
        known = self._membership
        if membership.is_over:
            self._end_with_the_job(membership.fence)
            return
        if known is not None and membership.fence == known.fence:
            self._accept_again(known, membership)
            return
        if known is not None and membership.fence < known.fence:
            raise Refused(f"fence: {membership.fence} is not newer than {known.fence}, which this pod follows")
        if self._is_stopping or self._is_over or self._is_stuck or self._state.phase is Phase.SUCCEEDED:
            raise Refused(f"this pod is leaving: it is in phase {self._state.phase}")
        membership = membership.model_copy(update={"keep_roots": self._to_keep(membership)})
        self._membership = membership
        self._ledger = Ledger(time.time(), time.monotonic())
        self._update(
            fence=membership.fence,
            rank=membership.rank,
            world=membership.world,
            micro_splits=membership.micro_splits,
            leave_at_checkpoint=membership.leave_at_checkpoint,
            keep_roots=membership.keep_roots,
            profile_request=membership.profile_request,
            step=0,
            steps=None,
            metrics={},
            resumed_from=None,
            restored=None,
            notes=[],
            early_stop=None,
            system={},
            profile=None,
            exit=None,
        )
        self._enter(Phase.STARTING)
        if self._attempt is not None:
            self._attempt.abandon()
        self._news.set()

    def _accept_again(self, known: Membership, membership: Membership) -> None:
        # Faults are handed out once: a spec that asks for others since waits for the next attempt. So do the splits, in
        # which this attempt's own ranks may have had a say.
        changeable = {
            name: getattr(known, name)
            for name in ("leave_at_checkpoint", "keep_roots", "profile_request", "chaos", "micro_splits")
        }
        if membership.model_copy(update=changeable) != known:
            raise Refused(
                f"fence: {membership.fence} with another place in the world is not newer than {known.fence}, "
                "which this pod follows"
            )
        known = self._notify(known, self._to_keep(membership), membership.profile_request)
        if membership.leave_at_checkpoint == known.leave_at_checkpoint:
            return
        if known.leave_at_checkpoint:
            raise Refused(f"leaveAtCheckpoint: fence {known.fence} was asked to leave, and that cannot be taken back")
        self._membership = known.model_copy(update={"leave_at_checkpoint": True})
        self._update(leave_at_checkpoint=True)
        if self._attempt is not None:
            self._attempt.leave_at_checkpoint()

    def _notify(self, known: Membership, roots: tuple[str, ...] | None, request: str | None) -> Membership:
        """The membership with other checkpoints to keep, or another trace that is asked for: its trainer will see."""
        changed = known.model_copy(update={"keep_roots": roots, "profile_request": request})
        if changed == known:
            return known
        if self._attempt is not None:
            self._attempt.child.notify(changed)
        self._membership = changed
        self._update(keep_roots=roots, profile_request=request)
        return changed

    def _to_keep(self, membership: Membership) -> tuple[str, ...] | None:
        """An operator that does not know takes nothing back."""
        return self._state.keep_roots if membership.keep_roots is None else membership.keep_roots

    def _end_with_the_job(self, fence: int) -> None:
        if self._is_over:
            return
        if self._membership is None or fence != self._membership.fence:
            raise Refused(f"fence: {fence} is not the one that this pod follows")
        if self._state.phase is not Phase.EXITED:
            raise Refused("isOver: a trainer runs in this pod; delete the pod to stop it")
        self._is_over = True
        self._spare.discard()
        self._enter(Phase.STOPPING)
        self._news.set()

    def stop(self) -> None:
        """The pod is being deleted: the trainer may save and leave."""
        if self._is_dark:
            return
        self._is_stopping = True
        self._spare.discard()
        if self._attempt is not None:
            self._enter(Phase.STOPPING)
            self._attempt.stop()
        self._news.set()

    async def run(self) -> int:
        """The exit code of the pod: 0 after success, STOPPED after SIGTERM, the trainer's when the job has failed, HANG
        when no trainer can run here any more, because the last one cannot be killed."""
        await self._listener.open(self._settings.address, self._settings.port)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop)
        loop.add_signal_handler(signal.SIGINT, self.stop)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        self._spare.start_first()
        try:
            return await self._run_memberships()
        finally:
            self._say_last_words()
            self._spare.discard()
            await self._hints.flush()
            await self._listener.close()
            await self._log.flush(_FLUSH_SECONDS)

    async def _run_memberships(self) -> int:
        while True:
            await self._news.wait()
            self._news.clear()
            if self._is_stopping:
                return ExitCode.STOPPED
            if self._is_over and self._state.exit is not None:
                await self._forget_memory()
                return self._state.exit.code or _NO_SUCCESS
            if self._membership is None or self._membership.fence == self._ran_fence:
                continue
            if await self._run_attempt(self._membership):
                await self._forget_memory()
                return ExitCode.OK
            if self._is_dark:
                await _for_ever()
            if self._is_stuck:
                return ExitCode.HANG

    async def _run_attempt(self, membership: Membership) -> bool:
        """True when the trainer succeeded in the newest membership."""
        self._ran_fence = membership.fence
        self._started += 1
        self._clear_last_words()
        spare = self._spare.take(membership)
        try:
            end, came_to_nothing = await self._run_trainer(spare or Child(self._settings, membership), membership)
            if spare is not None and came_to_nothing:
                self._log.say("the warm spare was of no use; the trainer starts cold")
                membership = self._newest_of(membership)
                end, _ = await self._run_trainer(Child(self._settings, membership), membership)
        except OSError as error:
            end = _cannot_start(membership.fence, self._settings.command, error)
        if self._is_stuck and end is not None and membership.fence < self._state.fence:
            # Of the newest attempt too this is the end, before it began.
            end = end.model_copy(update={"fence": self._state.fence, "step": None, "section": None})
            return self._end(self._state.fence, end)
        return self._end(membership.fence, end)

    def _newest_of(self, membership: Membership) -> Membership:
        """The same membership with what may have been added to it since."""
        known = self._membership
        return known if known is not None and known.fence == membership.fence else membership

    async def _run_trainer(self, child: Child, membership: Membership) -> tuple[Exit | None, bool]:
        """How it failed (None: it succeeded), and whether it ended before it said a word, unasked."""

        def take_in(progress: Progress) -> None:
            self._take_in(membership.fence, progress)

        self._attempt = Attempt(child, self._settings, membership, take_in, self._log)
        try:
            if self._is_dark:
                self._attempt.abandon()
            elif self._is_stopping:
                self._attempt.stop()
            end = await self._attempt.run()
            self._is_stuck = self._attempt.cannot_be_killed
            return end, self._attempt.came_to_nothing
        finally:
            self._attempt = None

    def _take_in(self, fence: int, progress: Progress) -> None:
        """Makes a trainer's report part of the state, unless its membership is over."""
        if fence != self._state.fence or self._is_dark:
            return
        if progress.injected is not None and progress.injected.fault is Fault.LOSE_NODE:
            self._go_dark()
            return
        before = self._state
        self._update(**taken_in(before, progress))
        # What SUCCEEDED means is decided when the process has ended.
        told = Phase.TRAINING if progress.phase is Phase.SUCCEEDED else progress.phase
        self._enter(before.phase if told is None or self._is_stopping else told)
        is_first_step = before.phase is Phase.COMPILING and self._state.phase is Phase.TRAINING
        if is_first_step:
            self._spare.start()
        if is_first_step or is_news(progress):
            self._hints.send()

    def _tell_of_spare(self) -> None:
        """The operator may wait for this pod to be ready before it gives it a place."""
        if self._attempt is None:
            self._hints.send()

    def _end(self, fence: int, end: Exit | None) -> bool:
        """Takes in how an attempt ended; True when it was the newest and succeeded."""
        if fence != self._state.fence or self._is_dark:
            return False
        self._update(exit=end)
        self._enter(Phase.EXITED if end else Phase.SUCCEEDED)
        if end is not None:
            self._log.say(f"{end.failure}: {end.message}")
        self._say_last_words()
        self._hints.send()
        return end is None

    def _go_dark(self) -> None:
        """What a lost node looks like from outside: no process, no answer, no word."""
        self._is_dark = True
        if self._attempt is not None:
            self._attempt.abandon()
        self._spare.discard()
        self._hints.cancel()
        self._listener.cut()

    def _enter(self, phase: Phase) -> None:
        assert self._ledger is not None
        self._ledger.enter(phase, time.monotonic())
        self._update(phase=phase, timeline=self._ledger.timeline, seconds=self._ledger.seconds)

    def _update(self, **changed: object) -> None:
        self._state = self._state.model_copy(update=changed)

    def _reap(self) -> None:
        children = []
        if self._attempt is not None:
            self._attempt.child.reap()
            if not self._attempt.child.has_exited:
                children.append(self._attempt.child.pid)
        if self._spare.reap() and self._attempt is not None:
            self._attempt.forgive_oom_kill()
        if self._spare.pid is not None:
            children.append(self._spare.pid)
        if os.getpid() == 1:
            reap_orphans(children)

    async def _forget_memory(self) -> None:
        """Nobody will restore from here: all steps are done and committed, or no attempt has this pod any more."""
        if self._memory is None:
            return
        try:
            await asyncio.to_thread(self._memory.empty)
        except OSError as error:
            self._log.say(f"the memory tier cannot be emptied: {error}")

    def _say_last_words(self) -> None:
        """Leaves the state where it outlives this process, at every end: the pod may be killed at any time."""
        self._write_last_words(fit(self._state))

    def _clear_last_words(self) -> None:
        """The words of an attempt that is over must not be taken for those of the next."""
        self._write_last_words(b"")

    def _write_last_words(self, words: bytes) -> None:
        if self._settings.termination_log is None or self._is_dark:
            return
        try:
            self._settings.termination_log.write_bytes(words)
        except OSError as error:
            self._log.say(f"the termination message cannot be written: {error}")


async def _for_ever() -> NoReturn:
    while True:
        await asyncio.Event().wait()


def _cannot_start(fence: int, command: tuple[str, ...], error: OSError) -> Exit:
    return Exit(
        fence=fence,
        code=ExitCode.CONFIG,
        failure=FailureClass.CONFIG,
        message=f"the trainer cannot be started: {' '.join(command)}: {error}",
        at=time.time(),
    )
