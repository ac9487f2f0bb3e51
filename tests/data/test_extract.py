"""The committed extract, and the script that rebuilds it, on a small package made up here."""

import importlib.util
import json
import lzma
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

EXTRACT = Path(__file__).parents[2] / "data" / "verse"

TOWER = ["白日依山盡，黃河入海流。", "欲窮千里目，更上一層樓。"]
QUIET = ["牀前看月光，疑是地上霜。", "舉頭望山月，低頭思故鄉。"]
POEMS = {
    "tang.0": [
        ("王之渙", "登鸛雀樓", TOWER),
        ("李白", "靜夜思二首 其一", QUIET),
        ("李白", "缺字", ["白日□山盡，黃河入海流。", *TOWER[1:]]),
        ("李白", "長短句", ["白日依山，黃河入海流。", *TOWER[1:]]),
        ("朱斌", "樓", ["白日依山盡，黃河入海長。", "欲窮千里目，更上一層臺。"]),
    ],
    "tang.1000": [("王之渙", "《別》（原注：佚）", ["楊柳東風樹，青青夾御河。", "近來攀折苦，應爲別離多。"])],
    "song.0": [
        ("吴甲", "简体", ["举头望明月，低头思故乡。", "头发为谁白，尘埃满面凉。"]),
        ("吴甲", "凉夜", ["黄葉滿涼夜，遥聞雁過樓。", "故人千里外，此夕共悲秋。"]),
        ("吴甲", "一個長得不能再長的題目", ["山路無行跡，松風有雨聲。", "老僧忘歲月，石上看雲生。"]),
    ],
}


@pytest.fixture(scope="session")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verse_build", EXTRACT / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package" / "dist" / "quantangshi"
    folder.mkdir(parents=True)
    for name, poems in POEMS.items():
        entries = [{"author": a, "title": t, "paragraphs": p, "id": "x"} for a, t, p in poems]
        (folder / f"poet.{name}.json").write_text(json.dumps(entries), encoding="utf-8")
    return tmp_path / "package"


def call(build: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["build.py", *map(str, arguments)])
    code = build.main()
    assert isinstance(code, int)
    return code


def read(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in lzma.decompress(path.read_bytes()).decode().splitlines()]


def test_what_is_kept_and_how(
    build: ModuleType, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(build, monkeypatch, package, "--out", tmp_path) == 0
    assert read(tmp_path / "tang.tsv.xz") == [
        ["王之渙", "登鸛雀樓", "白日依山盡黃河入海流欲窮千里目更上一層樓"],
        ["王之渙", "別", "楊柳東風樹青青夾御河近來攀折苦應為別離多"],
        ["李白", "靜夜思", "床前看月光疑是地上霜舉頭望山月低頭思故鄉"],
    ]
    assert read(tmp_path / "song.tsv.xz") == [["吳甲", "涼夜", "黃葉滿涼夜遙聞雁過樓故人千里外此夕共悲秋"]]


def test_reasons_are_counted(build: ModuleType, package: Path) -> None:
    _, counts = build.extract(package)
    assert counts == Counter(
        {
            "tang kept": 3,
            "tang missing character or note": 1,
            "tang other shape": 1,
            "tang duplicate": 1,
            "song Simplified": 1,
            "song long title": 1,
            "song kept": 1,
        }
    )


def test_check_tells_a_changed_extract(
    build: ModuleType,
    package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(build, monkeypatch, package, "--out", tmp_path, "--check") == 1  # Nothing is there yet.
    assert call(build, monkeypatch, package, "--out", tmp_path) == 0
    before = (tmp_path / "tang.tsv.xz").read_bytes()
    assert call(build, monkeypatch, package, "--out", tmp_path, "--check") == 0
    (tmp_path / "tang.tsv.xz").write_bytes(before[:-1])
    assert call(build, monkeypatch, package, "--out", tmp_path, "--check") == 1
    assert (tmp_path / "tang.tsv.xz").read_bytes() == before[:-1]
    assert "tang.tsv.xz" in capsys.readouterr().err


def test_another_folder_is_refused(build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="is this the unpacked npm package"):
        call(build, monkeypatch, tmp_path, "--out", tmp_path)


@pytest.mark.parametrize(
    ("title", "cleaned"),
    [
        ("秋懷二首 其一", "秋懷"),
        ("帝京篇十首 十", "帝京篇"),
        ("山居二十詠 茅軒", "山居二十詠 茅軒"),
        ("永明山居詩（六十九首） 十八", "永明山居詩"),
        ("讀《離騷》", "讀離騷"),
        ("二首", "二首"),
        ("八月十五", "八月十五"),
    ],
)
def test_titles(build: ModuleType, title: str, cleaned: str) -> None:
    assert build.clean_title(title) == cleaned


def test_a_poem_sharing_half_its_lines_repeats_the_earlier_one(build: ModuleType) -> None:
    seen = build.Duplicates()
    octave = tuple("甲乙丙丁戊己庚辛")
    assert not seen.add(octave)
    assert seen.add(("甲", "乙", "子", "丑"))  # Half of a quatrain.
    assert not seen.add(("甲", "寅", "卯", "辰"))  # A quarter.
    assert seen.add(("甲", "乙", "丙", "丁", "一", "二", "三", "四"))
    assert not seen.add(("甲", "乙", "丙", "五", "六", "七", "八", "九"))


def test_the_committed_extract_is_what_its_readme_says() -> None:
    readme = (EXTRACT / "README.md").read_text(encoding="utf-8")
    total = 0
    for dynasty in ("tang", "song"):
        rows = read(EXTRACT / f"{dynasty}.tsv.xz")
        lengths = Counter(len(poem) for _, _, poem in rows)
        figures = [*(lengths[n] for n in (20, 28, 40, 56)), len(rows), len({author for author, _, _ in rows})]
        figures.append((EXTRACT / f"{dynasty}.tsv.xz").stat().st_size)
        line = next(line for line in readme.splitlines() if f"`{dynasty}.tsv.xz` |" in line)
        assert [int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", line)] == figures
        total += len(rows)
    assert f"{total:,} poems" in readme
    assert sum(path.stat().st_size for path in EXTRACT.glob("*.xz")) <= 12_000_000


def test_the_committed_extract_holds_no_poem_twice() -> None:
    poems = [poem for dynasty in ("tang", "song") for _, _, poem in read(EXTRACT / f"{dynasty}.tsv.xz")]
    assert len(set(poems)) == len(poems)
    assert not re.search(r"[□○●囗，。]", "".join(poems))
