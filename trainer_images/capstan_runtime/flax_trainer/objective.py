"""What a training step makes small, of one micro-step. Axes: B samples, T time, K classes."""

# JAX leaves these parts of its interface untyped.
# mypy: disable-error-code="no-any-return"

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from capstan_runtime.contract.distillation import Distill
from capstan_runtime.contract.losses import CrossEntropy, Fgsm, Focal, Loss, Pgd, Regularization
from capstan_runtime.engine import Batch
from capstan_runtime.flax_trainer.forward_pass import Pass

Model = Callable[[jax.Array, Pass], jax.Array]
Criterion = Callable[[jax.Array, jax.Array], jax.Array]
"""From logits [..., K] and targets [...] to the loss of each target, fp32 [...]."""


class View(NamedTuple):
    """One way in which the samples of a micro-step are seen."""

    keys_B: jax.Array
    perturbation: jax.Array | None
    share: float
    """Of its loss in the whole."""


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

    def __call__(self, model: Model, batch: Batch[jax.Array], here: Pass, teacher: Model | None = None) -> jax.Array:
        """`teacher`: whom the model learns from; None: nobody."""
        taught = None
        if teacher is not None:
            taught = jax.lax.stop_gradient(teacher(batch.inputs, Pass(here.dtype, conditions=here.conditions)))
        views = self._views(model, batch, here, taught)
        # All of them in one pass over a longer batch: the model's layers are compiled and launched once.
        keys_B = jnp.concatenate([view.keys_B for view in views]) if len(views) > 1 else here.keys_B
        seen = dataclasses.replace(here, keys_B=keys_B, perturbation=_joined([view.perturbation for view in views]))
        if seen.conditions is not None and len(views) > 1:
            seen = dataclasses.replace(seen, conditions=jnp.concatenate([seen.conditions] * len(views)))
        logits = model(jnp.concatenate([batch.inputs] * len(views)) if len(views) > 1 else batch.inputs, seen)
        each = jnp.split(logits, len(views)) if len(views) > 1 else [logits]
        loss, *more = (self._mean_loss(part, batch, taught) for part in each)
        if more:
            loss = views[0].share * loss
            for view, mean in zip(views[1:], more, strict=True):
                loss = loss + view.share * mean
        if self._consistency is not None:
            loss = loss + self._consistency * disagreement(each[0], each[1])
        return sum(seen.losses.values(), loss)

    def _views(self, model: Model, batch: Batch[jax.Array], here: Pass, taught: jax.Array | None) -> list[View]:
        assert here.keys_B is not None
        attacked = self._attack.share if self._attack is not None else 0.0
        usual = [here.keys_B]
        if self._consistency is not None:
            again = here.named("second view").keys_B
            assert again is not None
            usual.append(again)
        views = [View(keys_B, None, (1.0 - attacked) / len(usual)) for keys_B in usual]
        if self._attack is not None:
            harm = self._perturbation(self._attack, model, batch, here, taught)
            if attacked == 1.0 and self._consistency is None:
                return [View(here.keys_B, harm, 1.0)]
            views.append(View(here.keys_B, harm, attacked))
        return views

    def _mean_loss(self, logits: jax.Array, batch: Batch[jax.Array], taught: jax.Array | None) -> jax.Array:
        """`taught`: the teacher's logits of the samples as they are; None: there is no teacher."""
        losses = self._criterion(logits, batch.targets)
        if batch.second_targets is not None and batch.shares is not None:
            losses = batch.shares * losses + (1.0 - batch.shares) * self._criterion(logits, batch.second_targets)
        mean = jnp.mean(losses)
        if taught is None or self._distill is None:
            return mean
        temperature, alpha = self._distill.temperature, self._distill.alpha
        return (1.0 - alpha) * mean + alpha * temperature**2 * divergence(taught, logits, temperature)

    def _perturbation(
        self, attack: Fgsm | Pgd, model: Model, batch: Batch[jax.Array], here: Pass, taught: jax.Array | None
    ) -> jax.Array:
        """What of at most epsilon in each coordinate raises the loss: [B, *sample] or [B, T, embedding], fp32."""
        step, steps = (attack.epsilon, 1) if isinstance(attack, Fgsm) else (attack.step_size, attack.steps)
        shape = batch.inputs.shape if self._embedding is None else (*batch.inputs.shape, self._embedding)

        def loss_at(perturbation: jax.Array) -> jax.Array:
            seen = dataclasses.replace(here, perturbation=perturbation, losses={}, proposals={}, measured={})
            return self._mean_loss(model(batch.inputs, seen), batch, taught)

        def climb(perturbation: jax.Array, _: None) -> tuple[jax.Array, None]:
            raised = perturbation + step * jnp.sign(jax.grad(loss_at)(perturbation))
            return jnp.clip(raised, -attack.epsilon, attack.epsilon), None

        perturbation, _ = jax.lax.scan(climb, jnp.zeros(shape, jnp.float32), None, length=steps)
        return jax.lax.stop_gradient(perturbation)


def _joined(perturbations: list[jax.Array | None]) -> jax.Array | None:
    """Of all views, with zeros where there is none; None: nowhere."""
    shown = next((each for each in perturbations if each is not None), None)
    if shown is None:
        return None
    return jnp.concatenate([jnp.zeros_like(shown) if each is None else each for each in perturbations])


def criterion_of(loss: Loss | None) -> Criterion:
    """The loss of each target, as a function of logits and targets."""
    match None if loss is None else loss.value:
        case CrossEntropy(label_smoothing=smoothing) if smoothing > 0.0:
            return lambda logits, targets: smoothed(logits, targets, smoothing)
        case Focal() as config:
            return lambda logits, targets: focal(logits, targets, config)
        case _:
            return cross_entropy


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Negative log-likelihood of each target, in fp32: [..., K] and [...] to [...]."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def smoothed(logits: jax.Array, targets: jax.Array, smoothing: float) -> jax.Array:
    """Cross-entropy to a target of which `smoothing` is spread evenly over all classes (1512.00567)."""
    even = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1) - jnp.mean(logits.astype(jnp.float32), axis=-1)
    return (1.0 - smoothing) * cross_entropy(logits, targets) + smoothing * even


def focal(logits: jax.Array, targets: jax.Array, config: Focal) -> jax.Array:
    """-alpha (1 - p)^gamma log p of each target's probability p (1708.02002)."""
    loss = cross_entropy(logits, targets)
    # 1 - p without cancellation; where it is 0, powers of it below 1 would have no derivative.
    others = jnp.maximum(-jnp.expm1(-loss), jnp.finfo(jnp.float32).tiny)
    weighted = others**config.gamma * loss
    if config.class_weights is None:
        return weighted
    return jnp.asarray(config.class_weights, jnp.float32)[targets] * weighted


def disagreement(logits: jax.Array, others: jax.Array) -> jax.Array:
    """Mean of both Kullback-Leibler divergences between two predictions, over all samples or tokens (2106.14448)."""
    log_p, log_q = (jax.nn.log_softmax(each.astype(jnp.float32), axis=-1) for each in (logits, others))
    return jnp.mean(jnp.sum((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q), axis=-1)) / 2


def divergence(taught: jax.Array, logits: jax.Array, temperature: float) -> jax.Array:
    """Mean over all samples or tokens of the Kullback-Leibler divergence from what a teacher says, of logits `taught`,
    to the model's, in fp32; the logits of both are divided by `temperature` (1503.02531)."""
    log_p, log_q = (jax.nn.log_softmax(each.astype(jnp.float32) / temperature, axis=-1) for each in (taught, logits))
    return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))
