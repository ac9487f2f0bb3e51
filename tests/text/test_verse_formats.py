"""Every text format of verse: the contract's own examples, and round trips."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wenfang.text.plan import find_form
from wenfang.text.rhyme import LEVEL_RHYMES
from wenfang.text.verse import (
    FORMS,
    IRREGULAR,
    TITLED_PHRASINGS,
    Document,
    Form,
    Plan,
    Reply,
    Request,
    compose_poem,
    compose_reply,
    parse_document,
    parse_plan,
    parse_reply,
    parse_request,
    split_lines,
)

POEM = "白日依山盡，黃河入海流。\n欲窮千里目，更上一層樓。"
PLAN = Plan("仄", False, "尤")

rhymes = st.sampled_from(LEVEL_RHYMES)
openings = st.sampled_from("平仄")
forms = st.sampled_from(list(FORMS.values()))
plans = st.just(IRREGULAR) | st.builds(Plan, openings, st.booleans(), rhymes)
# A title may hold anything but a line end and the brackets that enclose titles.
titles = st.text(st.characters(exclude_characters="〈〉《》\n\r", exclude_categories=("Cs",)), max_size=20)


def test_a_poem_is_a_couplet_per_line() -> None:
    assert compose_poem(["白日依山盡", "黃河入海流", "欲窮千里目", "更上一層樓"]) == POEM
    assert split_lines(POEM) == ["白日依山盡", "黃河入海流", "欲窮千里目", "更上一層樓"]


def test_a_document_is_title_form_and_plan_and_poem() -> None:
    document = Document("登鸛雀樓", FORMS["五言絕句"], PLAN, POEM)
    assert str(document) == f"登鸛雀樓\n五言絕句，仄起不入韻，押尤韻\n{POEM}"


@pytest.mark.parametrize("title", ["", "題" * 21])
def test_a_document_leaves_out_an_empty_or_long_title(title: str) -> None:
    assert str(Document(title, FORMS["五言絕句"], PLAN, POEM)) == f"五言絕句，仄起不入韻，押尤韻\n{POEM}"


@given(titles.filter(bool), forms, plans)
def test_documents_round_trip(title: str, form: Form, plan: Plan) -> None:
    document = Document(title, form, plan, POEM)
    assert parse_document(str(document)) == document


@given(plans)
def test_plans_round_trip(plan: Plan) -> None:
    assert parse_plan(str(plan)) == plan


@pytest.mark.parametrize("text", ["", "平起入韻", "平起入韻，押董韻", "仄起不入韻，押尤韻。"])
def test_other_texts_are_no_plans(text: str) -> None:
    assert parse_plan(text) is None


@pytest.mark.parametrize("fields", [("平", None, None), ("上", True, "陽"), ("平", True, "董"), ("平", True, "")])
def test_a_half_plan_is_refused(fields: tuple[str, bool, str]) -> None:
    with pytest.raises(ValueError, match=r"plan|rhyme"):
        Plan(*fields)


@given(plans)
def test_replies_round_trip(plan: Plan) -> None:
    assert parse_reply(compose_reply(plan, POEM)) == Reply(plan, POEM)


def test_a_reply_may_lack_its_plan() -> None:
    assert parse_reply(POEM + "\n") == Reply(None, POEM)
    assert parse_reply("") == Reply(None, "")
    assert parse_reply("不拘格律") == Reply(IRREGULAR, "")


@given(titles, forms, st.none() | rhymes, st.none() | openings, st.booleans(), st.integers(0, 100))
def test_requests_round_trip(
    title: str, form: Form, rhyme: str | None, opening: str | None, irregular: bool, phrasing: int
) -> None:
    request = Request(form, title, rhyme, opening, irregular)
    assert parse_request(request.compose(phrasing)) == request


def test_requests_read_as_people_write_them() -> None:
    request = Request(FORMS["五言絕句"], "秋夜", rhyme="陽", opening="平")
    assert request.compose(1) == "請以〈秋夜〉為題，作一首五言絕句，押陽韻，平起。"
    assert Request(FORMS["五言絕句"], "秋夜").compose(0) == "寫一首五言絕句，題為〈秋夜〉。"
    assert len({request.compose(n) for n in range(len(TITLED_PHRASINGS))}) == len(TITLED_PHRASINGS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("可以用「押東韻」幫我寫七律《春望》嗎？", Request(FORMS["七言律詩"], "春望", rhyme="東")),
        ("來首五絕吧", Request(FORMS["五言絕句"])),
        ("今天天氣如何？", None),
        ("寫一篇〈五絕〉的介紹", None),
    ],
)
def test_free_wording_is_understood(text: str, expected: Request | None) -> None:
    assert parse_request(text) == expected


@given(st.text())
def test_no_text_breaks_the_parsers(text: str) -> None:
    parse_document(text)
    parse_request(text)
    parse_reply(text)
    find_form(text)
