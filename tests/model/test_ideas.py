"""Ideas that no family shows whole: positions, sinks, gates, expert balance, looking ahead, refusals, compilation."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextAttention, Qwen3NextRotaryEmbedding

from wenfang.core.errors import ModelError
from wenfang.model import Decoder, DecoderConfig, load_model, save_model
from wenfang.model.attention import Attention
from wenfang.model.config import Mixer
from wenfang.model.experts import Experts
from wenfang.model.families import family_for
from wenfang.model.families.tensor_map import HeadRows
from wenfang.model.grouped import grouped_matmul
from wenfang.model.memory import AttentionSpec, Memory, Sight, attention
from wenfang.model.mixers.config import GatedDeltaNetConfig, Mamba2Config, Rwkv7Config, TttConfig
from wenfang.model.parts import MlaConfig, MoeConfig, RopeConfig, YarnScaling
from wenfang.model.position import rotation, sinusoids
from wenfang.train.loss import cross_entropy_sum
from wenfang.train.packing import IGNORED

SMALL = DecoderConfig(vocab_size=53, dim=24, layers=2, heads=4, kv_heads=2, head_dim=8, hidden=32, context=32)
MOE = MoeConfig(experts=6, active=2, hidden=20)


def random_decoder(config: DecoderConfig) -> Decoder:
    torch.manual_seed(2)
    model = Decoder(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, weight.shape[-1] ** -0.5) if weight.ndim > 1 else weight.uniform_(0.5, 1.5)
    return model


def test_sinusoids_follow_the_paper() -> None:
    table = sinusoids(torch.tensor([[0, 3, 700]]), 10)[0]
    for row, position in enumerate((0, 3, 700)):
        for pair in range(5):
            angle = position / 10_000 ** (2 * pair / 10)
            assert table[row, 2 * pair].item() == pytest.approx(math.sin(angle), abs=1e-4)
            assert table[row, 2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=1e-4)


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_absolute_positions_tell_a_repeated_token_apart(kind: str) -> None:
    config = SMALL.model_copy(update={"ropes": (None,), "absolute_positions": kind})
    same = torch.full((1, 6), 7)
    states = random_decoder(config).hidden(same, torch.arange(6)[None], Memory(), torch.float32)
    plain = random_decoder(SMALL.model_copy(update={"ropes": (None,)}))
    blind = plain.hidden(same, torch.arange(6)[None], Memory(), torch.float32)
    torch.testing.assert_close(blind, blind[:, :1].expand_as(blind))
    assert (states[:, 1:] - states[:, :-1]).abs().amax(-1).min() > 0.01


def test_sinks_take_attention_as_in_gpt_oss() -> None:
    torch.manual_seed(0)
    q, k, v, sinks = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 8), torch.randn(4)
    positions = torch.arange(7)[None]
    ours = attention(q, k, v, Sight(positions, positions), AttentionSpec(scale=0.3, sinks_H=sinks))
    mask = torch.full((7, 7), float("-inf")).triu(1)
    module = SimpleNamespace(sinks=sinks, num_key_value_groups=2, training=False)
    theirs, _ = eager_attention_forward(module, q, k, v, mask, scaling=0.3)
    torch.testing.assert_close(ours.transpose(1, 2), theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_gate_scales_the_heads_as_in_qwen3_next() -> None:
    torch.manual_seed(0)
    theirs_config = Qwen3NextConfig(
        hidden_size=24, num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_hidden_layers=1,
        rope_parameters={"rope_type": "default", "rope_theta": 50.0, "partial_rotary_factor": 0.5},
    )  # fmt: skip
    theirs_config._attn_implementation = "eager"
    theirs = Qwen3NextAttention(theirs_config, 0).eval()
    rope = RopeConfig(theta=50.0, fraction=0.5)
    ours = Attention(SMALL.model_copy(update={"attention_gate": True, "norm_offset": True, "ropes": (rope,)}), 0)
    state = theirs.state_dict()
    half = torch.Size((32, 24))
    state["q_proj.weight"], state["gate_proj.weight"] = HeadRows(4).split(state["q_proj.weight"], [half, half])
    ours.load_state_dict(state)
    x, positions = torch.randn(2, 9, 24), torch.arange(9).expand(2, -1)
    mask = torch.full((9, 9), float("-inf")).triu(1)
    cos_sin = Qwen3NextRotaryEmbedding(theirs_config)(x, positions)
    expected, _ = theirs(x, position_embeddings=cos_sin, attention_mask=mask)
    actual = ours(x, Memory(), rotation(rope, 4, positions, torch.float32))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_each_group_of_rows_meets_its_own_matrix_and_gradients_too() -> None:
    torch.manual_seed(0)
    x = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    w = torch.randn(4, 4, 3, dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([2, 0, 6, 1])
    expected = torch.einsum("ni,nio->no", x, w.repeat_interleave(counts, 0))
    torch.testing.assert_close(grouped_matmul(x, w, counts), expected)
    torch.autograd.gradcheck(lambda x, w: grouped_matmul(x, w, counts), (x, w))


def experts(moe: MoeConfig) -> Experts:
    mlp = random_decoder(SMALL.model_copy(update={"layers": 1, "moe": moe})).layers[0].mlp
    assert isinstance(mlp, Experts)
    return mlp.train()


def test_the_balancing_loss_is_that_of_transformers() -> None:
    module = experts(MOE.model_copy(update={"balance": "loss", "balance_rate": 0.3}))
    memory, x = Memory(), torch.randn(2, 8, 24)
    module(x, memory)
    expected = load_balancing_loss_func((module.router(x.flatten(0, 1)),), 6, 2)
    torch.testing.assert_close(memory.losses[0], 0.3 * expected)
    with torch.no_grad():
        module(x, memory)
    assert len(memory.losses) == 1  # Nobody learns from it.


def test_the_choice_bias_evens_out_the_load() -> None:
    module = experts(MOE.model_copy(update={"balance": "bias", "balance_rate": 0.01}))
    x = torch.randn(4, 64, 24) + 0.5  # What tokens have in common makes some experts popular.
    spread = []
    for _ in range(60):
        module(x, Memory())
        spread.append(float(module.load_E.std() / module.load_E.mean()))
        module.rebalance()
    assert spread[-1] < 0.1 < 0.4 < spread[0]


def test_capacity_serves_the_first_and_drops_the_rest() -> None:
    x = torch.randn(1, 12, 24)
    roomy, tight = experts(MOE.model_copy(update={"capacity": 6.0})), experts(MOE.model_copy(update={"capacity": 0.5}))
    exact = experts(MOE)(x, Memory())
    torch.testing.assert_close(roomy(x, Memory()), exact)
    torch.testing.assert_close(tight.eval()(x, Memory()), exact)
    served = tight.train()(x, Memory())
    torch.testing.assert_close(served[:, :1], exact[:, :1])
    assert (served - exact).abs().amax(-1).count_nonzero() >= 12 - 6 * 2  # Six experts of two places, two per token.
    assert served[0, -1].count_nonzero() == 0


def test_a_block_ahead_reads_exactly_one_token_more() -> None:
    model = random_decoder(SMALL.model_copy(update={"ahead": 2}))
    ids, positions = torch.randint(0, 53, (1, 9)), torch.arange(9)[None]
    changed = ids.clone()
    changed[0, 5] += 1

    def states(ids: Tensor) -> list[Tensor]:
        memory = Memory()
        x = model.hidden(ids, positions, memory, torch.float32)
        return list(model.look_ahead(x, ids, positions, memory))

    for depth, (before, after) in enumerate(zip(states(ids), states(changed), strict=True), start=1):
        moved = (before - after)[0].abs().amax(-1) > 1e-6
        assert moved.tolist()[: 9 - depth] == [t >= 5 - depth for t in range(9 - depth)]


def test_training_ahead_stays_within_each_document() -> None:
    model = random_decoder(SMALL.model_copy(update={"ahead": 1}))
    row = torch.randint(0, 53, (1, 12))
    targets, documents = row.roll(-1, 1), torch.tensor([[0] * 5 + [1] * 7])
    targets[0, [4, 11]] = IGNORED
    positions = torch.tensor([[*range(5), *range(7)]])
    with torch.no_grad():
        plain = cross_entropy_sum(model, row, targets, documents, positions, torch.float32)
    together = cross_entropy_sum(model, row, targets, documents, positions, torch.float32)
    expected = torch.zeros(())
    for document in (row[:, :5], row[:, 5:]):
        steps = torch.arange(document.shape[1])[None]
        states = model.hidden(document, steps, Memory(), torch.float32)
        ahead = next(model.look_ahead(states, document, steps, Memory()))
        logits = model.logits(ahead)[0, :-2]
        expected = expected + torch.nn.functional.cross_entropy(logits, document[0, 2:], reduction="sum")
    torch.testing.assert_close(together - plain, 0.3 * expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_blocks_ahead_travel_with_deepseek(tmp_path: Path, tokenizer_folder: Path) -> None:
    moe = MOE.model_copy(update={"layers": (False, True), "shared_hidden": 20, "scores": "sigmoid", "balance": "bias"})
    mla = MlaConfig(kv_rank=8, query_rank=12, rope_dim=4, value_dim=8)
    config = SMALL.model_copy(update={"kv_heads": 4, "mla": mla, "qk_norm": None, "moe": moe, "ahead": 1})
    model = random_decoder(config)
    save_model(model, tmp_path, tokenizer=tokenizer_folder, bos_id=1, end_id=2, card="test")
    again = load_model(tmp_path)
    assert again.config.ahead == 1
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight, rtol=0, atol=0)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert all(name.startswith("model.layers.2.") for name in report["unexpected_keys"])
    ids, positions = torch.randint(0, 53, (1, 9)), torch.arange(9)[None]
    torch.testing.assert_close(model.eval()(ids, positions, Memory()), theirs(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attention_sinks": True}, "attention_sinks=True"),
        ({"alibi": True}, "alibi=True"),
        ({"norm_placement": "sandwich", "qk_norm": "projection"}, "qk_norm='projection'|norm_placement='sandwich'"),
        ({"ahead": 1}, "ahead=1"),
        ({"absolute_positions": "sinusoidal"}, "absolute_positions='sinusoidal'"),
    ],
)
def test_what_no_family_holds_is_refused_by_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(ModelError, match=named) as caught:
        family_for(SMALL.model_copy(update=change))
    assert str(caught.value).count("\n") <= 1


RECURRENT = {
    "mamba2": Mamba2Config(heads=4, head_dim=8, state_dim=6, chunk=8),
    "gated_deltanet": GatedDeltaNetConfig(key_heads=2, value_heads=2, key_dim=6, value_dim=10, chunk=8),
    "rwkv7": Rwkv7Config(heads=2, head_dim=8, decay_rank=4, rate_rank=4, value_rank=4, gate_rank=4, chunk=8),
    "ttt": TttConfig(heads=2, head_dim=8, mini_batch=4),
}
EVERYTHING = {
    "experts": SMALL.model_copy(
        update={
            "moe": MOE.model_copy(update={"balance": "bias", "shared_hidden": 16, "shared_gate": True}),
            "attention_softcap": 5.0, "attention_sinks": True, "attention_gate": True, "norm_placement": "sandwich",
            "windows": (5, None), "alibi": True, "logit_softcap": 9.0,
            "ropes": (RopeConfig(fraction=0.5), None),
        }
    ),
    "capacity": SMALL.model_copy(update={"moe": MOE.model_copy(update={"balance": "loss", "capacity": 1.0})}),
    "latent": SMALL.model_copy(
        update={
            "kv_heads": 4, "mla": MlaConfig(kv_rank=8, rope_dim=4, value_dim=6), "qk_norm": None,
            "ropes": (RopeConfig(scaling=YarnScaling(factor=4.0, original_context=8)),),
        }
    ),
    "plain": SMALL.model_copy(update={"ahead": 1}),
    "learned positions": SMALL.model_copy(
        update={
            "ropes": (None,), "absolute_positions": "learned", "embedding_norm": True, "norm": "layer",
            "norm_bias": True,
            "gated": False, "activation": "gelu", "qkv_bias": True, "o_bias": True, "mlp_bias": True, "qk_norm": None,
        }
    ),
    "every mixer": SMALL.model_copy(update={"layers": 5, "mixers": tuple(get_args(Mixer)), **RECURRENT}),
    "rwkv7": SMALL.model_copy(
        update={"mixers": ("rwkv7",), "token_shift": True, "gated": False, "activation": "relu2", **RECURRENT}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EVERYTHING)
def test_training_compiles_into_one_graph_with_the_same_loss_and_gradients(name: str) -> None:
    ids = torch.randint(0, 53, (2, 16))
    documents = torch.arange(16).expand(2, -1) // 9
    positions = torch.arange(16).expand(2, -1) % 9
    arguments = (ids, ids.roll(-1, 1), documents, positions, torch.float32)
    eager, compiled = random_decoder(EVERYTHING[name]), random_decoder(EVERYTHING[name])
    loss = cross_entropy_sum(eager, *arguments)
    loss.backward()
    # torch's plain backend misjudges the strides of softplus' gradient; training's own takes softplus apart, as here.
    apart = name == "every mixer"
    backend = "aot_eager_decomp_partition" if apart else "aot_eager"
    again = torch.compile(cross_entropy_sum, fullgraph=True, dynamic=False, backend=backend)(compiled, *arguments)
    again.backward()
    torch.testing.assert_close(again, loss)
    for weight, expected in zip(compiled.parameters(), eager.parameters(), strict=True):
        assert expected.grad is not None
        # Taken apart, sums have another order, which norms on small states amplify.
        close = (
            {"rtol": 1e-3, "atol": 1e-3 * float(expected.grad.abs().max())} if apart else {"rtol": None, "atol": None}
        )
        torch.testing.assert_close(weight.grad, expected.grad, **close)
