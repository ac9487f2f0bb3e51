"""Every family against `transformers`: tiny random models over a grid of odd settings, in, out, cached and packed.

Tolerance 1e-4: the same fp32 arithmetic in another order of summation. Logits are of order one.
"""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from cached import Cached
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from wenfang.model import Decoder, load_model, save_model
from wenfang.model.memory import Memory

T = 19
BASE = {
    "vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 36, "max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MHA = {"num_key_value_heads": 4}
SLIDING, FULL = "sliding_attention", "full_attention"
EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
MLA = {
    **MHA, "kv_lora_rank": 10, "q_lora_rank": 14, "qk_rope_head_dim": 6, "qk_nope_head_dim": 8, "v_head_dim": 12,
    "n_routed_experts": 6, "num_experts_per_tok": 2, "n_shared_experts": 2, "moe_intermediate_size": 20,
    "first_k_dense_replace": 1, "n_group": 3, "topk_group": 2,
}  # fmt: skip
DEFAULT = {"rope_type": "default", "rope_theta": 100.0}
LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 50.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 50.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "rope_theta": 500.0}
DEEP_YARN = {**YARN, "mscale": 0.7, "mscale_all_dim": 0.9}
LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16, "rope_theta": 700.0,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0, 1.3], "long_factor": [2.0, 3.5], "rope_theta": 100.0,
    "partial_rotary_factor": 0.7,
}  # fmt: skip
# Recurrent layers normalise what they read from their state. Where that is near zero, a small ε amplifies rounding so
# much that `transformers` differs from itself by 1e-3 between its cached and its parallel form; a large ε does not.
MAMBA2 = {
    "num_heads": 6, "head_dim": 8, "n_groups": 2, "state_size": 5, "chunk_size": 8, "layer_norm_epsilon": 0.01,
}  # fmt: skip
DELTANET = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"], "head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6, "linear_value_head_dim": 10,
    "rms_norm_eps": 0.01,
}  # fmt: skip
GEMMA3_ROPES = {
    SLIDING: {"rope_type": "default", "rope_theta": 30.0},
    FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0},
}

