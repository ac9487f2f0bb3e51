"""Stage `data.converse`: each poem of a corpus becomes a request and the reply that answers it."""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import Field

from wenfang.core.artifact import Summary, check_artifact
from wenfang.core.config import Config, Corpus
from wenfang.core.errors import DataError
from wenfang.core.forecast import Forecast
from wenfang.core.language import say
from wenfang.core.licence import licence_line, read_licence
from wenfang.core.report import Reporter
from wenfang.data.poems import LabelledPoem, read_poems
from wenfang.data.prepare import DYNASTY_NAMES, SPLITS, Dynasty
from wenfang.text.verse import TITLED_PHRASINGS, UNTITLED_PHRASINGS, Request, compose_reply

_NAMELESS = ("", "詩", "句", "失題", "闕題", "缺題", "絕句", "七言", "五言")
"""Titles that name no subject: their requests ask for a form only."""


class ConverseConfig(Config):
    """Turn a corpus of verse into conversations, one request and reply per poem."""

    corpus: Corpus
    """A corpus from `data.prepare`."""
    dynasties: tuple[Dynasty, ...] = Field(default=("tang", "song"), min_length=1)
    """Which dynasties to take."""
    max_title_characters: int = Field(default=12, ge=1, le=20)
    """Poems with longer titles are left out: nobody asks for one by such a title."""
    ask_rhyme_share: float = Field(default=0.3, ge=0, le=1)
    """Share of requests for regular poems that name the rhyme (押陽韻)."""
    ask_opening_share: float = Field(default=0.3, ge=0, le=1)
    """Share of requests for regular poems that name the opening (平起)."""
    untitled_share: float = Field(default=0.05, ge=0, le=1)
    """Share of requests that leave the subject to the assistant."""
    regular_only: bool = False
    """Leave out poems that break a rule; otherwise they are asked for with 不拘格律."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many training conversations, drawn evenly by `seed`; None takes all."""
    seed: int = 0
    """Decides phrasings, what is asked for, and which poems `limit` draws."""


def run(config: ConverseConfig, out: Path, report: Reporter) -> Summary:
    """Write `train.jsonl`, `validation.jsonl` and `README.md` into `out`.

    Raises:
        InputError: the corpus is missing, cut off, or not a corpus of verse.
        DataError: no poem is left to ask for.
    """
    check_artifact(config.corpus, "corpus")
    poems = {split: _wanted(read_poems(config.corpus / f"{split}.parquet"), config) for split in SPLITS}
    summary: Summary = {}
    long_titles = 0
    with report.track(say(zh="編寫對話", en="Writing conversations"), sum(map(len, poems.values()))) as track:
        done = 0
        for split, wanted in poems.items():
            kept = [poem for poem in wanted if len(poem.title) <= config.max_title_characters]
            long_titles += len(wanted) - len(kept)
            if split == "train" and config.limit is not None and config.limit < len(kept):
                kept = _draw(kept, config.limit, config.seed)
            if not kept:
                raise DataError(
                    say(
                        zh=f"{str(config.corpus)!r} 的 {split} 沒有合用的詩。請放寬 `dynasties`、"
                        "`max_title_characters` 或 `regular_only`。",
                        en=f"No poem of {split} in {str(config.corpus)!r} is left. Relax `dynasties`, "
                        "`max_title_characters` or `regular_only`.",
                    )
                )
            with (out / f"{split}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(_conversations(kept, config))
            done += len(wanted)
            track.update(done)
            summary[f"{split}_conversations"] = len(kept)
    summary["long_titles_left_out"] = long_titles
    (out / "README.md").write_text(_readme(config, summary), encoding="utf-8")
    return summary


def forecast(config: ConverseConfig) -> Forecast:
    """Cost by the size of the corpus (measured: one of 40 MB, 192,000 poems, takes 3 to 6 s, 0.45 GB and 59 MB).

    A corpus that does not exist yet is taken to be as large as that one.
    """
    files = [config.corpus / f"{split}.parquet" for split in SPLITS]
    megabytes = sum(path.stat().st_size for path in files if path.is_file()) / 1e6 or 40.0
    return Forecast(
        seconds=1 + 0.1 * megabytes,
        memory_bytes=int((100 + 9 * megabytes) * 1e6),
        disk_bytes=int(1.5 * megabytes * 1e6),
    )


def _wanted(poems: Sequence[LabelledPoem], config: ConverseConfig) -> list[LabelledPoem]:
    """Those that `dynasties` and `regular_only` admit."""
    dynasties = {DYNASTY_NAMES[dynasty] for dynasty in config.dynasties}
    return [poem for poem in poems if poem.dynasty in dynasties and (poem.plan.regular or not config.regular_only)]


def _draw(poems: list[LabelledPoem], limit: int, seed: int) -> list[LabelledPoem]:
    """`limit` of the poems, the same ones for the same seed, in their own order."""
    chosen = sorted(random.Random(seed).sample(range(len(poems)), limit))
    return [poems[index] for index in chosen]


def _conversations(poems: Sequence[LabelledPoem], config: ConverseConfig) -> Iterator[str]:
    for poem in poems:
        messages = [
            {"role": "user", "content": _request(poem, config)},
            {"role": "assistant", "content": compose_reply(poem.plan, poem.text)},
        ]
        yield json.dumps({"messages": messages}, ensure_ascii=False) + "\n"


def _request(poem: LabelledPoem, config: ConverseConfig) -> str:
    """The request for one poem. Chance comes from the poem itself, so that it does not depend on its neighbours."""
    digest = hashlib.blake2b(f"{config.seed}\n{poem.title}\n{poem.text}".encode(), digest_size=16).digest()
    phrasing, rhyme_draw, opening_draw, title_draw = (int.from_bytes(digest[i : i + 4], "big") for i in (0, 4, 8, 12))
    untitled = poem.title in _NAMELESS or title_draw < config.untitled_share * 2**32
    plan = poem.plan
    request = Request(
        form=poem.form,
        title="" if untitled else poem.title,
        rhyme=plan.rhyme if rhyme_draw < config.ask_rhyme_share * 2**32 else None,
        opening=plan.opening if opening_draw < config.ask_opening_share * 2**32 else None,
        irregular=not plan.regular,
    )
    return request.compose(phrasing)


def _readme(config: ConverseConfig, summary: Summary) -> str:
    licence = read_licence(config.corpus)
    options = ", ".join(f"{name}={value!r}" for name, value in config.model_dump(exclude={"corpus"}).items())
    return f"""---
language: zh
{licence_line(licence)}---
# Conversations that ask for regulated verse 求詩對話

{summary["train_conversations"]:,} for training and {summary["validation_conversations"]:,} for validation, by
different poets. Left out for their long titles: {summary["long_titles_left_out"]:,}. One JSON object per line in the
OpenAI `messages` form: a request in zh-TW and a reply that states its plan and then the poem.

Requests come in {len(TITLED_PHRASINGS) + len(UNTITLED_PHRASINGS)} wordings; some name the rhyme (押陽韻)
or the opening (平起), some give no title, and a poem that breaks a rule is asked for with 不拘格律.

Made by `data.converse` with {options}.
Licence of the corpus: {licence or "not stated"}.
"""
