"""Inputs that are embeddings already: logits as from ids, whole, cached and split; mixed as in transformers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from wenfang.core.errors import ModelError
from wenfang.engine.blocks import BLOCK, BlockPool
from wenfang.engine.cache import PagedCache
from wenfang.engine.sequence import Sequence
from wenfang.model import Decoder, DecoderConfig, load_model
from wenfang.model.memory import Memory

HYBRID = DecoderConfig(
    vocab_size=61, dim=32, layers=2, heads=4, kv_heads=2, head_dim=8, hidden=48, context=32,
    mixers=("rwkv7", "attention"), embedding_scale=32**0.5,
)  # fmt: skip
LEARNED = DecoderConfig(
    vocab_size=61, dim=32, layers=2, heads=4, kv_heads=4, head_dim=8, hidden=48, context=32,
    ropes=(None,), absolute_positions="learned", embedding_norm=True, norm="layer", windows=(5, None),
)  # fmt: skip


def lively(config: DecoderConfig) -> Decoder:
    """Initialised, but with output projections that say something."""
    torch.manual_seed(1)
    model = Decoder(config).eval()
    model.initialise()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2 and not weight.any():
                weight.normal_(0.0, weight.shape[-1] ** -0.5)
    return model


def in_pieces(model: Decoder, inputs: Tensor, lengths: list[int]) -> Tensor:
    """Logits of one sequence read piece by piece into the engine's cache."""
    total = sum(lengths)
    pool = BlockPool(-(-total // BLOCK))
    cache, sequence = PagedCache(model, model.config.attention_layers, pool.available, rows=1), Sequence([0] * total)
    assert sequence.reserve(pool, total)
    logits = []
    for length in lengths:
        start = sequence.computed
        memory = cache.memory([sequence], [length], 1, length)
        logits.append(model(inputs[:, start : start + length], torch.arange(start, start + length)[None], memory))
        sequence.computed += length
    return torch.cat(logits, 1)


@torch.no_grad()
@pytest.mark.parametrize("config", [HYBRID, LEARNED], ids=["hybrid", "learned"])
def test_embeddings_in_place_of_ids_give_the_same_logits_whole_and_at_every_split(config: DecoderConfig) -> None:
    model = lively(config)
    ids_1T, positions_1T = torch.randint(0, 61, (1, 11)), torch.arange(11)[None]
    embeddings_1TD = model.embed(ids_1T, torch.float32)
    whole = model(ids_1T, positions_1T, Memory())
    assert torch.equal(model(embeddings_1TD, positions_1T, Memory()), whole)
    for split in range(1, 11):
        from_ids = in_pieces(model, ids_1T, [split, 11 - split])
        assert torch.equal(in_pieces(model, embeddings_1TD, [split, 11 - split]), from_ids)
        # Another order of adding in fp32.
        torch.testing.assert_close(from_ids, whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_looking_ahead_reads_embeddings_too() -> None:
    model = lively(HYBRID.model_copy(update={"ahead": 2}))
    ids_1T, positions_1T = torch.randint(0, 61, (1, 9)), torch.arange(9)[None]
    states_1TD = model.hidden(ids_1T, positions_1T, Memory(), torch.float32)
    embeddings_1TD = model.embed(ids_1T, torch.float32)
    from_ids = list(model.look_ahead(states_1TD, ids_1T, positions_1T, Memory()))
    for states, expected in zip(
        model.look_ahead(states_1TD, embeddings_1TD, positions_1T, Memory()), from_ids, strict=True
    ):
        assert torch.equal(states, expected)


@torch.no_grad()
def test_a_mixed_sequence_reads_as_in_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=64, sliding_window=6, query_pre_attn_scalar=8,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        )
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    ids_BT = torch.randint(0, 61, (2, 14))
    places_BT = torch.zeros(2, 14, dtype=torch.bool)
    places_BT[0, 2:9] = places_BT[1, 5:7] = True
    patches_ND = torch.randn(9, 32)
    mixed_BTD = theirs.get_input_embeddings()(ids_BT)
    mixed_BTD[places_BT] = patches_ND
    expected = theirs(inputs_embeds=mixed_BTD).logits
    # An image's place-holder id may lie outside the vocabulary.
    inputs_BTD = ours.embed_mixed(ids_BT.masked_fill(places_BT, 262_144), patches_ND, places_BT, torch.float32)
    logits = ours(inputs_BTD, torch.arange(14).expand(2, -1), Memory())
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(in_pieces(ours, inputs_BTD[:1], [5, 1, 8]), expected[:1], rtol=1e-4, atol=1e-4)


def test_places_and_embeddings_must_be_equally_many() -> None:
    places_BT = torch.tensor([[True, False, True]])
    with pytest.raises(ModelError, match="2 places for 3 embeddings"):
        lively(LEARNED).embed_mixed(torch.zeros(1, 3, dtype=torch.long), torch.ones(3, 32), places_BT, torch.float32)