CASES: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "llama-mqa-biases-tied": {
        "model_type": "llama", "num_key_value_heads": 1, "head_dim": 10, "attention_bias": True, "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "llama-linear": {"model_type": "llama", "rope_parameters": LINEAR},
    "llama-llama3": {"model_type": "llama", "rope_parameters": LLAMA3},
    "llama-dynamic": {"model_type": "llama", "max_position_embeddings": 11, "rope_parameters": DYNAMIC},
    "llama-yarn": {"model_type": "llama", "rope_parameters": YARN},
    "mistral-window": {"model_type": "mistral", "sliding_window": 5, "head_dim": 8},
    "mistral-full": {"model_type": "mistral", "sliding_window": None},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2-window": {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "qwen3": {"model_type": "qwen3", "head_dim": 10},
    "qwen3-bias-window": {
        "model_type": "qwen3", "head_dim": 6, "attention_bias": True, "use_sliding_window": True, "sliding_window": 3,
        "layer_types": [SLIDING, FULL, SLIDING], "tie_word_embeddings": True,
    },
    "qwen3_moe": {"model_type": "qwen3_moe", "head_dim": 8, **EXPERTS, "norm_topk_prob": True},
    "qwen3_moe-some-dense": {
        "model_type": "qwen3_moe", "head_dim": 8, **EXPERTS, "mlp_only_layers": [1], "sliding_window": 4,
        "use_sliding_window": True,
    },
    "mixtral": {"model_type": "mixtral", "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 6},
    "gemma2": {"model_type": "gemma2", "head_dim": 10, "sliding_window": 5, "query_pre_attn_scalar": 17,
               "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma2-uncapped": {"model_type": "gemma2", "head_dim": 6, "sliding_window": 3, "attn_logit_softcapping": None,
                        "final_logit_softcapping": None, "tie_word_embeddings": False, "attention_bias": True},
    "gemma3": {"model_type": "gemma3_text", "head_dim": 10, "sliding_window": 5, "query_pre_attn_scalar": 9,
               "layer_types": [SLIDING, SLIDING, FULL], "rope_parameters": GEMMA3_ROPES},
    "phi3": {"model_type": "phi3", "rope_parameters": DEFAULT, "sliding_window": 7},
    "phi4-longrope": {
        "model_type": "phi3", "rope_parameters": LONGROPE, "original_max_position_embeddings": 15,
        "tie_word_embeddings": True,
    },
    "smollm3": {"model_type": "smollm3", "no_rope_layers": [1, 1, 0], "attention_bias": True, "mlp_bias": True},
    "smollm3-window": {"model_type": "smollm3", "no_rope_layer_interval": 2, "use_sliding_window": True,
                       "sliding_window": 4, "tie_word_embeddings": False},
    "olmo2": {"model_type": "olmo2"},
    "olmo2-bias": {"model_type": "olmo2", "attention_bias": True, "num_key_value_heads": 4},
    "deepseek_v2": {"model_type": "deepseek_v2", **MLA, "topk_method": "group_limited_greedy",
                    "routed_scaling_factor": 1.7},
    "deepseek_v2-lite": {"model_type": "deepseek_v2", **MLA, "q_lora_rank": None, "first_k_dense_replace": 0,
                         "rope_parameters": DEEP_YARN},
    "deepseek_v3": {"model_type": "deepseek_v3", **MLA, "num_mtp_layers": 0},
    "deepseek_v3-yarn-bias": {"model_type": "deepseek_v3", **MLA, "num_mtp_layers": 0, "attention_bias": True,
                              "norm_topk_prob": False, "rope_parameters": DEEP_YARN},
    "gpt2": {"model_type": "gpt2"},
    "gpt2-inner-untied": {"model_type": "gpt2", "n_inner": 30, "tie_word_embeddings": False,
                          "activation_function": "relu2"},
    "bloom": {"model_type": "bloom"},
    "bloom-3-heads": {"model_type": "bloom", "num_attention_heads": 3, "tie_word_embeddings": False},
    "mamba2": {"model_type": "mamba2", **MAMBA2},
    "mamba2-no-conv-bias": {"model_type": "mamba2", **MAMBA2, "n_groups": 1, "use_conv_bias": False, "conv_kernel": 3},
    "qwen3_next": {"model_type": "qwen3_next", **DELTANET, **EXPERTS, "shared_expert_intermediate_size": 28},
    "qwen3_next-dense": {"model_type": "qwen3_next", **DELTANET, "mlp_only_layers": [0, 1, 2], "head_dim": 16,
                         "linear_num_value_heads": 2, "tie_word_embeddings": True},
    "mpt": {"model_type": "mpt", "max_seq_len": 32, "attn_config": {"clip_qkv": 0.8}},
    "mpt-6-heads": {"model_type": "mpt", "max_seq_len": 32, "num_attention_heads": 6,
                    "attn_config": {"softmax_scale": 0.3}},
}  # fmt: skip


def their_model(case: dict[str, Any]) -> PreTrainedModel:
    """A random model of `transformers` in which every weight, bias and buffer matters."""
    torch.manual_seed(5)
    config = AutoConfig.for_model(**{**BASE, **case})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, weight in [*model.named_parameters(), *model.named_buffers()]:
            if weight.ndim >= 2:
                weight.normal_(0.0, 1.5 * weight.shape[-1] ** -0.5)
            elif name.endswith(("weight", "bias")):
                weight.uniform_(-0.5, 1.5)
    return model


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, PreTrainedModel]:
    """Our decoder, imported from the folder that `transformers` wrote, and theirs."""
    theirs = their_model(CASES[request.param])
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return load_model(folder).eval(), theirs


def ids(*shape: int) -> Tensor:
    return torch.randint(3, BASE["vocab_size"], shape, generator=torch.Generator().manual_seed(7))


def whole(model: Decoder, inputs: Tensor) -> Tensor:
    return model(inputs, torch.arange(inputs.shape[1]).expand(len(inputs), -1), Memory())


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_logits_are_those_of_transformers(pair: tuple[Decoder, PreTrainedModel]) -> None:
    ours, theirs = pair
    close(whole(ours, ids(2, T)), theirs(ids(2, T)).logits)


@torch.no_grad()
def test_written_back_transformers_computes_the_same(
    pair: tuple[Decoder, PreTrainedModel], tmp_path: Path, tokenizer_folder: Path
) -> None:
    ours, theirs = pair
    save_model(ours, tmp_path, tokenizer=tokenizer_folder, bos_id=1, end_id=2, card="test")
    again, report = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert type(again) is type(theirs)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    close(again.eval()(ids(2, T)).logits, theirs(ids(2, T)).logits)


@torch.no_grad()
def test_a_cache_changes_nothing_wherever_the_prompt_is_split(pair: tuple[Decoder, PreTrainedModel]) -> None:
    model, _ = pair
    end = reach(model)
    row = ids(1, end)
    expected = whole(model, row)
    for split in range(1, end):
        cached = Cached(model, row)
        close(torch.cat((cached.read([0], split), cached.read([0], end - split)), 1), expected)


@torch.no_grad()
def test_sequences_decode_together_as_they_do_alone(pair: tuple[Decoder, PreTrainedModel]) -> None:
    model, _ = pair
    rows, lengths = ids(3, reach(model)), [4, 8, 7]
    cached, order = Cached(model, rows), [2, 0, 1]
    for row, length in enumerate(lengths):
        cached.read([row], length)
    for step in range(3):
        for row, logits in zip(order, cached.read(order, 1), strict=True):
            close(logits, whole(model, rows[row : row + 1, : lengths[row] + step + 1])[0, -1:])


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_read_as_in_transformers(side: str, pair: tuple[Decoder, PreTrainedModel]) -> None:
    ours, theirs = pair
    rows, lengths = ids(3, T), [T, 10, 6]
    real = torch.arange(T) < torch.tensor(lengths)[:, None]
    real = real.flip(1) if side == "left" else real
    rows = rows.masked_fill(~real, BASE["pad_token_id"])
    positions = (real.cumsum(1) - 1).clamp(min=0)
    found = ours(rows, positions, Memory(torch.where(real, 0, -1)))
    if reach(ours) < T:  # In `transformers` the longest row decides how all are turned: rows must be read alone there.
        expected = torch.cat([theirs(row[kept][None]).logits[0] for row, kept in zip(rows, real, strict=True)])
    else:
        expected = theirs(rows, attention_mask=real.long(), **their_positions(theirs, positions)).logits[real]
    close(found[real], expected)


@torch.no_grad()
def test_packed_documents_do_not_see_each_other(pair: tuple[Decoder, PreTrainedModel]) -> None:
    model, _ = pair
    first, second = 8, T - 8
    documents = torch.tensor([0] * first + [1] * second)[None]
    positions = torch.cat((torch.arange(first), torch.arange(second)))[None]
    packed = model(ids(1, T), positions, Memory(documents))
    close(packed[:, :first], whole(model, ids(1, T)[:, :first]))
    close(packed[:, first:], whole(model, ids(1, T)[:, first:]))


@torch.no_grad()
def test_embeddings_instead_of_ids_give_the_same_logits(pair: tuple[Decoder, PreTrainedModel]) -> None:
    model, _ = pair
    close(whole(model, model.embed(ids(2, T), torch.float32)), whole(model, ids(2, T)))


@torch.no_grad()
def test_bf16_activations_stay_near(pair: tuple[Decoder, PreTrainedModel]) -> None:
    model, _ = pair
    positions = torch.arange(T).expand(2, -1)
    half = model.hidden(ids(2, T), positions, Memory(), torch.bfloat16)
    assert half.dtype == torch.bfloat16
    exact = model.hidden(ids(2, T), positions, Memory(), torch.float32)
    # Three layers with 8 bits of mantissa; a router may send a token elsewhere, so the typical error is judged.
    assert (half - exact).abs().median() < 0.05 * exact.abs().median()


def test_parameters_are_counted_as_transformers_does(pair: tuple[Decoder, PreTrainedModel]) -> None:
    ours, theirs = pair
    assert ours.config.parameters == theirs.num_parameters()


def reach(model: Decoder) -> int:
    """Positions that are turned alike whatever the length of the call: cached keys keep the frequencies of theirs."""
    scalings = [rope.scaling for rope in model.config.ropes if rope and rope.scaling]
    return min([T, *(s.original_context for s in scalings if s.type in ("dynamic", "longrope"))])


def their_positions(theirs: PreTrainedModel, positions: Tensor) -> dict[str, Tensor]:
    """What tells `transformers` the positions where it asks; ALiBi and recurrent layers count for themselves."""
    return {"position_ids": positions} if "position_ids" in inspect.signature(theirs.forward).parameters else {}
