"""All targets, by name: those of `make test` and of `make fuzz` are the same."""

from __future__ import annotations

from tests.fuzz import for_bench, for_operator, for_runtime, for_server, for_serving
from tests.fuzz.target import Target

_PARTS = (for_operator, for_runtime, for_serving, for_bench, for_server)

TARGETS: dict[str, Target] = {target.name: target for part in _PARTS for target in part.TARGETS}

BROKEN = Target(
    "broken", "a test", "none", "nothing", "bytes", lambda: [b"abc"], lambda data: 1 // (len(data) < 4) == 1
)
"""A parser with a fault, to see that it is found."""


def table() -> list[str]:
    """The rows of README.md."""
    return [f"| `{one.name}` | {one.whose} | `{one.parser}` | {one.refusal} |" for one in TARGETS.values()]
