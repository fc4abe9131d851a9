"""Did the kernel kill something here for want of memory?"""

from pathlib import Path


def oom_kills(memory_events: Path) -> int:
    """Processes of this cgroup (version 2) that the kernel has killed for memory; 0 where it does not say."""
    try:
        lines = memory_events.read_text().splitlines()
    except OSError:
        return 0  # cgroup version 1, or no container: then an out-of-memory kill looks like any SIGKILL
    counts = dict(line.split() for line in lines if len(line.split()) == 2)
    return int(counts.get("oom_kill", "0"))
