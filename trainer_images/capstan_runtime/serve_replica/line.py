"""What the pod and its replica say to each other: one datagram each over a Unix socket, some with a descriptor.

The end of the line is the end of the process at its other side, however it ended.
"""

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

PATH = "CAPSTAN_REPLICA_LINE"
"""Environment variable with the path of the socket, from the pod's first process to the replica's."""
_LONGEST_BYTES = 65536


class Kind(StrEnum):
    # From the replica
    HERE = "here"
    """It runs, and has `pid`."""
    WARM = "warm"
    """The model is verified, loaded and warmed: it can answer."""
    FAILED = "failed"
    """It cannot serve: `code`, `message`."""
    DRAINED = "drained"
    """All that came was answered, and nothing more is taken."""
    # From the pod
    OUTPUT = "output"
    """With a descriptor: what the replica prints goes there."""
    SERVE = "serve"
    """With a descriptor: the listening socket."""
    DRAIN = "drain"
    """Say that you are not ready, go on for the time you know, finish what was begun."""
    LEAVE = "leave"
    """Another one serves: take nothing more."""


@dataclass(frozen=True, slots=True)
class Word:
    kind: Kind
    facts: dict[str, Any]
    descriptor: int | None
    """Owned by whoever received it."""


def listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen()
    listener.setblocking(False)
    return listener


def connect(path: str) -> socket.socket:
    line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line.connect(path)
    return line


def say(line: socket.socket, kind: Kind, descriptors: Sequence[int] = (), **facts: Any) -> None:
    """Raises OSError when nobody is at the other end."""
    socket.send_fds(line, [json.dumps({"kind": kind, **facts}).encode()[:_LONGEST_BYTES]], descriptors)


def hear(line: socket.socket) -> Word | None:
    """The next word; None when the other end is gone. Raises BlockingIOError if there is none on a line that does not
    block."""
    try:
        data, descriptors, _, _ = socket.recv_fds(line, _LONGEST_BYTES, 1)
    except ConnectionError:
        return None
    if not data:
        return None
    facts = json.loads(data)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return Word(Kind(facts.pop("kind")), facts, descriptors[0] if descriptors else None)
