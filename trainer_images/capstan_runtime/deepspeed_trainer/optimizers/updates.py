"""The optimizer of a run, and what is done around each of its steps."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from capstan_runtime.contract.run_config import RunConfig
from capstan_runtime.deepspeed_trainer.fragments import Fragment
from capstan_runtime.deepspeed_trainer.optimizers.averaged import average_buffers
from capstan_runtime.deepspeed_trainer.optimizers.gradients import centralize_gradients, clip_by_unit
from capstan_runtime.deepspeed_trainer.optimizers.pruning import Pruning
from capstan_runtime.deepspeed_trainer.optimizers.rule_optimizer import build_optimizer
from capstan_runtime.deepspeed_trainer.optimizers.state import count_step
from capstan_runtime.deepspeed_trainer.parallel.groups import Groups
from capstan_runtime.deepspeed_trainer.parallel.norms import total_norm
from capstan_runtime.model_spec import ParameterSpec, output_layer
from capstan_runtime.pruning import is_pruned, pruning_numbers
from capstan_runtime.updates import EMA, HESSIAN, SLOW_WEIGHTS, state_kinds, update_numbers


class Updates:
    """Makes a run's torch optimizer, and keeps it told of the step.

    From ZeRO stage 1 on DeepSpeed steps it once for each of its flat tensors, and measures and clips the gradient by
    itself. What follows a step of the optimizer is element by element, so it is the same on a part of a parameter.
    """

    def __init__(
        self,
        run: RunConfig,
        parameters: Mapping[str, nn.Parameter],
        table: Sequence[ParameterSpec],
        stage: int,
        device: torch.device,
        names: Iterable[str],
        groups: Groups | None = None,
    ) -> None:
        self.kinds = state_kinds(run.optimizer, run.training)
        self._optimizer_config, self._training = run.optimizer, run.training
        self._stage, self._groups = stage, groups
        self._drops_non_finite = run.numerical.non_finite == "ignore"
        self._numbers: dict[str, float] = {}
        self._norm: Tensor | float = 0.0
        # Of the whole model, of which these may be a stage's: its first one has the embedding, and another the head.
        spared = output_layer(names)
        self._clipped_by_unit = [(parameters[spec.name], spec) for spec in table if spec.name not in spared]
        if self._training.centralize_gradients is not None:
            centralize_gradients(parameters, table)
        decaying_or_not: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for spec in table:
            decaying_or_not[0 if spec.decays else 1].append(parameters[spec.name])
        own = [kind.name for kind in self.kinds if kind.name not in (SLOW_WEIGHTS, EMA)]
        self.optimizer = build_optimizer(run.optimizer, own, *decaying_or_not, self._numbers, device)
        if stage == 0:
            self.optimizer.register_step_pre_hook(self._measure_and_clip)
        self._found: list[tuple[Tensor, Tensor]] = []
        if any(kind.name == HESSIAN for kind in self.kinds):
            self.optimizer.register_step_pre_hook(self._take_hessian)
        if self._training.lookahead is not None:
            self.optimizer.register_step_post_hook(self._move_slow_weights)
        self._prune = run.compression.prune if run.compression is not None else None
        self._pruning: Pruning | None = None
        if self._prune is not None:
            whole = [(parameters[spec.name], spec) for spec in table if is_pruned(spec)]
            self._pruning = Pruning(self._prune, whole, self._numbers)
            self.optimizer.register_step_pre_hook(self._pruning.before)
            self.optimizer.register_step_post_hook(self._pruning.after)
        if self._training.ema is not None:
            self.optimizer.register_step_post_hook(self._average)

    def begin(self, step: int, learning_rate: float) -> None:
        """Optimizer step number `step` (from 1) is the next."""
        self._numbers.update(update_numbers(self._optimizer_config, self._training, learning_rate, step))
        self._numbers.update(pruning_numbers(self._prune, step))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self._found.clear()

    def sparsity(self) -> float | None:
        """As the engine says."""
        return None if self._pruning is None else self._pruning.sparsity()

    def average_buffers(self, buffers: Sequence[Fragment]) -> None:
        """After a step that was not dropped, if the run keeps an average of its model."""
        if self._training.ema is not None:
            average_buffers(buffers, self._numbers["ema_rate"])

    @property
    def wants_hessian(self) -> bool:
        """Whether the step to come needs a new estimate of the Hessian's diagonal, before it is made."""
        return bool(self._numbers.get("hessian_rate"))

    def give_hessian(self, diagonal: Mapping[str, Tensor], fragments: Iterable[Fragment]) -> None:
        """The estimate, whole for each parameter, by name; `fragments` are where this rank keeps state."""
        for fragment in fragments:
            kept = next(state for kind, state in fragment.tensors.items() if kind is not None and kind.name == HESSIAN)
            whole = diagonal[fragment.spec.name].view(-1)
            found = whole[fragment.start : fragment.start + kept.numel()]
            self._found.append((kept, found.to(kept.device)))  # state may be kept in the host's memory

    def settle(self, engine: Any) -> tuple[Tensor | float, bool]:
        """The gradient's norm, before clipping, of the step that `engine`, a DeepSpeedEngine, has just made; and
        whether its update was dropped. If so, torch's own count of steps is brought up to ours: it goes into the next
        update, and a resumed run starts it from ours."""
        if self._stage == 0:
            norm = self._norm
            is_dropped = self._drops_non_finite and not math.isfinite(norm)
        else:
            # From stage 1 on DeepSpeed drops such updates by itself, whatever the run says, and at stage 3 it then
            # still has the norm of the step before.
            is_dropped = engine.optimizer.overflow
            norm = math.inf if is_dropped else engine.get_global_grad_norm()
        if is_dropped:
            count_step(self.optimizer)
        return norm, is_dropped

    def _measure_and_clip(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """At stage 0, where DeepSpeed forgets the norm; without waiting for the device, unless updates are dropped."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._norm = total_norm(parameters, self._groups)
        if self._drops_non_finite and not math.isfinite(self._norm):
            for parameter in parameters:
                parameter.grad = None  # whose weights and state an optimizer then leaves alone
            return
        if self._training.gradient_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._training.gradient_clip, self._norm)
        if self._training.adaptive_clip is not None:
            clip_by_unit(self._training.adaptive_clip, self._clipped_by_unit)

    @torch.no_grad()
    def _take_hessian(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        """Before the first of its steps. An update that is dropped takes none: DeepSpeed makes no step then, and at
        stage 0 there are no gradients."""
        if self._found and any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
            kept, found = (list(each) for each in zip(*self._found, strict=True))
            torch._foreach_lerp_(kept, found, self._numbers["hessian_rate"])
            self._found.clear()

    @torch.no_grad()
    def _move_slow_weights(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        weights, slow = _with_state(optimizer, SLOW_WEIGHTS)
        if weights and self._numbers["slow_rate"]:
            torch._foreach_lerp_(slow, weights, self._numbers["slow_rate"])
            torch._foreach_copy_(weights, slow)

    @torch.no_grad()
    def _average(self, optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        weights, averages = _with_state(optimizer, EMA)
        if weights:
            torch._foreach_lerp_(averages, weights, self._numbers["ema_rate"])


def _with_state(optimizer: torch.optim.Optimizer, kind: str) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors that were just updated, and what they have of a kind of state."""
    updated = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return updated, [optimizer.state[parameter][kind] for parameter in updated]
