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
from capstan_runtime.errors import ConfigError, GpuOutOfMemory, PeerLost
from capstan_runtime.parallel.star import form_star

_STAR_KEY = "capstan/star"
_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|ALLOC_FAILED", re.I)
"""What other parts say than the allocator of the GPU, whose errors have a type: the host's, NCCL, cuBLAS, cuDNN."""
_PEER_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed out|socket", re.I)


class World:
    """This process's place among the others: the group that trains, and the star for little messages between hosts,
    which must neither wait for the accelerator nor mix with training's collectives."""

    def __init__(self, membership: Membership, deadlines: Deadlines, device: torch.device) -> None:
        """Waits until all processes have joined. Raises PeerLost if they have not by `deadlines.form`."""
        self.rank, self.size = membership.rank, membership.world
        patience_seconds = max(deadlines.first_step, deadlines.save)
        self.patience = timedelta(seconds=patience_seconds)
        """How long anyone waits in a collective of training's."""
        with translated_errors():
            store = _meeting_place(membership, deadlines.form)
            dist.init_process_group(
                backend="nccl" if device.type == "cuda" else "gloo",
                store=store,
                rank=self.rank,
                world_size=self.size,
                timeout=self.patience,
                device_id=device if device.type == "cuda" else None,
            )
            self._star = form_star(
                self.rank,
                self.size,
                membership.coordinator.rpartition(":")[0],
                publish=lambda address: store.set(_STAR_KEY, address),
                read_published=lambda: store.get(_STAR_KEY),
                form_seconds=deadlines.form,
                patience_seconds=patience_seconds,
            )
        self.exchange = self._star.exchange
        """Every rank's payload in rank order. Raises PeerLost when one is gone or beyond its deadline."""

    def leave(self) -> None:
        """Says goodbye once all are ready to. Raises PeerLost if they are not in time."""
        # Rank 0 keeps the meeting place: if it left first, the others' watchdogs would take that for a failure.
        self.exchange(b"")
        with translated_errors():
            dist.destroy_process_group()
        self._star.close()


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


def choose_device() -> torch.device:
    """The accelerator of this process, with fp32 arithmetic that is fp32. Raises ConfigError if it sees several."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if torch.cuda.device_count() > 1:
        raise ConfigError(
            f"spec.workers.gpus: this worker sees {torch.cuda.device_count()} GPUs, but DeepSpeed trains with one per "
            "worker; set gpus to 1 and workers to the number of GPUs"
        )
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    # Matrix products are exact by default, convolutions are not: cuDNN may round their inputs to 10 bits (TF32).
    torch.backends.cudnn.allow_tf32 = False
    return device


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Turns torch's errors into PeerLost or GpuOutOfMemory where they mean that; others pass."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise GpuOutOfMemory(f"{_first_line(error)}{_peak()}") from error
    except RuntimeError as error:
        if _OUT_OF_MEMORY.search(_first_line(error)):
            raise GpuOutOfMemory(f"{_first_line(error)}{_peak()}") from error
        if isinstance(error, dist.DistError):
            raise PeerLost(_first_line(error)) from error
        # gloo's errors have no type of their own.
        if _PEER_LOST.search(_first_line(error)):
            raise PeerLost(_first_line(error)) from error
        raise


def _peak() -> str:
    """How much memory was in use at most, for a message."""
    if not torch.cuda.is_available():
        return ""
    return f"; at most {torch.cuda.max_memory_allocated():,} bytes were in use"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
