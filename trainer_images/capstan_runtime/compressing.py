"""What compression costs and brings: the model is measured before it and after it, and made of integers at the end."""

import math
from collections.abc import Mapping

from capstan_runtime.checkpoint.manifest import Value
from capstan_runtime.context import TrainContext
from capstan_runtime.contract.compression import Compression, CompressionReport, ModelFigures
from capstan_runtime.contract.state import Phase, Section
from capstan_runtime.engine import Engine, Trained
from capstan_runtime.hooks import Evaluate, Step
from capstan_runtime.low_rank import model_table
from capstan_runtime.model_signature import rank_of
from capstan_runtime.quantization import sees_integers, weight_bytes
from capstan_runtime.voice import Voice

_QUANTIZED = "quantized"


class Compress:
    """A hook between evaluation and save: after the step before compression begins, and after the last one."""

    name = "compression"
    measured = "weight_bytes"
    """The metric that it reports."""
    section = Section.HOST

    def __init__(
        self,
        plan: Compression,
        context: TrainContext,
        engine: Engine,
        evaluate: Evaluate,
        voice: Voice,
        saved: Mapping[str, Value],
        reference: Trained | None = None,
    ) -> None:
        """`saved` is what `state` returned before, empty at step 0. `reference`: the model that the run learns or
        begins from, which is the one before compression; None: there is none, or `saved` has its figures."""
        self._plan = plan
        self._engine = engine
        self._evaluate = evaluate
        self._voice = voice
        self._bytes_before = self._bytes_after = 4 * engine.parameters
        if context.run.model.custom is None:
            table = model_table(context.run.model, context.data, rank_of(context.run))
            self._bytes_before = weight_bytes(table, None)
            self._bytes_after = weight_bytes(table, plan.quantize.bits if plan.quantize is not None else None)
        known = {name: value for name, value in saved.items() if name != _QUANTIZED}
        self._before = ModelFigures.model_validate(known) if known else None
        self._is_quantized = bool(saved.get(_QUANTIZED))
        self._reference = reference

    def state(self) -> dict[str, Value]:
        before = {} if self._before is None else self._before.document()
        return {**before, _QUANTIZED: 1} if self._is_quantized else before

    def is_due(self, step: Step) -> bool:
        # Who is asked to stop has little time: what is not measured then is owed.
        return step.is_last or (self.is_owed(step.done) and not step.verdict.stop)

    def is_owed(self, done: int) -> bool:
        """Whether the model after `done` steps is the last that is not compressed, and has not been measured."""
        return 0 < done == self._plan.begins_after and self._before is None

    def run(self, step: Step) -> None:
        if step.is_last:
            self.finish(step.done)
        else:
            self.note_before(step.done)

    def note_reference(self, done: int) -> None:
        """What the run learns or begins from is measured, unless it was; the run has done `done` steps. Collective."""
        if self._reference is None or self._before is not None:
            return
        metrics = self._evaluate.metrics_of(self._reference, done)
        self._before = _figures_of(self._reference.step, metrics, self._reference.size)
        self._tell(None)

    def note_before(self, done: int, then: Phase = Phase.TRAINING) -> None:
        """Collective."""
        self._before = self._figures(done, self._evaluate.metrics_after(done, then), self._bytes_before)
        self._tell(None)

    def finish(self, done: int) -> bool:
        """Whether the model is another one than before: of integers, which have not been saved. Collective."""
        if self._plan.begins_after in (None, done) and self._before is None and not self._is_quantized:
            self.note_before(done)
        quantize, is_new = self._plan.quantize, False
        if quantize is not None and not self._is_quantized:
            self._engine.quantize()
            self._is_quantized = is_new = True
            if not sees_integers(quantize, done):
                self._evaluate.measure(done)
        self._tell(self._figures(done, self._evaluate.metrics_after(done), self._bytes_after))
        return is_new

    def _figures(self, done: int, metrics: Mapping[str, float], size: int) -> ModelFigures:
        self._voice.report_metrics(done, {self.measured: float(size)})
        return _figures_of(done, metrics, size)

    def _tell(self, after: ModelFigures | None) -> None:
        self._voice.report(compression=CompressionReport(before=self._before, after=after))


def _figures_of(step: int, metrics: Mapping[str, float], size: int) -> ModelFigures:
    known = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return ModelFigures(
        step=step,
        loss=known.get("validation_loss"),
        accuracy=known.get("accuracy"),
        bytes=size,
        sparsity=known.get("sparsity"),
    )
