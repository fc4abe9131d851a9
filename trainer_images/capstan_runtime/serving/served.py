"""What every answer says of the model that gave it."""

from dataclasses import dataclass
from time import perf_counter
from typing import Any

from capstan_runtime.contract.serving import ServedModel
from capstan_runtime.contract.signature import Signature
from capstan_runtime.serving.exchange import Exchange, Header, Trip


@dataclass(frozen=True, slots=True)
class Served:
    """The one model of this process."""

    model: ServedModel
    signature: Signature

    def headers(self, trip: Trip) -> tuple[Header, ...]:
        """Of an answer of the model, whatever the protocol."""
        timing = ", ".join(f"{name};dur={milliseconds:.3f}" for name, milliseconds in stages(trip).items())
        return (
            (b"x-model-version", self.model.version.encode()),
            (b"x-model-digest", self.model.root.encode()),
            (b"x-cached", b"true" if trip.is_cached else b"false"),
            (b"server-timing", timing.encode()),
        )

    def parameters(self, exchange: Exchange) -> dict[str, Any]:
        """The same for a body."""
        trip = exchange.trip
        times = {f"{name}_ms": round(milliseconds, 3) for name, milliseconds in stages(trip).items()}
        return {
            "request_id": exchange.request_id,
            "model_digest": self.model.root,
            "cached": trip.is_cached,
            **times,
        }


def stages(trip: Trip) -> dict[str, float]:
    """Milliseconds in the queue, waiting for a batch, in the model and altogether, as far as there were any."""
    times = {}
    if trip.computed:
        times["queue"] = (trip.batched - trip.admitted) * 1e3
        times["batch"] = (trip.computing - trip.batched) * 1e3
        times["model"] = (trip.computed - trip.computing) * 1e3
    times["total"] = (perf_counter() - trip.received) * 1e3
    return times
