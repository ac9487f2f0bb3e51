"""Several low-rank adapters on one base model, each row of a call with its own or with none.

Shapes: B rows, T tokens, O outputs, I inputs.
"""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wenfang.core.errors import InputError, nearest
from wenfang.core.language import say
from wenfang.model import Decoder
from wenfang.model.linear import Linear
from wenfang.model.peft import LoraWeights, read_adapter, unusable
from wenfang.model.quantized import QuantizedLinear

Projection = Linear | QuantizedLinear

NOT_ROUTED = ("router", "kv_b_proj")
"""Projections whose inputs are no rows of the batch, or whose weight a layer uses by itself."""


@dataclass(frozen=True)
class _Delta:
    """What an adapter does to one projection, in the model's dtype."""

    lora_A: Tensor
    lora_B: Tensor
    scale: float
    lengths_O: Tensor | None
    """DoRA: wanted over actual length of each output's weight vector."""

    def added_to(self, y: Tensor, x: Tensor, bias_O: Tensor | None) -> Tensor:
        """The projection's output with the adapter."""
        y = y + F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale
        if self.lengths_O is None:
            return y
        return y * self.lengths_O if bias_O is None else (y - bias_O) * self.lengths_O + bias_O


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter that rows may ask for."""

    number: int
    """Never given twice, so that a prefix computed with one adapter is not taken for another's."""
    deltas: dict[str, _Delta]

    @property
    def shapes(self) -> set[tuple[int, int]]:
        """(inputs, outputs) of its products."""
        weights = [weight for delta in self.deltas.values() for weight in (delta.lora_A, delta.lora_B)]
        return {(weight.shape[1], weight.shape[0]) for weight in weights}


@dataclass
class Routing:
    """Which rows of the call under way have which adapter."""

    rows: list[tuple[Adapter, Tensor]] = field(default_factory=list)
    """Each adapter in the call, with the rows_B that have it."""

    @contextmanager
    def to(self, adapters: Iterable[Adapter | None]) -> Iterator[None]:
        """Within the block the rows of each call have these adapters, in order."""
        rows = list(adapters)
        present = dict.fromkeys(adapter for adapter in rows if adapter is not None)
        self.rows = [(adapter, torch.tensor([row is adapter for row in rows])) for adapter in present]
        try:
            yield
        finally:
            self.rows = []


class RoutedLinear(nn.Module):
    """A projection that adds each row's own adapter.

    Every adapter in the call is computed for all rows and taken where it belongs: a product's rows then stand alone
    whatever else is in the batch (see `invariance`), for rank · (I + O) more multiplications per token and adapter.
    """

    def __init__(self, base: Projection, name: str, routing: Routing) -> None:
        super().__init__()
        self.base, self._name, self._routing = base, name, routing

    def forward(self, x_BTI: Tensor) -> Tensor:
        y_BTO: Tensor = self.base(x_BTI)
        bare_BTO = y_BTO
        for adapter, rows_B in self._routing.rows:
            if (delta := adapter.deltas.get(self._name)) is not None:
                y_BTO = torch.where(rows_B[:, None, None], delta.added_to(bare_BTO, x_BTI, self.base.bias), y_BTO)
        return y_BTO


class Adapters:
    """The adapters that an engine has loaded, by the names that requests use.

    Args:
        model: the base, whose projections are routed from the first adapter on.
    """

    def __init__(self, model: Decoder) -> None:
        self.routing = Routing()
        self._model = model
        self._projections = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, Projection) and name.startswith("layers.")
        }
        self._loaded: dict[str, Adapter] = {}
        self._numbers = itertools.count(1)

    def load(self, name: str, folder: Path) -> Adapter:
        """Read a PEFT folder. A name that is taken is given to the new adapter; running requests keep the old one.

        Raises:
            ModelError: the folder cannot be used on this model.
        """
        weights = read_adapter(self._model.config, self._projections, folder)
        for module in weights:
            if module.rpartition(".")[2] in NOT_ROUTED:
                raise unusable(
                    folder,
                    say(
                        zh=f"{module!r} 的轉接無法逐列套用；請先合併（wenfang train merge-adapter）",
                        en=f"what it does to {module!r} cannot differ by row; merge it first "
                        "(`wenfang train merge-adapter`)",
                    ),
                )
        dtype = self._model.dtype
        deltas = {module: _delta(self._projections[module], parts, dtype) for module, parts in weights.items()}
        for module in deltas:
            if not isinstance(self._model.get_submodule(module), RoutedLinear):
                self._model.set_submodule(module, RoutedLinear(self._projections[module], module, self.routing))
        adapter = Adapter(next(self._numbers), deltas)
        self._loaded[name] = adapter
        return adapter

    def unload(self, name: str) -> None:
        """Forget an adapter; running requests keep it to their end.

        Raises:
            InputError: there is none of that name.
        """
        self.find(name)
        del self._loaded[name]

    def find(self, name: str | None) -> Adapter | None:
        """The adapter of that name; None for the bare model.

        Raises:
            InputError: there is none of that name.
        """
        if name is None:
            return None
        if (adapter := self._loaded.get(name)) is None:
            known = ", ".join(self._loaded) or say(zh="無", en="none")
            raise InputError(
                say(
                    zh=f"沒有名為 {name!r} 的轉接器；有：{known}。{nearest(name, self._loaded)}",
                    en=f"There is no adapter {name!r}; loaded: {known}. {nearest(name, self._loaded)}",
                )
            )
        return adapter


def _delta(base: Projection, weights: LoraWeights, dtype: torch.dtype) -> _Delta:
    """In the dtype that the model computes in. The lengths are computed in fp32, as when an adapter is merged; those of
    quantised weights from what their codes stand for."""
    lengths_O = None
    if weights.lora_magnitude is not None:
        product = weights.lora_B.float() @ weights.lora_A.float()
        norms_O = (base.weight.detach().float() + weights.scale * product).norm(dim=1)
        lengths_O = (weights.lora_magnitude.flatten().float() / norms_O).to(dtype)
    return _Delta(weights.lora_A.to(dtype), weights.lora_B.to(dtype), weights.scale, lengths_O)
