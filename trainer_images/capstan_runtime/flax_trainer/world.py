"""Joining, talking across, and leaving the world of JAX processes; and what its failures mean.

A dead peer is noticed within milliseconds where processes talk over TCP (CPU collectives, `exchange`). One that is
frozen, or cut off, is the supervisors' to find: they know who waits for whom, where JAX's coordinator would end
everybody, itself first. Its heartbeats come after their deadlines, so that nothing waits for ever. When it is rank 0
that died, JAX's own client may end this process with SIGABRT before the collective's error arrives: there is no way to
ask it not to (its callback for that raises std::bad_cast in jaxlib 0.10), and either end is prompt.
"""

# JAX leaves these parts of its interface untyped.
# mypy: disable-error-code="no-untyped-call,no-any-return"

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
from jax._src import distributed

from capstan_runtime.contract.run_config import Deadlines, Membership
from capstan_runtime.engine import Batch
from capstan_runtime.errors import GpuOutOfMemory, PeerLost
from capstan_runtime.parallel.star import Star, form_star

Result = TypeVar("Result")

HEARTBEAT_MARGIN_SECONDS = 15
"""After the supervisors' deadlines. Heartbeats come from a native thread: a busy interpreter does not miss them."""

_STAR_KEY = "capstan/star"
_OUT_OF_MEMORY = re.compile(r"RESOURCE_EXHAUSTED|ALLOC_FAILED|out of memory", re.I)
_PEER_LOST = re.compile(r"gloo|nccl|coordinat|barrier|socket|connection|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED", re.I)


class World:
    """This process's place among the others, and the little messages between them."""

    def __init__(self, membership: Membership, deadlines: Deadlines) -> None:
        """Waits until all processes have joined. Raises PeerLost if they have not by `deadlines.form`.

        Must come before JAX looks at its devices.
        """
        self.rank, self.size = membership.rank, membership.world
        if self.size > 1:
            _initialize(membership, deadlines)
        self._star = _form_star(membership, deadlines)
        self.exchange = self._star.exchange
        """Every rank's payload in rank order. Raises PeerLost when one is gone or beyond its deadline."""

    def leave(self) -> None:
        """Says goodbye; waits for the others to do so. Raises PeerLost if they do not."""
        with translated_errors():
            jax.distributed.shutdown()
        self._star.close()


def cached_by_every_rank(function: Callable[..., Result]) -> Callable[..., Result]:
    """`function`, which the first call with a batch of some shapes compiles, with the result in the persistent cache of
    every rank."""
    compiled: set[tuple[tuple[int, ...], ...]] = set()

    @functools.wraps(function)
    def call(*arguments: Any) -> Result:
        batches = (argument for argument in arguments if isinstance(argument, Batch))
        shapes = tuple(each.shape for batch in batches for each in batch if each is not None)
        if shapes in compiled:
            return function(*arguments)
        compiled.add(shapes)
        with cache_of_every_rank():
            return function(*arguments)

    return call


@contextlib.contextmanager
def cache_of_every_rank() -> Iterator[None]:
    """What is compiled in it is in the persistent cache of every rank.

    JAX lets process 0 alone write that cache, for all. But on CPUs every process looks under a key of its own (the
    fingerprint of its topology is part of it), so all others would compile again at every restart.
    """
    if jax.default_backend() != "cpu":
        yield
        return
    state = distributed.global_state
    rank, state.process_id = state.process_id, 0
    try:
        yield
    finally:
        state.process_id = rank


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
            heartbeat_timeout_seconds=int(max(deadlines.first_step, deadlines.hang)) + HEARTBEAT_MARGIN_SECONDS,
            shutdown_timeout_seconds=max(1, int(deadlines.save)),
        )


def _form_star(membership: Membership, deadlines: Deadlines) -> Star:
    """JAX's own key-value store would carry the messages too, but takes 13 s to tell a waiting rank that its peer
    died."""
    client: Any = distributed.global_state.client
    with translated_errors():
        return form_star(
            membership.rank,
            membership.world,
            membership.coordinator.rpartition(":")[0],
            publish=lambda address: client.key_value_set_bytes(_STAR_KEY, address),
            read_published=lambda: client.blocking_key_value_get_bytes(_STAR_KEY, int(1000 * deadlines.form)),
            form_seconds=deadlines.form,
            patience_seconds=max(deadlines.first_step, deadlines.save),
        )


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Turns JAX's one error type into PeerLost or GpuOutOfMemory where it means that; others pass."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        message = str(error).strip().partition("\n")[0]
        if _OUT_OF_MEMORY.search(message):
            raise GpuOutOfMemory(f"{message}{_peak_of_devices()}") from error
        if _PEER_LOST.search(message):
            raise PeerLost(message) from error
        raise


def _peak_of_devices() -> str:
    """How much memory the fullest local device had in use at most, for a message; CPUs do not say."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    return f"; at most {max(peaks):,} bytes were in use" if any(peaks) else ""
