"""Every pre-tokenizer known by name cuts text as llama.cpp cuts it under that name."""

import json
from pathlib import Path

import pytest
from judge_llama_cpp import llama_cpp
from test_folder import SHAPES, write
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Rust

from wenfang.core.errors import ModelError
from wenfang.model.gguf import export_gguf, load_gguf_tokenizer
from wenfang.model.gguf.pretokenizers import IGNORE_MERGES, PRE_TOKENIZERS
from wenfang.tokenizer import Tokenizer

TEXTS = (
    "Hello, world! It's 12345 o'clock; WE'LL see...  two  spaces\n\n\ttab\r\nend ",
    "白日依山盡，黃河入海流。\n欲窮千里目，更上一層樓。　全形ＡＢＣ１２３",
    "café naïve Ⅷ ½ ²x 😀👍🏽 don’t a1b22c333d4444 <|end|> «q»…—\u00a0nbsp\u2003em",
    "   leading\n   \n  x= y+1; // 註解 \n\n",
)


def byte_level(folder: Path, expressions: tuple[str, ...], *, ignore_merges: bool) -> None:
    """Replace the folder's tokenizer by byte-level BPE that cuts by these expressions."""
    rust = Rust(models.BPE(ignore_merges=ignore_merges))
    splits = [pre_tokenizers.Split(Regex(regex), "isolated") for regex in expressions]
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=560,
        special_tokens=["<|pad|>", "<|bos|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # Words that neighbours and repetition let merge, so that a cut in another place shows.
    rust.train_from_iterator([text * 3 for text in TEXTS], trainer)
    document = json.loads(rust.to_str()) | {
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    }
    document["decoder"]["use_regex"] = False
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_llama_cpp_cuts_as_we_do(
    name: str, tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several names stand for the same expressions; only this one may be written.
    monkeypatch.setattr("wenfang.model.gguf.tokens.PRE_TOKENIZERS", {name: PRE_TOKENIZERS[name]})
    write(SHAPES[0].model_copy(update={"vocab_size": 700}), tmp_path, tokenizer_folder)
    byte_level(tmp_path, PRE_TOKENIZERS[name], ignore_merges=name in IGNORE_MERGES)
    path = tmp_path / "m.gguf"
    export_gguf(tmp_path, path, dtype="f32")
    ours, again = Tokenizer.load(tmp_path), Tokenizer(*load_gguf_tokenizer(path))
    with llama_cpp(path, context=64) as theirs:
        for text in TEXTS:
            assert theirs.tokenize(text) == ours.encode(text) == again.encode(text)


def test_a_pre_tokenizer_without_a_name_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    write(SHAPES[0].model_copy(update={"vocab_size": 700}), tmp_path, tokenizer_folder)
    byte_level(tmp_path, (r"\p{L}+|\P{L}+",), ignore_merges=False)
    with pytest.raises(ModelError, match=r"llama\.cpp has no pre-tokenizer"):
        export_gguf(tmp_path, tmp_path / "m.gguf", dtype="f32")


def test_byte_fallback_that_sentencepiece_would_cut_otherwise_is_refused(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    """Two characters that our pre-tokenizer always parts, but a merge would join."""
    write(SHAPES[0].model_copy(update={"vocab_size": 700}), tmp_path, tokenizer_folder)
    document = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    vocab = document["model"]["vocab"]
    assert {"白", "日"} <= vocab.keys()
    vocab["白日"] = len(vocab)
    document["model"]["merges"].append(["白", "日"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    with pytest.raises(ModelError, match=r"llama\.cpp would cut .*白日"):
        export_gguf(tmp_path, tmp_path / "m.gguf", dtype="f32")
