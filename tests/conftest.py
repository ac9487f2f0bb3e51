"""What every test shares: messages in English, a small corpus of real verse, and a tokenizer trained on it."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, settings

from wenfang.core.report import Reporter
from wenfang.text.verse import Document, Plan, check_verse
from wenfang.tokenizer.train import TokenizerConfig
from wenfang.tokenizer.train import run as train_tokenizer

# Timings on a busy machine say nothing. To explain a failure Hypothesis traces every example, in which Python 3.11 can
# hang for ever when another thread asks for the interpreter at a bad moment (ceval.c: RESUME under DO_TRACING).
settings.register_profile("any machine", deadline=None, phases=set(Phase) - {Phase.explain})
settings.load_profile("any machine")

POEMS = {
    "登鸛雀樓": "白日依山盡，黃河入海流。\n欲窮千里目，更上一層樓。",
    "相思": "紅豆生南國，春來發幾枝。\n願君多採擷，此物最相思。",
    "早發白帝城": "朝辭白帝彩雲間，千里江陵一日還。\n兩岸猿聲啼不住，輕舟已過萬重山。",
    "楓橋夜泊": "月落烏啼霜滿天，江楓漁火對愁眠。\n姑蘇城外寒山寺，夜半鐘聲到客船。",
    "春望": "國破山河在，城春草木深。\n感時花濺淚，恨別鳥驚心。\n烽火連三月，家書抵萬金。\n白頭搔更短，渾欲不勝簪。",
    "山居秋暝": "空山新雨後，天氣晚來秋。\n明月松間照，清泉石上流。\n"
    "竹喧歸浣女，蓮動下漁舟。\n隨意春芳歇，王孫自可留。",
    "無題": "相見時難別亦難，東風無力百花殘。\n春蠶到死絲方盡，蠟炬成灰淚始乾。\n"
    "曉鏡但愁雲鬢改，夜吟應覺月光寒。\n蓬山此去無多路，青鳥殷勤為探看。",
    "登高": "風急天高猿嘯哀，渚清沙白鳥飛迴。\n無邊落木蕭蕭下，不盡長江滾滾來。\n"
    "萬里悲秋常作客，百年多病獨登臺。\n艱難苦恨繁霜鬢，潦倒新停濁酒杯。",
}

LONGEST = (
    "model/test_depth.py",
    "train/test_training_plan.py",
    "train/test_parallel.py",
    "e2e/test_whole_recipe.py",
    "model/test_ideas.py",
    "e2e/test_bad_input.py",
    "train/test_loop.py",
    "train/test_continue.py",
    "serve/test_server.py",
    "train/test_compare.py",
    "model/test_model_plan.py",
    "cli/test_serve_engines.py",
)
"""Files that take a minute or half of one, longest first."""


def pytest_configure() -> None:
    """English before any test is imported: the texts of some modules are made with them."""
    os.environ["WENFANG_LANGUAGE"] = "en"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: begun at the end, one of them would leave all workers but its own with nothing to do.
    (By itself xdist begins with files of many tests, which here are the quick ones; see `--no-loadscope-reorder`.)"""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    assert all(path.is_file() for path in place)
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight famous poems, two of each form, as a corpus; training and validation are the same."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for title, poem in POEMS.items():
        check = check_verse(poem)
        assert check.form is not None
        plan: Plan = check.plan
        text = str(Document(title, check.form, plan, poem))
        rows.append(
            {
                "text": text, "title": title, "author": "唐人", "dynasty": "唐",
                "form": check.form.name, "plan": str(plan), "poem": poem,
            }
        )  # fmt: skip
    table = pa.Table.from_pylist(rows)
    for split in ("train", "validation"):
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="session")
def tokenizer_folder(corpus_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer trained on those poems, about 500 ids."""
    folder = tmp_path_factory.mktemp("tokenizer")
    config = TokenizerConfig(corpus=corpus_folder, vocab_size=700, character_coverage=1.0)
    train_tokenizer(config, folder, Reporter())
    return folder
