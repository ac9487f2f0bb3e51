"""Adapters against `peft` itself, in both directions, and against their own merged weights."""

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from wenfang.core.errors import InputError, ModelError
from wenfang.core.report import Reporter
from wenfang.model import Decoder, DecoderConfig, load_model, save_model
from wenfang.model.linear import Linear
from wenfang.model.memory import Memory
from wenfang.tokenizer import Tokenizer
from wenfang.train import merge_adapter
from wenfang.train.adapter import LoraLinear, adapt, merged
from wenfang.train.config import AdapterConfig, MergeAdapterConfig
from wenfang.train.frozen import FrozenLinear
from wenfang.train.peft import load_adapter, save_adapter, their_names

KINDS = [
    AdapterConfig(method="lora", rank=4, alpha=8),
    AdapterConfig(method="lora", rank=4, alpha=8, rank_stabilised=True, targets=("q_proj", "down_proj")),
    AdapterConfig(method="dora", rank=3, alpha=5),
]
IDS = torch.tensor([[5, 300, 17, 8, 99, 42, 7]])


@pytest.fixture(scope="module")
def base(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapted")
    tokenizer = Tokenizer.load(tokenizer_folder)
    torch.manual_seed(0)
    model = Decoder(
        DecoderConfig(
            vocab_size=tokenizer.vocab_size, dim=32, layers=2, heads=2, kv_heads=1, head_dim=16, hidden=48, context=64
        )
    )
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    save_model(
        model, folder, tokenizer=tokenizer_folder, bos_id=tokenizer.bos_id, end_id=tokenizer.end_id, card="# tiny"
    )
    return folder


def logits(model: Decoder) -> torch.Tensor:
    positions = torch.arange(IDS.shape[1])[None]
    with torch.no_grad():
        return model(IDS, positions, Memory())


def trained(base: Path, config: AdapterConfig) -> Decoder:
    """A model whose adapter has left its starting point."""
    model = load_model(base)
    torch.manual_seed(1)
    adapt(model, config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("lora_B", "lora_magnitude")):
                weight.add_(torch.randn_like(weight) * 0.1)
    return model


@pytest.mark.parametrize("config", KINDS, ids=lambda c: f"{c.method}-{c.rank_stabilised}")
def test_peft_opens_ours(base: Path, tmp_path: Path, config: AdapterConfig) -> None:
    model = trained(base, config)
    save_adapter(model, tmp_path, config, base=base)
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path).eval()
    with torch.no_grad():
        expected = theirs(IDS).logits
    assert (logits(load_model(base)) - expected).abs().max() > 0.01  # The adapter matters.
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        {"r": 4, "target_modules": "all-linear", "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"k_proj": 20}},
        {"r": 3, "target_modules": ["o_proj", "up_proj"], "use_dora": True, "use_rslora": True},
    ],
)
def test_we_open_and_merge_peft_s(base: Path, tmp_path: Path, settings: dict[str, object]) -> None:
    torch.manual_seed(2)
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = theirs(IDS).logits
    model = load_model(base)
    load_adapter(model, tmp_path / "adapter")
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    out = tmp_path / "merged"
    out.mkdir()
    summary = merge_adapter.run(MergeAdapterConfig(model=base, adapter=tmp_path / "adapter"), out, Reporter())
    assert summary["projections"] > 0
    torch.testing.assert_close(logits(load_model(out)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base_form", ["full", "int8", "nf4"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_merging_changes_nothing_and_ends_exactly(base: Path, base_form: str, method: str) -> None:
    model = trained(base, AdapterConfig(method=method, rank=4, base=base_form, targets=("q_proj", "up_proj")))
    before, state = logits(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with merged(model):
        assert not any(isinstance(module, LoraLinear) for module in model.modules())
        torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(model), before)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_adapter_begins_as_the_model_and_alone_learns(base: Path, method: str) -> None:
    model = load_model(base)
    before = logits(model)
    adapt(model, AdapterConfig(method=method, rank=2))
    torch.testing.assert_close(logits(model), before)
    trained_names = {name.rpartition(".")[2] for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained_names == {"lora_A", "lora_B"} | ({"lora_magnitude"} if method == "dora" else set())


def test_gradients_equal_peft_s(base: Path, tmp_path: Path) -> None:
    config = AdapterConfig(method="dora", rank=3, alpha=5)
    model = trained(base, config)
    save_adapter(model, tmp_path, config, base=base)
    theirs = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path, is_trainable=True)
    model(IDS, torch.arange(7)[None], Memory()).square().mean().backward()
    theirs(IDS).logits.square().mean().backward()
    named = dict(theirs.named_parameters())
    for part, ours in (("lora_A.default.weight", "lora_A"), ("lora_magnitude_vector.default.weight", "lora_magnitude")):
        expected = named[f"base_model.model.model.layers.1.mlp.up_proj.{part}"].grad
        gradient = getattr(model.get_submodule("layers.1.mlp.up_proj"), ours).grad
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_an_unknown_target_is_named(base: Path) -> None:
    with pytest.raises(InputError, match=r"no projection 'q_porj'.*Did you mean 'q_proj'"):
        adapt(load_model(base), AdapterConfig(method="lora", targets=("q_porj",)))


def _retype(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}')


def _bias(folder: Path) -> None:
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"bias": "all"}))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "lacks 'adapter_model.safetensors'"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x"), "is damaged"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "is damaged"),
        (_retype, "peft_type='IA3'"),
        (_bias, "bias is not supported"),
    ],
)
def test_an_unusable_adapter_is_refused(base: Path, tmp_path: Path, spoil: Callable[[Path], None], told: str) -> None:
    config = KINDS[0]
    save_adapter(trained(base, config), tmp_path, config, base=base)
    spoil(tmp_path)
    with pytest.raises(ModelError, match=told):
        load_adapter(load_model(base), tmp_path)


def test_an_adapter_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    config = KINDS[0]
    save_adapter(trained(base, config), tmp_path, config, base=base)
    other = Decoder(DecoderConfig(vocab_size=20, dim=16, layers=2, heads=2, kv_heads=1, head_dim=16, hidden=48))
    with pytest.raises(ModelError, match="shape"):
        load_adapter(other, tmp_path)


@pytest.mark.parametrize("form", ["full", "nf4"])
def test_biases_stay_out_of_the_magnitudes(form: str) -> None:
    torch.manual_seed(0)
    base = Linear(8, 6, bias=True)
    frozen = base if form == "full" else FrozenLinear(base.weight.detach(), base.bias, "nf4")
    layer = LoraLinear(frozen, rank=2, scale=1.0, dora=True)
    with torch.no_grad():
        layer.lora_B.normal_()
        layer.lora_magnitude.mul_(1.5)
    x = torch.randn(3, 8)
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.merged(), base.bias))


def test_what_peft_cannot_hold_is_refused_before_training() -> None:
    model = Decoder(
        DecoderConfig(
            vocab_size=20, dim=16, layers=1, heads=2, kv_heads=2, head_dim=8, hidden=16, qk_norm=None, family="phi3"
        )
    )
    adapt(model, AdapterConfig(method="lora", rank=2))
    with pytest.raises(ModelError, match=r"phi3 model 'layers.0.mixer.q_proj' is no tensor of its own"):
        their_names(model)
    assert their_names(Decoder(model.config)).keys() == {"layers.0.mixer.o_proj", "layers.0.mlp.down_proj"}
