"""Joining, talking across, and leaving the world of JAX processes; and what its failures mean.

A dead peer is noticed within milliseconds where processes talk over TCP (CPU collectives, the coordinator's
connections), and after `HEARTBEAT_SECONDS` at the latest; nothing waits for ever. When it is rank 0 that died, JAX's
own client may end this process with SIGABRT before the collective's error arrives: there is no way to ask it not to
(its callback for that raises std::bad_cast in jaxlib 0.10), and either end is prompt.
"""

# JAX leaves these parts of its interface untyped.
# mypy: disable-error-code="no-untyped-call,no-any-return"

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import distributed

from capstan_runtime.contract.run_config import Deadlines, Membership
from capstan_runtime.errors import GpuOutOfMemory, PeerLost

HEARTBEAT_SECONDS = 15
"""JAX's default is 100. Heartbeats come from a native thread, so a busy interpreter does not miss them."""

_PEER_LOST = re.compile(r"gloo|nccl|coordinat|barrier|socket|connection|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED", re.I)


class World:
    """This process's place among the others, and the little messages between them."""

    def __init__(self, membership: Membership, deadlines: Deadlines) -> None:
        """Waits until all processes have joined. Raises PeerLost if they have not by `deadlines.form`.

        Must come before JAX looks at its devices.
        """
        self.rank, self.size = membership.rank, membership.world
        self._timeout_ms = int(1000 * max(deadlines.first_step, deadlines.save))
        self._exchanges = 0
        if self.size > 1:
            _initialize(membership, deadlines)

    def exchange(self, payload: bytes) -> list[bytes]:
        """Every rank's payload in rank order, through rank 0's coordinator. Raises PeerLost after the deadline."""
        if self.size == 1:
            return [payload]
        client: Any = distributed.global_state.client
        turn = self._exchanges
        self._exchanges += 1
        with translated_errors():
            client.key_value_set_bytes(f"exchange/{turn}/{self.rank}", payload)
            payloads = [
                client.blocking_key_value_get_bytes(f"exchange/{turn}/{rank}", self._timeout_ms)
                for rank in range(self.size)
            ]
            if turn:
                # Whoever has taken this turn's payloads is through with the last turn's: all have come this far.
                client.key_value_delete(f"exchange/{turn - 1}/{self.rank}")
        return payloads

    def leave(self) -> None:
        """Says goodbye; waits for the others to do so. Raises PeerLost if they do not."""
        with translated_errors():
            jax.distributed.shutdown()


def _initialize(membership: Membership, deadlines: Deadlines) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # The preemption service takes SIGTERM away from Python, and with it the loop's chance to save and leave.
    jax.config.update("jax_enable_preemption_service", False)
    with translated_errors():
        jax.distributed.initialize(
            coordinator_address=membership.coordinator,
            # JAX would bind every address, where another pod of this machine may already use the port.
            coordinator_bind_address=membership.coordinator,
            num_processes=membership.world,
            process_id=membership.rank,
            cluster_detection_method="deactivate",
            initialization_timeout=max(1, int(deadlines.form)),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=max(1, int(deadlines.save)),
        )


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Turns JAX's one error type into PeerLost or GpuOutOfMemory where it means that; others pass."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        message = str(error).strip().partition("\n")[0]
        if "RESOURCE_EXHAUSTED" in message:
            raise GpuOutOfMemory(message) from error
        if _PEER_LOST.search(message):
            raise PeerLost(message) from error
        raise
