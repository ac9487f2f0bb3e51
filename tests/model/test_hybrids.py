"""Decoders whose layers mix differently: packed rows, fresh weights, and what no family can hold."""

import pytest
import torch
from torch import Tensor

from wenfang.core.errors import ModelError
from wenfang.model import Decoder, DecoderConfig
from wenfang.model.families import family_for
from wenfang.model.memory import Memory
from wenfang.model.mixers.config import GatedDeltaNetConfig, Mamba2Config, Rwkv7Config, TttConfig

SHAPES = {
    "mamba2": Mamba2Config(heads=4, head_dim=8, state_dim=6, groups=2, chunk=8),
    "gated_deltanet": GatedDeltaNetConfig(key_heads=2, value_heads=2, key_dim=6, value_dim=10, chunk=8),
    "rwkv7": Rwkv7Config(heads=2, head_dim=8, decay_rank=4, rate_rank=4, value_rank=4, gate_rank=4, chunk=8),
    "ttt": TttConfig(heads=2, head_dim=8, mini_batch=4),
}
HYBRIDS = {
    "three mamba2 to one attention": {"mixers": ("mamba2", "mamba2", "mamba2", "attention")},
    "deltanet and a window": {"mixers": ("gated_deltanet", "attention"), "windows": (5,)},
    "rwkv7 with token shift": {"mixers": ("rwkv7",), "token_shift": True, "gated": False, "activation": "relu2"},
    "all five": {"mixers": ("ttt", "rwkv7", "attention", "gated_deltanet", "mamba2", "rwkv7"), "layers": 6},
}


def hybrid(changes: dict[str, object]) -> Decoder:
    torch.manual_seed(4)
    shape = {"vocab_size": 50, "dim": 24, "layers": 4, "heads": 2, "kv_heads": 1, "head_dim": 8, "hidden": 32}
    model = Decoder(DecoderConfig(**{**shape, **SHAPES, "context": 32, **changes}))
    model.initialise()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


@pytest.fixture(params=HYBRIDS)
def model(request: pytest.FixtureRequest) -> Decoder:
    return hybrid(HYBRIDS[request.param])


def whole(model: Decoder, ids_BT: Tensor) -> Tensor:
    return model(ids_BT, torch.arange(ids_BT.shape[1]).expand(len(ids_BT), -1), Memory())


@torch.no_grad()
def test_packed_documents_equal_documents_alone(model: Decoder) -> None:
    ids_1T, lengths = torch.randint(0, 50, (1, 27)), [7, 1, 15, 4]
    documents = torch.tensor([[n for n, length in enumerate(lengths) for _ in range(length)]])
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = model(ids_1T, positions, Memory(documents))
    alone = torch.cat([whole(model, piece) for piece in ids_1T.split(lengths, 1)], 1)
    # The same fp32 arithmetic in another order; norms on small states amplify it.
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)


def test_every_weight_learns(model: Decoder) -> None:
    logits = whole(model, torch.randint(0, 50, (2, 20)))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.randint(0, 50, (40,))).backward()
    idle = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert idle == []


@pytest.mark.parametrize("changes", HYBRIDS.values(), ids=HYBRIDS)
def test_fresh_blocks_are_the_identity(changes: dict[str, object]) -> None:
    model = Decoder(hybrid(changes).config)
    model.initialise()
    ids_BT = torch.randint(0, 50, (2, 9))
    with torch.no_grad():
        states = model.hidden(ids_BT, torch.arange(9).expand(2, -1), Memory(), torch.float32)
        torch.testing.assert_close(states, model.norm(model.embed(ids_BT, torch.float32)))


def test_without_attention_its_fields_decide_no_family() -> None:
    inner = {"heads": 6, "head_dim": 8}
    config = DecoderConfig(vocab_size=9, dim=24, hidden=0, mixers="mamba2", mamba2=inner, heads=9, kv_heads=3)
    assert family_for(config).model_type == "mamba2"


def test_a_hybrid_that_no_family_holds_is_refused_by_field() -> None:
    with pytest.raises(ModelError, match="mixers="):
        family_for(hybrid(HYBRIDS["three mamba2 to one attention"]).config)
