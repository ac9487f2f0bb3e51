"""The loss of the output head: that of PyTorch, without all logits at one time."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wenfang.model import Decoder, DecoderConfig
from wenfang.train import loss
from wenfang.train.loss import cross_entropy_sum, target_nats
from wenfang.train.packing import IGNORED

VOCABULARY, ROWS, CONTEXT = 150, 3, 40


class Largest(TorchDispatchMode):
    """Remembers the most numbers that a tensor had."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        self.numbers = max([self.numbers, *(x.numel() for x in tree_leaves(result) if isinstance(x, Tensor))])
        return result


def decoder(**changes: object) -> Decoder:
    torch.manual_seed(0)
    shape = {"dim": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "hidden": 24, "context": CONTEXT}
    model = Decoder(DecoderConfig(vocab_size=VOCABULARY, **(shape | changes)))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.5)
    return model


def rows() -> dict[str, Tensor]:
    ids_BT = torch.randint(0, VOCABULARY, (ROWS, CONTEXT), generator=torch.Generator().manual_seed(1))
    targets_BT = ids_BT.roll(-1, 1).clone()
    targets_BT[:, ::7] = IGNORED
    positions_BT = torch.arange(CONTEXT).expand(ROWS, -1)
    return {
        "ids_BT": ids_BT,
        "targets_BT": targets_BT,
        "documents_BT": torch.zeros_like(ids_BT),
        "positions_BT": positions_BT,
    }


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True}, {"logit_softcap": 3.0}], ids=str)
@pytest.mark.parametrize("smoothing", [{}, {"label_smoothing": 0.1, "z_loss": 1e-2}], ids=str)
def test_loss_and_gradients_in_parts_are_those_of_torch(
    changes: dict[str, object], smoothing: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loss.LOGITS_AT_ONCE, "cpu", 7 * VOCABULARY)  # 120 positions: 15 parts of 8 (at most 16).
    tensors, results = rows(), []
    for whole in (False, True):
        model = decoder(**changes)
        if whole:
            memory = loss._Rows(tensors["documents_BT"], tensors["positions_BT"])
            states = model.hidden(tensors["ids_BT"], tensors["positions_BT"], memory, torch.float32)
            logits, targets = model.logits(states).flatten(0, 1), tensors["targets_BT"].flatten()
            share = smoothing.get("label_smoothing", 0.0)
            nats = F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum", label_smoothing=share)
            squared = logits.logsumexp(-1).square()[targets != IGNORED].sum()
            nats = nats + smoothing.get("z_loss", 0.0) * squared
        else:
            nats = cross_entropy_sum(model, **tensors, dtype=torch.float32, **smoothing)
        (nats / 100).backward()
        results.append([nats.detach(), *(weight.grad for weight in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_nats_of_each_target_and_their_gradients_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another slope for each position, as a loss of several of them has."""
    monkeypatch.setitem(loss.LOGITS_AT_ONCE, "cpu", 20 * VOCABULARY)
    targets_N, slopes_N = rows()["targets_BT"].flatten(), torch.linspace(-1, 2, ROWS * CONTEXT)
    results = []
    for whole in (False, True):
        model = decoder(logit_softcap=3.0)
        states_ND = torch.randn(ROWS * CONTEXT, 16, requires_grad=True)
        with Largest() as largest:
            if whole:
                nats_N = F.cross_entropy(model.logits(states_ND), targets_N, ignore_index=IGNORED, reduction="none")
            else:
                nats_N = target_nats(model, states_ND, targets_N)
            (nats_N * slopes_N).sum().backward()
        assert (largest.numbers <= 20 * VOCABULARY) is not whole
        results.append([nats_N.detach(), states_ND.grad, model.lm_head.weight.grad])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_without_gradients_it_is_the_same() -> None:
    model, tensors = decoder(), rows()
    with torch.no_grad():
        nats = cross_entropy_sum(model, **tensors, dtype=torch.float32)
    torch.testing.assert_close(nats, cross_entropy_sum(model, **tensors, dtype=torch.float32).detach())


def test_a_frozen_head_learns_nothing_and_the_states_do() -> None:
    model = decoder()
    model.lm_head.requires_grad_(False)
    cross_entropy_sum(model, **rows(), dtype=torch.float32).backward()
    assert model.lm_head.weight.grad is None
    assert model.layers[0].mlp.down_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("gradients", [True, False])
def test_all_logits_never_exist_at_one_time(gradients: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(loss.LOGITS_AT_ONCE, "cpu", 60 * VOCABULARY)
    model, tensors = decoder(), rows()
    with Largest() as largest, torch.set_grad_enabled(gradients):
        nats = cross_entropy_sum(model, **tensors, dtype=torch.float32)
        if gradients:
            nats.backward()
    # The scores of attention where no kernel of ours runs are the largest that is left.
    assert largest.numbers <= max(60 * VOCABULARY, ROWS * 2 * CONTEXT**2)
