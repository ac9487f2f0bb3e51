"""Every text format of verse: poem, plan, pretraining document, request and reply.

Whatever reads or writes one of them comes here, so that corpus, conversations, evaluation, chat and studio
agree to the character. The judge lives in `wenfang.text.metre`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from wenfang.text.metre import VerseCheck, Violation, check_verse, split_lines
from wenfang.text.plan import FORM_OF_SHAPE, FORMS, IRREGULAR, Form, Plan, find_form, parse_plan
from wenfang.text.rhyme import LEVEL_RHYMES

__all__ = [
    "FORMS",
    "FORM_OF_SHAPE",
    "IRREGULAR",
    "Document",
    "Form",
    "Plan",
    "Reply",
    "Request",
    "VerseCheck",
    "Violation",
    "check_verse",
    "compose_poem",
    "compose_reply",
    "find_form",
    "parse_document",
    "parse_plan",
    "parse_reply",
    "parse_request",
    "split_lines",
]

MAX_TITLE_CHARACTERS = 20
"""A longer title is a preface rather than a name: its line is left out of a document."""


def compose_poem(lines: Sequence[str]) -> str:
    """A couplet per line, `，` inside and `。` after: no trailing newline."""
    couplets = ("，".join(lines[i : i + 2]) + "。" for i in range(0, len(lines), 2))
    return "\n".join(couplets)


@dataclass(frozen=True)
class Document:
    """A poem as pretraining reads it. An empty title stands for none."""

    title: str
    form: Form
    plan: Plan
    poem: str

    def __str__(self) -> str:
        """`{title}\\n{form}，{plan}\\n{poem}`, the title's line left out when it is empty or too long."""
        title = f"{self.title}\n" if 0 < len(self.title) <= MAX_TITLE_CHARACTERS else ""
        return f"{title}{self.form.name}，{self.plan}\n{self.poem}"


def parse_document(text: str) -> Document | None:
    """The document written as `text`; None if it is not one."""
    head, _, rest = text.partition("\n")
    document = _parse_untitled(head, rest)
    if document is not None:
        return document
    second, _, poem = rest.partition("\n")
    untitled = _parse_untitled(second, poem)
    return Document(head, untitled.form, untitled.plan, poem) if untitled else None


def _parse_untitled(head: str, poem: str) -> Document | None:
    name, _, plan_text = head.partition("，")
    plan = parse_plan(plan_text)
    return Document("", FORMS[name], plan, poem) if name in FORMS and plan is not None else None


@dataclass(frozen=True)
class Reply:
    """What the assistant answers: a plan, if it states one, and a poem."""

    plan: Plan | None
    poem: str


def compose_reply(plan: Plan, poem: str) -> str:
    """`{plan}\\n{poem}`."""
    return f"{plan}\n{poem}"


def parse_reply(text: str) -> Reply:
    """The plan and the poem of any answer; without a plan line, all of it is the poem."""
    head, _, rest = text.strip().partition("\n")
    plan = parse_plan(head)
    return Reply(plan, rest.strip()) if plan is not None else Reply(None, text.strip())


@dataclass(frozen=True)
class Request:
    """What a user asks for; each wish left out is the assistant's choice."""

    form: Form
    title: str = ""
    rhyme: str | None = None
    opening: str | None = None
    irregular: bool = False

    def compose(self, phrasing: int = 0) -> str:
        """The request in words; `phrasing` picks one of the ways to say it, modulo their number."""
        phrasings = TITLED_PHRASINGS if self.title else UNTITLED_PHRASINGS
        wishes = (
            f"，押{self.rhyme}韻" if self.rhyme else "",
            f"，{self.opening}起" if self.opening else "",
            f"，{IRREGULAR}" if self.irregular else "",
        )
        phrase = phrasings[phrasing % len(phrasings)]
        # Filled in one pass, so that a title is free to contain braces.
        return phrase.format(form=self.form.name, short=self.form.short, title=self.title, wishes="".join(wishes))


TITLED_PHRASINGS = (
    "寫一首{form}，題為〈{title}〉{wishes}。",
    "請以〈{title}〉為題，作一首{form}{wishes}。",
    "以〈{title}〉為題寫一首{short}{wishes}。",
    "請寫一首{short}，題目是〈{title}〉{wishes}。",
    "幫我寫一首題為〈{title}〉的{form}{wishes}。",
    "作{form}一首，題〈{title}〉{wishes}。",
    "我想要一首{form}，題目：〈{title}〉{wishes}。",
    "來一首題為〈{title}〉的{short}{wishes}。",
)
"""Ways to ask for a poem with a title."""

UNTITLED_PHRASINGS = (
    "寫一首{form}{wishes}。",
    "請作一首{form}{wishes}。",
    "幫我寫一首{short}{wishes}。",
    "來一首{short}{wishes}。",
)
"""Ways to ask for a poem without a title."""


def parse_request(text: str) -> Request | None:
    """What a user's message asks for, whatever its wording; None if it names no form.

    The title stands between the first 〈 or 《 and the last 〉 or 》.
    """
    title = re.search(r"[〈《](.*)[〉》]", text, flags=re.DOTALL)
    wishes = text[: title.start()] + text[title.end() :] if title else text
    form = find_form(wishes)
    if form is None:
        return None
    rhyme = re.search(rf"押([{LEVEL_RHYMES}])韻", wishes)
    opening = re.search(r"([平仄])起", wishes)
    return Request(
        form,
        title[1] if title else "",
        rhyme[1] if rhyme else None,
        opening[1] if opening else None,
        str(IRREGULAR) in wishes,
    )
