"""A visitor's conversation with a scripted model."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from studio.fakes import Poet

from wenfang.engine import Delta, SamplingParams
from wenfang.serve import Dispatcher
from wenfang.studio.prompt import fit_prompt
from wenfang.studio.session import Session, Turn


def converse(*questions: str, remember: bool = False) -> tuple[Session, list[Turn]]:
    """Ask one question after another; the session and the states its turns went through."""
    seen: list[str] = []

    async def run() -> Session:
        session = Session(Dispatcher(Poet()))
        session.wishes.remember = remember
        for question in questions:
            session.ask(question, lambda turn: seen.append(turn.state))
            while session.busy:
                await asyncio.sleep(0.01)
        return session

    return asyncio.run(run()), seen


def test_a_reply_grows_and_ends() -> None:
    session, states = converse("寫一首五絕")
    turn = session.turns[0]
    assert turn.answer.endswith("更上一層樓。")
    assert (turn.state, turn.tokens, turn.cut_off) == ("done", len(turn.answer), False)
    assert states[-1] == "done"
    assert states.count("writing") >= 2


def test_a_failure_is_kept_in_the_turn() -> None:
    session, states = converse("錯", "寫一首五絕")
    assert session.turns[0].state == "failed"
    assert "out of memory" in session.turns[0].error
    assert session.turns[1].state == "done"
    assert states[0] == "failed"


def test_a_stopped_reply_stays_as_far_as_it_came() -> None:
    async def run() -> tuple[Session, bool]:
        session = Session(Dispatcher(Poet()))
        session.ask("慢", lambda turn: None)
        while not session.turns[0].answer:
            await asyncio.sleep(0.01)
        started = time.monotonic()
        session.stop()
        while session.busy:
            await asyncio.sleep(0.01)
        assert time.monotonic() - started < 1
        return session, await asyncio.to_thread(session.dispatcher.engine.closed.wait, 2)

    session, closed = asyncio.run(run())
    assert session.turns[0].state == "stopped"
    assert 0 < len(session.turns[0].answer) < 10
    assert closed


@pytest.mark.parametrize(("remember", "seen"), [(False, "二"), (True, "一" + "仄起不入韻")])
def test_earlier_turns_are_read_only_when_asked(remember: bool, seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[str] = []
    original = Poet.stream

    def stream(self: Poet, prompt: list[int], params: SamplingParams) -> Iterator[Delta]:
        prompts.append("".join(map(chr, prompt)))
        return original(self, prompt, params)

    monkeypatch.setattr(Poet, "stream", stream)
    converse("一", "二", remember=remember)
    assert prompts[0] == "一"
    assert prompts[1].startswith(seen)
    assert prompts[1].endswith("二")


def test_the_oldest_turns_give_way_to_the_reply() -> None:
    earlier = [("甲" * 30, "子" * 30), ("乙" * 20, "丑" * 20)]
    prompt = "".join(map(chr, fit_prompt(Poet(), earlier, "丙" * 10)))
    assert prompt == "乙" * 20 + "丑" * 20 + "丙" * 10
    assert len(fit_prompt(Poet(), earlier, "丙" * 190)) == 190
