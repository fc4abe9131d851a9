"""The architectures as torch modules; the decoder has a file of its own. Attribute names are the canonical parameter
names of `model_spec`.

Axes: B batch, S image side, C channels.
"""

# Calling a torch module has no type.
# mypy: disable-error-code="no-any-return"

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capstan_runtime.contract.models import Cnn, Mlp, Model, Transformer
from capstan_runtime.data.spec import DataSpec
from capstan_runtime.deepspeed_trainer.decoder import TransformerModel
from capstan_runtime.deepspeed_trainer.forward_pass import Pass
from capstan_runtime.deepspeed_trainer.layers import Convolution, Linear
from capstan_runtime.model_spec import has_projection, initial_parameter, parameter_table


class MlpModel(nn.Module):
    def __init__(self, config: Mlp, inputs: int, outputs: int) -> None:
        super().__init__()
        widths = [inputs, *config.hidden]
        self.layers = nn.ModuleList(
            Linear(width_in, width_out, bias=True) for width_in, width_out in zip(widths, config.hidden, strict=False)
        )
        self.head = Linear(widths[-1], outputs, bias=True)

    def forward(self, inputs: Tensor, here: Pass) -> Tensor:
        x = here.perturbed(inputs).flatten(1)
        for layer in self.layers:
            x = F.gelu(layer(x))
        return self.head(x)


class ResidualBlock(nn.Module):
    """He et al., 2015 (1512.03385), with group normalisation."""

    def __init__(self, block: int, channels_in: int, channels: int, groups: int) -> None:
        super().__init__()
        self.first = Convolution(channels_in, channels, 3, groups)
        self.second = Convolution(channels, channels, 3, groups)
        projects = has_projection(block, channels_in, channels)
        self.shortcut = Convolution(channels_in, channels, 1, groups) if projects else None
        self.stride = 1 if block == 0 else 2

    def forward(self, x_BCSS: Tensor, here: Pass) -> Tensor:
        y_BCSS = self.second(F.relu(self.first(x_BCSS, self.stride)))
        skipped = x_BCSS if self.shortcut is None else self.shortcut(x_BCSS, self.stride)
        return F.relu(y_BCSS + skipped)


class CnnModel(nn.Module):
    def __init__(self, config: Cnn, image_channels: int, outputs: int) -> None:
        super().__init__()
        self.stem = Convolution(image_channels, config.channels[0], 3, config.groups)
        inputs = [config.channels[0], *config.channels]
        self.blocks = nn.ModuleList(
            ResidualBlock(block, channels_in, channels, config.groups)
            for block, (channels_in, channels) in enumerate(zip(inputs, config.channels, strict=False))
        )
        self.head = Linear(config.channels[-1], outputs, bias=True)

    def forward(self, inputs: Tensor, here: Pass) -> Tensor:
        # Images arrive as [B, S, S, C]: seen as [B, C, S, S] that is torch's channels_last, without a copy.
        x_BCSS = F.relu(self.stem(here.perturbed(inputs).permute(0, 3, 1, 2)))
        for number, block in enumerate(self.blocks):
            x_BCSS = block(x_BCSS, here.layer(number))
        return self.head(x_BCSS.mean(dim=(2, 3)))


AnyModel = MlpModel | CnnModel | TransformerModel


def build_model(model: Model, data: DataSpec, seed: int) -> nn.Module:
    """The module in fp32 on the CPU, with the initial values of `seed`.

    Call it with inputs [B, *sample] and a `Pass`; it returns logits [B, classes] or [B, T, vocabulary].
    Raises ConfigError if the model cannot take such data.
    """
    table = parameter_table(model, data)
    module = bare_model(model, data)
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for spec in table:
            parameters.pop(spec.name).copy_(torch.from_numpy(initial_parameter(spec, seed)))
    if parameters:
        raise AssertionError(f"parameters without a specification: {', '.join(parameters)}")
    return module


def bare_model(model: Model, data: DataSpec) -> AnyModel:
    """The module with parameters of the right shapes and no meaningful values, on torch's default device."""
    match model.value:
        case Mlp() as config:
            return MlpModel(config, math.prod(data.input_shape), data.outputs)
        case Cnn() as config:
            return CnnModel(config, data.input_shape[-1], data.outputs)
        case Transformer() as config:
            return TransformerModel(config, data.outputs)
        case other:  # pragma: no cover - a new kind of model without a module
            raise TypeError(f"no module for {type(other).__name__}")
