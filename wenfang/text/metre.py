"""The judge of regulated verse (近體詩): shape, tones and rhyme by the Pingshui book.

Rules: positions 2-4(-6) of a line alternate between level and oblique; the second line of a couplet opposes the
first at position 2 (對); a couplet's first line follows the line before it at position 2 (黏); the ends of all even
lines share one level-tone rhyme. A character that is level and oblique in the book, or absent from it, counts as
either, but one choice per position must satisfy all the rules it takes part in. The licences that handbooks allow
(拗救, such as 平平仄平仄) are not taken into account.
"""

import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from wenfang.core.language import say
from wenfang.text.plan import FORM_OF_SHAPE, IRREGULAR, Form, Plan
from wenfang.text.rhyme import EITHER, LEVEL, LEVEL_RHYMES, OBLIQUE, UNKNOWN, rhyme_book

_BREAKS = re.compile(r"[\s，。！？；、：,.!?;:]+")
_HAN = re.compile(r"[㐀-䶿一-鿿豈-﫿\U00020000-\U000323af〇]*")
_TONES = {LEVEL: 1, OBLIQUE: 2, EITHER: 3, UNKNOWN: 3}  # Bit sets: 1 can be level, 2 can be oblique.
_OPPOSITE = (0, 2, 1, 3)


@dataclass(frozen=True)
class Violation:
    """One broken rule. `line` and `position` count from 1; 0 stands for the whole poem or line."""

    kind: str
    """`shape`, `alternation`, `對`, `黏` or `rhyme`."""
    line: int
    position: int
    zh: str
    en: str

    def __str__(self) -> str:
        """The description in the reader's language."""
        return say(zh=self.zh, en=self.en)


@dataclass(frozen=True)
class VerseCheck:
    """What the judge found in one poem."""

    form: Form | None
    """The form the poem has; None where its lines fit none."""
    lines: tuple[str, ...]
    """Its lines without punctuation."""
    marks: tuple[str, ...]
    """A mark for each character of each line: 平, 仄, 中 (either) or ? (not in the book)."""
    rhyme: str | None
    """The level rhyme all even lines share; None where they share none."""
    opening: str | None
    """平 or 仄: the tone at position 2 of the first line in a reading that keeps the tone rules; None without one."""
    first_line_rhymes: bool
    violations: tuple[Violation, ...]

    @property
    def well_formed(self) -> bool:
        """Whether lines and characters are as many as the form asks."""
        return not any(v.kind == "shape" for v in self.violations)

    @property
    def rhymes(self) -> bool:
        """Whether the poem is well-formed and its even lines share one level rhyme."""
        return self.well_formed and self.rhyme is not None

    @property
    def regular(self) -> bool:
        """Whether every rule is kept."""
        return not self.violations

    @property
    def plan(self) -> Plan:
        """The plan this poem carries out; `IRREGULAR` if it breaks a rule."""
        return Plan(self.opening, self.first_line_rhymes, self.rhyme) if self.regular else IRREGULAR


def split_lines(poem: str) -> list[str]:
    """The lines of a poem without punctuation and spaces."""
    return [line for line in _BREAKS.split(poem) if line]


def check_verse(poem: str | Sequence[str], *, form: Form | None = None) -> VerseCheck:
    """Judge a poem, given as text or as its lines without punctuation. Never raises on any text.

    Args:
        poem: what to judge.
        form: the form asked for; None accepts any of the four.
    """
    lines = tuple(split_lines(poem) if isinstance(poem, str) else poem)
    marks = tuple(line.translate(_mark_table()) for line in lines)
    found, shape = _check_shape(lines, form)
    if shape:
        return VerseCheck(found, lines, marks, None, None, False, tuple(shape))
    opening, tone_violations = _check_tones(marks)
    rhyme, rhyme_violations = _check_rhyme(lines)
    first_rhymes = rhyme is not None and rhyme in rhyme_book().level_rhymes(lines[0][-1])
    return VerseCheck(found, lines, marks, rhyme, opening, first_rhymes, (*tone_violations, *rhyme_violations))


class _MarkTable(dict[int, str]):
    """For `str.translate`: code point → tone mark, also for characters the book lacks."""

    def __missing__(self, code: int) -> str:
        return UNKNOWN


@functools.cache
def _mark_table() -> _MarkTable:
    return _MarkTable({ord(c): mark for c, mark in rhyme_book().marks.items()})


def _check_shape(lines: tuple[str, ...], asked: Form | None) -> tuple[Form | None, list[Violation]]:
    lengths = {len(line) for line in lines}
    form = FORM_OF_SHAPE.get((len(lines), lengths.pop())) if len(lengths) == 1 else None
    violations = []
    target = asked or form or _nearest_form(lines)
    if len(lines) != target.lines:
        violations.append(
            Violation(
                "shape",
                0,
                0,
                f"{target.name}應有 {target.lines} 句，此詩有 {len(lines)} 句",
                f"a {target.english} has {target.lines} lines, this poem {len(lines)}",
            )
        )
    for number, line in enumerate(lines, start=1):
        if len(line) != target.line_length:
            violations.append(
                Violation(
                    "shape",
                    number,
                    0,
                    f"第 {number} 句應有 {target.line_length} 字，卻有 {len(line)} 字",
                    f"line {number} has {len(line)} characters instead of {target.line_length}",
                )
            )
        if stop := _first_not_han(line):
            violations.append(
                Violation(
                    "shape",
                    number,
                    stop,
                    f"第 {number} 句第 {stop} 字 {line[stop - 1]!r} 不是漢字",
                    f"line {number}, character {stop}: {line[stop - 1]!r} is not a Chinese character",
                )
            )
    return form, violations


