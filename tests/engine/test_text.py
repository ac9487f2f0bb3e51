"""Streaming text against decoding all at once."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

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
