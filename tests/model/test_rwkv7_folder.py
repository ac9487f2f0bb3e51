"""A whole RWKV-7 in the Hugging Face layout of flash-linear-attention against the authors' own package.

`transformers` has no RWKV-7, and flash-linear-attention needs a GPU. So one set of random weights is named twice: as
the authors name it, for their code to run, and as the other layout names it (after its `RWKV7ForCausalLM`), for ours.
"""

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from cached import Cached
from safetensors.torch import load_file, save_file
from torch import Tensor

from wenfang.core.errors import ModelError
from wenfang.model import load_model, save_model
from wenfang.model.memory import Memory

DIM, HEADS, HIDDEN, LAYERS, VOCAB = 128, 2, 160, 3, 53
RANKS = {"w": 6, "a": 5, "v": 4, "g": 7}
CONFIG = {
    "model_type": "rwkv7", "vocab_size": VOCAB, "hidden_size": DIM, "num_hidden_layers": LAYERS, "head_dim": 64,
    "intermediate_size": HIDDEN, "decay_low_rank_dim": 6, "a_low_rank_dim": 5, "v_low_rank_dim": 4,
    "gate_low_rank_dim": 7, "norm_eps": 1e-5, "norm_bias": True, "norm_first": True, "hidden_act": "sqrelu",
    "value_dim": [DIM] * LAYERS, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip


def random_weights() -> dict[str, Tensor]:
    """By the authors' names; w1 … g2 are stored as inputs × outputs."""
    torch.manual_seed(11)
    shapes: dict[str, tuple[int, ...]] = {"emb.weight": (VOCAB, DIM), "head.weight": (VOCAB, DIM)}
    norms = ["ln_out", "blocks.0.ln0"]
    for layer in range(LAYERS):
        block = f"blocks.{layer}."
        norms += [f"{block}{name}" for name in ("ln1", "ln2", "att.ln_x")]
        shapes |= {f"{block}att.x_{name}": (1, 1, DIM) for name in "rwkvag"}
        shapes |= {f"{block}att.{name}.weight": (DIM, DIM) for name in ("receptance", "key", "value", "output")}
        shapes |= {f"{block}att.k_k": (1, 1, DIM), f"{block}att.k_a": (1, 1, DIM), f"{block}att.r_k": (HEADS, 64)}
        shapes |= {f"{block}ffn.x_k": (1, 1, DIM)}
        shapes |= {f"{block}ffn.key.weight": (HIDDEN, DIM), f"{block}ffn.value.weight": (DIM, HIDDEN)}
        for name, rank in RANKS.items():
            shapes |= {f"{block}att.{name}1": (DIM, rank), f"{block}att.{name}2": (rank, DIM)}
            shapes |= {} if name == "g" else {f"{block}att.{name}0": (1, 1, DIM)}
    weights = {
        name: torch.randn(shape) * (shape[-1] ** -0.5 if len(shape) == 2 else 0.4) for name, shape in shapes.items()
    }
    for name in norms:
        weights |= {f"{name}.weight": torch.rand(DIM) + 0.5, f"{name}.bias": 0.2 * torch.randn(DIM)}
    return weights


PROJECTIONS = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "ln_x": "g_norm"}
BLOCKS = {"ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}


def renamed(name: str, weight: Tensor) -> tuple[str, Tensor] | None:
    """The same weight in the other layout; None for what layer 0 does not use."""
    ends = {"emb.weight": "model.embeddings.weight", "head.weight": "lm_head.weight"}
    if not name.startswith("blocks."):
        return ends.get(name, name.replace("ln_out", "model.norm")), weight
    _, layer, part, *rest = name.split(".")
    start = f"model.layers.{layer}."
    if part in BLOCKS:
        return f"{start}{BLOCKS[part]}.{rest[0]}", weight
    if part == "ffn":
        return f"{start}ffn.{'.'.join(rest)}", weight.flatten() if rest == ["x_k"] else weight
    if rest[0] in PROJECTIONS:
        return f"{start}attn.{PROJECTIONS[rest[0]]}.{rest[1]}", weight
    kind, place = rest[0][0], rest[0][1:]
    if place in ("0", "1", "2"):
        end = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}[place]
        weight = weight.flatten() if place == "0" else weight.T
        return None if (kind, layer) == ("v", "0") else (f"{start}attn.{kind}_lora.lora.{end}", weight)
    return f"{start}attn.{rest[0]}", weight.flatten() if rest[0] in ("k_k", "k_a") else weight


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_weights()


@pytest.fixture(scope="module")
def folder(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rwkv7")
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    named = filter(None, (renamed(name, weight) for name, weight in weights.items()))
    save_file({name: weight.contiguous() for name, weight in named}, folder / "model.safetensors")
    return folder


@torch.no_grad()
def test_same_logits_as_the_authors(
    folder: Path, weights: dict[str, Tensor], official_rwkv: ModuleType, tmp_path: Path
) -> None:
    torch.save(weights, tmp_path / "official.pth")
    theirs = official_rwkv.RWKV_x070(str(tmp_path / "official"), "cpu fp32")
    ids = torch.randint(0, VOCAB, (45,))
    expected, _ = theirs.forward(ids.tolist(), None, full_output=True)
    ours = load_model(folder)(ids[None], torch.arange(45)[None], Memory())[0]
    # fp32 in another order, and their e^(−1/2) has six digits.
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_cache_changes_nothing(folder: Path) -> None:
    model, ids = load_model(folder), torch.randint(0, VOCAB, (1, 13))
    expected = model(ids, torch.arange(13)[None], Memory())
    for split in (1, 6, 12):
        cached = Cached(model, ids)
        halves = cached.read([0], split), cached.read([0], 13 - split)
        torch.testing.assert_close(torch.cat(halves, 1), expected, rtol=1e-4, atol=1e-4)


def test_written_back_it_is_the_same_folder(folder: Path, tmp_path: Path, tokenizer_folder: Path) -> None:
    save_model(load_model(folder), tmp_path, tokenizer=tokenizer_folder, bos_id=1, end_id=2, card="test")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert {name: config[name] for name in CONFIG} == CONFIG


def test_another_value_width_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"value_dim": [2 * DIM] * LAYERS}), encoding="utf-8")
    with pytest.raises(ModelError, match="value_dim"):
        load_model(tmp_path)
