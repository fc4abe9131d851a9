"""The run ends, as a success, once evaluations find the model no better any more (Prechelt, "Early Stopping - But
When?", 1998: the criterion UP, as Keras and Lightning have it)."""

import math
from collections.abc import Mapping

from capstan_runtime.checkpoint.manifest import Value
from capstan_runtime.contract import callbacks as contract
from capstan_runtime.contract.state import EarlyStop, Section
from capstan_runtime.hooks import Step
from capstan_runtime.voice import Voice


class EarlyStopping:
    """Follows evaluations and, as a hook, makes the step after which patience is over the last one.

    Metrics of evaluations are the same on every rank, and so is the verdict: nobody needs to be asked.
    """

    name = "earlyStopping"
    section = Section.HOST

    def __init__(
        self, plan: contract.EarlyStopping, saved: Mapping[str, Value], voice: Voice, judged_from: int = 0
    ) -> None:
        """`saved` is what `state` returned before, empty at step 0. State of another metric, or of the other end of
        this one, says nothing about what is followed now, and is forgotten. `judged_from` is the run's: evaluations of
        earlier steps count for nothing."""
        self._plan = plan
        self._voice = voice
        self._judged_from = judged_from
        self._mode = "max" if plan.more_is_better else "min"
        # What was saved before states said their mode is of this one.
        is_of_this = saved.get("metric") == plan.metric and saved.get("mode", self._mode) == self._mode
        self._best = float(saved["best"]) if is_of_this and "best" in saved else None
        self._best_step = int(saved["bestStep"]) if is_of_this and "bestStep" in saved else None
        self._since = int(saved["since"]) if is_of_this else 0

    def state(self) -> dict[str, Value]:
        known = {"best": self._best, "bestStep": self._best_step}
        return {
            "metric": self._plan.metric,
            "mode": self._mode,
            "since": self._since,
            **{name: value for name, value in known.items() if value is not None},
        }

    @property
    def is_over(self) -> bool:
        """Patience is over: no step is to follow."""
        return self._since >= self._plan.patience

    def after_evaluation(self, done: int, metrics: Mapping[str, float]) -> None:
        """Takes in what was measured after `done` steps. A value that is not finite is no better than any."""
        if done < self._judged_from:
            return
        value = metrics[self._plan.metric]
        if self._is_better(value):
            self._best, self._best_step, self._since = value, done, 0
        else:
            self._since += 1

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self._best is None:
            return True
        gain = value - self._best if self._plan.more_is_better else self._best - value
        return gain > self._plan.min_delta

    def is_due(self, step: Step) -> bool:
        return self.is_over and not step.is_last

    def run(self, step: Step) -> None:
        step.is_last = True
        self.tell(step.done)

    def tell(self, done: int) -> None:
        """Says why the run ends after `done` steps."""
        stop = EarlyStop(
            step=done, metric=self._plan.metric, evaluations=self._since, best=self._best, best_step=self._best_step
        )
        self._voice.report(early_stop=stop)
        self._voice.say(str(stop))
