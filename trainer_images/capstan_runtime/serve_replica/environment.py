"""What Ray is told by environment variables. It reads them when it is imported, so they are set before."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


def ray_environment(given: Mapping[str, str]) -> dict[str, str]:
    """Of all processes of one Ray: a new token for each."""
    kept = {name: value for name, value in given.items() if name != "RAY_ADDRESS"}
    return {
        "OMP_NUM_THREADS": str(cores()),  # Ray would set 1 in its workers
        **kept,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Importing the agents takes longer than the default 15 s where many pods start at once on few cores.
        "RAY_agent_register_timeout_ms": "120000",
        # Memory is the business of the container's limit; what other pods use is none of ours.
        "RAY_memory_monitor_refresh_ms": "0",
        # The replica asks Ray for no accelerator, and shall see all that the pod has.
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "PYTHONUNBUFFERED": "1",
    }


def cores(cpu_max: Path = _CPU_MAX) -> int:
    """Whole cores that this container may use, at least one."""
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = cpu_max.read_text().split()
    except (OSError, ValueError):  # no control group, or an older one
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, int(quota) // int(period)))
