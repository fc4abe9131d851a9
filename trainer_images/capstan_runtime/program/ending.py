"""How a program's process ends: what its supervisor is told, and the exit code.

An exception that nobody catches is explained as a trainer's is, and the process ends at once, with the code of its
class: exit hooks of frameworks wait for peers that may be gone. A program that exits by itself keeps its own exit code.
"""

import atexit
import os
import sys
from types import TracebackType

from capstan_runtime.context import JobContext
from capstan_runtime.contract.exit_codes import ExitCode
from capstan_runtime.contract.state import Phase, Progress
from capstan_runtime.errors import GpuOutOfMemory
from capstan_runtime.explain import explain, located
from capstan_runtime.program.foreign import translated
from capstan_runtime.report import Reporter
from capstan_runtime.voice import Voice


class Ending:
    """Knows how far the program has come, and says so when it ends."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.context: JobContext | None = None
        """None: not attached yet."""
        self.step = 0
        """Steps done."""
        self.voice: Voice | None = None
        """None: not attached yet."""
        self.has_finished = False
        """All steps are done and committed."""
        self.has_stopped = False
        """It was asked to stop before that, and has saved."""

    def take_over(self) -> None:
        """From now on the end of this process is told to its supervisor."""
        sys.excepthook = self._on_exception
        atexit.register(self._on_exit)

    def _on_exception(self, kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        error = translated(error)
        if isinstance(error, GpuOutOfMemory) and self.context is not None:
            error = located(error, self.context, self.step, "the program")
            error.__cause__ = error.__context__
        self._exit(explain(error, self._reporter))

    def _on_exit(self) -> None:
        """Of the exit code nothing is known here. If it is none of success, the supervisor sees that."""
        if self.voice is not None and self.context is not None:
            self.voice.end_tracking(self.has_finished, self.context.deadlines.stop)
        if self.has_finished:
            try:
                self._reporter.send(Progress(phase=Phase.SUCCEEDED, step=self.step))
            except BrokenPipeError:
                print("the supervisor is gone", file=sys.stderr)
        elif self.has_stopped:
            self._exit(ExitCode.STOPPED)

    def _exit(self, code: ExitCode) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
