"""The four forms of regulated verse, and the plan a poem states before its first line."""

import re
from dataclasses import dataclass

from wenfang.text.rhyme import LEVEL, LEVEL_RHYMES, OBLIQUE


@dataclass(frozen=True)
class Form:
    """A form of regulated verse: so many lines of so many characters."""

    name: str
    short: str
    english: str
    lines: int
    line_length: int


FORMS = {
    form.name: form
    for form in (
        Form("五言絕句", "五絕", "quatrain of five-character lines", 4, 5),
        Form("七言絕句", "七絕", "quatrain of seven-character lines", 4, 7),
        Form("五言律詩", "五律", "octave of five-character lines", 8, 5),
        Form("七言律詩", "七律", "octave of seven-character lines", 8, 7),
    )
}
"""The forms by full name."""

FORM_OF_SHAPE = {(form.lines, form.line_length): form for form in FORMS.values()}
"""The forms by number of lines and characters per line."""


def find_form(text: str) -> Form | None:
    """The form that `text` names, in full or in short, the first one if several."""
    found = [(at, form) for form in FORMS.values() for n in (form.name, form.short) if (at := text.find(n)) >= 0]
    return min(found, key=lambda pair: pair[0])[1] if found else None


@dataclass(frozen=True)
class Plan:
    """What a regular poem sets out to keep: opening tone, whether the first line rhymes, and the rhyme.

    All three are None for a poem that keeps no rules (不拘格律).
    """

    opening: str | None = None
    """`平` or `仄`: the tone of the first line's second character."""
    first_line_rhymes: bool | None = None
    rhyme: str | None = None
    """One-character name of a level rhyme."""

    def __post_init__(self) -> None:
        fields = (self.opening, self.first_line_rhymes, self.rhyme)
        if fields == (None, None, None):
            return
        if self.opening not in (LEVEL, OBLIQUE) or self.first_line_rhymes is None or self.rhyme is None:
            raise ValueError(f"a plan is whole or empty, got {fields!r}")
        if self.rhyme not in tuple(LEVEL_RHYMES):
            raise ValueError(f"`rhyme` must be one of {LEVEL_RHYMES}, got {self.rhyme!r}")

    @property
    def regular(self) -> bool:
        """Whether the poem keeps the rules."""
        return self.rhyme is not None

    def __str__(self) -> str:
        """As the formats write it: `平起入韻，押陽韻`, or `不拘格律`."""
        if not self.regular:
            return "不拘格律"
        return f"{self.opening}起{'入韻' if self.first_line_rhymes else '不入韻'}，押{self.rhyme}韻"


IRREGULAR = Plan()
"""The plan of a poem that keeps no rules: 不拘格律."""

_PLAN = re.compile(rf"([平仄])起(不?)入韻，押([{LEVEL_RHYMES}])韻")


def parse_plan(text: str) -> Plan | None:
    """The plan that `text` states and nothing else; None if it is not a plan."""
    text = text.strip()
    if text == str(IRREGULAR):
        return IRREGULAR
    match = _PLAN.fullmatch(text)
    return Plan(match[1], not match[2], match[3]) if match else None
