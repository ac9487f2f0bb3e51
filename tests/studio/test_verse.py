"""The poem's sheet, against poems whose faults are known from handbooks."""

import html
import re

import pytest

from wenfang.studio.verse import read_sheet, sheet_html, verdict_line
from wenfang.studio.words import Words

REGULAR = "仄起不入韻，押尤韻\n白日依山盡，黃河入海流。\n欲窮千里目，更上一層樓。"
OLD_STYLE = "牀前看月光，疑是地上霜。\n舉頭望山月，低頭思故鄉。"
ASK = "寫一首五言絕句，題為〈登樓〉，押{}韻。"


def cells(markup: str, kind: str) -> list[str]:
    """The characters of the cells that carry a class."""
    found = re.findall(r'<span class="cell([^"]*)"><span class="character">(.*?)</span>', markup)
    return [html.unescape(character) for classes, character in found if kind in classes.split()]


def test_a_regular_poem_is_marked_and_approved() -> None:
    sheet = read_sheet(ASK.format("尤"), REGULAR)
    assert sheet is not None
    markup = sheet_html(sheet, Words("zh"))
    assert cells(markup, "rhyme") == ["流", "樓"]
    assert cells(markup, "fault") == []
    assert re.findall(r'class="mark mark-\w+" title="[^"]*">(.)<', markup)[:5] == ["仄", "仄", "平", "平", "仄"]
    assert "登樓" in markup
    assert verdict_line(sheet, Words("zh")) == "合律：五言絕句；押尤韻；仄起首句不入韻"


def test_faults_are_shown_where_they_are() -> None:
    sheet = read_sheet("寫一首五絕。", OLD_STYLE)
    assert sheet is not None
    # 李白〈靜夜思〉 is 古絕: 是/上 are both oblique, 頭/山 both level, and lines 3 and 4 neither follow nor oppose.
    assert cells(sheet_html(sheet, Words("zh")), "fault") == ["是", "上", "頭", "山", "頭"]
    line = verdict_line(sheet, Words("en"))
    assert line.startswith("Breaks the rules: ")
    assert "line 2: positions 2-4-6 do not alternate" in line


def test_wishes_that_were_not_met_are_named() -> None:
    sheet = read_sheet(ASK.format("東"), REGULAR)
    assert sheet is not None
    assert "asked for the rhyme 東: not kept" in verdict_line(sheet, Words("en"))
    boast = read_sheet("五絕", REGULAR.replace("押尤韻", "押東韻"))
    assert boast is not None
    assert "announced 仄起不入韻，押東韻: not kept" in verdict_line(boast, Words("en"))


@pytest.mark.parametrize("answer", ["好的，請問要寫什麼？", "", "\n\n"])
def test_what_is_no_poem_gets_no_sheet(answer: str) -> None:
    assert read_sheet("你好", answer) is None


def test_a_misshapen_poem_is_still_judged_when_one_was_asked_for() -> None:
    sheet = read_sheet("寫一首五言絕句。", "白日依山盡，\n黃河<b>入海")
    assert sheet is not None
    markup = sheet_html(sheet, Words("en"))
    assert "<b>" not in markup
    assert "has 4 lines, this poem 2" in verdict_line(sheet, Words("en"))


def test_markup_in_title_and_poem_stays_text() -> None:
    sheet = read_sheet("寫一首五言絕句，題為〈<script>alert(1)</script>〉。", '<i>白日依山盡，"&黃河入海流。')
    assert sheet is not None
    assert re.findall(r"<(?!/?(?:div|span|ul|li)\b)", sheet_html(sheet, Words("zh"))) == []
