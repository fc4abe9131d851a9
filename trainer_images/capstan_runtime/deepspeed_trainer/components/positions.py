"""Where the tokens of a sequence stand, and what attention is told of it.

Axes: B batch, T time, S time of keys, D model width, N query heads, H head width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from capstan_runtime.contract.models import Transformer
from capstan_runtime.decoder_spec import alibi_slopes, taken_tokens
from capstan_runtime.deepspeed_trainer import random
from capstan_runtime.deepspeed_trainer.forward_pass import Pass
from capstan_runtime.deepspeed_trainer.layers import rotary_table


class Positions(NamedTuple):
    rotary: tuple[Tensor, Tensor] | None
    """[T, 1, H / 2] each, or [B, T, 1, H / 2] where every sequence has its own. None: nothing is turned."""
    bias: Tensor | None
    """Of the scores, [1 or B, N, T, T] of the type that is computed in, -infinity for keys after the query."""
    taken: Tensor | None = None
    """Which tokens of its input a layer takes, int64 [B, T] ascending. None: all of them."""

    def take(self, x_BTD: Tensor) -> Tensor:
        """The tokens that the layer takes."""
        if self.taken is None:
            return x_BTD
        return x_BTD.gather(1, self.taken[..., None].expand(-1, -1, x_BTD.shape[-1]))

    def spread(self, delta_BTD: Tensor, length: int) -> Tensor:
        """What is added to the tokens that were taken as what is added to all `length`: nothing to the others."""
        if self.taken is None:
            return delta_BTD
        batch, _, dim = delta_BTD.shape
        zeros = delta_BTD.new_zeros(batch, length, dim)
        return zeros.scatter(1, self.taken[..., None].expand(-1, -1, dim), delta_BTD)


class PositionsOf:
    """Positions of a decoder. Not a module and not a buffer: those of whole sequences are computed once per device from
    the shape alone, so nothing can cast them."""

    def __init__(self, config: Transformer) -> None:
        self._config = config
        self._kept: tuple[int, torch.device, torch.dtype] | None = None
        self._whole = Positions(None, None)

    def all(self, length: int, device: torch.device, dtype: torch.dtype) -> Positions:
        """Of a whole sequence."""
        if self._kept != (length, device, dtype):
            self._whole = self._of_all(torch.arange(length, device=device), dtype)
            self._kept = length, device, dtype
        return self._whole

    def _of_all(self, numbers: Tensor, dtype: torch.dtype) -> Positions:
        return self.at(numbers, dtype)

    def some(self, length: int, here: Pass) -> Positions:
        """Of the tokens that the layer `here` takes out of `length`, other ones of each sequence."""
        assert self._config.token_dropout is not None
        keys_B = here.named("token_dropout").keys_B
        assert keys_B is not None
        order = random.uniform(keys_B, length).argsort(dim=-1, stable=True)
        taken = order[:, : taken_tokens(self._config.token_dropout.keep, length)].sort(dim=-1).values
        return self.at(taken, here.dtype)._replace(taken=taken)

    def at(self, numbers: Tensor, dtype: torch.dtype) -> Positions:
        """Of tokens that stand at `numbers`, [T] or [B, T]."""
        config = self._config
        if config.alibi is None:
            return Positions(rotary_table(numbers, config.dim // config.heads, config.rope_theta), None)
        bias = alibi_bias(config.heads, numbers, numbers).to(dtype)
        return Positions(None, bias if bias.ndim == 4 else bias[None])


class PartOfPositions(PositionsOf):
    """For a rank that computes some of a decoder's heads and, outside of attention, a slice of each sequence."""

    def __init__(self, config: Transformer, heads: slice, slices: int, number: int) -> None:
        """`number`: which of `slices` of a sequence it has."""
        super().__init__(config)
        self._heads, self._slices, self._number = heads, slices, number

    def at(self, numbers: Tensor, dtype: torch.dtype) -> Positions:
        where = super().at(numbers, dtype)
        return where if where.bias is None else where._replace(bias=where.bias[:, self._heads])

    def _of_all(self, numbers: Tensor, dtype: torch.dtype) -> Positions:
        """Attention, where scores get their bias, sees whole sequences; turned are queries and keys before it."""
        length = len(numbers)
        where = self.at(torch.arange(length * self._slices, device=numbers.device), dtype)
        if where.rotary is None:
            return where
        mine = slice(self._number * length, (self._number + 1) * length)
        cos, sin = where.rotary
        return where._replace(rotary=(cos[mine], sin[mine]))


def alibi_bias(heads: int, queries: Tensor, keys: Tensor) -> Tensor:
    """Minus the distance times each head's slope, fp32 [..., N, T, S] for positions [..., T] and [..., S]; -infinity
    for keys after the query."""
    distances = (queries[..., :, None] - keys[..., None, :]).float()
    slopes = torch.from_numpy(alibi_slopes(heads)).to(queries.device)
    bias = -slopes[:, None, None] * distances[..., None, :, :]
    return bias.masked_fill(distances[..., None, :, :] < 0, -torch.inf)
