"""The judge against poems whose metre every handbook gives, and against real and shuffled verse."""

import lzma
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wenfang.text import metre, rhyme
from wenfang.text.metre import check_verse
from wenfang.text.plan import FORMS, IRREGULAR

EXTRACT = Path(__file__).parents[2] / "data" / "verse"
TOWER = "白日依山盡，黃河入海流。\n欲窮千里目，更上一層樓。"

REGULAR = {
    "登鸛雀樓": (TOWER, "五絕", "仄起不入韻，押尤韻"),
    "早發白帝城": (
        "朝辭白帝彩雲間，千里江陵一日還。\n兩岸猿聲啼不住，輕舟已過萬重山。",
        "七絕",
        "平起入韻，押刪韻",
    ),
    "出塞": ("秦時明月漢時關，萬里長征人未還。\n但使龍城飛將在，不教胡馬度陰山。", "七絕", "平起入韻，押刪韻"),
    "楓橋夜泊": ("月落烏啼霜滿天，江楓漁火對愁眠。\n姑蘇城外寒山寺，夜半鐘聲到客船。", "七絕", "仄起入韻，押先韻"),
    "春望": (
        "國破山河在，城春草木深。\n感時花濺淚，恨別鳥驚心。\n烽火連三月，家書抵萬金。\n白頭搔更短，渾欲不勝簪。",
        "五律",
        "仄起不入韻，押侵韻",
    ),
    "登高": (
        "風急天高猿嘯哀，渚清沙白鳥飛迴。\n無邊落木蕭蕭下，不盡長江滾滾來。\n"
        "萬里悲秋常作客，百年多病獨登臺。\n艱難苦恨繁霜鬢，潦倒新停濁酒杯。",
        "七律",
        "仄起入韻，押灰韻",
    ),
}

IRREGULAR_POEMS = {
    "靜夜思": ("床前明月光，疑是地上霜。\n舉頭望明月，低頭思故鄉。", {("alternation", 2, 4), ("alternation", 3, 4)}),
    "渭城曲": ("渭城朝雨浥輕塵，客舍青青柳色新。\n勸君更盡一杯酒，西出陽關無故人。", {("黏", 3, 2)}),
    # 仄韻: 鳥 and 少 rhyme, but in the oblique tone.
    "春曉": ("春眠不覺曉，處處聞啼鳥。\n夜來風雨聲，花落知多少。", {("rhyme", 2, 0)}),
}


@pytest.mark.parametrize("title", REGULAR)
def test_regular_poems_keep_every_rule(title: str) -> None:
    poem, form, plan = REGULAR[title]
    check = check_verse(poem)
    assert check.violations == ()
    assert check.form is not None
    assert (check.form.short, str(check.plan)) == (form, plan)


@pytest.mark.parametrize("title", IRREGULAR_POEMS)
def test_irregular_poems_break_the_rules_they_are_known_for(title: str) -> None:
    poem, expected = IRREGULAR_POEMS[title]
    check = check_verse(poem)
    found = {(v.kind, v.line, v.position) for v in check.violations}
    assert expected <= found
    assert check.well_formed
    assert check.plan == IRREGULAR


def test_only_the_broken_rule_is_reported() -> None:
    assert [v.kind for v in check_verse(IRREGULAR_POEMS["渭城曲"][0]).violations] == ["黏"]
    swapped = "白日依山盡，更上一層樓。\n欲窮千里目，黃河入海流。"  # Lines 2 and 4 exchanged.
    kinds = {(v.kind, v.line) for v in check_verse(swapped).violations}
    assert kinds == {("對", 2), ("黏", 3), ("對", 4)}
    off_rhyme = REGULAR["春望"][0].replace("簪", "釵")
    assert [(v.kind, v.line) for v in check_verse(off_rhyme).violations] == [("rhyme", 8)]


def test_an_ambiguous_character_cannot_be_two_things_at_once() -> None:
    # 看 may be level or oblique. As position 2 of line 3 it would have to be oblique to follow line 2 (上)
    # and level to alternate with 里 at position 4.
    check = check_verse("黃河入海流，白上依山樓。\n欲看千里目，更河一日流。")
    assert not check.regular


def test_marks_show_level_oblique_either_and_unknown() -> None:
    check = check_verse("白日看山盡，黃河入海流。\n欲窮千里目，更上𠀀層樓。")
    assert check.marks[0] == "仄仄中平仄"
    assert check.marks[3][2] == "?"


def test_an_end_missing_from_the_book_does_not_rhyme_on_trust() -> None:
    check = check_verse(TOWER.replace("流", "𠀀"))
    assert [(v.kind, v.line) for v in check.violations] == [("rhyme", 2)]
    assert "does not have" in str(check.violations[0])


