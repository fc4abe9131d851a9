"""A feed-forward layer of experts, of which every token takes a few: the twin of `flax_trainer/components/experts.py`,
which says by what algorithm.

Axes: B batch, T time, D model width, F feed-forward width, E experts, C capacity, k choices, R = k x T choices of a
sequence, or of all where experts take what comes.
"""

# Calling a torch module has no type.
# mypy: disable-error-code="no-any-return"

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from capstan_runtime.contract.models import Transformer
from capstan_runtime.decoder_spec import expert_capacity
from capstan_runtime.deepspeed_trainer import random
from capstan_runtime.deepspeed_trainer.forward_pass import Pass
from capstan_runtime.deepspeed_trainer.layers import Linear
from capstan_runtime.model_spec import feed_forward_width

_GROUPED_WIDTH = 8
"""Elements of 16 bits: torch's grouped product takes rows of 16 bytes, or of several times that."""


class ExpertLinear(nn.Module):
    """A linear layer of each expert, [experts, outputs, inputs]."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))

    def forward(self, x: Tensor, sizes_E: Tensor | None = None) -> Tensor:
        """[B, E, C, inputs] to [B, E, C, outputs]; with `sizes_E` rows [R, inputs], of which so many in turn are of
        each expert, to [R, outputs]."""
        weight = self.weight.to(x.dtype)
        if sizes_E is None:
            return torch.einsum("beci,eoi->beco", x, weight)
        if x.dtype == torch.bfloat16 and all(width % _GROUPED_WIDTH == 0 for width in weight.shape[1:]):
            return F.grouped_mm(x, weight.transpose(1, 2), offs=sizes_E.cumsum(0).int())
        # Exact in every type; on a GPU the host waits here until it knows the sizes.
        parts = x.split(sizes_E.tolist())
        return torch.cat([F.linear(part, expert) for part, expert in zip(parts, weight, strict=True)])


class Experts(nn.Module):
    """SwiGLU experts and their router."""

    def __init__(self, config: Transformer) -> None:
        super().__init__()
        assert config.experts is not None
        self.experts = config.experts
        width = feed_forward_width(config)
        self.router = Linear(config.dim, self.experts.count)
        self.gate_up = ExpertLinear(self.experts.count, config.dim, 2 * width)
        self.down = ExpertLinear(self.experts.count, width, config.dim)

    def forward(self, x_BTD: Tensor, here: Pass) -> Tensor:
        logits_BTE = self._route(x_BTD, here)
        shares_BTE = logits_BTE.softmax(-1)
        # Not topk: that does not say which of equal ones it takes.
        sorted_BTE, experts_BTE = shares_BTE.sort(dim=-1, descending=True, stable=True)
        weights_BTk, chosen_BTk = sorted_BTE[..., : self.experts.top_k], experts_BTE[..., : self.experts.top_k]
        if self.experts.top_k > 1:
            weights_BTk = weights_BTk / weights_BTk.sum(-1, keepdim=True)
        capacity = expert_capacity(self.experts, x_BTD.shape[1], is_training=here.is_training)
        weights_BTk = weights_BTk.to(x_BTD.dtype)
        if here.is_apart:
            return self._take_all(x_BTD, weights_BTk, chosen_BTk)
        if capacity is None:
            self._say(logits_BTE, shares_BTE, chosen_BTk, logits_BTE.new_zeros(()), here)
            return self._take_what_comes(x_BTD, weights_BTk, chosen_BTk)
        place_BkT = places(chosen_BTk, self.experts.count, capacity)
        is_dropped = place_BkT == self.experts.count * capacity
        self._say(logits_BTE, shares_BTE, chosen_BTk, is_dropped.float().mean(), here)
        return self._take_up_to(capacity, x_BTD, weights_BTk, place_BkT)

    def _route(self, x_BTD: Tensor, here: Pass) -> Tensor:
        """The router's logits, fp32 [B, T, E]."""
        x_BTD = x_BTD.float()
        if self.experts.jitter is not None and (keys_B := here.named("jitter").keys_B) is not None:
            noise = 2.0 * random.uniform(keys_B, *x_BTD.shape[1:]) - 1.0
            x_BTD = x_BTD * (1.0 + self.experts.jitter * noise)
        return self.router(x_BTD)

    def _say(self, logits_BTE: Tensor, shares_BTE: Tensor, chosen_BTk: Tensor, dropped: Tensor, here: Pass) -> None:
        """The two losses of the router, and what is measured of it."""
        if not here.is_training:
            return
        load_BE = F.one_hot(chosen_BTk, self.experts.count).float().mean(dim=(1, 2))
        balance = self.experts.count * (load_BE * shares_BTE.mean(1)).sum(-1).mean()
        here.add_loss("expert balance", self.experts.auxiliary_loss * balance)
        here.add_loss("router size", self.experts.z_loss * logits_BTE.logsumexp(-1).square().mean())
        here.measure("expert_load", load_BE.mean(0))
        here.measure("dropped_share", dropped)

    def _swiglu(self, x: Tensor, sizes_E: Tensor | None = None) -> Tensor:
        gate, up = self.gate_up(x, sizes_E).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up, sizes_E)

    def _take_up_to(self, capacity: int, x_BTD: Tensor, weights_BTk: Tensor, place_BkT: Tensor) -> Tensor:
        batch, length, dim = x_BTD.shape
        count, choices = self.experts.count, self.experts.top_k
        nothing = x_BTD.new_zeros(batch, 1, dim)
        place_BR = place_BkT.flatten(1)
        # Which token is in each place; in most there may be none, which is the row of zeros behind the tokens. One more
        # place takes what finds no room.
        tokens_R = torch.arange(length, device=x_BTD.device).repeat(choices)
        token_BP = place_BR.new_full((batch, count * capacity + 1), length)
        token_BP = token_BP.scatter(1, place_BR, tokens_R.expand(batch, -1))[:, :-1]
        taken = torch.cat([x_BTD, nothing], dim=1).gather(1, token_BP[..., None].expand(-1, -1, dim))
        made = self._swiglu(taken.view(batch, count, capacity, dim)).reshape(batch, -1, dim)
        made = torch.cat([made, nothing], dim=1).gather(1, place_BR[..., None].expand(-1, -1, dim))
        made_BkTD = made.view(batch, choices, length, dim)
        return (made_BkTD * weights_BTk.transpose(1, 2)[..., None]).sum(1)

    def _take_what_comes(self, x_BTD: Tensor, weights_BTk: Tensor, chosen_BTk: Tensor) -> Tensor:
        batch, length, dim = x_BTD.shape
        choices = self.experts.top_k
        expert_R = chosen_BTk.flatten()
        order_R = expert_R.argsort(stable=True)
        sizes_E = F.one_hot(expert_R, self.experts.count).sum(0)
        made = self._swiglu(x_BTD.reshape(-1, dim)[order_R // choices], sizes_E)
        made_BTkD = made[order_R.argsort()].view(batch, length, choices, dim)
        return (made_BTkD * weights_BTk[..., None]).sum(2)

    def _take_all(self, x_BTD: Tensor, weights_BTk: Tensor, chosen_BTk: Tensor) -> Tensor:
        """Every expert computes every token, in a place that does not depend on the others."""
        count = self.experts.count
        weights_BTE = (F.one_hot(chosen_BTk, count).to(x_BTD.dtype) * weights_BTk[..., None]).sum(2)
        made_BETD = self._swiglu(x_BTD[:, None].expand(-1, count, -1, -1))
        return (made_BETD * weights_BTE.transpose(1, 2)[..., None]).sum(1)


def places(chosen_BTk: Tensor, experts: int, capacity: int) -> Tensor:
    """Where each choice goes, int64 [B, k, T]: expert x capacity + its number there, or experts x capacity if the
    expert is full."""
    batch, length, choices = chosen_BTk.shape
    in_turn_BR = chosen_BTk.transpose(1, 2).reshape(batch, -1)
    one_hot_BRE = F.one_hot(in_turn_BR, experts)
    number_BR = ((one_hot_BRE.cumsum(1) - 1) * one_hot_BRE).sum(-1)
    place_BR = torch.where(number_BR < capacity, in_turn_BR * capacity + number_BR, experts * capacity)
    return place_BR.view(batch, choices, length)
