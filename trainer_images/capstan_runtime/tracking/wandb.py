"""A run of Weights & Biases, the same one in every attempt.

What a server has been told it cannot be made to forget: points of a timeline that was abandoned stay, and the metric
`fence` beside them tells them apart. W&B's own counter of steps takes no step twice, so ours is a metric that the
others are drawn over.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from capstan_runtime.contract import tracking as contract
from capstan_runtime.tracking.place import Place
from capstan_runtime.tracking.sink import Point, RunFacts

_KEY = "api-key"
_START_SECONDS = 60.0


class WandbSink:
    """Raises ImportError where the image has no W&B, and W&B's errors."""

    def __init__(self, plan: contract.WeightsAndBiases, place: Place, facts: RunFacts, secret: Path | None) -> None:
        """`secret` is the folder of the Secret's keys; None: the run is offline."""
        key = _read(secret) if secret is not None else None
        import wandb

        self._place = place
        self._fence = facts.fence
        self._teardown: Callable[[], None] = wandb.teardown
        self._run = wandb.init(
            project=plan.project,
            entity=plan.entity,
            id=re.sub(r"[^A-Za-z0-9_-]", "-", facts.uid)[:64],
            name=facts.job,
            config={"run": dict(facts.config), "store": facts.store, "resumed_from": facts.resumed_from},
            resume="allow" if plan.mode == "online" else None,
            mode=plan.mode,
            dir=str(place.path),
            settings=wandb.Settings(
                api_key=key,
                base_url=plan.base_url or "https://api.wandb.ai",
                init_timeout=_START_SECONDS,
                silent=True,
                # What a trainer prints is for its pod's log, and what runs here is none of anybody's business.
                console="off",
                disable_git=True,
                disable_code=True,
                # The system's figures come from callbacks.systemMonitor, if anybody wants them.
                x_disable_stats=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
            ),
        )
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def write(self, points: Sequence[Point]) -> None:
        for point in points:
            self._run.log({**point.values, "step": point.step, "fence": self._fence, "time": point.at})
            if point.checkpoint is not None:
                self._run.summary["checkpoint"] = point.checkpoint
                self._run.summary["checkpoint_step"] = point.step
        self._place.keep(at_once=any(point.checkpoint is not None for point in points))

    def close(self, is_finished: bool) -> None:
        self._run.finish()
        self._teardown()  # only the end of its service says that all is on disk
        self._place.keep(at_once=True)


def _read(secret: Path) -> str:
    try:
        return (secret / _KEY).read_text().strip()
    except OSError as error:
        raise OSError(f"the Secret of tracking.wandb.secretName is missing, or has no key {_KEY}") from error
