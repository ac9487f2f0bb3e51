"""Conversations: each answers its own request, in the shares asked for."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from wenfang.core.errors import DataError, InputError
from wenfang.core.report import Reporter
from wenfang.data.converse import ConverseConfig, forecast, run
from wenfang.data.prepare import PrepareConfig
from wenfang.data.prepare import run as prepare
from wenfang.text.metre import check_verse
from wenfang.text.verse import Reply, Request, parse_reply, parse_request


@pytest.fixture
def corpus(source: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    prepare(PrepareConfig(source=source), folder, Reporter())
    return folder


def converse(corpus: Path, out: Path, **options: object) -> list[tuple[Request, Reply]]:
    """Requests and replies of the training side, parsed back."""
    out.mkdir()
    run(ConverseConfig(corpus=corpus, **options), out, Reporter())
    pairs = []
    for line in (out / "train.jsonl").read_text(encoding="utf-8").splitlines():
        user, assistant = json.loads(line)["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        request = parse_request(user["content"])
        assert request is not None
        pairs.append((request, parse_reply(assistant["content"])))
    return pairs


def test_every_reply_keeps_what_its_request_asks(corpus: Path, tmp_path: Path) -> None:
    for request, reply in converse(corpus, tmp_path / "out"):
        check = check_verse(reply.poem, form=request.form)
        assert check.well_formed
        assert check.plan == reply.plan
        assert request.irregular == (not check.regular)
        assert request.rhyme in (None, check.rhyme)
        assert request.opening in (None, check.opening)


def test_requests_and_poems_belong_together(corpus: Path, tmp_path: Path) -> None:
    rows = pq.read_table(corpus / "train.parquet").to_pylist()
    kept = [row for row in rows if len(row["title"]) <= 12]
    pairs = converse(corpus, tmp_path / "out")
    assert [reply.poem for _, reply in pairs] == [row["poem"] for row in kept]
    assert all(request.title in ("", row["title"]) for (request, _), row in zip(pairs, kept, strict=True))


def test_shares_are_kept(corpus: Path, tmp_path: Path) -> None:
    pairs = converse(corpus, tmp_path / "out", ask_rhyme_share=0.5, untitled_share=0.2)
    regular = [request for request, _ in pairs if not request.irregular]
    # About 700 regular poems: a standard error below 0.02; 0.08 is beyond four of them.
    assert sum(r.rhyme is not None for r in regular) / len(regular) == pytest.approx(0.5, abs=0.08)
    assert sum(r.opening is not None for r in regular) / len(regular) == pytest.approx(0.3, abs=0.08)
    assert sum(not r.title for r, _ in pairs) / len(pairs) == pytest.approx(0.2, abs=0.08)


def test_shares_of_none_and_all(corpus: Path, tmp_path: Path) -> None:
    pairs = converse(corpus, tmp_path / "out", ask_rhyme_share=0, ask_opening_share=1, regular_only=True)
    assert all(r.rhyme is None and r.opening is not None and not r.irregular for r, _ in pairs)


def test_long_titles_are_left_out_and_counted(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    summary = run(ConverseConfig(corpus=corpus, max_title_characters=3), out, Reporter())
    rows = [row for s in ("train", "validation") for row in pq.read_table(corpus / f"{s}.parquet").to_pylist()]
    long = sum(len(row["title"]) > 3 for row in rows)
    assert summary["long_titles_left_out"] == long > 0
    assert summary["train_conversations"] + summary["validation_conversations"] == len(rows) - long


def test_a_limit_draws_by_seed(corpus: Path, tmp_path: Path) -> None:
    drawn = {
        (seed, n): converse(corpus, tmp_path / f"{seed}-{n}", limit=50, seed=seed) for seed in (0, 1) for n in (0, 1)
    }
    assert {len(pairs) for pairs in drawn.values()} == {50}
    assert drawn[0, 0] == drawn[0, 1] != drawn[1, 0]


def test_dynasties_choose(corpus: Path, tmp_path: Path) -> None:
    tang = {row["poem"] for row in pq.read_table(corpus / "train.parquet").to_pylist() if row["dynasty"] == "唐"}
    assert {reply.poem for _, reply in converse(corpus, tmp_path / "out", dynasties=("tang",))} <= tang


def test_the_same_config_gives_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        converse(corpus, tmp_path / name)
    for name in ("train.jsonl", "validation.jsonl", "README.md"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def _bad_corpora() -> dict[str, tuple[type[InputError], str]]:
    return {
        "absent": (InputError, "No folder"),
        "no file": (DataError, r"The corpus '.*train\.parquet' cannot be used: "),
        "cut off": (DataError, r"The corpus '.*train\.parquet' cannot be used: "),
        "prose": (
            DataError,
            r"'.*train\.parquet' .* lacks columns of text named `title`, `dynasty`, `form`, `plan`, `poem`",
        ),
        "unlabelled": (DataError, r"'.*train\.parquet' .* unknown form or plan: '五言絕句', '隨意', "),
        "none regular": (DataError, "No poem of train .* is left. Relax"),
    }


@pytest.mark.parametrize("name", _bad_corpora())
def test_a_bad_corpus_is_named(name: str, corpus: Path, tmp_path: Path) -> None:
    path = corpus / "train.parquet"
    table = pq.read_table(path)
    options = {}
    if name == "absent":
        corpus = tmp_path / "nowhere"
    elif name == "no file":
        path.unlink()
    elif name == "cut off":
        path.write_bytes(path.read_bytes()[:-1000])
    elif name == "prose":
        pq.write_table(table.select(["text"]), path)
    elif name == "unlabelled":
        rows = [row | {"form": "五言絕句", "plan": "隨意"} for row in table.to_pylist()]
        pq.write_table(type(table).from_pylist(rows), path)
    else:
        rows = [row for row in table.to_pylist() if row["plan"] == "不拘格律"]
        pq.write_table(type(table).from_pylist(rows), path)
        options = {"regular_only": True}
    error, message = _bad_corpora()[name]
    with pytest.raises(error, match=message) as caught:
        converse(corpus, tmp_path / "out", **options)
    assert caught.value.exit_code == 2
    assert len(str(caught.value).splitlines()) <= 2


def test_the_forecast_grows_with_the_corpus_and_takes_an_absent_one_for_large(corpus: Path, tmp_path: Path) -> None:
    small, unknown = (forecast(ConverseConfig(corpus=folder)) for folder in (corpus, tmp_path / "absent"))
    assert small.seconds < unknown.seconds < 10
    assert small.disk_bytes < 50_000_000 < unknown.disk_bytes
