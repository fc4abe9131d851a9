"""Why a request gets no answer of the model, in terms that every protocol can put into its own words."""

from enum import StrEnum


class Outcome(StrEnum):
    """How a request ended, for metrics and audit."""

    OK = "ok"
    INVALID = "invalid"
    """The request breaks a rule: 400, 404, 405, 413, 415, 422."""
    UNAUTHORIZED = "unauthorized"
    SHED = "shed"
    """More than this client, or this replica, may have: 429."""
    UNAVAILABLE = "unavailable"
    """The circuit is open, or the model is not ready: 503."""
    TIMEOUT = "timeout"
    """408 when the request did not arrive in time, 504 when its answer was not ready."""
    FAILED = "failed"
    """The model's fault, or this program's: 500."""
    GONE = "gone"
    """The client went away."""


class Shed(StrEnum):
    """Which guard turned a request away for lack of room."""

    RATE = "rate_limit"
    ADAPTIVE = "adaptive_limit"
    QUEUE = "queue"
    BREAKER = "circuit_breaker"


class Refusal(Exception):
    """A request that ends here. The message is one line for the client."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        outcome: Outcome = Outcome.INVALID,
        shed: Shed | None = None,
        retry_after_seconds: int | None = None,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.outcome = outcome
        self.shed = shed
        self.retry_after_seconds = retry_after_seconds
        self.headers = headers


class Gone(Exception):
    """The client went away: nobody waits for an answer."""


def too_many(message: str, shed: Shed, retry_after_seconds: float) -> Refusal:
    """429, to be tried again after so many seconds, rounded up to whole ones."""
    wait = whole_seconds(retry_after_seconds)
    return Refusal(429, f"{message}; try again in {wait} s", outcome=Outcome.SHED, shed=shed, retry_after_seconds=wait)


def whole_seconds(seconds: float) -> int:
    """Retry-After has no fractions, and 0 would invite the client back at once."""
    return max(1, -int(-seconds // 1))
