"""Pieces handed over as they are written, against the same pieces read one by one."""

import threading
import time

import pytest

from wenfang.core.errors import WenfangError
from wenfang.engine import Delta, Engine, SamplingParams

PARAMS = SamplingParams(seed=2, max_tokens=20)


def test_the_pieces_are_those_that_are_read(engine: Engine) -> None:
    prompt = engine.tokenizer.encode("春眠不覺曉")
    read = list(engine.stream(prompt, PARAMS))
    for wait_s in (0.0, 0.3):  # Listening from the beginning, and after the first pieces or all have come.
        handed: list[Delta] = []
        stream = engine.stream(prompt, PARAMS)
        time.sleep(wait_s)
        stream.each(handed.append)
        assert [delta.text for delta in handed] == [delta.text for delta in read]
        assert handed[-1].finish_reason == read[-1].finish_reason


def test_a_stream_closed_meanwhile_hands_over_no_more(engine: Engine) -> None:
    stream = engine.stream(engine.tokenizer.encode("春"), SamplingParams(seed=1))
    began, handed = threading.Event(), list[Delta]()

    def take(delta: Delta) -> None:
        handed.append(delta)
        began.set()
        time.sleep(0.05)

    waiting = threading.Thread(target=stream.each, args=(take,))
    waiting.start()
    assert began.wait(10)
    stream.close()
    waiting.join(10)
    assert not waiting.is_alive()
    assert all(delta.finish_reason is None for delta in handed)


def test_whoever_listens_hears_that_the_engine_closed(engine: Engine) -> None:
    stream = engine.stream(engine.tokenizer.encode("春"), SamplingParams(seed=1))
    closing = threading.Thread(target=engine.close)

    def take(_: Delta) -> None:
        if closing.ident is None:
            closing.start()
        time.sleep(0.05)

    with pytest.raises(WenfangError, match="closed"):
        stream.each(take)
    closing.join(10)
