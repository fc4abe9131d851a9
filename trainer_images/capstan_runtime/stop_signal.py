"""What a process is asked by signals."""

import signal
from types import FrameType

from capstan_runtime.contract.exit_codes import ExitCode


class StopSignal:
    """SIGTERM, remembered until the ranks agree to stop; before there is anything to save it ends the process. And
    SIGUSR2, which asks to leave after the next save."""

    def __init__(self) -> None:
        self.wanted = False
        self.leave_wanted = False
        self._has_state = False
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGUSR2, self._note_leave)

    def from_now_on_save_first(self) -> None:
        self._has_state = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.wanted = True
        if not self._has_state:
            raise SystemExit(ExitCode.STOPPED)

    def _note_leave(self, number: int, frame: FrameType | None) -> None:
        self.leave_wanted = True
