"""What runs inside a pod: supervisor, training loop, checkpoints, and the two trainers; and `attach`, by which a
program of your own becomes a rank of its job."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capstan_runtime.program.attach import ByHand, attach
    from capstan_runtime.program.job import Job

__all__ = ["ByHand", "Job", "attach"]


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: the operator knows this package for its contract alone, and has no numpy."""
    if name in ("ByHand", "attach"):
        from capstan_runtime.program import attach

        return getattr(attach, name)
    if name == "Job":
        from capstan_runtime.program.job import Job

        return Job
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
