"""Model folders against `transformers`, and against damaged files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from wenfang.core.errors import InputError
from wenfang.model import Decoder, DecoderConfig, load_model, save_model
from wenfang.model.memory import Memory

SHAPES = [
    DecoderConfig(vocab_size=300, dim=24, layers=2, heads=3, kv_heads=1, head_dim=16, hidden=40, context=48),
    DecoderConfig(
        vocab_size=301, dim=32, layers=3, heads=4, kv_heads=4, head_dim=6, hidden=56, context=40, qk_norm=None
    ),
    DecoderConfig(
        vocab_size=299, dim=16, layers=1, heads=4, kv_heads=2, head_dim=8, hidden=24, context=33,
        tie_embeddings=True, ropes=({"theta": 500_000.0},), norm_eps=1e-5,
    ),
]  # fmt: skip


def random_model(config: DecoderConfig) -> Decoder:
    torch.manual_seed(1)
    model = Decoder(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0.0, 0.2) if weight.ndim == 2 else weight.uniform_(0.5, 1.5)
    return model


def write(config: DecoderConfig, folder: Path, tokenizer: Path) -> Decoder:
    model = random_model(config)
    save_model(model, folder, tokenizer=tokenizer, bos_id=1, end_id=2, card="test")
    return model


@pytest.mark.parametrize("config", SHAPES, ids=["qwen3", "llama", "tied"])
def test_transformers_loads_the_folder_with_the_same_logits(
    config: DecoderConfig, tmp_path: Path, tokenizer_folder: Path
) -> None:
    model = write(config, tmp_path, tokenizer_folder)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.randint(0, config.vocab_size, (3, config.context))
    with torch.no_grad():
        expected = theirs(ids).logits
        ours = load_model(tmp_path)(ids, torch.arange(config.context).expand(3, -1), Memory())
        written = model(ids, torch.arange(config.context).expand(3, -1), Memory())
    # Same fp32 arithmetic in another order of summation: differences of a few units in the last place.
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours, written, rtol=0, atol=0)


def test_transformers_opens_the_tokenizer_and_generates(tmp_path: Path, tokenizer_folder: Path) -> None:
    write(SHAPES[0].model_copy(update={"vocab_size": 700}), tmp_path, tokenizer_folder)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "寫詩"}], add_generation_prompt=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    out = model.generate(torch.tensor([ids["input_ids"]]), max_new_tokens=4, do_sample=False)
    assert out.shape[1] > len(ids["input_ids"])


def damage_truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def damage_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes((2**63).to_bytes(8, "little") + path.read_bytes()[8:])


def damage_missing_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors")


def damage_extra_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "model.extra": torch.zeros(1)}, folder / "model.safetensors")


def damage_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(5)
    save_file(tensors, folder / "model.safetensors")


def damage_nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors")


def damage_pickle(folder: Path) -> None:
    torch.save({"model.norm.weight": torch.ones(3)}, folder / "model.safetensors")


def damage_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def damage_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def damage_config_json(folder: Path) -> None:
    (folder / "config.json").write_text("{", encoding="utf-8")


def damage_model_type(folder: Path) -> None:
    edit_config(folder, model_type="lama")


def damage_missing_field(folder: Path) -> None:
    edit_config(folder, hidden_size=None)


def damage_unsupported(folder: Path) -> None:
    edit_config(folder, rope_parameters={"rope_type": "axial", "factor": 4.0})


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not None}), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (damage_truncate, "damaged or cut off"),
        (damage_header, "damaged or cut off"),
        (damage_missing_tensor, "lacks the tensor 'model.layers.0.mlp.up_proj.weight'"),
        (damage_extra_tensor, "unknown tensor 'model.extra'"),
        (damage_shape, r"model.norm.weight has shape \[5\]"),
        (damage_nan, "model.norm.weight holds NaN"),
        (damage_pickle, "is a PyTorch pickle, not safetensors"),
        (damage_no_weights, "lacks its weights, 'model.safetensors'"),
        (damage_no_config, "lacks 'config.json'"),
        (damage_config_json, "config.json' is not valid JSON"),
        (damage_model_type, "'lama' is not supported.*Did you mean 'llama'"),
        (damage_missing_field, "lacks 'hidden_size'"),
        (lambda f: edit_config(f, num_hidden_layers=10**9), "num_hidden_layers=1000000000"),
        (lambda f: edit_config(f, vocab_size=2**62, hidden_size=2**40), "a model that its weights cannot be"),
        (damage_unsupported, "rope_type='axial', which is not supported"),
    ],
)
def test_a_bad_folder_is_refused_by_name(damage, told: str, tmp_path: Path, tokenizer_folder: Path) -> None:
    write(SHAPES[0], tmp_path, tokenizer_folder)
    damage(tmp_path)
    with pytest.raises(InputError, match=told) as caught:
        load_model(tmp_path)
    assert str(caught.value).count("\n") <= 1


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No folder"):
        load_model(tmp_path / "nowhere")