@pytest.mark.parametrize(
    ("poem", "line", "position"),
    [
        ("", 0, 0),
        ("白日依山盡，黃河入海流。", 0, 0),
        (TOWER.replace("目", ""), 3, 0),
        (TOWER.replace("目", "x"), 3, 5),
    ],
)
def test_misshapen_poems(poem: str, line: int, position: int) -> None:
    check = check_verse(poem)
    assert not check.well_formed
    assert not check.regular
    assert (line, position) in {(v.line, v.position) for v in check.violations}
    assert all(v.kind == "shape" for v in check.violations)


def test_another_form_than_asked_is_misshapen() -> None:
    assert check_verse(TOWER, form=FORMS["五言絕句"]).well_formed
    assert not check_verse(TOWER, form=FORMS["七言絕句"]).well_formed
    assert not check_verse(TOWER, form=FORMS["五言律詩"]).well_formed


def test_descriptions_speak_both_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    (violation,) = check_verse(IRREGULAR_POEMS["渭城曲"][0]).violations
    assert str(violation) == "line 3 does not follow line 2 at position 2 (黏)"
    monkeypatch.setenv("WENFANG_LANGUAGE", "zh")
    assert str(violation) == "第 3 句失黏：第二字應與第 2 句平仄相同"


@given(st.text() | st.text(alphabet="白日依山盡看，。\n", max_size=80))
def test_any_text_can_be_judged(text: str) -> None:
    check = check_verse(text)
    assert check.regular == (not check.violations)
    assert [len(marks) for marks in check.marks] == [len(line) for line in check.lines]
    if check.regular:
        assert check.form is not None
        assert check.plan.regular


def _verse(dynasty: str, step: int) -> list[list[str]]:
    length = {20: 5, 28: 7, 40: 5, 56: 7}
    rows = lzma.decompress((EXTRACT / f"{dynasty}.tsv.xz").read_bytes()).decode().splitlines()[::step]
    poems = [row.split("\t")[2] for row in rows]
    return [[p[i : i + length[len(p)]] for i in range(0, len(p), length[len(p)])] for p in poems]


def _shares(poems: list[list[str]]) -> dict[str, float]:
    total: Counter[str] = Counter()
    regular: Counter[str] = Counter()
    for lines in poems:
        check = check_verse(lines)
        assert check.form is not None
        total[check.form.short] += 1
        regular[check.form.short] += check.regular
    return {form: 100 * regular[form] / total[form] for form in total}


# Human base rates in percent, measured by others on the raw source with the package's book as it is, each rule
# checked on its own. Judging raw Tang verse that way gives their figures to 0.1. The differences here, in points:
# one tone per ambiguous character for all its rules -2 to -4 (most in 五絕, where many poems are 古絕); Taiwan's
# glyphs, which the book knows better than those of the source, +1 to +4; 先, missing from the package's 一先, +1.
# Hence 3, and 4.5 for 五絕. (A smaller sample of Song would add its own error: 0.8 at 3,000 poems.)
BASE_RATES = {
    "tang": {"七絕": (76.4, 3.0), "七律": (69.1, 3.0), "五律": (56.4, 3.0), "五絕": (49.1, 4.5)},
    "song": {"七絕": (76.2, 3.0)},
}


@pytest.fixture
def book_as_packaged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The rhyme book without the variant characters that Wenfang adds to it."""
    monkeypatch.setattr(rhyme, "SAME_CHARACTER", "")
    caches = (rhyme.rhyme_book, metre._mark_table)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.usefixtures("book_as_packaged")
@pytest.mark.parametrize(("dynasty", "step"), [("tang", 1), ("song", 4)])
def test_human_verse_lands_on_its_base_rates(dynasty: str, step: int) -> None:
    shares = _shares(_verse(dynasty, step))
    for form, (expected, tolerance) in BASE_RATES[dynasty].items():
        assert shares[form] == pytest.approx(expected, abs=tolerance), form


def test_variant_characters_let_more_human_verse_pass() -> None:
    shares = _shares(_verse("tang", 2))
    expected = {"七絕": 77.7, "七律": 74.3, "五律": 57.4, "五絕": 45.7}  # As measured on all Tang poems.
    assert shares == pytest.approx(expected, abs=1.5)  # Half of them: a standard error below 0.8.


def test_shuffled_characters_keep_no_rules() -> None:
    rng = random.Random(0)
    shuffled = []
    for lines in _verse("tang", 8):
        characters = list("".join(lines))
        rng.shuffle(characters)
        step = len(lines[0])
        shuffled.append(["".join(characters[i : i + step]) for i in range(0, len(characters), step)])
    assert max(_shares(shuffled).values()) <= 0.5
