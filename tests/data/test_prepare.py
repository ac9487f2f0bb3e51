"""Preparing a corpus: what is in it, how it is split, and each way the source can be bad."""

import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from wenfang.core.errors import DataError
from wenfang.core.licence import read_licence
from wenfang.core.report import Reporter
from wenfang.data import converse
from wenfang.data.prepare import PrepareConfig, forecast, run
from wenfang.text.metre import check_verse
from wenfang.text.verse import parse_document

TOWER = "王之渙\t登鸛雀樓\t白日依山盡黃河入海流欲窮千里目更上一層樓"
Writer = Callable[[Path, dict[str, list[str]]], Path]
NIGHT = "李白\t靜夜思\t床前明月光疑是地上霜舉頭望明月低頭思故鄉"
SIMPLIFIED = "李白\t静夜思\t床前明月光疑是地上霜举头望明月低头思故乡"


def prepare(source: Path, out: Path, **options: object) -> dict[str, list[dict[str, str]]]:
    out.mkdir()
    run(PrepareConfig(source=source, **options), out, Reporter())
    return {split: pq.read_table(out / f"{split}.parquet").to_pylist() for split in ("train", "validation")}


def test_every_poem_is_in_the_corpus_once(source: Path, rows: dict[str, list[str]], tmp_path: Path) -> None:
    corpus = prepare(source, tmp_path / "out")
    found = sorted(
        (row["author"], row["title"], "".join(c for c in row["poem"] if c not in "，。\n"))
        for split in corpus.values()
        for row in split
    )
    assert found == sorted(tuple(line.split("\t")) for lines in rows.values() for line in lines)


def test_texts_say_what_the_columns_say(source: Path, tmp_path: Path) -> None:
    for row in prepare(source, tmp_path / "out")["train"]:
        document = parse_document(row["text"])
        assert document is not None
        assert document.title == (row["title"] if len(row["title"]) <= 20 else "")
        assert (document.form.name, str(document.plan), document.poem) == (row["form"], row["plan"], row["poem"])
        check = check_verse(row["poem"])
        assert (check.form, check.plan) == (document.form, document.plan)


def test_the_contracts_own_example(tmp_path: Path, write_source: Writer) -> None:
    source = write_source(tmp_path / "verse", {"tang": [TOWER, NIGHT]})
    corpus = prepare(source, tmp_path / "out", dynasties=("tang",), validation_share=0.49)
    (row,) = [row for split in corpus.values() for row in split if row["author"] == "王之渙"]
    poem = "白日依山盡，黃河入海流。\n欲窮千里目，更上一層樓。"
    assert row == {
        "text": f"登鸛雀樓\n五言絕句，仄起不入韻，押尤韻\n{poem}",
        "title": "登鸛雀樓",
        "author": "王之渙",
        "dynasty": "唐",
        "form": "五言絕句",
        "plan": "仄起不入韻，押尤韻",
        "poem": poem,
    }


def test_no_poet_is_on_both_sides(source: Path, tmp_path: Path) -> None:
    corpus = prepare(source, tmp_path / "out", validation_share=0.1)
    train, validation = ({row["author"] for row in corpus[split]} for split in ("train", "validation"))
    assert not train & validation
    share = len(corpus["validation"]) / sum(map(len, corpus.values()))
    assert 0.1 <= share <= 0.15


def test_the_unknown_poets_stay_together(tmp_path: Path, write_source: Writer) -> None:
    lines = [TOWER.replace("王之渙", name) for name in ("無名氏", "佚名", "不詳", "甲", "乙", "丙")]
    for seed in range(8):
        source = write_source(tmp_path / f"verse{seed}", {"tang": lines})
        corpus = prepare(source, tmp_path / f"out{seed}", dynasties=("tang",), validation_share=0.4, seed=seed)
        assert {"無名氏", "佚名", "不詳"} <= {row["author"] for row in corpus["train"]}


