"""What a training step makes small, of one micro-step. Axes: B samples, T time, K classes."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from capstan_runtime.contract.distillation import Distill
from capstan_runtime.contract.losses import CrossEntropy, Fgsm, Focal, Loss, Pgd, Regularization
from capstan_runtime.deepspeed_trainer.forward_pass import Pass
from capstan_runtime.engine import Batch

Model = Callable[[Tensor, Pass], Tensor]
Criterion = Callable[[Tensor, Tensor], Tensor]
"""From logits [..., K] and targets [...] to the loss of each target, fp32 [...]."""


class View(NamedTuple):
    """One way in which the samples of a micro-step are seen."""

    keys_B: Tensor
    perturbation: Tensor | None
    share: float
    """Of its loss in the whole."""


class Seen(NamedTuple):
    """What a model is called with for a micro-step."""

    inputs: Tensor
    here: Pass
    views: list[View]
    """One after the other in the batch."""


class Objective:
    """Called with a model and a micro-step: the mean over its samples, or over their tokens, and what modules add to
    it; fp32 scalar."""

    def __init__(
        self,
        loss: Loss | None,
        regularization: Regularization | None,
        embedding: int | None,
        distill: Distill | None = None,
    ) -> None:
        """`embedding`: width of a token's embedding, which is what a perturbation changes; None: inputs are numbers,
        and change themselves. `distill`: how to learn from the teacher that comes with a call; None: none comes."""
        self._criterion = criterion_of(loss)
        regularization = regularization or Regularization()
        self._consistency = regularization.consistency.weight if regularization.consistency else None
        self._attack: Fgsm | Pgd | None = regularization.adversarial.value if regularization.adversarial else None
        self._embedding = embedding
        self._distill = distill

    def __call__(
        self,
        model: Model,
        batch: Batch[Tensor],
        here: Pass,
        attacked: Model | None = None,
        teacher: Model | None = None,
    ) -> Tensor:
        """`attacked` is the same model without hooks that take its backward passes for those of the step; None: `model`
        has none. `teacher`: whom the model learns from; None: nobody."""
        taught = self.taught(teacher, batch, here)
        seen = self.seen(batch, here, attacked or model, taught)
        return self.loss(model(seen.inputs, seen.here), batch, seen, taught)

    def taught(self, teacher: Model | None, batch: Batch[Tensor], here: Pass) -> Tensor | None:
        """The teacher's logits; None: there is no teacher."""
        if teacher is None:
            return None
        with torch.no_grad():
            return teacher(batch.inputs, Pass(here.dtype, conditions=here.conditions))

    def seen(
        self, batch: Batch[Tensor], here: Pass, attacked: Model | None = None, taught: Tensor | None = None
    ) -> Seen:
        """What to call the model with. `attacked` and `taught` are for attacks, where there are any."""
        views = self._views(attacked, batch, here, taught)
        if len(views) == 1:
            (view,) = views
            return Seen(batch.inputs, dataclasses.replace(here, perturbation=view.perturbation), views)
        # All of them in one pass over a longer batch: the model's layers are launched once.
        conditions = None if here.conditions is None else torch.cat([here.conditions] * len(views))
        together = dataclasses.replace(
            here,
            sample_keys_B=torch.cat([view.keys_B for view in views]),
            known_keys={},
            places=(),
            perturbation=_joined([view.perturbation for view in views]),
            conditions=conditions,
        )
        return Seen(torch.cat([batch.inputs] * len(views)), together, views)

    def loss(self, logits: Tensor, batch: Batch[Tensor], seen: Seen, taught: Tensor | None = None) -> Tensor:
        """Of what the model answered."""
        each = logits.chunk(len(seen.views)) if len(seen.views) > 1 else [logits]
        loss, *more = (self._mean_loss(part, batch, taught) for part in each)
        if more:
            loss = seen.views[0].share * loss
            for view, mean in zip(seen.views[1:], more, strict=True):
                loss = loss + view.share * mean
        if self._consistency is not None:
            loss = loss + self._consistency * disagreement(each[0], each[1])
        return sum(seen.here.losses.values(), loss)

    def _views(
        self, attacked_model: Model | None, batch: Batch[Tensor], here: Pass, taught: Tensor | None
    ) -> list[View]:
        assert here.keys_B is not None
        attacked = self._attack.share if self._attack is not None else 0.0
        usual = [here.keys_B]
        if self._consistency is not None:
            again = here.named("second view").keys_B
            assert again is not None
            usual.append(again)
        views = [View(keys_B, None, (1.0 - attacked) / len(usual)) for keys_B in usual]
        if self._attack is not None:
            assert attacked_model is not None
            harm = self._perturbation(self._attack, attacked_model, batch, here, taught)
            if attacked == 1.0 and self._consistency is None:
                return [View(here.keys_B, harm, 1.0)]
            views.append(View(here.keys_B, harm, attacked))
        return views

    def _mean_loss(self, logits: Tensor, batch: Batch[Tensor], taught: Tensor | None) -> Tensor:
        """`taught`: the teacher's logits of the samples as they are; None: there is no teacher."""
        losses = self._criterion(logits, batch.targets)
        if batch.second_targets is not None and batch.shares is not None:
            losses = batch.shares * losses + (1.0 - batch.shares) * self._criterion(logits, batch.second_targets)
        mean = losses.mean()
        if taught is None or self._distill is None:
            return mean
        temperature, alpha = self._distill.temperature, self._distill.alpha
        return (1.0 - alpha) * mean + alpha * temperature**2 * divergence(taught, logits, temperature)

    def _perturbation(
        self, attack: Fgsm | Pgd, model: Model, batch: Batch[Tensor], here: Pass, taught: Tensor | None
    ) -> Tensor:
        """What of at most epsilon in each coordinate raises the loss: [B, *sample] or [B, T, embedding], fp32."""
        step, steps = (attack.epsilon, 1) if isinstance(attack, Fgsm) else (attack.step_size, attack.steps)
        shape = batch.inputs.shape if self._embedding is None else (*batch.inputs.shape, self._embedding)
        perturbation = torch.zeros(shape, device=batch.inputs.device)
        for _ in range(steps):
            tried = perturbation.requires_grad_()
            seen = dataclasses.replace(here, perturbation=tried, losses={}, proposals={}, measured={})
            (gradient,) = torch.autograd.grad(self._mean_loss(model(batch.inputs, seen), batch, taught), tried)
            perturbation = (tried.detach() + step * gradient.sign()).clamp(-attack.epsilon, attack.epsilon)
        return perturbation


