"""Several adapters in one batch against `peft` with each of them alone."""

from collections.abc import Iterator
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from wenfang.core.errors import InputError, ModelError
from wenfang.engine import BeamParams, Completion, Engine, Lookup, SamplingParams, TokenLogprob
from wenfang.model import Decoder, DecoderConfig, save_model
from wenfang.model.parts import MlaConfig, MoeConfig
from wenfang.model.quantized import Quantization
from wenfang.tokenizer import Tokenizer
from wenfang.train.adapter import adapt
from wenfang.train.config import AdapterConfig
from wenfang.train.peft import save_adapter

SETTINGS: dict[str, dict[str, object]] = {
    "plain": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "patterned": {"r": 6, "target_modules": "all-linear", "rank_pattern": {"k_proj": 2}, "use_rslora": True},
    "lengths": {"r": 3, "target_modules": ["o_proj", "up_proj", "k_proj"], "use_dora": True},
}
STEM = torch.randint(4, 400, (40,), generator=torch.Generator().manual_seed(8)).tolist()
"""Longer than two blocks, so that a second run finds a prefix."""


Judges = dict[str | None, tuple[Path, torch.nn.Module]]
"""Each adapter's folder and `peft`'s model with it."""


def make_base(tokenizer_folder: Path, folder: Path, *, head_dim: int = 16) -> Path:
    tokenizer = Tokenizer.load(tokenizer_folder)
    torch.manual_seed(0)
    shape = {"dim": 32, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": head_dim, "hidden": 48, "context": 128}
    model = Decoder(DecoderConfig(vocab_size=tokenizer.vocab_size, qkv_bias=True, qk_norm=None, **shape))
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    ids = {"bos_id": tokenizer.bos_id, "end_id": tokenizer.end_id}
    save_model(model, folder, tokenizer=tokenizer_folder, card="# tiny", **ids)
    return folder


def make_judges(base: Path, folders: Path) -> Judges:
    judges: Judges = {None: (base, AutoModelForCausalLM.from_pretrained(base).eval())}
    for seed, (name, settings) in enumerate(SETTINGS.items()):
        torch.manual_seed(seed)
        config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings)
        model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()
        folder = folders / name
        model.save_pretrained(folder)
        judges[name] = folder, model
    return judges


@pytest.fixture(scope="module")
def base(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tokenizer_folder, tmp_path_factory.mktemp("adapted"))


