"""Whatever is wrong, one or two lines say what, where and what next; the exit code is 1 or 2, nothing is left."""

import json
import lzma
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from e2e.tiny import RECIPE, Finished, wenfang

from wenfang.cli import main
from wenfang.model import Decoder, DecoderConfig, save_model
from wenfang.serve import claim_port

Damage = Callable[[Path], object]


@pytest.fixture
def refused(place: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail; returns what it said, after checking how it said it and what it left."""

    def _refused(*words: str) -> str:
        before = _everything(place)
        capfd.readouterr()
        assert (
            main(words) == 2
        )  # A mistake of ours would pass through as it is, to be shown by the hook of the process.
        out, err = capfd.readouterr()
        # Apart from the forecast and the progress made before.
        said = [line for line in err.splitlines() if not re.search(r"^Forecast: | \d+/\d+$", line)]
        assert out == ""
        assert 1 <= len(said) <= 2
        assert "Traceback" not in err
        assert _everything(place) == before
        return "\n".join(said)

    return _refused


def _everything(place: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in place.rglob("*")}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("layers: 1", "layres: 1", "tiny.yaml:18: pretrain (train.pretrain): there is no option 'layres'. Did you"),
        ("steps: 60", "steps: many", "tiny.yaml:25: pretrain (train.pretrain): 'steps' is 'many'; it must be a whole"),
        (
            "kv_heads: 1",
            "kv_heads: 3",
            "tiny.yaml:14: pretrain (train.pretrain): heads (2) must be a multiple of kv_heads (3)",
        ),
        ("uses: train.sft", "uses: train.stf", "tiny.yaml:29: there is no stage 'train.stf'. Did you mean 'train.sft'"),
        ("${tokenizer}", "${tokeniser}", "tiny.yaml:16: no stage is named 'tokeniser'. Did you mean 'tokenizer'?"),
        ("${sft}", "${corpus}", "tiny.yaml:40: '${corpus}' makes a corpus; a model is needed here. Use ${pretrain},"),
        ("source: verse", "source: vrese", "tiny.yaml:5: source: nothing is at 'vrese'"),
        ("dynasties: [tang]", "dynasties: [ming]", "tiny.yaml:5: corpus (data.prepare): 'dynasties.0' is 'ming'"),
        ("vocab_size: 600", "vocab_size: 200", "tiny.yaml:11: tokenizer (tokenizer.train): vocab_size is 200; it must"),
        ("name: tiny", "name: [tiny", "tiny.yaml:2: the YAML cannot be read"),
    ],
)
def test_a_mistake_in_a_recipe_is_found_before_anything_runs(
    place: Path, refused: Callable[..., str], old: str, new: str, said: str
) -> None:
    (place / "tiny.yaml").write_text(RECIPE.replace(old, new, 1), encoding="utf-8")
    assert refused("run", "tiny.yaml").startswith(said)
    assert refused("run", "tiny.yaml", "--dry-run").startswith(said)


def _lines(number: int) -> str:
    return "\n".join(["李白\t靜夜思\t床前明月光疑是地上霜舉頭望明月低頭思故鄉"] * number)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda source: source.unlink(), "No verse at 'verse/tang.tsv.xz'. Check `source`"),
        (lambda source: source.write_bytes(source.read_bytes()[:-100]), "'verse/tang.tsv.xz' is not a whole xz file"),
        (lambda source: source.write_text(_lines(9)), "'verse/tang.tsv.xz' is not a whole xz file"),
        (lambda source: _compress(source, ""), "The 0 poems in 'verse' leave nothing for train"),
        (lambda source: _compress(source, _lines(9)), "The 9 poems in 'verse' leave nothing for validation"),
        (lambda source: _compress(source, _lines(1) + "歌"), "'verse/tang.tsv.xz', line 1: needs author, title"),
    ],
    ids=["missing", "cut off", "not packed", "empty", "one poet", "not a poem"],
)
def test_a_source_that_cannot_be_used_is_named(
    place: Path, refused: Callable[..., str], damage: Damage, said: str
) -> None:
    damage(place / "verse/tang.tsv.xz")
    assert refused("data", "prepare", "--source", "verse", "--dynasties", "tang", "--out", "out").startswith(said)


def _compress(path: Path, text: str) -> None:
    path.write_bytes(lzma.compress(text.encode()))


def _rewrite(change: Callable[[pa.Table], pa.Table]) -> Damage:
    """Another table in both splits."""

    def damage(corpus: Path) -> None:
        for path in corpus.glob("*.parquet"):
            pq.write_table(change(pq.read_table(path)), path)

    return damage


def _each(change: Callable[[Path], object]) -> Damage:
    """Something done to the file of each split."""
    return lambda corpus: [change(path) for path in list(corpus.glob("*.parquet"))]


def _hollow(parquet: bytes) -> bytes:
    """A Parquet file with a sound description of its columns and nothing sound in them."""
    footer = int.from_bytes(parquet[-8:-4], "little") + 8
    return parquet[:4] + bytes(len(parquet) - footer - 4) + parquet[-footer:]


def _not_utf8() -> pa.Array:
    return pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())


CORPORA: dict[str, tuple[Damage, str]] = {
    "absent": (shutil.rmtree, "corpus: No folder 'bad'. Check the path."),
    "no files": (_each(Path.unlink), "corpus: 'bad' is no corpus: it has no train.parquet."),
    "cut off": (_each(lambda path: path.write_bytes(path.read_bytes()[:-500])), "'bad"),
    "not parquet": (_each(lambda path: path.write_text("床前明月光")), "'bad"),
    "damaged inside": (_each(lambda path: path.write_bytes(_hollow(path.read_bytes()))), "'bad"),
    "other columns": (_rewrite(lambda table: table.select(["author"])), "'bad"),
    "other types": (_rewrite(lambda table: pa.table({name: [1] for name in table.column_names})), "'bad"),
    "missing values": (
        _rewrite(lambda table: pa.table({n: pa.array([None], pa.string()) for n in table.column_names})),
        "'bad",
    ),
    "not UTF-8": (_rewrite(lambda table: pa.table({n: _not_utf8() for n in table.column_names})), "'bad"),
    "empty": (_rewrite(lambda table: table.slice(0, 0)), "bad"),
    "blank": (_rewrite(lambda table: pa.table({name: [""] for name in table.column_names})), "bad"),
    "a model": (lambda corpus: corpus.joinpath("wenfang.json").write_text(_manifest("model")), "is a model; a corpus"),
    "manifest cut off": (lambda corpus: corpus.joinpath("wenfang.json").write_text("{"), "wenfang.json' is damaged."),
    "changed since": (
        lambda corpus: corpus.joinpath("wenfang.json").write_text(_manifest("corpus", {"train.parquet": 5})),
        "bytes instead of 5: it was cut off or changed. Run data.prepare again.",
    ),
}


def _manifest(kind: str, sizes: dict[str, int] | None = None) -> str:
    files = {name: {"bytes": size, "sha256": ""} for name, size in (sizes or {}).items()}
    values = {"kind": kind, "stage": "data.prepare", "fingerprint": "0" * 16, "seconds": 1, "files": files}
    return json.dumps({**values, "config": {}, "inputs": {}, "summary": {}})


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("stage", ["data.converse", "tokenizer.train", "train.pretrain", "evaluate.verse"])
def test_a_corpus_that_cannot_be_used_is_named_by_every_stage_that_reads_one(
    finished: Finished, place: Path, refused: Callable[..., str], stage: str, name: str
) -> None:
    for file in ("train.parquet", "validation.parquet"):  # Without its manifest: a corpus from anywhere.
        (place / "bad").mkdir(exist_ok=True)
        shutil.copyfile(finished.output("corpus") / file, place / "bad" / file)
    damage, said = CORPORA[name]
    damage(place / "bad")
    more = {
        "train.pretrain": ("--tokenizer", str(finished.output("tokenizer")), "--steps", "1"),
        "evaluate.verse": ("--model", str(finished.output("sft")), "--poems", "1", "--held-out", "1"),
    }
    assert said in refused(*stage.split("."), "--corpus", "bad", *more.get(stage, ()), "--out", "out")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is not"),
        ('{"messages": 5}', "line 2"),
        ('{"messages": ["a"]}', "line 2"),
        ('{"messages": [{"role": "robot", "content": "a"}]}', "line 2"),
        ('{"messages": [{"role": "user", "content": ["a"]}]}', "line 2"),
        ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "line 2"),
        ('{"messages": []}', "line 2"),
        ("[]", "line 2"),
    ],
)
def test_a_conversation_that_cannot_be_read_is_named(
    finished: Finished, place: Path, refused: Callable[..., str], line: str, said: str
) -> None:
    (place / "bad").mkdir()
    for split in ("train", "validation"):
        text = (finished.output("conversations") / f"{split}.jsonl").read_text(encoding="utf-8")
        (place / f"bad/{split}.jsonl").write_text(text.splitlines()[0] + "\n" + line + "\n", encoding="utf-8")
    words = ("train", "sft", "--conversations", "bad", "--model", str(finished.output("pretrain")))
    message = refused(*words, "--context", "320", "--steps", "1", "--out", "out")
    assert "train.jsonl" in message
    assert said in message


def test_a_vocabulary_smaller_than_the_byte_alphabet_is_refused(
    finished: Finished, refused: Callable[..., str]
) -> None:
    corpus = str(finished.output("corpus"))
    said = refused("tokenizer", "train", "--corpus", corpus, "--vocab-size", "256", "--out", "out")
    assert "vocab_size is 256; it must be at least 263: 256 bytes, the special tokens and one character" in said


MODELS: dict[str, Damage] = {
    "config.json missing": lambda folder: (folder / "config.json").unlink(),
    "config.json cut off": lambda folder: _cut(folder / "config.json"),
    "model.safetensors missing": lambda folder: (folder / "model.safetensors").unlink(),
    "model.safetensors cut off": lambda folder: _cut(folder / "model.safetensors"),
    "tokenizer.json missing": lambda folder: (folder / "tokenizer.json").unlink(),
    "tokenizer.json cut off": lambda folder: _cut(folder / "tokenizer.json"),
    "tokenizer_config.json missing": lambda folder: (folder / "tokenizer_config.json").unlink(),
    "tokenizer_config.json cut off": lambda folder: _cut(folder / "tokenizer_config.json"),
}


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder wrongly taken for a good one must fail the test, not serve until the end of time."""
    monkeypatch.setattr("wenfang.serve.run_server", lambda *_, **__: pytest.fail("the server was started"))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("origin", ["made here", "from elsewhere"])
@pytest.mark.parametrize("words", ["chat {} --once 秋", "serve {} --port 0", "studio {} --port 0"])
@pytest.mark.usefixtures("no_server")
def test_a_model_folder_with_a_bad_file_is_refused_by_whatever_opens_it(
    finished: Finished, place: Path, refused: Callable[..., str], words: str, origin: str, name: str
) -> None:
    model = shutil.copytree(finished.output("sft"), place / "model")
    if origin == "from elsewhere":
        (model / "wenfang.json").unlink()
    MODELS[name](model)
    said = refused(*words.format("model").split())
    # The tokenizer speaks of its folder when one of its files cannot be read.
    assert name.split()[0] in said or "The tokenizer in 'model' cannot be read" in said


@pytest.mark.usefixtures("no_server")
def test_a_model_smaller_than_its_tokenizer_is_refused(
    place: Path, refused: Callable[..., str], tokenizer_folder: Path
) -> None:
    shape = DecoderConfig(vocab_size=300, dim=16, layers=1, heads=2, kv_heads=1, head_dim=8, hidden=32)
    (place / "model").mkdir()
    save_model(Decoder(shape), place / "model", tokenizer=tokenizer_folder, bos_id=1, end_id=2, card="")
    for words in ("chat model --once 白日依山盡", "serve model --port 0", "studio model --port 0"):
        assert "ids, the model knows 300." in refused(*words.split())


@pytest.mark.parametrize(
    "words",
    [
        "data prepare --source verse --dynasties tang",
        "tokenizer train --corpus {corpus} --vocab-size 600",
        "train pretrain --corpus {corpus} --tokenizer {tokenizer} --dim 16 --layers 1 --steps 1 --no-compile",
    ],
    ids=lambda words: " ".join(words.split()[:2]),
)
def test_a_disk_that_takes_no_more_is_one_line(finished: Finished, place: Path, words: str) -> None:
    """Each library that writes files fails in its own way: here no file may grow beyond 12 kB."""
    folders = {stage: str(finished.output(stage)) for stage in ("corpus", "tokenizer")}
    _, said = wenfang(place, *words.format(**folders).split(), "--out", "out", code=2, largest_file_bytes=12_000)
    assert said.splitlines()[-1].startswith(str(place / "out"))
    assert "would exceed the limit" in said.splitlines()[-1]
    assert "unexpected" not in said  # What the command says of a mistake of ours.
    assert not (place / "out").exists()


def test_real_processes_end_with_a_code_and_a_line(finished: Finished, place: Path) -> None:
    """What the tests above call in this process, four times as the shell would."""
    model = shutil.copytree(finished.output("sft"), place / "model")
    with claim_port("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        for command in ("serve", "studio"):
            out, said = wenfang(place, command, "model", "--port", port, code=2)
            assert (out, len(said.splitlines())) == ("", 1)
            assert f"Port {port} on 127.0.0.1 is already in use." in said
    _cut(model / "model.safetensors")
    out, said = wenfang(place, "chat", "model", "--once", "秋", code=2)
    assert (out, len(said.splitlines())) == ("", 1)
    assert "it was cut off or changed. Run train.sft again." in said
    out, said = wenfang(place, "run", "tiny.yaml", "sft.stpes=1", code=2, WENFANG_LANGUAGE="zh")
    assert (out, len(said.splitlines())) == ("", 1)
    assert "沒有名為 'stpes' 的選項。是否指 'steps'？" in said


def test_a_failed_recipe_keeps_what_was_finished(place: Path) -> None:
    _, said = wenfang(place, "run", "tiny.yaml", "conversations.dynasties=[song]", code=2)
    assert said.splitlines()[-1].startswith("No poem of train in 'runs/tiny/corpus/")
    assert said.splitlines()[-1].endswith("is left. Relax `dynasties`, `max_title_characters` or `regular_only`.")
    run = json.loads((place / "runs/tiny/run.json").read_text(encoding="utf-8"))
    assert list(run["stages"]) == ["corpus"]
    assert not list(place.rglob("*.partial"))
