"""Stage `data.prepare`: regulated verse becomes a corpus in Parquet, split so that no poet is on both sides."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import Field

from wenfang.core.artifact import Summary
from wenfang.core.config import Config, Source
from wenfang.core.errors import DataError
from wenfang.core.forecast import Forecast
from wenfang.core.language import say
from wenfang.core.licence import licence_line, read_licence
from wenfang.core.report import Reporter, Track
from wenfang.data.source import Poem, check_source, read_source
from wenfang.text.metre import check_verse
from wenfang.text.script import is_traditional
from wenfang.text.verse import Document, compose_poem

Dynasty = Literal["tang", "song"]
DYNASTY_NAMES = {"tang": "唐", "song": "宋"}
COLUMNS = ("text", "title", "author", "dynasty", "form", "plan", "poem")
SPLITS = ("train", "validation")
ANONYMOUS = ("無名", "佚名", "失名", "不詳", "闕名", "缺名", "未詳")
"""Authors whose name starts so stand for many unknown poets: all of them go to training."""
_PROGRESS_EVERY = 2000


class PrepareConfig(Config):
    """Turn an extract of verse into a corpus."""

    source: Source = Path("data/verse")
    """Folder with one `<dynasty>.tsv.xz` per dynasty."""
    dynasties: tuple[Dynasty, ...] = Field(default=("tang", "song"), min_length=1)
    """Which dynasties to take."""
    validation_share: float = Field(default=0.02, gt=0, lt=0.5)
    """Share of the poems, by their poets, held out of training."""
    seed: int = 0
    """Decides which poets are held out."""


@dataclass
class _Split:
    """Rows of one side of the corpus and what is in them."""

    columns: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    poets: set[str] = field(default_factory=set)
    forms: Counter[tuple[str, str]] = field(default_factory=Counter)
    characters: int = 0
    regular: int = 0

    def __len__(self) -> int:
        return len(self.columns["text"])

    def add(self, poem: Poem) -> None:
        """Append one poem, judged and composed."""
        check = check_verse(poem.lines)
        text = compose_poem(poem.lines)
        dynasty = DYNASTY_NAMES[poem.dynasty]
        row = (
            str(Document(poem.title, poem.form, check.plan, text)),
            poem.title,
            poem.author,
            dynasty,
            poem.form.name,
            str(check.plan),
            text,
        )
        for name, value in zip(COLUMNS, row, strict=True):
            self.columns[name].append(value)
        self.poets.add(poem.author)
        self.forms[dynasty, poem.form.name] += 1
        self.characters += sum(map(len, poem.lines))
        self.regular += check.regular


def run(config: PrepareConfig, out: Path, report: Reporter) -> Summary:
    """Write `train.parquet`, `validation.parquet` and `README.md` into `out`.

    Raises:
        DataError: the source is missing, unreadable, malformed, or leaves a side of the split empty.
    """
    dynasties = tuple(dict.fromkeys(config.dynasties))
    check_source(config.source, dynasties)
    poems = list(read_source(config.source, dynasties))
    held_out = _held_out(Counter(poem.author for poem in poems), config.validation_share, config.seed)
    splits = {name: _Split() for name in SPLITS}
    with report.track(say(zh="整理詩料", en="Preparing verse"), len(poems)) as track:
        simplified = _fill(splits, poems, held_out, track)
    for name, split in splits.items():
        if not len(split):
            raise DataError(
                say(
                    zh=f"{str(config.source)!r} 的 {len(poems)} 首詩分不出 {name} 一側：請提供更多作者的詩。",
                    en=f"The {len(poems)} poems in {str(config.source)!r} leave nothing for {name}: "
                    "add poems by more poets.",
                )
            )
    if simplified:
        report.notice(say(zh=f"略過簡體詩 {simplified} 首。", en=f"Left out {simplified} Simplified poems."))
    for name, split in splits.items():
        _write_parquet(split.columns, out / f"{name}.parquet")
    summary = _summarise(splits, simplified)
    (out / "README.md").write_text(_readme(config, splits, summary), encoding="utf-8")
    return summary


def forecast(config: PrepareConfig) -> Forecast:
    """Cost of preparing, from the size of the source (measured: 11.7 MB of xz take 9 s, 0.7 GB and 40 MB)."""
    files = [config.source / f"{dynasty}.tsv.xz" for dynasty in config.dynasties]
    megabytes = sum(path.stat().st_size for path in files if path.is_file()) / 1e6
    return Forecast(
        seconds=1 + 0.7 * megabytes,
        memory_bytes=int((100 + 55 * megabytes) * 1e6),
        disk_bytes=int(3.5 * megabytes * 1e6),
    )


def _held_out(poems_by: Counter[str], share: float, seed: int) -> set[str]:
    """Poets for validation: in the order of a hash of their names, until they have `share` of the poems.

    A poet whose poems would overshoot the share by more than half is passed over, so that one prolific poet
    does not become the whole measure.
    """

    def rank(author: str) -> str:
        return hashlib.sha256(f"{seed}\n{author}".encode()).hexdigest()

    wanted = share * poems_by.total()
    chosen: set[str] = set()
    count = 0
    for author in sorted((a for a in poems_by if not a.startswith(ANONYMOUS) and a), key=rank):
        if count >= wanted:
            break
        if count + poems_by[author] <= 1.5 * wanted:
            chosen.add(author)
            count += poems_by[author]
    return chosen


def _fill(splits: dict[str, _Split], poems: list[Poem], held_out: set[str], track: Track) -> int:
    """Sort the poems into the splits; returns how many were Simplified and left out."""
    simplified = 0
    for done, poem in enumerate(poems, start=1):
        if is_traditional(poem.title + "".join(poem.lines)):
            splits["validation" if poem.author in held_out else "train"].add(poem)
        else:
            simplified += 1
        if done % _PROGRESS_EVERY == 0:
            track.update(done)
    track.update(len(poems))
    return simplified


def _write_parquet(columns: dict[str, list[str]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(columns, schema=pa.schema([(name, pa.string()) for name in COLUMNS]))
    pq.write_table(table, path, compression="zstd")


def _summarise(splits: dict[str, _Split], simplified: int) -> Summary:
    poems = sum(len(split) for split in splits.values())
    return {
        "poems": poems,
        "characters": sum(split.characters for split in splits.values()),
        "regular_share": round(sum(split.regular for split in splits.values()) / poems, 4),
        "train_poems": len(splits["train"]),
        "validation_poems": len(splits["validation"]),
        "train_poets": len(splits["train"].poets),
        "validation_poets": len(splits["validation"].poets),
        "simplified_left_out": simplified,
    }


def _readme(config: PrepareConfig, splits: dict[str, _Split], summary: Summary) -> str:
    licence = read_licence(config.source)
    forms = sorted(set().union(*(split.forms for split in splits.values())))
    rows = "\n".join(
        f"| {dynasty} | {form} | {splits['train'].forms[dynasty, form]:,} | "
        f"{splits['validation'].forms[dynasty, form]:,} |"
        for dynasty, form in forms
    )
    return f"""---
language: zh
{licence_line(licence)}---
# Corpus of regulated verse 近體詩語料

{summary["poems"]:,} poems, {summary["characters"]:,} characters, {summary["regular_share"]:.1%} of them keep every
tonal rule and rhyme by the Pingshui book; the plan of the others reads 不拘格律. Traditional Chinese.

`train.parquet` and `validation.parquet` share no poet ({summary["train_poets"]:,} and {summary["validation_poets"]:,}).
Columns: `text` (what pretraining reads: title, form and plan, poem), then its parts `title`, `author`, `dynasty`,
`form`, `plan` and `poem`.

| dynasty | form | train | validation |
|---|---|---:|---:|
{rows}

Made by `data.prepare` from `{config.source.name}` with validation_share={config.validation_share}, seed={config.seed}.
Licence of the source: {licence or "not stated"}.
"""
