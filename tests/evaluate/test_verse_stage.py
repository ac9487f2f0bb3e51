"""The stage `evaluate.verse`: each figure against a count made another way."""

import json
import lzma
import math
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from wenfang.core.errors import DataError
from wenfang.core.report import Reporter
from wenfang.data.prepare import PrepareConfig
from wenfang.data.prepare import run as prepare
from wenfang.engine import Completion, SamplingParams
from wenfang.evaluate.config import VerseConfig
from wenfang.evaluate.verse import Rates, render, run
from wenfang.text.verse import check_verse

QUIET = Reporter(console=Console(quiet=True))
FORMS = ("五言絕句", "七言絕句", "五言律詩", "七言律詩")
ROOT = Path(__file__).parents[2]

REGULAR = "白日依山盡，黃河入海流。\n欲窮千里目，更上一層樓。"
IRREGULAR = "春眠不覺曉，處處聞啼鳥。\n夜來風雨聲，花落知多少。"
"""春曉 rhymes in an oblique tone: an old-style poem, famous for not being regulated verse."""
OFF_TONE = "白日依山盡，黃河入海流。\n更上一層樓，欲窮千里流。"
"""Rhymes (流 twice), but its second couplet neither follows nor opposes."""
SHORT = "白日依山盡，黃河入海流。\n欲窮千里目。"


def evaluate(out: Path, model: Path, corpus: Path, **options: object) -> dict:
    out.mkdir(exist_ok=True)
    summary = run(VerseConfig(model=model, corpus=corpus, **options), out, QUIET)
    written = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert written["summary"] == summary
    return written


