"""text: what Wenfang knows about Chinese itself — scripts, rhyme, regulated verse and its text formats.

Every document, request and reply about verse is composed and parsed here and nowhere else.
Imports `core` only, and knows nothing of corpora, models or training.
"""

from wenfang.text.rhyme import LEVEL_RHYMES, RhymeBook, rhyme_book
from wenfang.text.script import is_traditional, to_taiwan_glyphs
from wenfang.text.verse import (
    FORMS,
    IRREGULAR,
    Document,
    Form,
    Plan,
    Reply,
    Request,
    VerseCheck,
    Violation,
    check_verse,
    compose_poem,
    compose_reply,
    find_form,
    parse_document,
    parse_plan,
    parse_reply,
    parse_request,
    split_lines,
)

__all__ = [
    "FORMS",
    "IRREGULAR",
    "LEVEL_RHYMES",
    "Document",
    "Form",
    "Plan",
    "Reply",
    "Request",
    "RhymeBook",
    "VerseCheck",
    "Violation",
    "check_verse",
    "compose_poem",
    "compose_reply",
    "find_form",
    "is_traditional",
    "parse_document",
    "parse_plan",
    "parse_reply",
    "parse_request",
    "rhyme_book",
    "split_lines",
    "to_taiwan_glyphs",
]
