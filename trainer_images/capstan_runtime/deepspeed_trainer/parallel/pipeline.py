"""One rank's stage of a pipeline: the passes of a step in their order, and what goes to and comes from its neighbours.

DeepSpeed's own engine for pipelines takes no ZeRO stage above 1 and counts micro-steps by itself. So each stage is a
module for its usual engine, which knows nothing of the others: what a stage hands back for its outputs enters its
backward pass as the slope of a sum.

Axes: B samples, T time.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from capstan_runtime.deepspeed_trainer.decoder import TransformerModel
from capstan_runtime.deepspeed_trainer.forward_pass import Pass
from capstan_runtime.deepspeed_trainer.objective import Model, Objective, Seen
from capstan_runtime.deepspeed_trainer.parallel.groups import Group, Groups
from capstan_runtime.engine import Batch
from capstan_runtime.parallel.stages import Backward, Forward, Swap, one_forward_one_backward


@dataclass(slots=True)
class _Begun:
    """A micro-step between its two passes."""

    inputs: Tensor
    outputs: Tensor
    loss: Tensor
    """What of the step's arises here, fp32 scalar."""
    slopes: Tensor | None = None
    """Of the outputs, which the next stage tells. None: there is none, and `loss` is all there is."""

    def make_room(self) -> Tensor:
        self.slopes = torch.empty_like(self.outputs, memory_format=torch.contiguous_format)
        return self.slopes


class Neighbours:
    """The ranks of the stages before and after this one."""

    def __init__(self, group: Group) -> None:
        """`group`: the stages of one replica, in their order. Collective over it."""
        before, after = group.position - 1, group.position + 1
        self._before = group.ranks[before] if before >= 0 else None
        self._after = group.ranks[after] if after < group.size else None
        self._group = group.process_group
        self.waited_seconds = 0.0
        """For them, since it was made."""
        # NCCL's first message must be one of the whole group.
        dist.barrier(self._group)

    def swap(self, is_with_next: bool, given: Tensor | None, taken: Tensor | None) -> None:
        """Gives one tensor and fills the other. Raises as torch does when the neighbour is gone or too late."""
        peer = self._after if is_with_next else self._before
        messages = []
        if given is not None:
            messages.append(dist.P2POp(dist.isend, given.contiguous(), peer, self._group))
        if taken is not None:
            messages.append(dist.P2POp(dist.irecv, taken, peer, self._group))
        began = time.perf_counter()
        for request in dist.batch_isend_irecv(messages):
            request.wait()
        self.waited_seconds += time.perf_counter() - began


