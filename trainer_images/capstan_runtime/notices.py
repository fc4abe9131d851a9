"""What a trainer that runs is told since it began: a file in memory that its supervisor adds lines to.

Which checkpoints somebody serves, of which retention removes none, and a wish for a trace of some steps. No signal
tells of a change. Retention looks at every sweep: what is served now is among the newest checkpoints, and it takes
several saves until one of them could go. The profiler looks when the ranks agree, about every second.
"""

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from capstan_runtime.contract import env


class Notices:
    """The supervisor's side: one file for one trainer, gone when both have let go of it."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("capstan-notices", os.MFD_CLOEXEC)
        """To be passed to the trainer as `env.NOTICES`."""

    def write(self, keep_roots: Iterable[str], profile_request: str | None = None) -> None:
        """From now on these checkpoints stay, and this trace is asked for. Raises OSError."""
        # A line is added, none is written over: a reader takes the last whole one, and never half of two.
        line = json.dumps({"keep": sorted(keep_roots), "profile": profile_request})
        os.write(self.descriptor, line.encode() + b"\n")

    def close(self) -> None:
        os.close(self.descriptor)


def read_keep_list(environ: Mapping[str, str]) -> frozenset[str]:
    """The roots that stay, as they were last told; none without a supervisor. Raises OSError."""
    return frozenset(_newest(environ).get("keep", ()))


def read_profile_request(environ: Mapping[str, str]) -> str | None:
    """The trace that is asked for; None: none is, or there is no supervisor. Raises OSError."""
    return _newest(environ).get("profile")


def _newest(environ: Mapping[str, str]) -> dict[str, Any]:
    number = environ.get(env.NOTICES)
    if number is None:
        return {}
    whole, _, _ = _content(int(number)).rpartition(b"\n")
    newest: dict[str, Any] = json.loads(whole.rpartition(b"\n")[2] or b"{}")
    return newest


def _content(descriptor: int) -> bytes:
    """All of a file that may grow meanwhile, wherever its writer is in it."""
    content = bytearray()
    while piece := os.pread(descriptor, 65536, len(content)):
        content += piece
    return bytes(content)
