"""Times as status holds them."""

from datetime import UTC, datetime


def rfc3339(seconds: float) -> str:
    """`seconds` since 1970 as RFC 3339 in UTC, cut to whole seconds."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def rfc3339_millis(seconds: float) -> str:
    """`seconds` since 1970 as RFC 3339 in UTC, rounded to milliseconds."""
    return datetime.fromtimestamp(round(seconds, 3), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_since_1970(text: str) -> float:
    """The inverse of `rfc3339` and `rfc3339_millis`. Raises ValueError."""
    return datetime.fromisoformat(text).timestamp()


def seconds_after(text: str | None, now: float) -> float:
    """How long ago `text` was; endless when it is None: it never was."""
    return float("inf") if text is None else now - seconds_since_1970(text)
