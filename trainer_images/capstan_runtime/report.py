"""What the trainer tells its supervisor: one line of JSON for each Progress, on a pipe it inherited."""

import os
import threading
from collections.abc import Mapping

from capstan_runtime.contract import env
from capstan_runtime.contract.state import Progress


class Reporter:
    """Sends Progress lines. Any thread may; lines never mix. Without a supervisor it sends nothing."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Reporter":
        number = environ.get(env.REPORT_FD)
        return cls(int(number) if number is not None else None)

    def send(self, progress: Progress) -> None:
        """Raises BrokenPipeError when the supervisor is gone: nobody would restart, stop or watch this process."""
        if self._descriptor is None:
            return
        line = progress.model_dump_json(by_alias=True, exclude_none=True).encode() + b"\n"
        with self._lock:
            rest = memoryview(line)
            while len(rest):
                rest = rest[os.write(self._descriptor, rest) :]
