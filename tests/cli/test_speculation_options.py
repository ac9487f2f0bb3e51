"""`--draft`, `--lookup` and `--look-ahead`: the same reply, or a refusal."""

import os
from pathlib import Path

import pytest

from wenfang.cli import main

POET = Path(__file__).parents[2] / "models" / "poet"
ASK = ["chat", str(POET), "--once", "寫一首五言絕句，題為〈秋夜〉。", "--seed", "1", "--max-tokens", "24"]


def test_a_reply_is_the_same_with_any_guesser(capsys: pytest.CaptureFixture[str]) -> None:
    replies = []
    for options in ([], ["--lookup", "4"], ["--draft", os.fspath(POET)]):
        assert main([*ASK, *options]) == 0
        replies.append(capsys.readouterr().out)
    assert replies[0]
    assert replies[1:] == replies[:1] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lookup", "4", "--look-ahead"], "Choose one of --lookup and --look-ahead, not both."),
        (["--look-ahead"], "no layers that look ahead"),
        (["--lookup", "0"], "0 tokens cannot be guessed at once"),
        (["--draft", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_is_refused(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASK, *options]) == 2
    assert message in capsys.readouterr().err
