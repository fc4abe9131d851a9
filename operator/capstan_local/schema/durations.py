"""Durations as kubectl prints them: 45s, 5m3s, 3h, 2d4h."""

from datetime import UTC, datetime


def age(timestamp: str | None, now: datetime) -> str:
    """How long ago `timestamp` (RFC 3339) was: `5m3s`. `<unknown>` without one, `<invalid>` when it is none."""
    if not timestamp:
        return "<unknown>"
    try:
        then = datetime.fromisoformat(timestamp)
    except ValueError:
        return "<invalid>"
    return human_duration((now - (then if then.tzinfo else then.replace(tzinfo=UTC))).total_seconds())


def human_duration(seconds: float) -> str:
    """`seconds` in at most two units, fewer the longer it is.

    >>> human_duration(119), human_duration(303), human_duration(3 * 3600), human_duration(200 * 3600)
    ('119s', '5m3s', '3h', '8d')
    """
    whole = int(seconds)
    if whole < -1:
        return "<invalid>"
    if whole < 120:
        return f"{max(whole, 0)}s"
    minutes, hours = whole // 60, whole // 3600
    if minutes < 10:
        return _two(minutes, "m", whole % 60, "s")
    if minutes < 180:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if hours < 24 * 8:
        return _two(hours // 24, "d", hours % 24, "h")
    if hours < 24 * 365 * 2:
        return f"{hours // 24}d"
    if hours < 24 * 365 * 8:
        return _two(hours // 24 // 365, "y", hours // 24 % 365, "d")
    return f"{hours // 24 // 365}y"


def _two(large: int, large_unit: str, small: int, small_unit: str) -> str:
    return f"{large}{large_unit}{small}{small_unit}" if small else f"{large}{large_unit}"
