"""What this process and its device do, as torch's profiler tells it."""

from collections.abc import Callable
from pathlib import Path

import torch


def begin_trace(device: torch.device, folder: Path) -> Callable[[], None]:
    """What ends it, and puts a file for Perfetto and chrome://tracing into `folder`; it raises OSError."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    profile = torch.profiler.profile(activities=activities)
    profile.start()

    def end() -> None:
        profile.stop()
        profile.export_chrome_trace(str(folder / "trace.json.gz"))

    return end
