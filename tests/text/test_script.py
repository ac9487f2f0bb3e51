"""Which texts are Traditional, judged on sentences whose script is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wenfang.text.script import is_traditional, to_taiwan_glyphs


@pytest.mark.parametrize(
    "text",
    [
        "床前明月光，疑是地上霜。舉頭望明月，低頭思故鄉。",
        "皇后在雲裡吃飯，台北的群山。",  # glyphs s2t would change: 床 吃 群
        "賢者避后夔，公里于歸云爾，干戈斗酒。",  # legal in both scripts: 后 里 于 云 干 斗
        "黄河入海流，却憶長安樹，涼風起天末，遥遥兩相望。",  # old print, new glyphs
        "",
        "Hello, 2026!",
    ],
)
def test_traditional(text: str) -> None:
    assert is_traditional(text)


@pytest.mark.parametrize(
    "text",
    [
        "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
        "故人西辞黄鹤楼，烟花三月下扬州。",
        "發揮專長，头发太長了。",  # 发 is 發 or 髮: only the sentence tells
    ],
)
def test_simplified(text: str) -> None:
    assert not is_traditional(text)


def test_glyphs_become_those_of_taiwan() -> None:
    assert to_taiwan_glyphs("黄爲裏隠顔羣峯牀烟却") == "黃為裡隱顏群峰床煙卻"


def test_characters_legal_in_both_scripts_are_left_alone() -> None:
    assert to_taiwan_glyphs("后里于云台干斗叶发") == "后里于云台干斗叶发"


@given(st.text())
def test_glyphs_change_one_for_one_and_settle(text: str) -> None:
    once = to_taiwan_glyphs(text)
    assert len(once) == len(text)
    assert to_taiwan_glyphs(once) == once
