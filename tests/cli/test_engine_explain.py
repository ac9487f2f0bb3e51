"""`wenfang engine explain`: the picture and the table, as docs/decoding.md shows them."""

from pathlib import Path

import pytest

from wenfang.cli import main

POET = Path(__file__).parents[2] / "models" / "poet"


def test_the_picture_holds_every_strategy_and_the_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "decoding.svg"
    ask = ["engine", "explain", str(POET), "寫一首五言絕句，題為〈秋夜〉。", "--out", str(out), "--max-tokens", "3"]
    assert main(ask) == 0
    table = capsys.readouterr().out
    picture = out.read_text(encoding="utf-8")
    for name in ("greedy", "mirostat 3 bits", "contrastive"):
        assert name in table
        assert f">{name}<" in picture
    assert ">起<" in picture  # Every plan of the poet's begins 平起 or 仄起.