def test_the_same_config_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        prepare(source, tmp_path / name)
    for name in ("train.parquet", "validation.parquet", "README.md"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_another_seed_holds_out_other_poets(source: Path, tmp_path: Path) -> None:
    held = [
        {row["author"] for row in prepare(source, tmp_path / str(seed), seed=seed)["validation"]} for seed in (0, 1)
    ]
    assert held[0] != held[1]


def test_simplified_poems_are_left_out_and_counted(tmp_path: Path, write_source: Writer) -> None:
    source = write_source(tmp_path / "verse", {"tang": [TOWER, NIGHT, SIMPLIFIED]})
    out = tmp_path / "out"
    out.mkdir()
    summary = run(PrepareConfig(source=source, dynasties=("tang",), validation_share=0.4), out, Reporter())
    assert (summary["poems"], summary["simplified_left_out"]) == (2, 1)
    assert (summary["characters"], summary["regular_share"]) == (40, 0.5)


def test_one_dynasty_does_not_need_the_other(tmp_path: Path, write_source: Writer) -> None:
    source = write_source(tmp_path / "verse", {"song": [TOWER, NIGHT]})
    corpus = prepare(source, tmp_path / "out", dynasties=("song",), validation_share=0.4)
    assert {row["dynasty"] for split in corpus.values() for row in split} == {"宋"}


def _cut_off(source: Path) -> None:
    path = source / "song.tsv.xz"
    path.write_bytes(path.read_bytes()[:-100])


def _tang(data: bytes) -> Callable[[Path], object]:
    return lambda source: (source / "tang.tsv.xz").write_bytes(data)


def _lines(**dynasties: list[str]) -> Callable[[Path], None]:
    def damage(source: Path) -> None:
        for dynasty, lines in dynasties.items():
            (source / f"{dynasty}.tsv.xz").write_bytes(lzma.compress("\n".join(lines).encode()))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda source: (source / "song.tsv.xz").unlink(), r"No verse at '.*song\.tsv\.xz'.*`source`"),
        (_cut_off, r"song\.tsv\.xz' is not a whole xz file"),
        (_tang(b"not an archive"), r"tang\.tsv\.xz' is not a whole xz file"),
        (_tang(b""), r"tang\.tsv\.xz' is not a whole xz file"),
        (_tang(lzma.compress(TOWER.encode("big5"))), r"tang\.tsv\.xz' does not unpack to UTF-8"),
        (_lines(tang=[], song=[]), r"The 0 poems in .* leave nothing for train"),
        (_lines(tang=[TOWER], song=[TOWER]), r"The 2 poems in .* leave nothing for validation: add poems by more"),
        (_lines(tang=[TOWER, "王之渙\t登鸛雀樓"]), r"tang\.tsv\.xz', line 2: .*found 2 columns"),
        (_lines(tang=[TOWER, TOWER, TOWER + "樓"]), r"tang\.tsv\.xz', line 3: .*found a poem of 21 characters"),
    ],
)
def test_a_bad_source_is_named_and_nothing_is_written(
    damage: Callable[[Path], object], message: str, source: Path, tmp_path: Path
) -> None:
    damage(source)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError, match=message) as caught:
        run(PrepareConfig(source=source), out, Reporter())
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) <= 2
    assert list(out.iterdir()) == []


@pytest.mark.parametrize(
    "options", [{"validation_share": 0}, {"validation_share": 0.5}, {"dynasties": ()}, {"dynasties": ("ming",)}]
)
def test_options_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PrepareConfig(**options)


def test_the_forecast_grows_with_the_source(source: Path, tmp_path: Path) -> None:
    nothing = forecast(PrepareConfig(source=tmp_path / "absent"))
    something = forecast(PrepareConfig(source=source))
    assert something.seconds > nothing.seconds > 0
    assert something.disk_bytes > nothing.disk_bytes


def test_the_licence_of_the_source_is_handed_on_and_none_is_made_up(source: Path, tmp_path: Path) -> None:
    prepare(source, tmp_path / "without")
    assert read_licence(tmp_path / "without") is None
    (source / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n", encoding="utf-8")
    prepare(source, tmp_path / "with")
    assert read_licence(tmp_path / "with") == "cc-by-4.0"
    (tmp_path / "conversations").mkdir()
    converse.run(converse.ConverseConfig(corpus=tmp_path / "with"), tmp_path / "conversations", Reporter())
    assert read_licence(tmp_path / "conversations") == "cc-by-4.0"
    assert read_licence(Path(__file__).parents[2] / "data/verse") == "mit"
