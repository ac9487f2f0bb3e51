"""Low-rank adapters on a frozen model: LoRA, rank-stabilised LoRA, DoRA, over a dense or quantised base.

Sources: LoRA, Hu et al. 2021; rsLoRA, Kalajdzievski 2023; DoRA, Liu et al. 2024; QLoRA, Dettmers et al. 2023.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenfang.core.errors import InputError, nearest
from wenfang.core.language import say
from wenfang.model import Decoder
from wenfang.model.linear import Linear
from wenfang.model.peft import scaling
from wenfang.train.config import AdapterConfig
from wenfang.train.frozen import FrozenLinear


class LoraLinear(nn.Module):
    """A frozen projection plus scale · B · A; with DoRA each output's weight vector also has a trained length.

    Args:
        base: the projection, frozen; O outputs, I inputs.
        rank: R, the width between A and B.
        scale: factor of B · A.
        dora: train magnitudes, which begin as the base's row norms.
        dropout: share of the adapter's inputs left out while training.
    """

    def __init__(
        self, base: Linear | FrozenLinear, *, rank: int, scale: float, dora: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.base, self.scale, self.dropout = base, scale, dropout
        self.lora_A = nn.Parameter(torch.empty(rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.lora_magnitude = nn.Parameter(base.weight.detach().float().norm(dim=1)) if dora else None

    def forward(self, x: Tensor) -> Tensor:
        inputs = F.dropout(x, self.dropout, self.training) if self.dropout else x
        low = F.linear(F.linear(inputs, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype)) * self.scale
        y = self.base(x) + low
        if self.lora_magnitude is None:
            return y
        bias = 0.0 if self.base.bias is None else self.base.bias.to(x.dtype)
        return (y - bias) * self._lengths().to(x.dtype) + bias

    @torch.no_grad()
    def merged(self) -> Tensor:
        """The dense weight_OI, fp32, of a plain projection that does the same."""
        weight_OI = self._direction()
        return weight_OI if self.lora_magnitude is None else weight_OI * self._lengths()[:, None]

    def _direction(self) -> Tensor:
        return self.base.weight.float() + self.scale * (self.lora_B @ self.lora_A)

    def _lengths(self) -> Tensor:
        """Wanted over actual length of each row; the actual one counts as a constant (the paper's section 4.3)."""
        assert self.lora_magnitude is not None
        with torch.no_grad():
            norms_O = self._direction().norm(dim=1)
        return self.lora_magnitude / norms_O


def adapt(model: Decoder, config: AdapterConfig) -> None:
    """Freeze `model` in place and put a fresh adapter on its projections; `full` leaves it as it is.

    Raises:
        InputError: a target is no projection of this model.
    """
    if config.method == "full":
        return
    names = projections(model)
    known = {name.rpartition(".")[2] for name in names}
    unknown = set(config.targets) - known
    if unknown:
        name = min(unknown)
        raise InputError(
            say(
                zh=f"adapter.targets：模型沒有投影 {name!r}；有 {', '.join(sorted(known))}。{nearest(name, known)}",
                en=f"adapter.targets: the model has no projection {name!r}; it has {', '.join(sorted(known))}. "
                f"{nearest(name, known)}",
            )
        )
    model.requires_grad_(False)
    scale = scaling(config.rank, config.alpha, rank_stabilised=config.rank_stabilised)
    for name in names:
        base = model.get_submodule(name)
        assert isinstance(base, Linear)
        frozen = base if config.base == "full" else FrozenLinear(base.weight, base.bias, config.base)
        chosen = not config.targets or name.rpartition(".")[2] in config.targets
        model.set_submodule(
            name,
            LoraLinear(frozen, rank=config.rank, scale=scale, dora=config.method == "dora", dropout=config.dropout)
            if chosen
            else frozen,
        )


def projections(model: Decoder) -> list[str]:
    """Names of the projections inside the blocks, adapted or not."""
    kinds = Linear | LoraLinear | FrozenLinear
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, kinds) and name.startswith("layers.") and not name.endswith(".base")
    ]


@contextmanager
def merged(model: Decoder) -> Iterator[None]:
    """Within the block the model is a plain one with the adapter merged in; after it, exactly as before."""
    before = {name: model.get_submodule(name) for name in projections(model)}
    for name, module in before.items():
        if isinstance(module, LoraLinear):
            model.set_submodule(name, _plain(module.merged(), module.base.bias))
        elif isinstance(module, FrozenLinear):
            model.set_submodule(name, _plain(module.weight, module.bias))
    try:
        yield
    finally:
        for name, module in before.items():
            model.set_submodule(name, module)


def _plain(weight_OI: Tensor, bias: Tensor | None) -> Linear:
    with torch.device("meta"):
        plain = Linear(weight_OI.shape[1], weight_OI.shape[0], bias=bias is not None)
    plain.weight = nn.Parameter(weight_OI, requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias, requires_grad=False)
    return plain
