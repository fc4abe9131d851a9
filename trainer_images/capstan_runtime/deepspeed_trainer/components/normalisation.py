"""The choices of `cnn.norm` and `mlp.norm`: modules from [B, C, …] to the same shape, computed in fp32.

Axes: B samples of one virtual rank's micro-step, C channels or units; whatever follows are positions. Shapes are all
that the constructors decide: values come from `model_spec.initial_parameter` or a checkpoint.
"""

# Calling a torch module has no type.
# mypy: disable-error-code="no-any-return"

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capstan_runtime.contract import normalisation as configs
from capstan_runtime.deepspeed_trainer import layers
from capstan_runtime.deepspeed_trainer.forward_pass import Pass


def build_norm(config: configs.AnyNorm, channels: int, *, has_positions: bool) -> nn.Module:
    """The module of `config`; call it with a tensor and a `Pass`. `has_positions`: whether it is for images."""
    match config:
        case configs.GroupNorm():
            return GroupNorm(channels, config.groups, config.epsilon)
        case configs.InstanceNorm():
            return GroupNorm(channels, channels, config.epsilon)
        case configs.LayerNorm():
            return LayerNorm(channels, config.epsilon)
        case configs.RmsNorm():
            return RmsNorm(channels, config.epsilon)
        case configs.BatchNorm():
            return BatchNorm(channels, config)
        case configs.MixedNorm():
            return MixedNorm(channels, config, has_positions=has_positions)


class _Affine(nn.Module):
    """What follows every normalisation that subtracts a mean: a gain and a bias for each channel."""

    def __init__(self, channels: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.epsilon = epsilon


class GroupNorm(_Affine):
    """Wu and He, 2018 (1803.08494): unlike batch statistics, it does not see how a batch is cut. With as many groups
    as channels it is instance normalisation (Ulyanov et al., 1607.08022)."""

    def __init__(self, channels: int, groups: int, epsilon: float) -> None:
        super().__init__(channels, epsilon)
        self.groups = groups

    def forward(self, x: Tensor, here: Pass) -> Tensor:
        return F.group_norm(x.float(), self.groups, self.weight, self.bias, self.epsilon).to(x.dtype)


class LayerNorm(_Affine):
    """Ba et al., 2016 (1607.06450), of each position over its channels, as in ConvNeXt (2201.03545)."""

    def forward(self, x: Tensor, here: Pass) -> Tensor:
        last = x.float().movedim(1, -1)
        return F.layer_norm(last, self.weight.shape, self.weight, self.bias, self.epsilon).movedim(-1, 1).to(x.dtype)


class RmsNorm(layers.RmsNorm):
    """Zhang and Sennrich, 2019 (1910.07467), of each position over its channels."""

    def forward(self, x: Tensor, here: Pass) -> Tensor:  # type: ignore[override]
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class _Running(_Affine):
    """Keeps the statistics of the batch for inference."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, config: configs.RunningStatistics) -> None:
        super().__init__(channels, config.epsilon)
        self.register_buffer("running_mean", torch.empty(channels))
        self.register_buffer("running_var", torch.empty(channels))
        self.momentum = config.momentum


class BatchNorm(_Running):
    """Ioffe and Szegedy, 2015 (1502.03167), over the samples of one micro-step of one virtual rank."""

    def forward(self, x: Tensor, here: Pass) -> Tensor:
        mean_C, variance_C = self.running_mean, self.running_var
        if here.is_training:  # torch moves the running statistics in place: here that is what to propose
            mean_C, variance_C = mean_C.clone(), variance_C.clone()
        normal = F.batch_norm(
            x.float(), mean_C, variance_C, self.weight, self.bias, here.is_training, self.momentum, self.epsilon
        )
        if here.is_training:
            here.propose(self.running_mean, mean_C)
            here.propose(self.running_var, variance_C)
        return normal.to(x.dtype)


class MixedNorm(_Running):
    """Switchable normalisation (Luo et al., 1806.10779): the means of instance, layer (all positions and channels of a
    sample) and batch are mixed in a proportion that is learnt, and their variances in another. Without positions an
    instance is a single number, so only the other two are mixed."""

    def __init__(self, channels: int, config: configs.MixedNorm, *, has_positions: bool) -> None:
        super().__init__(channels, config)
        self.mean_weight = nn.Parameter(torch.empty(3 if has_positions else 2))
        self.var_weight = nn.Parameter(torch.empty(3 if has_positions else 2))

    def forward(self, x: Tensor, here: Pass) -> Tensor:
        has_positions = x.ndim > 2
        exact_BCP = x.float().flatten(2) if has_positions else x.float()[..., None]
        mean_BC1 = exact_BCP.mean(dim=2, keepdim=True)
        variance_BC1 = (exact_BCP - mean_BC1).square().mean(dim=2, keepdim=True)
        means, variances = ([mean_BC1], [variance_BC1]) if has_positions else ([], [])
        # Of a whole: the mean of its parts' variances, and the variance of their means.
        for axis in (1, 0):
            mean = mean_BC1.mean(dim=axis, keepdim=True)
            variance = (variance_BC1 + (mean_BC1 - mean).square()).mean(dim=axis, keepdim=True)
            if axis == 0:
                mean, variance = self._of_batch(mean, variance, x.numel() // x.shape[1], here)
            means.append(mean)
            variances.append(variance)
        mean, variance = _mixed(self.mean_weight, means), _mixed(self.var_weight, variances)
        normal = (exact_BCP - mean) * torch.rsqrt(variance + self.epsilon)
        return (normal * self.weight[:, None] + self.bias[:, None]).reshape(x.shape).to(x.dtype)

    def _of_batch(self, mean_1C1: Tensor, variance_1C1: Tensor, count: int, here: Pass) -> tuple[Tensor, Tensor]:
        """The statistics to use: while training those given, of `count` elements; else the running ones, which take the
        variance without bias, as torch's do."""
        if not here.is_training:
            return self.running_mean[:, None], self.running_var[:, None]
        for running, newest in (
            (self.running_mean, mean_1C1),
            (self.running_var, variance_1C1 * (count / (count - 1))),
        ):
            here.propose(running, running.lerp(newest.flatten(), self.momentum))
        return mean_1C1, variance_1C1


def _mixed(weight: Tensor, parts: list[Tensor]) -> Tensor:
    shares = weight.softmax(dim=0)
    return sum((share * part for share, part in zip(shares, parts, strict=True)), torch.zeros_like(parts[0]))
