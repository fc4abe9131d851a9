"""Layers of two matrices in the place of one: which those are, `capstan_runtime.low_rank` says."""

# Calling a torch module has no type.
# mypy: disable-error-code="no-any-return"

from collections.abc import Iterable

from torch import Tensor, nn

from capstan_runtime.deepspeed_trainer.components.experts import ExpertLinear
from capstan_runtime.deepspeed_trainer.layers import Kernel, Linear


class Product(nn.Module):
    """In the place of a Linear or an ExpertLinear."""

    def __init__(self, first: nn.Module, second: nn.Module, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.first, self.second, self.bias = first, second, bias

    def forward(self, x: Tensor, *sizes: Tensor | None) -> Tensor:
        y = self.second(self.first(x, *sizes), *sizes)
        return y if self.bias is None else y + self.bias.to(y.dtype)


class KernelProduct(nn.Module):
    """In the place of a Kernel: the second is of 1 x 1."""

    def __init__(self, channels_in: int, rank: int, channels_out: int, size: int) -> None:
        super().__init__()
        self.first, self.second = Kernel(channels_in, rank, size), Kernel(rank, channels_out, 1)

    def forward(self, x_BCSS: Tensor, stride: int) -> Tensor:
        return self.second(self.first(x_BCSS, stride), 1)


def factor(module: nn.Module, layers: Iterable[str], rank: int) -> None:
    """Puts products in the place of `layers` of `module`, named as in `model_spec`; values have no meaning yet."""
    for name in layers:
        owner, _, last = name.rpartition(".")
        setattr(module.get_submodule(owner), last, _factored(module.get_submodule(name), rank))


def _factored(whole: nn.Module, rank: int) -> nn.Module:
    match whole:
        case Kernel():
            outputs, inputs, size, _ = whole.weight.shape
            return KernelProduct(inputs, rank, outputs, size)
        case ExpertLinear():
            experts, outputs, inputs = whole.weight.shape
            return Product(ExpertLinear(experts, inputs, rank), ExpertLinear(experts, rank, outputs), None)
        case Linear():
            outputs, inputs = whole.weight.shape
            return Product(Linear(inputs, rank), Linear(rank, outputs), whole.bias)
        case other:  # pragma: no cover - a new kind of layer with a matrix
            raise TypeError(f"nobody has said what {type(other).__name__} is a product of")
