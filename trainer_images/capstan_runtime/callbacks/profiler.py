"""Some steps are traced by the framework's own profiler, on rank 0. Outside of the window there is nothing of it."""

from collections.abc import Callable
from pathlib import Path

from capstan_runtime.checkpoint.layout import PROFILE
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.context import JobContext
from capstan_runtime.contract import callbacks as contract
from capstan_runtime.contract.state import Profile, Section
from capstan_runtime.hooks import Step
from capstan_runtime.notices import read_profile_request
from capstan_runtime.tracking.place import Place, open_place
from capstan_runtime.voice import Voice


class Profiler:
    """A hook that begins a trace after one step, and ends it after another. All ranks have it, and wait for their
    devices at the same steps; rank 0 alone traces."""

    section = Section.HOST

    def __init__(
        self,
        plan: contract.Profiler,
        context: JobContext,
        trace: Callable[[Path], Callable[[], None]],
        store: Store,
        voice: Voice,
        done: int,
    ) -> None:
        """`trace` is the engine's; `done` is how many steps are done. A window that they are past stays untraced."""
        window = plan.steps or plan.annotation
        assert window is not None
        self._count = window.count
        self._begin_after = plan.steps.first - 1 if plan.steps is not None else None
        self._is_on_request = plan.annotation is not None
        self._context = context
        self._trace = trace
        self._store = store
        self._voice = voice
        self._first = 0
        self._end_after: int | None = None
        """None: no window is open."""
        self._request: str | None = None
        self._answered: str | None = None
        self._end: Callable[[], None] | None = None
        self._place: Place | None = None
        if self._begin_after == done:
            self._begin(done)

    def is_asked_for(self) -> bool:
        """Whether a trace was asked for that was not made yet. Asked when the ranks agree."""
        if not self._is_on_request:
            return False
        self._request = read_profile_request(self._context.environ)
        return self._request is not None and self._request != self._answered and self._end_after is None

    def is_due(self, step: Step) -> bool:
        is_leaving = step.is_last or step.verdict.stop or step.verdict.leave
        if self._end_after is not None:
            return step.done >= self._end_after or is_leaving
        return (step.done == self._begin_after or step.verdict.profile) and not is_leaving

    def run(self, step: Step) -> None:
        if self._end_after is not None:
            self._finish(step.done)
        else:
            self._begin(step.done)

    def _begin(self, done: int) -> None:
        self._first, self._end_after = done + 1, done + self._count
        self._answered = self._request
        if self._context.membership.rank != 0:
            return
        name = f"{PROFILE}/{self._first:012d}.{self._context.membership.fence}"
        try:
            self._place = open_place(self._context.environ, self._store, name)
            self._end = self._trace(self._place.path)
        except Exception as error:  # a profiler that is in use, or has no rights: none of it is the run's trouble
            self._give_up(error)

    def _finish(self, done: int) -> None:
        self._end_after = None
        end, place, self._end = self._end, self._place, None
        if end is None or place is None:
            return
        try:
            end()
            place.keep(at_once=True)
        except Exception as error:
            self._give_up(error)
            return
        profile = Profile(first_step=self._first, last_step=done, place=place.lasting, request=self._answered)
        self._voice.report(profile=profile)
        self._voice.say(f"steps {self._first} to {done} are traced in {place.lasting}")

    def _give_up(self, error: Exception) -> None:
        first_line = next(iter(str(error).splitlines()), "")
        note = f"steps {self._first} and following are not traced: {type(error).__name__}: {first_line}"
        self._voice.warn(note)
        self._voice.report(note=note)