def _nearest_form(lines: tuple[str, ...]) -> Form:
    """The form a misshapen poem most likely attempts, for describing what it lacks."""
    length = Counter(len(line) for line in lines).most_common(1)[0][0] if lines else 5
    return FORM_OF_SHAPE[8 if len(lines) > 5 else 4, 7 if length > 5 else 5]


def _first_not_han(line: str) -> int:
    """Position from 1 of the first character that is not Chinese; 0 if all are."""
    match = _HAN.match(line)
    end = match.end() if match else 0
    return 0 if end == len(line) else end + 1


@functools.cache
def _line_tones(key: tuple[str, ...]) -> int:
    """Which tones position 2 of a line may take so that positions 2-4(-6), whose marks are `key`, alternate."""
    possible = 3
    for index, mark in enumerate(key):
        tones = _TONES[mark]
        possible &= _OPPOSITE[tones] if index % 2 else tones
    return possible


def _check_tones(marks: tuple[str, ...]) -> tuple[str | None, list[Violation]]:
    """Opening tone and violations of alternation, 對 and 黏.

    A poem is a chain of lines, each fixed by the tone of its position 2. Walking it with the set of tones still
    possible finds a violation exactly where no choice for the ambiguous characters could have avoided one.
    """
    violations = []
    allowed = 3
    opening = 3  # Tones of the first line that the walk has not ruled out.
    for index, line in enumerate(marks):
        possible = _line_tones(tuple(line[1::2][: len(line) // 2]))
        if not possible:
            violations.append(_alternation_violation(index, line))
            possible = _TONES[line[1]]
        flips = index % 2 == 1
        required = _OPPOSITE[allowed] if flips else allowed
        if index and not required & possible:
            violations.append(_link_violation(index, flips))
            allowed = possible
            continue
        allowed = possible & required if index else possible
        # Line k (from 0) has the opening's tone where k mod 4 is 0 or 3, the opposite elsewhere.
        opening &= allowed if index % 4 in (0, 3) else _OPPOSITE[allowed]
    if violations or not opening:
        return None, violations
    return (OBLIQUE if opening == 2 else LEVEL), []


def _alternation_violation(index: int, line: str) -> Violation:
    """Name the first of positions 4 and 6 where the alternation from position 2 on breaks down."""
    position = 4 if not _line_tones((line[1], line[3])) else 6
    seen = "、".join(f"第{'二四六'[p // 2 - 1]}字{line[p - 1]}" for p in range(2, position + 1, 2))
    return Violation(
        "alternation",
        index + 1,
        position,
        f"第 {index + 1} 句二四六未平仄相間（{seen}）",
        f"line {index + 1}: positions 2-4-6 do not alternate level and oblique, at position {position}",
    )


def _link_violation(index: int, flips: bool) -> Violation:
    if flips:
        return Violation(
            "對",
            index + 1,
            2,
            f"第 {index + 1} 句失對：第二字應與第 {index} 句平仄相反",
            f"line {index + 1} does not oppose line {index} at position 2 (對)",
        )
    return Violation(
        "黏",
        index + 1,
        2,
        f"第 {index + 1} 句失黏：第二字應與第 {index} 句平仄相同",
        f"line {index + 1} does not follow line {index} at position 2 (黏)",
    )


def _check_rhyme(lines: tuple[str, ...]) -> tuple[str | None, list[Violation]]:
    """The level rhyme that all even lines share, and a violation for each end off the rhyme most of them have.

    Unlike its tone, the rhyme of a character the book lacks is not taken on trust.
    """
    book = rhyme_book()
    ends = {number: lines[number - 1][-1] for number in range(2, len(lines) + 1, 2)}
    votes = Counter(rhyme for end in ends.values() for rhyme in book.level_rhymes(end))
    if not votes:
        return None, [_rhyme_violation(number, end, None) for number, end in ends.items()]
    first = book.level_rhymes(lines[0][-1])
    # Most ends decide; between equals, the rhyme of the first line, then the book's order.
    best = min(votes, key=lambda rhyme: (-votes[rhyme], rhyme not in first, LEVEL_RHYMES.index(rhyme)))
    off = [_rhyme_violation(n, end, best) for n, end in ends.items() if best not in book.level_rhymes(end)]
    return (None if off else best), off


def _rhyme_violation(number: int, end: str, rhyme: str | None) -> Violation:
    if rhyme_book().mark(end) == UNKNOWN:
        return Violation(
            "rhyme",
            number,
            0,
            f"第 {number} 句句尾「{end}」不在平水韻書中，無從押韻",
            f"line {number} ends in {end}, which the Pingshui rhyme book does not have",
        )
    wanted_zh = f"「{rhyme}」韻" if rhyme else "平聲韻"
    wanted_en = f"the rhyme {rhyme}" if rhyme else "a level-tone rhyme"
    return Violation(
        "rhyme",
        number,
        0,
        f"第 {number} 句句尾「{end}」不押{wanted_zh}",
        f"line {number} ends in {end}, which is not in {wanted_en}",
    )
