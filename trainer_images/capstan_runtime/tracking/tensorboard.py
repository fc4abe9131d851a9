"""TensorBoard's event files, one for each attempt, by tensorboardX: neither TensorFlow nor torch is needed."""

import json
from collections.abc import Sequence

from tensorboardX import SummaryWriter

from capstan_runtime.tracking.place import Place
from capstan_runtime.tracking.sink import Point, RunFacts


class TensorBoardSink:
    """Events of later steps than the attempt's first, which an earlier attempt left, are marked as purged: TensorBoard
    leaves them out."""

    def __init__(self, place: Place, facts: RunFacts) -> None:
        """Raises OSError."""
        self._place = place
        self._writer = SummaryWriter(
            logdir=str(place.path),
            purge_step=facts.first_step + 1,
            filename_suffix=f".{facts.fence}",
        )
        if facts.first_step == 0:
            self._writer.add_text("run", f"    {json.dumps(facts.config, indent=2)}".replace("\n", "\n    "), 0)
        if facts.resumed_from is not None:
            self._writer.add_text("resumed_from", facts.resumed_from, facts.first_step)

    def write(self, points: Sequence[Point]) -> None:
        for point in points:
            for name, value in point.values.items():
                self._writer.add_scalar(name, value, point.step, walltime=point.at)
            if point.checkpoint is not None:
                self._writer.add_text("checkpoint", point.checkpoint, point.step, walltime=point.at)
        self._writer.flush()
        self._place.keep(at_once=any(point.checkpoint is not None for point in points))

    def close(self, is_finished: bool) -> None:
        self._writer.close()
        self._place.keep(at_once=True)
