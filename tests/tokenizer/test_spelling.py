"""The bytes of each token, against the decoders of `tokenizers` itself."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from wenfang.core.errors import TokenizerError
from wenfang.tokenizer import Tokenizer
from wenfang.tokenizer.spelling import token_bytes

TEXTS = ["春眠不覺曉，處處聞啼鳥。", "the quick  brown fox\n\t", "𠮷野家 ☃ é \x00\x7f\xad", "<0x41> ▁ĠĊ <|end|>"]


def byte_level() -> tokenizers.Tokenizer:
    rust = tokenizers.Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<|end|>"],
        show_progress=False,
    )  # fmt: skip
    rust.train_from_iterator(TEXTS, trainer)
    return rust


def sentencepiece() -> tokenizers.Tokenizer:
    """As Gemma and Llama 2 have it: ▁ for spaces, bytes for what is unknown."""
    pieces = ["<|end|>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "t", "h", "e", "th", "the", "▁the", "春"]
    vocab = {piece: id_ for id_, piece in enumerate(pieces)}
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    rust = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True))
    rust.normalizer = normalizers.Replace(" ", "▁")
    rust.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    rust.add_special_tokens(["<|end|>"])
    return rust


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_the_bytes_of_tokens_join_to_the_text(make: Callable[[], tokenizers.Tokenizer]) -> None:
    rust = make()
    rust.encode_special_tokens = True
    spelt = token_bytes(rust)
    assert len(spelt) == rust.get_vocab_size()
    for text in TEXTS:
        ids = rust.encode(text, add_special_tokens=False).ids
        if make is sentencepiece and "▁" in text:
            continue  # Such a tokenizer itself cannot tell ▁ from a space.
        assert b"".join(spelt[id_] for id_ in ids).decode() == text == rust.decode(ids, skip_special_tokens=False)


def test_our_own_tokenizer_spells_every_text(tokenizer_folder: Path) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder)
    spelt = tokenizer.token_bytes
    for text in TEXTS:
        assert b"".join(spelt[id_] for id_ in tokenizer.encode(text)).decode() == text
    assert {spelt[id_] for id_ in tokenizer.special_ids} >= {b"<|end|>", b"<|bos|>"}


def test_a_tokenizer_without_bytes_is_refused() -> None:
    rust = tokenizers.Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    rust.decoder = decoders.WordPiece()
    with pytest.raises(TokenizerError, match="WordPiece"):
        token_bytes(rust)
