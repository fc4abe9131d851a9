"""Which checkpoints somebody serves, told to a trainer that runs: a file in memory that its supervisor adds lines to.

Retention reads it at every sweep. No signal tells of a change: what is served now is among the newest checkpoints, and
it takes several saves until one of them could go.
"""

import json
import os
from collections.abc import Iterable, Mapping

from capstan_runtime.contract import env


class KeepList:
    """The supervisor's side: one file for one trainer, gone when both have let go of it."""

    def __init__(self) -> None:
        self.descriptor = os.memfd_create("capstan-keep-list", os.MFD_CLOEXEC)
        """To be passed to the trainer as `env.KEEP_LIST`."""

    def write(self, roots: Iterable[str]) -> None:
        """From now on `roots` stay. Raises OSError."""
        # A line is added, none is written over: a reader takes the last whole one, and never half of two.
        os.write(self.descriptor, json.dumps(sorted(roots)).encode() + b"\n")

    def close(self) -> None:
        os.close(self.descriptor)


def read_keep_list(environ: Mapping[str, str]) -> frozenset[str]:
    """The roots that stay, as they were last told; none without a supervisor. Raises OSError."""
    number = environ.get(env.KEEP_LIST)
    if number is None:
        return frozenset()
    whole, _, _ = _content(int(number)).rpartition(b"\n")
    return frozenset(json.loads(whole.rpartition(b"\n")[2] or b"[]"))


def _content(descriptor: int) -> bytes:
    """All of a file that may grow meanwhile, wherever its writer is in it."""
    content = bytearray()
    while piece := os.pread(descriptor, 65536, len(content)):
        content += piece
    return bytes(content)
