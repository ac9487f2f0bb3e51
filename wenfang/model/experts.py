"""Mixture of experts: a router sends each token to a few feed-forwards.

Shapes in names: N tokens, D model width, E experts, A active experts of a token, C capacity, I inputs, O outputs.
"""

import math

import torch
from torch import Tensor, nn

from wenfang.model.config import DecoderConfig
from wenfang.model.feedforward import FeedForward, activate
from wenfang.model.grouped import grouped_matmul
from wenfang.model.linear import Linear
from wenfang.model.memory import Memory
from wenfang.model.parts import MoeConfig


class ExpertLinear(nn.Module):
    """One bias-free projection per expert, weight_EOI in fp32 cast to the input's dtype."""

    def __init__(self, experts: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, outputs, inputs))

    def forward(self, x: Tensor, counts_E: Tensor | None) -> Tensor:
        """Rows sorted by expert with `counts_E` of them each, or [E, C, I] with `counts_E` None."""
        w_EIO = self.weight.to(x.dtype).mT
        return torch.bmm(x, w_EIO) if counts_E is None else grouped_matmul(x, w_EIO, counts_E)


class Experts(nn.Module):
    """The feed-forward of a mixture-of-experts layer (Shazeer et al. 2017), with shared experts (DeepSeekMoE, Dai et
    al. 2024) and group-limited routing (DeepSeek-V2, V3)."""

    def __init__(self, config: DecoderConfig, moe: MoeConfig) -> None:
        super().__init__()
        self.moe, self.activation = moe, config.activation
        self.router = Linear(config.dim, moe.experts)
        self.gate_proj = ExpertLinear(moe.experts, config.dim, moe.hidden) if config.gated else None
        self.up_proj = ExpertLinear(moe.experts, config.dim, moe.hidden)
        self.down_proj = ExpertLinear(moe.experts, moe.hidden, config.dim)
        self.shared = FeedForward(config, moe.shared_hidden) if moe.shared_hidden else None
        self.shared_gate = Linear(config.dim, 1) if moe.shared_gate else None
        self.choice_bias: Tensor | None
        self.load_E: Tensor
        self.register_buffer("choice_bias", torch.zeros(moe.experts) if moe.balance == "bias" else None)
        # On a real device even where the weights are not allocated yet: no checkpoint fills it.
        self.register_buffer("load_E", torch.zeros(moe.experts, device="cpu"), persistent=False)

    @property
    def idle_parameters(self) -> int:
        """Weights of the experts that a token does not go to."""
        expert = sum(p.weight[0].numel() for p in (self.gate_proj, self.up_proj, self.down_proj) if p is not None)
        return (self.moe.experts - self.moe.active) * expert

    def forward(self, x_BTD: Tensor, memory: Memory) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        scores_NE = self._scores(x_ND)
        chosen_NA, weights_NA = self._choose(scores_NE)
        learning = self.training and torch.is_grad_enabled()
        if learning and self.moe.balance:
            self._watch(scores_NE, chosen_NA, memory)
        if learning and self.moe.capacity is not None:
            y_ND = self._within_capacity(x_ND, chosen_NA, weights_NA, self.moe.capacity)
        else:
            y_ND = self._dropless(x_ND, chosen_NA, weights_NA)
        y_BTD = y_ND.view_as(x_BTD)
        if self.shared is not None:
            shared_BTD = self.shared(x_BTD, memory)
            y_BTD = y_BTD + (shared_BTD if self.shared_gate is None else shared_BTD * self.shared_gate(x_BTD).sigmoid())
        return y_BTD

    @torch.no_grad()
    def rebalance(self) -> None:
        """Move the choice bias towards experts that had less than their share since the last call (Wang et al. 2024,
        "Auxiliary-loss-free load balancing"): by a fixed step, up or down."""
        if self.choice_bias is not None:
            self.choice_bias += self.moe.balance_rate * (self.load_E.mean() - self.load_E).sign()
            self.load_E.zero_()

    def _scores(self, x_ND: Tensor) -> Tensor:
        logits_NE = self.router(x_ND.float())
        return logits_NE.sigmoid() if self.moe.scores == "sigmoid" else logits_NE.softmax(-1)

    def _choose(self, scores_NE: Tensor) -> tuple[Tensor, Tensor]:
        """The active experts of each token and their weights."""
        moe = self.moe
        choice_NE = scores_NE if self.choice_bias is None else scores_NE + self.choice_bias
        if moe.active_groups < moe.groups:
            grouped = choice_NE.unflatten(1, (moe.groups, -1))
            best = grouped.topk(2, -1).values.sum(-1) if moe.scores == "sigmoid" else grouped.amax(-1)
            closed = torch.ones_like(best, dtype=torch.bool)
            closed = closed.scatter(1, best.topk(moe.active_groups, -1).indices, value=False)
            choice_NE = grouped.masked_fill(closed[..., None], float("-inf")).flatten(1)
        chosen_NA = choice_NE.topk(moe.active, -1).indices
        weights_NA = scores_NE.gather(1, chosen_NA)
        if moe.normalise:
            weights_NA = weights_NA / (weights_NA.sum(-1, keepdim=True) + 1e-20)
        return chosen_NA, weights_NA * moe.scale

    def _watch(self, scores_NE: Tensor, chosen_NA: Tensor, memory: Memory) -> None:
        """Count who is busy, or ask training for balance: E · Σ share of tokens · mean score (Fedus et al. 2021)."""
        counts_E = _counts(chosen_NA, self.moe.experts)
        if self.moe.balance == "bias":
            self.load_E += counts_E
        else:
            shares_E = counts_E / len(chosen_NA)
            loss = self.moe.experts * (shares_E * scores_NE.mean(0)).sum()
            memory.losses.append(self.moe.balance_rate * loss)

    def _dropless(self, x_ND: Tensor, chosen_NA: Tensor, weights_NA: Tensor) -> Tensor:
        """Sort the assignments by expert; each expert then multiplies one run of rows."""
        order = chosen_NA.flatten().argsort(stable=True)
        tokens = order // self.moe.active
        y = self._run(x_ND[tokens], _counts(chosen_NA, self.moe.experts))
        y = y * weights_NA.flatten()[order, None].to(y.dtype)
        return torch.zeros_like(x_ND).index_add(0, tokens, y)

    def _within_capacity(self, x_ND: Tensor, chosen_NA: Tensor, weights_NA: Tensor, capacity: float) -> Tensor:
        """Give each expert a fixed number of places, first come first served; who finds none is dropped."""
        E, A = self.moe.experts, self.moe.active
        C = math.ceil(capacity * len(x_ND) * A / E)
        one_hot = nn.functional.one_hot(chosen_NA.flatten(), E)
        rank = ((one_hot.cumsum(0) - 1) * one_hot).sum(-1)
        kept = rank < C
        place = torch.where(kept, chosen_NA.flatten() * C + rank, E * C)  # The last place is thrown away.
        tokens = torch.arange(len(x_ND), device=x_ND.device).repeat_interleave(A)
        x_ECD = x_ND.new_zeros(E * C + 1, x_ND.shape[1]).index_copy(0, place, x_ND[tokens])[:-1].view(E, C, -1)
        y = self._run(x_ECD, None).flatten(0, 1)[place.clamp(max=E * C - 1)]
        y = y * (weights_NA.flatten() * kept)[:, None].to(y.dtype)
        return torch.zeros_like(x_ND).index_add(0, tokens, y)

    def _run(self, x: Tensor, counts_E: Tensor | None) -> Tensor:
        up = self.up_proj(x, counts_E)
        if self.gate_proj is None:
            return self.down_proj(activate(up, self.activation), counts_E)
        return self.down_proj(activate(self.gate_proj(x, counts_E), self.activation) * up, counts_E)


def _counts(chosen_NA: Tensor, experts: int) -> Tensor:
    """How many tokens each expert got, [E]."""
    chosen = chosen_NA.flatten()
    return chosen.new_zeros(experts).scatter_add(0, chosen, torch.ones_like(chosen))