class Pipeline:
    def __init__(self, engine: Any, objective: Objective, teacher: Model | None, groups: Groups) -> None:
        """`engine`: a DeepSpeedEngine with this rank's stage in it; `teacher`: whom the last stage learns from.
        Collective over the world."""
        self._engine, self._objective, self._teacher = engine, objective, teacher
        self._module: TransformerModel = engine.module
        self._stage = self._module.stage
        self._neighbours = Neighbours(groups.along("pipeline"))
        self._ends = _ends_of(groups) if self._module.config.tied else None
        self.copied: frozenset[str] = frozenset()
        """Parameters that another stage has as well, and saves."""
        if self._ends is not None and self._stage.is_last:
            weight: Any = self._module.embed.weight
            weight.ds_pipe_replicated = True  # DeepSpeed, counting norms, leaves it out
            self.copied = frozenset({"embed.weight"})

    @property
    def waited_seconds(self) -> float:
        """For other stages, since it was made."""
        return self._neighbours.waited_seconds

    def accumulate(self, calls: Sequence[tuple[Batch[Tensor], Pass]], loss_factor: float, scale: float) -> Tensor:
        """All passes of an optimizer step, of which `calls` are the micro-steps. What this stage says of the mean over
        them: the part of the loss that arises in it, times `loss_factor`, and what its layers measure, flattened, by
        name, with zeros for other stages'. DeepSpeed multiplies what it is given by `scale`."""
        seen = [self._objective.seen(batch, here) for batch, here in calls]
        begun: dict[int, _Begun] = {}
        taken: dict[int, Tensor] = {}
        given: dict[int, Tensor] = {}
        said: Tensor | None = None
        for action in one_forward_one_backward(self._stage, len(calls)):
            match action:
                case Forward(number):
                    batch, this = calls[number][0], seen[number]
                    inputs = this.inputs if self._stage.is_first else taken.pop(number)
                    begun[number] = self._forward(inputs, batch, this, len(calls) / loss_factor)
                    now = self._said(begun[number].loss, this.here.measured, len(calls))
                    said = now if said is None else said + now
                case Backward(number):
                    slopes = self._backward(begun.pop(number), loss_factor / scale)
                    if slopes is not None:
                        given[number] = slopes
                case Swap(is_with_next=True, gives=gives, takes=takes):
                    slopes = None if takes is None else begun[takes].make_room()
                    self._neighbours.swap(True, None if gives is None else begun[gives].outputs.detach(), slopes)
                case Swap(is_with_next=False, gives=gives, takes=takes):
                    if takes is not None:
                        taken[takes] = self._room(seen[takes].inputs, seen[takes].here)
                    slopes = None if gives is None else given.pop(gives)
                    self._neighbours.swap(False, slopes, None if takes is None else taken[takes])
        if self._ends is not None and self._ends.size > 1:
            # Up to stage 1 DeepSpeed leaves gradients where they are until its step.
            dist.all_reduce(self._module.embed.weight.grad, group=self._ends.process_group)
        assert said is not None
        return said

    def logits(self, inputs: Tensor, here: Pass) -> Tensor | None:
        """Of a forward pass alone, with the tokens `inputs`; None: a later stage has them."""
        if not self._stage.is_first:
            inputs = self._room(inputs, here)
            self._neighbours.swap(False, None, inputs)
        outputs: Tensor = self._engine(inputs, here)
        if self._stage.is_last:
            return outputs
        self._neighbours.swap(True, outputs, None)
        return None

    def _room(self, tokens_BT: Tensor, here: Pass) -> Tensor:
        """For what the stage before makes of such tokens."""
        batch, length = tokens_BT.shape
        return self._module.between(batch, length, here.dtype, tokens_BT.device)

    def _forward(self, inputs: Tensor, batch: Batch[Tensor], seen: Seen, divisor: float) -> _Begun:
        if not self._stage.is_first:
            inputs.requires_grad_()
        outputs: Tensor = self._engine(inputs, seen.here)
        if self._stage.is_last:
            taught = self._objective.taught(self._teacher, batch, seen.here)
            loss = self._objective.loss(outputs, batch, seen, taught)
        else:
            loss = sum(seen.here.losses.values(), torch.zeros((), device=outputs.device))
        return _Begun(inputs, outputs, loss / divisor)

    def _backward(self, begun: _Begun, factor: float) -> Tensor | None:
        """The slope of the inputs; None: they are tokens."""
        loss = begun.loss
        if begun.slopes is not None:
            # In fp32, where a loss's scale can be taken off and put on again.
            loss = loss + (begun.outputs.float() * (begun.slopes.float() * factor)).sum()
        self._engine.backward(loss)
        return begun.inputs.grad

    def _said(self, loss: Tensor, measured: Mapping[str, Tensor], micro_steps: int) -> Tensor:
        numbers = self._stage.numbers(self._module.config.layers)
        flat = [loss.detach()[None]]
        for name in sorted(measured):
            of_all = measured[name].new_zeros(self._module.config.layers, *measured[name].shape[1:])
            of_all[numbers.start : numbers.stop] = measured[name] / micro_steps
            flat.append(of_all.flatten())
        return torch.cat(flat)


def _ends_of(groups: Groups) -> Group:
    """The first stage and the last of this rank's replica, which a tied embedding is in; or, between them, the rank
    alone. Collective over the world."""
    of_all = groups.layout.groups(["pipeline"])
    return groups.joined(
        ranks for first, *others, last in of_all for ranks in ((first, last), *((other,) for other in others))
    )
