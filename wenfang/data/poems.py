"""Reading a corpus of verse: poems with the form and plan that `data.prepare` gave them."""

from dataclasses import dataclass
from pathlib import Path

from wenfang.core.corpus import read_rows, unusable
from wenfang.core.language import say
from wenfang.text.plan import FORMS, Form, Plan, parse_plan


@dataclass(frozen=True)
class LabelledPoem:
    """One poem of a corpus."""

    title: str
    dynasty: str
    """As `data.prepare` writes it: 唐 or 宋."""
    form: Form
    plan: Plan
    text: str
    """Its lines with their punctuation."""


def read_poems(path: Path) -> list[LabelledPoem]:
    """The poems of one split of a corpus.

    Raises:
        DataError: the file cannot be used, or a poem is empty or of unknown form or plan; names the file.
    """
    return [_label(row, path) for row in read_rows(path, ("title", "dynasty", "form", "plan", "poem"))]


def _label(row: dict[str, str], path: Path) -> LabelledPoem:
    form, plan = FORMS.get(row["form"]), parse_plan(row["plan"])
    if form is None or plan is None or not row["poem"].strip():
        found = f"{row['form']!r}, {row['plan']!r}, {row['poem'][:20]!r}"
        raise unusable(
            path,
            say(
                zh=f"有一首詩的詩體、格律或文字無法辨識：{found}", en=f"it has a poem of unknown form or plan: {found}"
            ),
        )
    return LabelledPoem(row["title"], row["dynasty"], form, plan, row["poem"])
