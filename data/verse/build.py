"""Rebuild the extract of regulated verse beside this file from the npm package `chinese-poetry` 2.0.1.

    npm pack chinese-poetry@2.0.1 && tar xzf chinese-poetry-2.0.1.tgz     # unpacks into ./package
    python data/verse/build.py package            # writes tang.tsv.xz and song.tsv.xz
    python data/verse/build.py package --check    # compares a rebuild with the committed files instead

Kept: poems of 4 or 8 lines of 5 or 7 characters, in Traditional Chinese, with no missing character, each once;
of Song, those whose title has at most 10 characters. Glyphs are set to Taiwan's standard (黄→黃, 爲→為), and a
poem's place in a series is left out of its title (秋懷二首 其一 → 秋懷).
Same package, Python and OpenCC give the same bytes.
"""

import argparse
import json
import lzma
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wenfang.text import is_traditional, split_lines, to_taiwan_glyphs

DYNASTIES = ("tang", "song")
SONG_TITLE_CHARACTERS = 10
"""Song poems with longer titles are left out: all of Song would not fit the 12 MB meant for this folder, and
occasional poems under a sentence of a title serve least where people ask for a poem by its title."""
SHAPES = {(lines, length) for lines in (4, 8) for length in (5, 7)}
XZ_FILTERS = [
    # Found by trial: Chinese in UTF-8 has three-byte characters, so position bits and literal bits do not help.
    {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0, "dict_size": 1 << 26}
]
_QUOTES = str.maketrans("", "", "「」『』《》〈〉“”")
_HAN = r"㐀-䶿一-鿿豈-﫿\U00020000-\U000323af"
_NOT_HAN = re.compile(rf"囗|[^{_HAN}]")  # 囗 stands for □ in places.
_NOT_TITLE = re.compile(rf"囗|[^{_HAN}，。、： ]")
_NOTE = re.compile(r"（.*?）|〖.*?〗|（.*$")
_NUMBER = "[一二三四五六七八九十百零〇]+"
_SERIES = re.compile(rf"(?<=.)(?: 其?{_NUMBER}| ?{_NUMBER}[首章])$")


@dataclass(frozen=True)
class Poem:
    """One poem of the extract."""

    author: str
    title: str
    lines: tuple[str, ...]


def extract(package: Path) -> tuple[dict[str, list[Poem]], Counter[str]]:
    """The poems to keep by dynasty, in the order of the extract, and how many were dropped for what reason."""
    counts: Counter[str] = Counter()
    seen = Duplicates()
    kept: dict[str, list[Poem]] = {}
    for dynasty in DYNASTIES:
        poems = []
        for raw in read_package(package, dynasty):
            poem, reason = select(raw)
            if poem is not None and dynasty == "song" and len(poem.title) > SONG_TITLE_CHARACTERS:
                poem, reason = None, "long title"
            if poem is not None and seen.add(poem.lines):
                poem, reason = None, "duplicate"
            counts[f"{dynasty} {reason or 'kept'}"] += 1
            if poem is not None:
                poems.append(poem)
        kept[dynasty] = by_author(poems)
    return kept, counts


def read_package(package: Path, dynasty: str) -> Iterator[dict[str, Any]]:
    """Raw poems of a dynasty in the package's own order: file number, then place in the file."""
    folder = package / "dist" / "quantangshi"
    files = sorted(folder.glob(f"poet.{dynasty}.*.json"), key=lambda path: int(path.name.split(".")[2]))
    if not files:
        raise SystemExit(f"{str(folder)!r} has no poet.{dynasty}.*.json: is this the unpacked npm package?")
    for path in files:
        yield from json.loads(path.read_text(encoding="utf-8"))


def select(raw: dict[str, Any]) -> tuple[Poem | None, str]:
    """The poem to keep, or the reason to drop it."""
    lines = split_lines("".join(raw["paragraphs"]).translate(_QUOTES))
    if (len(lines), len(lines[0]) if lines else 0) not in SHAPES or len({len(line) for line in lines}) != 1:
        return None, "other shape"
    text = "".join(lines)
    title = clean_title(raw["title"])
    author = re.sub(r"[\s\[\]]", "", raw["author"])  # Editors' corrections stand in brackets: 耿[湋].
    if _NOT_HAN.search(text) or _NOT_TITLE.search(title) or _NOT_TITLE.search(author):
        return None, "missing character or note"
    if not is_traditional(text + title):
        return None, "Simplified"
    return Poem(to_taiwan_glyphs(author), to_taiwan_glyphs(title), tuple(map(to_taiwan_glyphs, lines))), ""


def clean_title(title: str) -> str:
    """A title without quotation marks, editors' notes, and its place in a series: 秋懷二首 其一 → 秋懷."""
    title = " ".join(_NOTE.sub("", title.translate(_QUOTES)).split()).strip("，。：、 ")
    while (shorter := _SERIES.sub("", title)) != title:
        title = shorter
    return title


class Duplicates:
    """Remembers poems by their lines. A poem repeats an earlier one if at least half of its lines are lines of it.

    Linear in the number of lines: repeats are not remembered, so few poems share a line.
    """

    def __init__(self) -> None:
        self._poems_with: defaultdict[str, list[int]] = defaultdict(list)
        self._count = 0

    def add(self, lines: tuple[str, ...]) -> bool:
        """Whether `lines` repeat an earlier poem; if not, remember them."""
        shared = Counter(number for line in set(lines) for number in self._poems_with.get(line, ()))
        if shared and 2 * max(shared.values()) >= len(lines):
            return True
        for line in set(lines):
            self._poems_with[line].append(self._count)
        self._count += 1
        return False


def by_author(poems: Iterable[Poem]) -> list[Poem]:
    """The same poems, those of an author together (it compresses better), authors as they first appear."""
    groups: dict[str, list[Poem]] = {}
    for poem in poems:
        groups.setdefault(poem.author, []).append(poem)
    return [poem for group in groups.values() for poem in group]


def encode(poems: Iterable[Poem]) -> bytes:
    """`author\\ttitle\\tpoem` per line, the poem without punctuation, which its length implies."""
    text = "".join(f"{p.author}\t{p.title}\t{''.join(p.lines)}\n" for p in poems)
    return lzma.compress(text.encode("utf-8"), format=lzma.FORMAT_XZ, filters=XZ_FILTERS)


def main() -> int:
    """Build or check, and print counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the unpacked npm package, the folder that holds dist/")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where the extract lies")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the rebuild differs")
    options = parser.parse_args()
    kept, counts = extract(options.package)
    different = []
    for dynasty, poems in kept.items():
        path = options.out / f"{dynasty}.tsv.xz"
        data = encode(poems)
        if options.check:
            if not path.is_file() or path.read_bytes() != data:
                different.append(str(path))
        else:
            path.write_bytes(data)
        print(f"{path.name}: {len(poems)} poems, {len(data)} bytes")
    for reason, count in sorted(counts.items()):
        print(f"{count:8} {reason}")
    if different:
        print(f"differs from the rebuild: {', '.join(different)}", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
