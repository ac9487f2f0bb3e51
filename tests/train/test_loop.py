"""The stages: documents kept apart, what is learned, what is refused."""

import io
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tokenizer.test_chat_template import CONVERSATION, TEMPLATE, TOOLS
from transformers import AutoTokenizer

from wenfang.core.errors import DataError, InputError, WenfangError
from wenfang.core.report import Reporter
from wenfang.model import Decoder, DecoderConfig, load_model, save_model
from wenfang.model.memory import Memory
from wenfang.tokenizer import Tokenizer
from wenfang.train import pretrain, sft
from wenfang.train.config import AdapterConfig, OptimizerConfig, PretrainConfig, SftConfig
from wenfang.train.frozen import FrozenLinear
from wenfang.train.loss import cross_entropy_sum
from wenfang.train.objective import next_token
from wenfang.train.packing import IGNORED, Document, pack
from wenfang.train.peft import load_adapter
from wenfang.train.schedule import rate

TINY = {"dim": 16, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 8, "hidden": 24, "dtype": "float32"}


def config(corpus: Path, tokenizer: Path, **changes: object) -> PretrainConfig:
    values = {"steps": 30, "batch": 4, "context": 64, "compile": False, "checkpoint_every_s": 1e-6} | TINY | changes
    return PretrainConfig(corpus=corpus, tokenizer=tokenizer, **values)


def row_of(documents: list[Document]) -> list[torch.Tensor]:
    """The documents in one row: ids, targets, documents, positions."""
    packed = pack(documents, 32)
    assert len(packed) == 1
    arrays = (packed.ids_NT, packed.targets_NT, packed.documents_NT, packed.positions_NT)
    return [torch.from_numpy(a).long() for a in arrays]


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # bf16 keeps 8 bits, and products of other shapes add up in another order: 2^-9 of a sum over many tokens.
    [(torch.float32, 1e-5), (torch.bfloat16, 2**-9)],
    ids=str,
)
def test_packed_loss_is_the_loss_of_each_document_alone(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(vocab_size=50, dim=16, layers=2, heads=2, kv_heads=1, head_dim=8, hidden=24))
    documents = [(torch.randint(0, 50, (n,)).tolist(), [True] * n) for n in (5, 9, 7, 12)]
    together = cross_entropy_sum(model, *row_of(documents), dtype)
    alone = torch.zeros(())
    for ids, _ in documents:
        row = torch.tensor([ids])
        logits = model.logits(model.hidden(row[:, :-1], torch.arange(len(ids) - 1)[None], Memory(), dtype))
        alone += torch.nn.functional.cross_entropy(logits[0].float(), row[0, 1:], reduction="sum")
    torch.testing.assert_close(together, alone, rtol=tolerance, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_else_is_in_the_row_changes_no_bit_of_a_document_s_loss(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(vocab_size=50, dim=16, layers=2, heads=2, kv_heads=1, head_dim=8, hidden=24))
    document, losses = ([7, 3, 9, 30, 2, 2, 41], [True] * 7), set()
    for _ in range(3):
        others = [(torch.randint(0, 50, (n,)).tolist(), [False] * n) for n in (12, 5)]
        losses.add(float(cross_entropy_sum(model, *row_of([*others, document]), dtype).detach()))
    assert len(losses) == 1


def test_compiled_and_eager_give_the_same_loss_and_gradient() -> None:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(vocab_size=50, dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, hidden=24))
    packed = pack([(list(range(n)), [True] * n) for n in (12, 20)], 32)
    arrays = (packed.ids_NT, packed.targets_NT, packed.documents_NT, packed.positions_NT)
    tensors = [torch.from_numpy(a).long() for a in arrays]
    results = []
    for function in (cross_entropy_sum, torch.compile(cross_entropy_sum, dynamic=False)):
        model.zero_grad()
        loss = function(model, *tensors, torch.float32)
        loss.backward()
        results.append((loss.detach(), model.lm_head.weight.grad.clone()))
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-5)


