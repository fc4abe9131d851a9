"""The trackers that a run names. Each is opened by its own thread, and its library imported there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from capstan_runtime.checkpoint.layout import TRACKING
from capstan_runtime.checkpoint.store import Store
from capstan_runtime.context import JobContext
from capstan_runtime.contract import env
from capstan_runtime.restore import Start
from capstan_runtime.tracking.feed import Feed
from capstan_runtime.tracking.files import Csv, JsonLines, RowFile
from capstan_runtime.tracking.place import Place, open_place
from capstan_runtime.tracking.sink import RunFacts, Sink
from capstan_runtime.tracking.tracker import Tracker
from capstan_runtime.voice import Voice

_NOT_TOLD = {"uid", "deadlines", "program", "tracking"}
"""Of the run's document: what says nothing of what is trained. A program's arguments may be nobody else's business."""


def open_tracker(context: JobContext, start: Start, store: Store, voice: Voice) -> Tracker | None:
    """Rank 0's; None elsewhere, and where the run names none. Waits for nothing; trouble becomes a note of `voice`."""
    if context.membership.rank != 0:
        return None

    def tell(note: str) -> None:
        voice.warn(note)
        voice.report(note=note)

    sinks = dict(_Sinks(context, store, _facts(context, start, store)).openers())
    return Tracker([Feed(name, sink, tell) for name, sink in sinks.items()], start.step) if sinks else None


@dataclass(frozen=True, slots=True)
class _Sinks:
    """How each one is opened."""

    context: JobContext
    store: Store
    facts: RunFacts

    def openers(self) -> Iterator[tuple[str, Callable[[], Sink]]]:
        plan = self.context.run.tracking
        if plan.csv is not None:
            yield "csv", lambda: RowFile(Csv(), self._place(), self.facts)
        if plan.jsonl is not None:
            yield "jsonl", lambda: RowFile(JsonLines(), self._place(), self.facts)
        if plan.tensorboard is not None:
            yield "tensorboard", self._tensorboard
        if plan.wandb is not None:
            yield "wandb", self._wandb
        if plan.mlflow is not None:
            yield "mlflow", self._mlflow

    def _tensorboard(self) -> Sink:
        from capstan_runtime.tracking.tensorboard import TensorBoardSink

        return TensorBoardSink(self._place("tensorboard"), self.facts)

    def _wandb(self) -> Sink:
        from capstan_runtime.tracking.wandb import WandbSink

        plan = self.context.run.tracking.wandb
        assert plan is not None
        return WandbSink(plan, self._place("wandb"), self.facts, self._secret("wandb", plan.secret_name))

    def _mlflow(self) -> Sink:
        from capstan_runtime.tracking.mlflow import MlflowSink

        plan = self.context.run.tracking.mlflow
        assert plan is not None
        return MlflowSink(plan, self.facts, self._secret("mlflow", plan.secret_name))

    def _place(self, name: str = "") -> Place:
        return open_place(self.context.environ, self.store, f"{TRACKING}/{name}" if name else TRACKING)

    def _secret(self, name: str, secret_name: str | None) -> Path | None:
        """Where the keys of that tracker's Secret are; None: it needs none."""
        return Path(self.context.environ.get(env.TRACKER_SECRETS, "/")) / name if secret_name is not None else None


def _facts(context: JobContext, start: Start, store: Store) -> RunFacts:
    return RunFacts(
        job=context.run.job,
        uid=context.run.uid,
        fence=context.membership.fence,
        world=context.membership.world,
        first_step=start.step,
        resumed_from=start.root,
        store=store.place,
        config=context.run.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=_NOT_TOLD),
    )
