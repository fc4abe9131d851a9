"""How many requests a client may make: a bucket of tokens for each, which refills steadily."""

from collections import OrderedDict
from collections.abc import Callable

from capstan_runtime.contract.serving import RateLimit
from capstan_runtime.serving.refusal import Shed, too_many

_MOST_CLIENTS = 65_536
"""Remembered at a time; those that asked longest ago are forgotten first, which only gives them a full bucket."""


class RateLimiter:
    """The generic cell rate algorithm (ITU-T I.371): of each client one number is kept, the time at which its bucket
    will be full again."""

    def __init__(self, config: RateLimit, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._config = config
        self._seconds_per_token = config.seconds / config.requests
        self._seconds_to_fill = (config.burst or config.requests) * self._seconds_per_token
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def take(self, client: str) -> None:
        """Takes a token. Raises Refusal 429 if there is none."""
        now = self._clock()
        full_at = max(self._full_at.get(client, now), now) + self._seconds_per_token
        missing = full_at - now - self._seconds_to_fill
        # Sums of binary fractions are off by a little, which must not cost a token.
        if missing > self._seconds_per_token * 1e-6:
            raise too_many(
                f"more than {self._config.requests} requests in {self._config.seconds} s", Shed.RATE, missing
            )
        self._full_at[client] = full_at
        self._full_at.move_to_end(client)
        if len(self._full_at) > _MOST_CLIENTS:
            self._full_at.popitem(last=False)