def test_it_learns_what_it_reads(corpus_folder: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    summary = pretrain.run(config(corpus_folder, tokenizer_folder, steps=80), tmp_path, Reporter())
    assert summary["validation_loss"] < 0.5 * math.log(Tokenizer.load(tokenizer_folder).vocab_size)


def test_weights_can_be_written_in_half_the_space(corpus_folder: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    models = {}
    for save_as in ("float32", "bfloat16"):
        out = tmp_path / save_as
        out.mkdir()
        pretrain.run(config(corpus_folder, tokenizer_folder, steps=2, save_as=save_as), out, Reporter())
        models[save_as] = load_model(out).state_dict()
    for name, weight in models["float32"].items():
        assert torch.equal(models["bfloat16"][name], weight.bfloat16().float())
    sizes = [(tmp_path / save_as / "model.safetensors").stat().st_size for save_as in models]
    assert sizes[1] < 0.6 * sizes[0]


def test_metrics_hold_what_people_watch(corpus_folder: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    pretrain.run(config(corpus_folder, tokenizer_folder), tmp_path, Reporter(metrics_path=metrics))
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == [10, 20, 30]
    assert {"bits_per_character", "tokens_per_s", "gflop_per_s", "lr", "seconds"} <= training[0].keys()
    assert any("validation_loss" in line for line in lines)


def test_a_diverging_run_stops_with_advice(corpus_folder: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    settings = config(corpus_folder, tokenizer_folder, optimizer=OptimizerConfig(lr=1e30, warmup=0))
    with pytest.raises(WenfangError, match="Lower the learning rate"):
        pretrain.run(settings, tmp_path, Reporter())


def test_the_rate_rises_holds_and_falls_to_nearly_zero() -> None:
    settings = OptimizerConfig(warmup=0.1, decay=0.5)
    rates = [rate(step, 100, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:51] == [1.0] * 42
    assert rates[-1] == pytest.approx(0.02)
    assert rates[50:] == sorted(rates[50:], reverse=True)


@pytest.fixture(scope="module")
def base(corpus_folder: Path, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base")
    pretrain.run(config(corpus_folder, tokenizer_folder, steps=10), out, Reporter())
    return out


def conversations(folder: Path, *lines: str) -> Path:
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder


def turn(reply: str = "白日依山盡") -> str:
    messages = [{"role": "user", "content": "寫詩"}, {"role": "assistant", "content": reply}]
    return json.dumps({"messages": messages}, ensure_ascii=False)


def fine_tune(base: Path, folder: Path, out: Path, **changes: object) -> dict[str, int | float | str]:
    values = {"steps": 40, "batch": 2, "context": 64, "compile": False, "dtype": "float32"} | changes
    out.mkdir()
    return sft.run(SftConfig(conversations=folder, model=base, **values), out, Reporter())


def test_sft_learns_the_answer(base: Path, tmp_path: Path) -> None:
    summary = fine_tune(base, conversations(tmp_path, turn()), tmp_path / "out")
    assert summary["validation_loss"] < 0.5


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2 is not"),
        ('{"text": "x"}', "line 2 is not"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "line 2: .*'robot'"),
        (
            '{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}',
            "line 2: tool_calls must be a list",
        ),
        (turn("白" * 100), "line 2 has .* tokens, more than context=64"),
    ],
)
def test_a_bad_line_is_named(base: Path, tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        fine_tune(base, conversations(tmp_path, turn(), line), tmp_path / "out")


def test_a_folder_without_conversations_is_told_what_it_lacks(base: Path, tmp_path: Path) -> None:
    folder = conversations(tmp_path, turn())
    (folder / "validation.jsonl").rename(folder / "talk.jsonl")
    with pytest.raises(
        DataError, match=r"No file '.*validation\.jsonl'\. Conversations are a folder with train\.jsonl"
    ):
        fine_tune(base, folder, tmp_path / "out")


def test_too_long_can_be_dropped_or_truncated(base: Path, tmp_path: Path) -> None:
    folder = conversations(tmp_path, turn(), turn("白" * 100))
    for choice in ("drop", "truncate"):
        assert fine_tune(base, folder, tmp_path / choice, too_long=choice, steps=2)["validation_loss"] > 0


def test_a_conversation_in_which_the_assistant_is_silent_is_left_out_and_told(base: Path, tmp_path: Path) -> None:
    asked = json.dumps({"messages": [{"role": "user", "content": "白" * 70}, {"role": "assistant", "content": "好"}]})
    folder = conversations(tmp_path, turn("白" * 100), asked)
    told = io.StringIO()
    rows = sft._rows(
        folder / "train.jsonl",
        Tokenizer.load(base),
        SftConfig(conversations=folder, model=base, steps=1, context=64, too_long="truncate"),
        Reporter(console=Console(file=told)),
        tmp_path,
    )
    assert len(rows) == 1
    assert rows.characters_per_token == 1.0  # Of what is learned, not of what was cut off.
    assert "2 conversations were too long (truncate)" in told.getvalue()
    assert "left out 1 conversations in which the assistant says nothing" in told.getvalue()


@pytest.mark.parametrize("template", [None, TEMPLATE], ids=["ours", "imported"])
def test_training_reads_the_ids_of_the_saved_tokenizer(
    template: str | None, tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tools, calls whose arguments are text as OpenAI has them, results, a system prompt and several turns, by our own
    template and by one in the file where `transformers` keeps it."""
    tokenizer, model = tmp_path / "tokenizer", tmp_path / "model"
    shutil.copytree(tokenizer_folder, tokenizer)
    if template is not None:
        plain = template.replace("{% generation %}", "").replace("{% endgeneration %}", "")
        (tokenizer / "chat_template.jinja").write_text(plain, encoding="utf-8")
    model.mkdir()
    size = Tokenizer.load(tokenizer).vocab_size
    shape = DecoderConfig(vocab_size=size, dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, hidden=24, context=512)
    save_model(Decoder(shape), model, tokenizer=tokenizer, bos_id=1, end_id=2, card="")
    written = json.loads(json.dumps(CONVERSATION))
    function = written[2]["tool_calls"][0]["function"]
    function["arguments"] = json.dumps(function["arguments"])
    folder = conversations(tmp_path, json.dumps({"messages": written, "tools": TOOLS}))
    only_a_call = json.dumps({"messages": written[:3], "tools": TOOLS})
    (folder / "validation.jsonl").write_text(only_a_call + "\n", encoding="utf-8")
    read = []
    monkeypatch.setattr(sft, "next_token", lambda *given: read.append(given[0].packed) or next_token(*given))
    summary = fine_tune(model, folder, tmp_path / "out", context=512, steps=1)
    assert math.isfinite(summary["validation_loss"])
    saved = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = saved.apply_chat_template(CONVERSATION, tools=TOOLS)["input_ids"]
    targets = [IGNORED] * len(ids)
    for number, message in enumerate(CONVERSATION):  # What is learned follows the prompt that a server would make.
        if message["role"] == "assistant":
            asked = {"tools": TOOLS, "add_generation_prompt": True}
            prompt = saved.apply_chat_template(CONVERSATION[:number], **asked)["input_ids"]
            assert Tokenizer.load(tmp_path / "out").chat(CONVERSATION[:number], **asked) == prompt == ids[: len(prompt)]
            end = ids.index(saved.eos_token_id, len(prompt)) + 1
            targets[len(prompt) : end] = ids[len(prompt) : end]
    assert read[0].ids_NT[0, : len(ids) - 1].tolist() == ids[:-1]
    assert read[0].targets_NT[0, : len(ids) - 1].tolist() == targets[1:]
    assert (read[0].targets_NT[0, len(ids) - 1 :] == IGNORED).all()


def test_nothing_to_learn_and_context_too_long(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no conversation"):
        fine_tune(base, conversations(tmp_path), tmp_path / "a")
    with pytest.raises(InputError, match="context=100 exceeds the model's 64"):
        fine_tune(base, conversations(tmp_path, turn()), tmp_path / "b", context=100)


@pytest.mark.parametrize("form", ["full", "nf4"])
def test_sft_with_an_adapter_gives_the_adapter_and_the_merged_model(base: Path, tmp_path: Path, form: str) -> None:
    adapter = AdapterConfig(method="lora", rank=8, base=form)
    folder, out = conversations(tmp_path, turn()), tmp_path / "out"
    summary = fine_tune(base, folder, out, adapter=adapter, steps=80, optimizer=OptimizerConfig(lr=0.02))
    untrained = fine_tune(base, folder, tmp_path / "start", steps=1, optimizer=OptimizerConfig(lr=1e-12))
    # The base knows next to nothing and its head is frozen, so little can be learned; without an adapter it is 0.
    assert summary["validation_loss"] < untrained["validation_loss"] - 0.2
    merged, parts, start = load_model(out), load_model(base), load_model(base).state_dict()
    if form == "nf4":  # The merged model holds what the base rested in.
        for name, weight in parts.named_parameters():
            if name.endswith("_proj.weight"):
                weight.data = FrozenLinear(weight.detach(), None, "nf4").weight
    load_adapter(parts, out / "adapter")
    ids, positions = torch.tensor([[5, 9, 300, 2]]), torch.arange(4)[None]
    expected, found = parts(ids, positions, Memory()), merged(ids, positions, Memory())
    assert (found - expected).norm() < 1e-4 * expected.norm()
    for name in ("embed_tokens.weight", "norm.weight", "lm_head.weight"):
        assert torch.equal(merged.state_dict()[name], start[name])
