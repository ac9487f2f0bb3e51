"""A poem laid out for the eye: each character with its tone mark, faults in red, and what the judge found.

Returns HTML in which everything that came from a model or a person is escaped.
"""

from dataclasses import dataclass
from html import escape

from wenfang.studio.words import Words
from wenfang.text.rhyme import EITHER, UNKNOWN
from wenfang.text.verse import Reply, Request, VerseCheck, check_verse, parse_reply, parse_request


@dataclass(frozen=True)
class Sheet:
    """A reply that is, or was asked to be, a poem."""

    request: Request | None
    reply: Reply
    check: VerseCheck


def read_sheet(question: str, answer: str) -> Sheet | None:
    """Judge an answer as verse; None if it is none and nobody asked for any."""
    request, reply = parse_request(question), parse_reply(answer)
    check = check_verse(reply.poem, form=request.form if request else None)
    if not check.lines or (request is None and reply.plan is None and check.form is None):
        return None
    return Sheet(request, reply, check)


def sheet_html(sheet: Sheet, words: Words) -> str:
    """The poem with its marks, then the verdict."""
    return f'<div class="poem">{_heading(sheet)}{_lines(sheet.check, words)}</div>{_verdict(sheet, words)}'


def verdict_line(sheet: Sheet, words: Words) -> str:
    """The verdict in one line of plain text, for a terminal."""
    faults = [v.zh if words.language == "zh" else v.en for v in sheet.check.violations]
    faults += [text for kept, text in _wishes(sheet, words) if not kept]
    verdict = words("regular" if sheet.check.regular else "irregular")
    details = words("between").join([*_facts(sheet.check, words), *faults])
    return words("verdict", verdict=verdict, details=details) if details else verdict


def _heading(sheet: Sheet) -> str:
    title = sheet.request.title if sheet.request else ""
    return f'<div class="poem-title">{escape(title)}</div>' if title else ""


def _lines(check: VerseCheck, words: Words) -> str:
    """Couplets of two lines; a couplet folds between its lines where the page is narrow."""
    lines = [_line(check, number, words) for number in range(1, len(check.lines) + 1)]
    couplets = ("".join(lines[i : i + 2]) for i in range(0, len(lines), 2))
    return "".join(f'<div class="couplet">{couplet}</div>' for couplet in couplets)


def _line(check: VerseCheck, number: int, words: Words) -> str:
    line, marks = check.lines[number - 1], check.marks[number - 1]
    faults = _faulty_positions(check, number, len(line))
    rhymes = check.rhyme is not None and (number % 2 == 0 or (number == 1 and check.first_line_rhymes))
    cells = []
    for position, (character, mark) in enumerate(zip(line, marks, strict=True), start=1):
        kinds = ["cell"]
        if position in faults:
            kinds.append("fault")
        if rhymes and position == len(line):
            kinds.append("rhyme")
        cells.append(
            f'<span class="{" ".join(kinds)}"><span class="character">{escape(character)}</span>'
            f'<span class="mark mark-{_MARK_CLASSES[mark]}" title="{escape(words(f"mark_{_MARK_CLASSES[mark]}"))}">'
            f"{mark}</span></span>"
        )
    stop = "，" if number % 2 else "。"
    return f'<span class="line">{"".join(cells)}<span class="cell stop">{stop}</span></span>'


_MARK_CLASSES = {"平": "level", "仄": "oblique", "中": "either", "?": "unknown"}


def _faulty_positions(check: VerseCheck, number: int, length: int) -> set[int]:
    found: set[int] = set()
    for violation in check.violations:
        if violation.line != number:
            continue
        if violation.kind == "rhyme":
            found.add(length)
        elif violation.kind == "alternation":
            found.update(range(2, violation.position + 1, 2))
        elif violation.position:
            found.add(violation.position)
    return found


def _verdict(sheet: Sheet, words: Words) -> str:
    check = sheet.check
    wishes = _wishes(sheet, words)
    good = check.regular and all(kept for kept, _ in wishes)
    seal = words("regular") if check.regular else words("irregular")
    faults = [v.zh if words.language == "zh" else v.en for v in check.violations]
    items = "".join(f'<li class="fault">{escape(text)}</li>' for text in faults)
    items += "".join(f'<li class="{"kept" if kept else "fault"}">{escape(text)}</li>' for kept, text in wishes)
    facts = "".join(f"<span>{escape(fact)}</span>" for fact in _facts(check, words))
    return (
        f'<div class="verdict {"good" if good else "bad"}" role="note" aria-label="{escape(words("verse_check"))}">'
        f'<span class="verdict-seal">{escape(seal)}</span><span class="facts">{facts}</span>'
        f"{f'<ul>{items}</ul>' if items else ''}</div>"
    )


def _facts(check: VerseCheck, words: Words) -> list[str]:
    facts = [words("form_name", name=check.form.name, english=check.form.english)] if check.form else []
    if check.rhyme:
        facts.append(words("rhymes_in", rhyme=check.rhyme))
    if check.opening:
        facts.append(
            words("opens", tone=check.opening, first=words("first_in" if check.first_line_rhymes else "first_out"))
        )
    return facts


def _wishes(sheet: Sheet, words: Words) -> list[tuple[bool, str]]:
    """What was asked for or announced, each with whether the poem does it."""
    request, plan, check = sheet.request, sheet.reply.plan, sheet.check
    found: list[tuple[bool, str]] = []
    if request and request.rhyme:
        found.append((check.rhyme == request.rhyme, words("asked_rhyme", rhyme=request.rhyme)))
    if request and request.opening:
        found.append((_opens_with(check, request.opening), words("asked_opening", tone=request.opening)))
    if plan is not None and plan.regular:
        kept = (check.rhyme, check.first_line_rhymes) == (plan.rhyme, plan.first_line_rhymes)
        found.append((kept and _opens_with(check, plan.opening), words("announced", plan=str(plan))))
    return [(kept, text + words("kept" if kept else "not_kept")) for kept, text in found]


def _opens_with(check: VerseCheck, tone: str | None) -> bool:
    """Whether the poem opens with a tone, also where a fault elsewhere leaves the judge without a verdict."""
    if check.opening is not None:
        return check.opening == tone
    return check.well_formed and check.marks[0][1] in (tone, EITHER, UNKNOWN)
