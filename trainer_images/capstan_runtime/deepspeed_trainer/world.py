"""Joining, talking across, and leaving the world of torch processes; and what its failures mean."""

import contextlib
import re
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from capstan_runtime.contract.run_config import Deadlines, Membership
from capstan_runtime.errors import GpuOutOfMemory, PeerLost

_PEER_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed out|socket", re.I)


class World:
    """This process's place among the others: the group that trains, and a quiet one for little messages."""

    def __init__(self, membership: Membership, deadlines: Deadlines, device: torch.device) -> None:
        """Waits until all processes have joined. Raises PeerLost if they have not by `deadlines.form`."""
        self.rank, self.size = membership.rank, membership.world
        timeout = timedelta(seconds=max(deadlines.first_step, deadlines.save))
        with translated_errors():
            dist.init_process_group(
                backend="nccl" if device.type == "cuda" else "gloo",
                store=_meeting_place(membership, deadlines.form),
                rank=self.rank,
                world_size=self.size,
                timeout=timeout,
                device_id=device if device.type == "cuda" else None,
            )
            # Messages between hosts must neither wait for the accelerator nor mix with training's collectives.
            self._control = dist.new_group(backend="gloo", timeout=timeout)

    def exchange(self, payload: bytes) -> list[bytes]:
        """Every rank's payload in rank order, over the host network. Raises PeerLost after the deadline."""
        if self.size == 1:
            return [payload]
        with translated_errors():
            sizes = [torch.empty(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(sizes, torch.tensor([len(payload)]), group=self._control)
            longest = int(max(sizes))
            padded = torch.frombuffer(bytearray(payload.ljust(longest + 1, b"\0")), dtype=torch.uint8)
            everyone = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(everyone, padded, group=self._control)
        return [each.numpy().tobytes()[: int(size)] for each, size in zip(everyone, sizes, strict=True)]

    def leave(self) -> None:
        """Says goodbye once all are ready to. Raises PeerLost if they are not in time."""
        with translated_errors():
            # Rank 0 keeps the meeting place: if it left first, the others' watchdogs would take that for a failure.
            dist.barrier(group=self._control)
            dist.destroy_process_group()


def _meeting_place(membership: Membership, seconds: float) -> Any:
    stores: Any = dist  # torch exports its stores without telling type checkers
    if membership.world == 1:
        return stores.HashStore()
    host, _, port = membership.coordinator.rpartition(":")
    listener = _listen(host, int(port)) if membership.rank == 0 else None
    return stores.TCPStore(
        host,
        int(port),
        world_size=membership.world,
        is_master=listener is not None,
        timeout=timedelta(seconds=seconds),
        wait_for_workers=True,
        master_listen_fd=None if listener is None else listener.detach(),
    )


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket on this pod's own address. Left to itself torch would take the port on every address, where
    another pod of the same machine may already have it."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise PeerLost(f"cannot listen on {host}:{port}: {error.strerror}") from error
    listener.listen()
    return listener


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Turns torch's errors into PeerLost or GpuOutOfMemory where they mean that; others pass."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise GpuOutOfMemory(_first_line(error)) from error
    except dist.DistError as error:
        raise PeerLost(_first_line(error)) from error
    except RuntimeError as error:
        # gloo's errors have no type of their own.
        if _PEER_LOST.search(_first_line(error)):
            raise PeerLost(_first_line(error)) from error
        raise


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
