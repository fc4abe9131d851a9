"""One rank of a DeepSpeed run: data parallel, one accelerator per process, state cut up as the ZeRO stage says."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from capstan_runtime.context import TrainContext
from capstan_runtime.contract.framework import DeepSpeed
from capstan_runtime.deepspeed_trainer.batches import Pace, micro_steps
from capstan_runtime.deepspeed_trainer.custom import Constants, model_call, require_same_weights
from capstan_runtime.deepspeed_trainer.decoder import TransformerModel
from capstan_runtime.deepspeed_trainer.disk import move_to_disk
from capstan_runtime.deepspeed_trainer.forward_pass import Pass, Proposals
from capstan_runtime.deepspeed_trainer.fragments import (
    Fragment,
    buffers_of,
    even_share,
    export_fragments,
    fragments_of,
    import_buffers,
    import_fragments,
)
from capstan_runtime.deepspeed_trainer.integers import seen_as_integers
from capstan_runtime.deepspeed_trainer.library import load_deepspeed
from capstan_runtime.deepspeed_trainer.models import trained_model
from capstan_runtime.deepspeed_trainer.objective import Objective, cross_entropy
from capstan_runtime.deepspeed_trainer.optimizers.averaged import averaged_model
from capstan_runtime.deepspeed_trainer.optimizers.gauss_newton import hessian_diagonal
from capstan_runtime.deepspeed_trainer.optimizers.updates import Updates
from capstan_runtime.deepspeed_trainer.parallel.experts import tell_deepspeed
from capstan_runtime.deepspeed_trainer.parallel.groups import DeepSpeedUnit, Groups
from capstan_runtime.deepspeed_trainer.parallel.pipeline import Pipeline
from capstan_runtime.deepspeed_trainer.parallel.saving import saved_by
from capstan_runtime.deepspeed_trainer.parallel.spreading import slice_of_sequences, spread
from capstan_runtime.deepspeed_trainer.part import Part, part_of
from capstan_runtime.deepspeed_trainer.recomputation import recomputation
from capstan_runtime.deepspeed_trainer.result import DeepSpeedStepResult
from capstan_runtime.deepspeed_trainer.settings import settings_of
from capstan_runtime.deepspeed_trainer.teacher import Teacher
from capstan_runtime.deepspeed_trainer.tracing import begin_trace
from capstan_runtime.deepspeed_trainer.trial import memory_of_reduction, peak_of, stand_ins
from capstan_runtime.deepspeed_trainer.world import World, choose_device, translated_errors
from capstan_runtime.engine import Array, Batch, EvaluationSums, Hardware, LocalTensor, TensorSource, Trained
from capstan_runtime.integers import holds_integers
from capstan_runtime.loss_scaling import ScaleState, read_scale
from capstan_runtime.losses import embedding_width
from capstan_runtime.model_spec import STEP_NAME, read_tensor
from capstan_runtime.parallel.stages import WHOLE
from capstan_runtime.quantization import Weights, export_integers, is_quantized, sees_integers

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_MORE_THAN_THERE_IS = 1 << 56
"""Bytes; beyond what any address space holds."""


class DeepSpeedEngine:
    """DeepSpeed sees fp32 weights at every stage; bf16 is what the modules compute in (`layers.py`).

    So the optimizer, the sums over micro-steps and the sums over ranks are fp32, whatever the precision, and there is
    one way to find master weights and their state.
    """

    def __init__(self, context: TrainContext) -> None:
        """Joins the world. Raises PeerLost if others do not, ConfigError if model, data and devices do not fit."""
        run, training = context.run, context.run.training
        settings = run.framework.value
        assert isinstance(settings, DeepSpeed)
        context.require_whole_slices(devices=1)
        self._device = choose_device()
        self._dtype = _DTYPES[training.precision]
        self._stage, offload = settings.zero_stage, settings.offload
        self._recompute = recomputation(training.activation_checkpointing)
        self._architecture = run.model
        self.devices = 1
        self._device_memory = context.device_memory
        distill = run.compression.distill if run.compression is not None else None
        self._objective = Objective(run.loss, run.regularization, embedding_width(run.model), distill)
        part = part_of(context)
        self._shards, self._table, self.parameters = part.shards, part.trained, part.parameters
        model, stage, is_custom = part.module, part.stage, run.model.custom is not None
        membership = context.membership
        if self._stage < 3:
            part.move_to(self._device)
        self._world = World(membership, context.deadlines, self._device)
        self.rank, self.world = self._world.rank, self._world.size
        self.hardware = Hardware(self.world, None if self._device.type == "cpu" else torch.cuda.get_device_name())
        with translated_errors():
            self._groups = None if part.layout is None else Groups(part.layout, self.rank, self._world.patience)
        self._tokens = slice(None)
        if self._groups is not None:
            assert isinstance(model, TransformerModel)
            spread(model, self._groups)
            self._tokens = slice_of_sequences(self._groups, context.data)
        self._micro_steps = partial(micro_steps, device=self._device, tokens=self._tokens)
        if is_custom:
            require_same_weights(model, self.exchange)
        parameters = dict(model.named_parameters())
        updated_on = self._device if offload is None or offload.optimizer is None else torch.device("cpu")
        self._updates = Updates(
            run, parameters, self._table, self._stage, updated_on, [spec.name for spec in part.table], self._groups
        )
        self._engine = self._initialized(part, context)
        self._teacher = Teacher(context.teacher, self._device) if context.teacher and stage.is_last else None
        self._model = model_call(self._engine, is_custom=is_custom)
        self._module = model_call(self._engine.module, is_custom=is_custom)
        self._counts = stage.is_last and (self._groups is None or self._groups.tensor.position == 0)
        self._stages, self._pipeline = stage.count, None
        if self._groups is not None and stage != WHOLE:
            with translated_errors():
                self._pipeline = Pipeline(self._engine, self._objective, self._teacher, self._groups)
        self._step = 0
        self._scaling = training.loss_scaling
        self._scale = None if self._scaling is None else ScaleState(self._scaling.initial)
        self._seconds_in_steps, self._loss_factor = 0.0, 1.0
        # Found once: DeepSpeed never moves them.
        keep, kinds = move_to_disk(self._engine, offload, context.environ), self._updates.kinds
        self._fragments = fragments_of(self._engine, self._table, kinds, self._step, keep)
        self._module_buffers = list(model.buffers())
        self._buffers = buffers_of(self._engine, part.table, kinds)
        self._constants = Constants(model) if is_custom else None
        self._quantize = run.compression.quantize if run.compression is not None else None
        self._quantized = [(parameters[spec.name], spec) for spec in self._table if is_quantized(spec)]
        self._is_quantized = False

    def _initialized(self, part: Part, context: TrainContext) -> Any:
        """DeepSpeed's engine of it."""
        deepspeed, settings = load_deepspeed(self._device), settings_of(context, self._device)
        unit = None if self._groups is None else DeepSpeedUnit(self._groups)
        if self._groups is not None and self._groups.experts.size > 1:
            tell_deepspeed(part.module, self._groups)
        with translated_errors():
            if self._stage == 3:
                part.cut_up(deepspeed, settings, unit, self._device)
            return deepspeed.initialize(
                model=part.module,
                optimizer=self._updates.optimizer,
                config=settings,
                mpu=unit,
                dist_init_required=False,
            )[0]

    def read_teacher(self) -> None:
        if self._teacher is not None:
            with translated_errors():
                self._teacher.read()

    def memory_limit(self) -> int | None:
        """None where there is no trial: at stage 3 and where several ranks compute one model, passes communicate, and a
        rank that ran out of memory in one would leave the others in a collective, as in a step; and what a module of
        the user's own does in its passes is not undone."""
        if self._stage == 3 or self._groups is not None or self._architecture.custom is not None:
            return None
        if self._device_memory is not None or self._device.type != "cuda":
            return self._device_memory
        return torch.cuda.mem_get_info(self._device)[0] + torch.cuda.memory_reserved(self._device)

    def step_memory(self, batch: Batch) -> int | None:
        """By a trial of two micro-steps' passes: with the gradients of one, the next needs as much as any after it."""
        limit, module = self.memory_limit(), self._engine.module
        assert limit is not None
        micro_batches = self._micro_steps(batch._replace(weights=None))
        all_keys = batch.keys
        assert all_keys is not None
        arrays = [each for micro_batch in micro_batches for each in micro_batch if each is not None]
        state = [tensor for fragment in self._fragments for tensor in fragment.tensors.values()]

        def passes() -> None:
            with stand_ins(module, keeps_gradients=self._stage < 2):
                for micro_batch, keys in zip(micro_batches[:2], all_keys[:2], strict=True):
                    here = self._training_pass(micro_batch, keys)
                    self._objective(self._module, micro_batch, here, self._module, self._teacher).backward()

        weights = [*module.parameters(), *module.buffers(), *(self._teacher.weights() if self._teacher else ())]
        peak = peak_of(passes, self._device, [*weights, *state, *arrays], limit)
        return None if peak is None else peak + memory_of_reduction(self._engine, self._fragments)

    def train_step(self, batch: Batch, learning_rate: float) -> DeepSpeedStepResult:
        began = time.perf_counter()
        self._updates.begin(self._step + 1, learning_rate)
        if self._scale is not None:
            self._engine.optimizer.loss_scale = self._scale.scale
        micro_batches = self._micro_steps(batch._replace(weights=None))
        assert batch.keys is not None
        proposals = Proposals(self._module_buffers)
        waited = self._waited_seconds()
        with translated_errors():
            with self._seen_weights(self._step + 1):
                said = self._accumulate(micro_batches, batch.keys, proposals)
                if self._updates.wants_hessian:
                    self._estimate_hessian(micro_batches, batch.keys)
            computed = time.perf_counter() - (self._waited_seconds() - waited)
            self._engine.step()
            reduced = dist.all_reduce(said, async_op=True) if self.world > 1 else None
            norm, was_dropped = self._updates.settle(self._engine)
            if not was_dropped:
                proposals.settle(len(micro_batches) * self.world)
                self._updates.average_buffers(self._buffers)
        if self._constants is not None:
            self._constants.require_unchanged()
        self._step += 1
        self._seconds_in_steps += (time.perf_counter() if self.world == 1 else computed) - began
        return DeepSpeedStepResult(
            self._architecture, said, reduced, norm, self.world // self._stages, self._scaled(was_dropped)
        )

    def _accumulate(self, micro_batches: Sequence[Batch[Tensor]], keys: Array, proposals: Proposals) -> Tensor:
        """The gradient of the mean over the micro-steps. What this rank says of that: loss, and what is measured."""
        calls = zip(micro_batches, map(self._training_pass, micro_batches, keys), strict=True)
        factor, self._loss_factor = self._loss_factor, 1.0
        if self._pipeline is not None:
            return self._pipeline.accumulate(list(calls), factor, 1.0 if self._scale is None else self._scale.scale)
        # Divided by NaN when that is the fault to inject.
        divisor = len(micro_batches) / factor
        said: Tensor | None = None
        for micro_batch, here in calls:
            loss = self._objective(self._model, micro_batch, here, self._module, self._teacher) / divisor
            self._engine.backward(loss)
            proposals.add(here.proposals)
            measured = [here.measured[name].flatten() / len(micro_batches) for name in sorted(here.measured)]
            now = torch.cat([loss.detach()[None], *measured]) if measured else loss.detach()[None]
            said = now if said is None else said + now
        assert said is not None
        return said

    def _waited_seconds(self) -> float:
        """For the other stages of a pipeline."""
        return 0.0 if self._pipeline is None else self._pipeline.waited_seconds

    def _estimate_hessian(self, micro_batches: Sequence[Batch[Tensor]], keys: Array) -> None:
        named = dict(self._engine.module.named_parameters())
        calls = list(zip(micro_batches, map(self._training_pass, micro_batches, keys), strict=True))
        copies = None if self._groups is None else self._groups.copies.process_group
        diagonal = hessian_diagonal(self._module, list(named.values()), calls, copies)
        self._updates.give_hessian(dict(zip(named, diagonal, strict=True)), self._fragments)

    def _seen_weights(self, step: int) -> AbstractContextManager[None]:
        """What passes of step number `step`, or evaluations after it, compute with in place of the weights."""
        if self._quantize is None or self._is_quantized or not sees_integers(self._quantize, step):
            return nullcontext()
        return seen_as_integers(self._quantized, self._quantize.bits)

    def _served_model(self) -> AbstractContextManager[None]:
        return nullcontext() if self._is_quantized else averaged_model(self._engine, self._buffers)

    def _training_pass(self, micro_batch: Batch[Tensor], keys: Array) -> Pass:
        """The call of the model on a micro-step, whose keys are `keys` on the host."""
        return Pass(
            self._dtype,
            micro_batch.keys,
            seed=int(keys[0]),
            first=self._tokens.start or 0,
            conditions=micro_batch.conditions,
            recompute=self._recompute,
        )

    def _scaled(self, was_dropped: bool) -> Mapping[str, float]:
        """What a result says of the loss's scale; the next step has another, if this one asks for it. DeepSpeed itself
        has read whether the global gradient is finite and, from stage 1 on, dropped the update if it is not; its scale
        stays what it is told, so nothing of it changes amid a step."""
        if self._scale is None or self._scaling is None:
            return {}
        scale, self._scale = self._scale.scale, self._scale.after(self._scaling, is_finite=not was_dropped)
        return {"loss_scale": scale, "skipped_steps": self._scale.skipped_steps}

    def evaluate(self, batches: Iterable[Batch], trained: Trained | None = None) -> EvaluationSums:
        if trained is not None:
            with translated_errors(), torch.no_grad():
                return self._sums(self._asked(trained), batches)
        self._engine.eval()
        try:
            with translated_errors(), torch.no_grad(), self._served_model(), self._seen_weights(self._step):
                return self._sums(self._model if self._pipeline is None else self._pipeline.logits, batches)
        finally:
            self._engine.train()

    def _asked(self, trained: Trained) -> Callable[[Tensor, Pass], Tensor]:
        """A model that is asked and not trained."""
        if self._teacher is not None and trained.root == self._teacher.root:
            return self._teacher
        return trained_model(trained.signature, trained.tensors, self._device)

    def _sums(self, model: Callable[[Tensor, Pass], Tensor | None], batches: Iterable[Batch]) -> EvaluationSums:
        sums, pace = torch.zeros(3, dtype=torch.float64, device=self._device), Pace(self._device)
        for batch in batches:
            for micro_batch in self._micro_steps(batch._replace(keys=None)):
                targets, weights = micro_batch.targets, micro_batch.weights
                logits = model(micro_batch.inputs, Pass(self._dtype, conditions=micro_batch.conditions))
                if logits is None:  # a later stage has them
                    continue
                assert weights is not None
                weights = weights.view(-1, *[1] * (targets.ndim - 1)).expand(targets.shape)
                loss = (cross_entropy(logits, targets) * weights).sum()
                correct = ((logits.argmax(dim=-1) == targets) * weights).sum()
                sums += torch.stack([loss, correct, weights.sum()])
            pace.queued()
        if not self._counts:
            sums.zero_()  # others of the replica have found the same
        return EvaluationSums(*sums.tolist())

    def quantize(self) -> None:
        assert self._quantize is not None
        tensors = [*self._engine.module.parameters(), *self._engine.module.buffers()]
        with translated_errors(), torch.no_grad():
            with self._served_model(), seen_as_integers(self._quantized, self._quantize.bits):
                served = [tensor.clone() for tensor in tensors]
            for tensor, value in zip(tensors, served, strict=True):
                tensor.copy_(value)
        self._is_quantized = True

    def sparsity(self) -> float | None:
        with translated_errors():
            return self._updates.sparsity()

    def export_state(self) -> Iterator[LocalTensor]:
        with translated_errors():
            if self._is_quantized:
                yield from self._export_quantized()
                return
            yield from export_fragments(self._saved(), self._step if self.rank == 0 else None)
        if self._scale is not None and self.rank == 0:
            yield from self._scale.export()

    def _saved(self) -> Iterable[Fragment]:
        """What this rank saves."""
        if self._groups is not None:
            copied = frozenset() if self._pipeline is None else self._pipeline.copied
            own = [fragment for fragment in self._fragments if fragment.spec.name not in copied]
            return saved_by(self._groups, self._shards, own, self._stage, self._device)
        own, replicated = ([], self._fragments) if self._stage == 0 else (self._fragments, [])
        return [*own, *even_share([*replicated, *self._buffers], self.rank, self.world)]

    def import_state(self, source: TensorSource) -> None:
        self._step = int(read_tensor(source, STEP_NAME, ()))
        self._is_quantized = holds_integers(source)
        if self._scaling is not None and not self._is_quantized:
            self._scale = read_scale(source, self._scaling)
        with translated_errors(), torch.no_grad():
            self._fragments = fragments_of(self._engine, self._table, self._updates.kinds, self._step)
            trained = {spec.name: self._shards[spec.name] for spec in self._table}
            wanted = [each.of_weights() for each in self._fragments] if self._is_quantized else self._fragments
            import_fragments(self._engine, wanted, trained, source)
            import_buffers(
                [each.of_weights() for each in self._buffers] if self._is_quantized else self._buffers, source
            )
        if self._constants is not None:
            self._constants.note()

    def exchange(self, payload: bytes) -> list[bytes]:
        return self._world.exchange(payload)

    def busy_seconds(self) -> float | None:
        """Forward and backward passes, before the gradients are summed and without the time that the stages of a
        pipeline wait for each other; alone in the world, whole steps. Not known on GPUs, where they go on after the
        call, nor where ranks sum or gather on the way, because ZeRO cuts up gradients (stage 2) or weights (stage 3),
        or several compute one layer."""
        groups = self._groups
        shares_layers = groups is not None and max(groups.tensor.size, groups.sequence.size, groups.experts.size) > 1
        if self._device.type == "cuda" or (self._stage > 1 and self.world > 1) or shares_layers:
            return None
        return self._seconds_in_steps

    def trace(self, folder: Path) -> Callable[[], None]:
        return begin_trace(self._device, folder)

    def poison_next_step(self) -> None:
        self._loss_factor = math.nan

    def exhaust_memory(self) -> NoReturn:
        with translated_errors():
            torch.empty(_MORE_THAN_THERE_IS, dtype=torch.uint8, device=self._device)
        raise AssertionError(f"there were {_MORE_THAN_THERE_IS} bytes to be had")

    def close(self) -> None:
        self._world.leave()

    def _export_quantized(self) -> Iterator[LocalTensor]:
        """From the weights that passes take, which every rank has whole."""
        assert self._quantize is not None
        whole = {**dict(self._engine.module.named_parameters()), **dict(self._engine.module.named_buffers())}
        specs = [*self._table, *(buffer.spec for buffer in self._buffers)]
        weights: list[Weights] = [(spec, partial(_on_host, whole[spec.name])) for spec in specs]
        return export_integers(weights, self._step, self._quantize.bits, self.rank, self.world)


def _on_host(tensor: Tensor) -> npt.NDArray[np.float32]:
    return tensor.detach().cpu().numpy()