def _joined(perturbations: list[Tensor | None]) -> Tensor | None:
    """Of all views, with zeros where there is none; None: nowhere."""
    shown = next((each for each in perturbations if each is not None), None)
    if shown is None:
        return None
    return torch.cat([torch.zeros_like(shown) if each is None else each for each in perturbations])


def criterion_of(loss: Loss | None) -> Criterion:
    """The loss of each target, as a function of logits and targets."""
    match None if loss is None else loss.value:
        case CrossEntropy(label_smoothing=smoothing) if smoothing > 0.0:
            return lambda logits, targets: cross_entropy(logits, targets, smoothing)
        case Focal() as config:
            return lambda logits, targets: focal(logits, targets, config)
        case _:
            return cross_entropy


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Negative log-likelihood of each target, in fp32: [..., K] and [...] to [...]. `smoothing` of the target is spread
    evenly over all classes (1512.00567)."""
    flat = F.cross_entropy(
        logits.float().flatten(0, -2), targets.flatten().long(), reduction="none", label_smoothing=smoothing
    )
    return flat.view(targets.shape)


def focal(logits: Tensor, targets: Tensor, config: Focal) -> Tensor:
    """-alpha (1 - p)^gamma log p of each target's probability p (1708.02002)."""
    loss = cross_entropy(logits, targets)
    # 1 - p without cancellation; where it is 0, powers of it below 1 would have no derivative.
    others = (-torch.expm1(-loss)).clamp(min=torch.finfo(torch.float32).tiny)
    weighted = others**config.gamma * loss
    if config.class_weights is None:
        return weighted
    return torch.tensor(config.class_weights, device=loss.device)[targets.long()] * weighted


def disagreement(logits: Tensor, others: Tensor) -> Tensor:
    """Mean of both Kullback-Leibler divergences between two predictions, over all samples or tokens (2106.14448)."""
    log_p, log_q = (F.log_softmax(each.float(), dim=-1) for each in (logits, others))
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=-1).mean() / 2


def divergence(taught: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """Mean over all samples or tokens of the Kullback-Leibler divergence from what a teacher says, of logits `taught`,
    to the model's, in fp32; the logits of both are divided by `temperature` (1503.02531)."""
    log_p, log_q = (F.log_softmax(each.float() / temperature, dim=-1) for each in (taught, logits))
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()