@pytest.fixture(scope="module")
def judges(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Judges:
    return make_judges(base, tmp_path_factory.mktemp("adapters"))


@pytest.fixture(params=[None, Lookup(4)], ids=["", "speculating"])
def engine(base: Path, judges: Judges, request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = Engine.load(base, max_batch=8, speculation=request.param)
    for name, (folder, _) in judges.items():
        if name is not None:
            engine.load_adapter(name, folder)
    yield engine
    engine.close()


PARAMS = SamplingParams(seed=2, max_tokens=16, logprobs=1, prompt_logprobs=True)


def at_once(engine: Engine, names: list[str | None], params: SamplingParams) -> list[tuple[str, list[TokenLogprob]]]:
    streams = [engine.stream(STEM, params, adapter=name) for name in names]
    answers = [list(stream) for stream in streams]
    return [
        ("".join(d.text for d in deltas), [entry for d in deltas for entry in (*d.prompt_logprobs, *d.logprobs)])
        for deltas in answers
    ]


def test_every_row_is_its_own_adapters(engine: Engine, judges: Judges) -> None:
    names = [*judges, *judges]
    together = at_once(engine, names, PARAMS)
    assert len({logprobs[-1].logprob for _, logprobs in together}) == len(judges)
    for name, (text, logprobs) in zip(names, together, strict=True):
        ids = [STEM[0], *(entry.token for entry in logprobs[1:])]
        with torch.no_grad():
            log = judges[name][1](torch.tensor([ids])).logits[0].log_softmax(-1)
        for position, entry in enumerate(logprobs[1:]):
            # Both sum in fp32, in another order; an adapter left out changes these by more than 0.01.
            assert entry.logprob == pytest.approx(float(log[position, entry.token]), abs=1e-3)
        assert at_once(engine, [name], PARAMS) == [(text, logprobs)]


def test_a_prefix_is_not_taken_from_another_adapter(engine: Engine, judges: Judges) -> None:
    params = SamplingParams(temperature=0, max_tokens=12)
    first = [engine.generate([STEM], params, adapter=name)[0].token_ids for name in judges]
    again: list[Completion] = [engine.generate([STEM], params, adapter=name)[0] for name in reversed(judges)]
    assert [completion.token_ids for completion in reversed(again)] == first
    for name, expected in zip(judges, first, strict=True):
        found = engine.search(STEM, BeamParams(width=1, max_tokens=12), adapter=name)
        assert found[0].token_ids == expected


def test_a_running_request_keeps_what_is_unloaded(engine: Engine) -> None:
    params = SamplingParams(temperature=0, max_tokens=40)
    expected = engine.generate([STEM], params, adapter="plain")[0].text
    stream = engine.stream(STEM, params, adapter="plain")
    text = next(stream).text
    engine.unload_adapter("plain")
    assert text + "".join(delta.text for delta in stream) == expected
    for refused in (lambda: engine.stream(STEM, params, adapter="plain"), lambda: engine.unload_adapter("plain")):
        with pytest.raises(InputError, match="no adapter 'plain'; loaded: patterned, lengths"):
            refused()


@pytest.mark.parametrize("head_dim", [8, 16], ids=["torch", "compiled"])
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_adapters_on_quantised_weights(
    tokenizer_folder: Path, tmp_path: Path, quantization: Quantization, head_dim: int
) -> None:
    (tmp_path / "base").mkdir()
    base = make_base(tokenizer_folder, tmp_path / "base", head_dim=head_dim)
    judges = make_judges(base, tmp_path)
    engine = Engine.load(base, max_batch=8, quantize=quantization)
    for name, (folder, _) in judges.items():
        if name is not None:
            engine.load_adapter(name, folder)
    together = at_once(engine, [*judges, *judges], PARAMS)
    for name, (text, logprobs) in zip([*judges, *judges], together, strict=True):
        ids = torch.tensor([[STEM[0], *(entry.token for entry in logprobs[1:])]])
        apart = {}
        for judge, (_, model) in judges.items():
            with torch.no_grad():
                log = model(ids).logits[0].log_softmax(-1)
            differences = [abs(e.logprob - float(log[p, e.token])) for p, e in enumerate(logprobs[1:])]
            apart[judge] = sum(differences) / len(differences)
        # The judges are not quantised. Rounding moves a log-probability by 0.02 at most in the mean, another adapter by
        # three times as much at least.
        assert min(apart, key=lambda judge: apart[judge]) == name
        assert apart[name] < 0.03
        assert at_once(engine, [name], PARAMS) == [(text, logprobs)]
    engine.close()


def test_what_cannot_differ_by_row_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder)
    mla = MlaConfig(kv_rank=16, query_rank=12, rope_dim=4, value_dim=8)
    moe = MoeConfig(experts=2, active=1, hidden=16, shared_hidden=16, scores="sigmoid", balance="bias")
    shape = {
        "dim": 32,
        "layers": 1,
        "heads": 2,
        "kv_heads": 2,
        "head_dim": 12,
        "qk_norm": None,
        "family": "deepseek_v3",
    }
    config = DecoderConfig(vocab_size=tokenizer.vocab_size, mla=mla, moe=moe, **shape)
    model, asked = Decoder(config), AdapterConfig(method="lora", rank=2, targets=("kv_b_proj",))
    adapt(model, asked)
    save_adapter(model, tmp_path, asked, base=tmp_path)
    engine = Engine(Decoder(config), tokenizer, name="latent")
    with pytest.raises(ModelError, match="cannot differ by row"):
        engine.load_adapter("latent", tmp_path)
    engine.close()
