"""The page's words in two languages, its charts and its table."""

import re
import statistics

import pytest
from studio.fakes import make_run

from wenfang.studio.account import account_html
from wenfang.studio.chart import MOST_POINTS, curve_options, thin
from wenfang.studio.desk import compose_request
from wenfang.studio.run import find_model
from wenfang.studio.session import Wishes
from wenfang.studio.words import WORDS, Words, preferred_language
from wenfang.text.verse import parse_request


@pytest.mark.parametrize(
    ("header", "language"),
    [
        (None, "zh"),
        ("", "zh"),
        ("zh-TW,zh;q=0.9,en-US;q=0.8,en;q=0.7", "zh"),
        ("en-US,en;q=0.9", "en"),
        ("en;q=0.5,zh;q=0.6", "zh"),
        ("fr-FR,en;q=0.3", "en"),
        ("ja", "zh"),
        ("en;q=much", "zh"),
    ],
)
def test_the_browsers_language_is_respected(header: str | None, language: str) -> None:
    assert preferred_language(header) == language


def test_both_languages_say_the_same_things() -> None:
    for chinese, english in WORDS.values():
        assert chinese
        assert english
    for key in ("speed", "rhymes_in", "opens", "asked_rhyme", "asked_opening", "announced"):
        holes = [set(re.findall(r"{(\w+)", text)) for text in WORDS[key]]
        assert holes[0] == holes[1]


def test_thinning_keeps_the_ends_and_the_mean() -> None:
    points = [(float(i), float(i % 7)) for i in range(10 * MOST_POINTS)]
    thinned = thin(points)
    assert len(thinned) == MOST_POINTS
    assert thinned[-1][0] == points[-1][0]
    assert statistics.mean(v for _, v in thinned) == pytest.approx(statistics.mean(v for _, v in points))
    assert thin(points[:5]) == points[:5]


def test_a_chart_draws_what_was_measured() -> None:
    options = curve_options("loss", [(10, 7.9), (20, 7.8)], [(20, 7.95)], Words("en"))
    assert [series["data"] for series in options["series"]] == [[[10, 7.9], [20, 7.8]], [[20, 7.95]]]


def test_the_table_shows_times_results_and_their_sum(tmp_path) -> None:
    table = account_html(find_model(make_run(tmp_path / "poet")).stages(), Words("zh"))
    text = re.sub(r"<[^>]+>", " ", table)
    for part in ("data.prepare", "118,234", "5 min 22 s", "驗證損失", "4.01", "8 min 07 s"):
        assert part in text
    assert "&lt;b&gt;rhyme" in table
    assert "<b>" not in table


def test_the_desk_asks_in_words_that_verse_understands() -> None:
    asked = parse_request(compose_request(Wishes(form="七言律詩", title=" 登樓 ", rhyme="陽", opening="仄")))
    assert asked is not None
    assert (asked.form.name, asked.title, asked.rhyme, asked.opening) == ("七言律詩", "登樓", "陽", "仄")
