"""What training cannot use, as a user would give it: exit code 2, one or two lines that name it, nothing left."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from wenfang.cli import main
from wenfang.core.artifact import read_manifest
from wenfang.core.errors import ModelError
from wenfang.core.report import Reporter
from wenfang.model import Decoder, DecoderConfig, save_model
from wenfang.train.checkpoint import Checkpoints, Progress
from wenfang.train.config import OptimizerConfig, PretrainConfig
from wenfang.train.optimizer import make_optimizers
from wenfang.train.pretrain import run

GOOD = '{"messages": [{"role": "user", "content": "寫詩"}, {"role": "assistant", "content": "白日依山盡"}]}\n'


def _model(folder: Path, tokenizer: Path, vocab_size: int) -> Path:
    folder.mkdir()
    shape = DecoderConfig(
        vocab_size=vocab_size, dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, hidden=32, context=64
    )
    save_model(Decoder(shape), folder, tokenizer=tokenizer, bos_id=1, end_id=2, card="")
    return folder


def _refused(capfd: pytest.CaptureFixture[str], out: Path, *words: str) -> str:
    capfd.readouterr()
    assert main([*words, "--steps", "1", "--batch", "2", "--no-compile", "--out", str(out)]) == 2
    stdout, stderr = capfd.readouterr()
    assert stdout == ""
    assert not [path.name for path in out.parent.iterdir() if path.name.startswith(out.name)]
    return stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"messages": [{"role": "user"', "train.jsonl' line 2 is not"),
        ('{"messages": [{"role": "robot", "content": "嗨"}]}', "train.jsonl', line 2"),
        ('{"prompt": "寫詩", "chosen": "白日依山盡", "rejected": "好"}', "train.jsonl' line 2 is not"),
        ('{"text": "白日依山盡"}', "train.jsonl' line 2 is not"),
        (GOOD.replace("白日依山盡", "白" * 200).strip(), "line 2 has"),
    ],
    ids=["malformed", "unknown role", "preferences among conversations", "text among conversations", "too long"],
)
def test_a_line_of_conversations(
    tokenizer_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], line: str, said: str
) -> None:
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text(GOOD + line + "\n", encoding="utf-8")
    model = _model(tmp_path / "model", tokenizer_folder, 700)
    words = ("train", "sft", "--conversations", str(tmp_path), "--model", str(model), "--context", "64")
    assert said in _refused(capfd, tmp_path / "out", *words)


def test_conversations_without_a_line_and_a_context_beyond_the_models(
    tokenizer_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = _model(tmp_path / "model", tokenizer_folder, 700)
    words = ("train", "sft", "--conversations", str(tmp_path), "--model", str(model))
    for split in ("train", "validation"):
        (tmp_path / f"{split}.jsonl").write_text("", encoding="utf-8")
    assert "holds no conversation" in _refused(capfd, tmp_path / "out", *words, "--context", "64")
    assert "context=100 exceeds the model's 64. Lower it." in _refused(
        capfd, tmp_path / "out", *words, "--context", "100"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "small"), "tokens, the model only 300. One of them is another model's."),
        (("--model", "model", "--context", "100"), "context=100 exceeds the model's 64. Lower it."),
        (("--model", "model", "--replay", "corpus", "--replay-share", "nan"), "replay_share"),
        (("--tokenizer", "tokenizer", "--z-loss", "nan"), "z_loss"),
        (("--tokenizer", "tokenizer", "--batch", "0"), "batch"),
    ],
    ids=["vocabulary of another model", "context", "share is nan", "weight is nan", "empty batch"],
)
def test_pretraining(
    corpus_folder: Path,
    tokenizer_folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    said: str,
) -> None:
    places = {
        "small": _model(tmp_path / "small", tokenizer_folder, 300),
        "model": _model(tmp_path / "model", tokenizer_folder, 700),
        "corpus": corpus_folder,
        "tokenizer": tokenizer_folder,
    }
    given = [str(places.get(word, word)) for word in options]
    words = ["train", "pretrain", "--corpus", str(corpus_folder), *given]
    if "--context" not in given:
        words += ["--context", "64"]
    if "--batch" in given:
        assert main([*words, "--steps", "1", "--out", str(tmp_path / "out")]) == 2
        assert said in capfd.readouterr().err
    else:
        assert said in _refused(capfd, tmp_path / "out", *words)


def test_weights_that_are_no_numbers_and_a_device_that_is_not_there(
    corpus_folder: Path, tokenizer_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = _model(tmp_path / "model", tokenizer_folder, 700)
    path = model / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("up_proj.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    (tmp_path / "train.jsonl").write_text(GOOD, encoding="utf-8")
    (tmp_path / "validation.jsonl").write_text(GOOD, encoding="utf-8")
    words = ("train", "sft", "--conversations", str(tmp_path), "--model", str(model), "--context", "64")
    assert "layers.0.mlp.up_proj.weight holds NaN or infinity" in _refused(capfd, tmp_path / "out", *words)
    if not torch.cuda.is_available():
        assert "device='cuda': this machine" in _refused(capfd, tmp_path / "out", *words, "--device", "cuda")


def test_a_single_character_is_a_corpus_that_trains(
    tokenizer_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for split in ("train", "validation"):
        pq.write_table(pa.table({"text": ["山"]}), corpus / f"{split}.parquet")
    words = ["train", "pretrain", "--corpus", str(corpus), "--tokenizer", str(tokenizer_folder), "--context", "64"]
    sizes = ["--dim", "16", "--layers", "1", "--steps", "30", "--batch", "4", "--no-compile", "--dtype", "float32"]
    assert main([*words, *sizes, "--out", str(tmp_path / "out")]) == 0
    summary = read_manifest(tmp_path / "out").summary
    assert 0 <= summary["validation_loss"] < 3  # From ln 700 = 6.6.
    assert summary["packing_waste"] > 0.9
    capfd.readouterr()


def test_context_extension(
    corpus_folder: Path, tokenizer_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = _model(tmp_path / "model", tokenizer_folder, 700)
    words = ("train", "extend-context", "--corpus", str(corpus_folder), "--model", str(model))
    assert "context=64 is not longer than the model's 64. Raise it." in _refused(
        capfd, tmp_path / "out", *words, "--context", "64"
    )
    said = _refused(capfd, tmp_path / "out", *words, "--context", "4096")
    assert "less than one row of context=4096" in said


def test_a_checkpoint_of_another_architecture(
    corpus_folder: Path, tokenizer_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Someone puts a checkpoint where a stopped run of other sizes would go on: it is told, and nothing is lost."""
    model = Decoder(DecoderConfig(vocab_size=300, dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, hidden=32))
    other = Checkpoints(tmp_path, model, make_optimizers(model, OptimizerConfig()), keep=1, report=Reporter())
    other.save(Progress(step=3), wait=True)
    other.close()
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    config = PretrainConfig(corpus=corpus_folder, tokenizer=tokenizer_folder, steps=1, compile=False)
    with pytest.raises(ModelError, match="is of another architecture or optimiser and cannot be continued"):
        run(config, tmp_path, Reporter())
    assert {path: path.read_bytes() for path in kept} == kept
