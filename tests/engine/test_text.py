"""Streaming text against decoding all at once."""

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from wenfang.engine.text import TextStream
from wenfang.tokenizer import Tokenizer


def pieces(tokenizer: Tokenizer, text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(tokenizer, stop)
    out = []
    for token in tokenizer.encode(text):
        out.append(stream.push(token))
        if stream.stopped:
            break
    return [*out, stream.finish()], stream


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_pieces_join_to_the_text_and_never_break_a_character(tokenizer_folder: Path, text: str) -> None:
    tokenizer = Tokenizer.load(tokenizer_folder)
    parts, _ = pieces(tokenizer, text)
    assert "".join(parts) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in parts)


@given(text=st.text("ab白日", max_size=12), stop=st.text("ab白日", min_size=1, max_size=3))
def test_nothing_of_a_stop_string_gets_out(tokenizer_folder: Path, text: str, stop: str) -> None:
    parts, stream = pieces(Tokenizer.load(tokenizer_folder), text, (stop,))
    assert "".join(parts) == text.split(stop)[0]
    assert stream.stopped == (stop in text)


def llama_like() -> Tokenizer:
    """Words that begin with a space mark and single bytes for all else, as SentencePiece models have."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "▁b", "a", "b", "白", "▁"]
    rust = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    rust.add_special_tokens(words[:3])
    rust.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(rust, {"eos_token": "</s>", "bos_token": "<s>"})


LLAMA_LIKE = llama_like()
RI = [3 + byte for byte in "日".encode()]
PIECES = st.one_of(st.sampled_from([[i] for i in range(259, 265)]), st.just(RI), st.just([1]))


@given(prompt=st.lists(PIECES, min_size=1, max_size=4), rest=st.lists(PIECES, max_size=10))
def test_spaces_between_pieces_are_those_of_the_whole_text(prompt: list[list[int]], rest: list[list[int]]) -> None:
    before, after = ([token for group in groups for token in group] for groups in (prompt, rest))
    stream = TextStream(LLAMA_LIKE, (), before)
    text = "".join([*map(stream.push, after), stream.finish()])
    assert LLAMA_LIKE.decode(before) + text == LLAMA_LIKE.decode(before + after)


@pytest.mark.parametrize("cut", range(1, 3))
def test_a_character_left_unfinished_is_one_sign(cut: int) -> None:
    stream = TextStream(LLAMA_LIKE, ())
    assert [stream.push(token) for token in [*RI, *RI[:cut]]] == ["", "", "日"] + [""] * cut
    assert stream.finish() == "\ufffd" * cut


def test_characters_that_tokens_cut_across_come_out_whole() -> None:
    """A token may end one character and begin the next, for as long as the text lasts."""
    ((spelled, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str("白日依山盡")
    words = ["<unk>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    pairs = [spelled[i : i + 2] for i in range(0, len(spelled), 2)]
    words += sorted(set(pairs) - set(words))
    rust = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>"))
    rust.add_special_tokens(words[:2])
    rust.decoder = decoders.ByteLevel()
    stream = TextStream(Tokenizer(rust, {"eos_token": "</s>"}), ())
    parts = [stream.push(words.index(pair)) for pair in pairs]
    assert "".join([*parts, stream.finish()]) == "白日依山盡"
    assert not any("\ufffd" in part for part in parts)
