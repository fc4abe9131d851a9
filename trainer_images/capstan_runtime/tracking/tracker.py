"""All trackers of a run, as rank 0 feeds them: with what is fetched for the log anyway."""

import math
import time
from collections.abc import Mapping, Sequence

from capstan_runtime.tracking.feed import Feed
from capstan_runtime.tracking.sink import Point


class Tracker:
    """Any thread may report."""

    def __init__(self, feeds: Sequence[Feed], step: int) -> None:
        """`step` is the number of steps done so far."""
        self._feeds = feeds
        self._step = step

    def report(self, step: int | None, values: Mapping[str, float], checkpoint: str | None = None) -> None:
        """`values` after `step` steps, or None: after as many as were last reported; those that are not finite are
        absent. Never waits."""
        if step is None:
            step = self._step
        elif checkpoint is None:
            self._step = step
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        point = Point(step, time.time(), finite, checkpoint)
        for feed in self._feeds:
            feed.put(point)

    @property
    def dropped(self) -> int:
        """Points that some tracker has not got, added up."""
        return sum(feed.dropped for feed in self._feeds)

    def close(self, is_finished: bool, patience_seconds: float) -> None:
        """Returns when all trackers have got everything, or after so long. `is_finished`: no attempt will follow."""
        give_up_at = time.monotonic() + patience_seconds
        for feed in self._feeds:
            feed.end(is_finished)
        for feed in self._feeds:
            feed.wait(max(0.0, give_up_at - time.monotonic()))