@pytest.fixture(scope="module")
def tang(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus whose validation split is half of the Tang extract's every 10th poem."""
    folder = tmp_path_factory.mktemp("tang")
    lines = lzma.decompress((ROOT / "data/verse/tang.tsv.xz").read_bytes()).decode().splitlines()[::10]
    (folder / "tang.tsv.xz").write_bytes(lzma.compress("\n".join(lines).encode()))
    (folder / "corpus").mkdir()
    prepare(PrepareConfig(source=folder, dynasties=("tang",), validation_share=0.45), folder / "corpus", QUIET)
    return folder / "corpus"


def test_rates_are_the_shares_of_what_the_judge_finds() -> None:
    rates = Rates.of([check_verse(poem) for poem in (REGULAR, REGULAR, OFF_TONE, IRREGULAR, SHORT)])
    assert rates == Rates(poems=5, well_formed=4 / 5, rhyme=3 / 5, regular=2 / 5)
    assert Rates.of([]) == Rates(poems=0, well_formed=0, rhyme=0, regular=0)


def test_people_and_chance_land_where_they_are_known_to(tang: Path, model_folder: Path, tmp_path: Path) -> None:
    rates = evaluate(tmp_path, model_folder, tang, poems=1, held_out=1)["rates"]
    rows = pq.read_table(tang / "validation.parquet").to_pylist()
    for form in FORMS:
        of_form = [row for row in rows if row["form"] == form]
        people, chance = rates["people"][form], rates["shuffled"][form]
        assert people["poems"] == chance["poems"] == len(of_form) > 50
        assert people["well_formed"] == chance["well_formed"] == 1
        # The plan was written by data.prepare, poem by poem.
        assert people["regular"] == pytest.approx(sum(row["plan"] != "不拘格律" for row in of_form) / len(of_form))
        assert chance["regular"] < 0.01
    # About 76 % of Tang quatrains of seven keep every rule; about 500 poems: three standard deviations are 6 %.
    assert rates["people"]["七言絕句"]["regular"] == pytest.approx(0.76, abs=0.06)
    assert rates["shuffled"]["七言絕句"]["regular"] == 0


def test_held_out_nats_are_those_of_transformers(corpus_folder: Path, model_folder: Path, tmp_path: Path) -> None:
    summary = evaluate(tmp_path, model_folder, corpus_folder, poems=1, batch=3)["summary"]
    theirs = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    nats = given_plan = characters = 0.0
    for row in pq.read_table(corpus_folder / "validation.parquet").to_pylist():
        irregular = "，不拘格律" if row["plan"] == "不拘格律" else ""
        talk = [
            {"role": "user", "content": f"寫一首{row['form']}，題為〈{row['title']}〉{irregular}。"},
            {"role": "assistant", "content": f"{row['plan']}\n{row['poem']}"},
        ]
        prompt = tokenizer.apply_chat_template(talk[:1], add_generation_prompt=True)["input_ids"]
        ids = tokenizer.apply_chat_template(talk)["input_ids"]
        plan = tokenizer(row["plan"] + "\n", add_special_tokens=False)["input_ids"]
        assert ids[len(prompt) :][: len(plan)] == plan
        with torch.no_grad():
            logits = theirs(torch.tensor([ids])).logits[0]
        each = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
        nats += each[len(prompt) - 1 :].sum().item()
        given_plan += each[len(prompt) + len(plan) - 1 :].sum().item()
        characters += len(row["poem"])
    assert summary["nats_per_character"] == pytest.approx(nats / characters, abs=2e-3)  # Rounded to a thousandth.
    assert summary["nats_per_character_given_plan"] == pytest.approx(given_plan / characters, abs=2e-3)
    assert summary["bits_per_character"] == pytest.approx(nats / characters / math.log(2), abs=2e-3)


class Scripted:
    """Takes the engine's place and answers each request with the next of some replies."""

    replies: tuple[str, ...] = ()

    def __init__(self, model: object, tokenizer: object, *, name: str, max_batch: int) -> None:
        self.tokenizer = tokenizer
        self.asked: Iterator[str] = iter(self.replies)

    def generate(self, prompts: Sequence[list[int]], params: SamplingParams) -> list[Completion]:
        return [Completion(next(self.asked), [], "stop") for _ in prompts]

    def close(self) -> None:
        self.asked = iter(())


def test_the_model_s_own_poems_are_judged_by_what_was_asked(
    corpus_folder: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    couplets = REGULAR.split("\n")
    Scripted.replies = (
        f"仄起不入韻，押尤韻\n{REGULAR}",  # 五言絕句, with its plan
        IRREGULAR,  # and one without
        REGULAR,  # 七言絕句 was asked for
        "",
        f"不拘格律\n{REGULAR}\n{REGULAR}",  # 五言律詩: shape and rhyme are right
        "抱歉，我不會。",
        couplets[0],  # 七言律詩
        "仄起不入韻，押尤韻",
    )
    monkeypatch.setattr("wenfang.evaluate.verse.Engine", Scripted)
    written = evaluate(tmp_path, model_folder, corpus_folder, poems=2)
    rates = {form: tuple(written["rates"]["model"][form].values()) for form in FORMS}
    assert rates["五言絕句"] == (2, 1.0, 0.5, 0.5)
    assert rates["七言絕句"] == (2, 0.0, 0.0, 0.0)
    assert rates["五言律詩"][:3] == (2, 0.5, 0.5)
    assert rates["七言律詩"] == (2, 0.0, 0.0, 0.0)
    assert written["summary"]["well_formed"] == pytest.approx(3 / 8, abs=1e-3)
    assert written["summary"]["rhyme"] == pytest.approx(2 / 8, abs=1e-3)
    assert written["summary"]["regular_qijue"] == 0
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [sample["reply"] for sample in samples] == list(Scripted.replies)
    assert samples[0]["violations"] == []
    assert all(sample["violations"] for sample in samples[1:4])
    assert all(f"寫一首{form}，題為〈" in samples[2 * i]["request"] for i, form in enumerate(FORMS))


def test_a_random_model_goes_the_whole_way(corpus_folder: Path, model_folder: Path, tmp_path: Path) -> None:
    written = evaluate(tmp_path / "a", model_folder, corpus_folder, poems=1, seed=1)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["README.md", "metrics.json", "samples.jsonl"]
    assert written["summary"]["well_formed"] == 0
    samples = (tmp_path / "a/samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(samples) == len(FORMS)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("engine")]
    readme = (tmp_path / "a/README.md").read_text(encoding="utf-8")
    assert "| model | 七言絕句 | 1 | 0.0% | 0.0% | 0.0% |" in readme
    assert f"{written['summary']['nats_per_character']} nats" in readme

    evaluate(tmp_path / "b", model_folder, corpus_folder, poems=1, seed=1)
    for name in ("README.md", "metrics.json", "samples.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    evaluate(tmp_path / "c", model_folder, corpus_folder, poems=1, seed=2)
    assert (tmp_path / "a/samples.jsonl").read_bytes() != (tmp_path / "c/samples.jsonl").read_bytes()


def test_the_table_speaks_both_languages(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {who: {"五言絕句": Rates(4, 1.0, 0.5, 0.25)} for who in ("model", "people", "shuffled")}
    assert "| people (held-out poets) | 五言絕句 | 4 | 100.0% | 50.0% | 25.0% |" in render(tables)
    monkeypatch.setenv("WENFANG_LANGUAGE", "zh")
    assert "| 同字打亂 | 五言絕句 | 4 | 100.0% | 50.0% | 25.0% |" in render(tables)


def _only(keep: Callable[[dict], bool]) -> Callable[[list[dict]], list[dict]]:
    return lambda rows: [row for row in rows if keep(row)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_only(lambda row: row["form"] != "七言絕句"), "holds no titled 七言絕句 to ask for"),
        (lambda rows: [row | {"title": ""} for row in rows], "holds no titled 五言絕句 to ask for"),
        (lambda rows: [row | {"title": "長" * 13} for row in rows], "holds no titled 五言絕句 to ask for"),
        (
            lambda rows: [row | {"plan": "隨意"} for row in rows],
            "validation.parquet' cannot be used: it has a poem of unknown form or plan: '五言絕句', '隨意'",
        ),
    ],
    ids=["a form missing", "no titles", "long titles", "no plan"],
)
def test_verse_that_cannot_be_asked_for_is_named(
    change: Callable[[list[dict]], list[dict]], said: str, corpus_folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    corpus = shutil.copytree(corpus_folder, tmp_path / "corpus")
    table = pq.read_table(corpus / "validation.parquet")
    pq.write_table(type(table).from_pylist(change(table.to_pylist())), corpus / "validation.parquet")
    with pytest.raises(DataError, match=said) as caught:
        evaluate(tmp_path / "out", model_folder, corpus)
    assert len(str(caught.value).splitlines()) <= 2
    assert list((tmp_path / "out").iterdir()) == []
