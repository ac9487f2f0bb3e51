"""YAML as a recipe reads it: typed scalars, places, and refusals that say where."""

from collections.abc import Callable
from pathlib import Path

import pytest

from wenfang.core.errors import RecipeError
from wenfang.recipe.document import LARGEST_BYTES, parse_value, read_document

Write = Callable[[str], Path]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1_000_000", 1_000_000),
        ("0x1F", 31),
        ("-2.5", -2.5),
        ("no", "no"),
        ("1:30", "1:30"),
        ("true", True),
        ("~", None),
        ("", None),
        ('"5"', "5"),
        ("五言絕句", "五言絕句"),
        ("[1, {a: b}]", [1, {"a": "b"}]),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    parsed = parse_value(text, "here")
    assert parsed == value
    assert type(parsed) is type(value)


def test_places_name_the_line_of_the_key(write: Write) -> None:
    _, places = read_document(write("name: a\nstages:\n  one:\n    with:\n      list:\n        - 1\n        - 2\n"))
    assert places.of(("stages", "one", "with", "list")) == "poet.yaml:5"
    assert places.of(("stages", "one", "with", "list", 1)) == "poet.yaml:7"
    assert places.of(("stages", "one", "with", "absent")) == "poet.yaml:4"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "poet.yaml: the file is empty"),
        ("a: 1\nb: [\n", "poet.yaml:3: the YAML cannot be read"),
        ("a: 1\nb: 2\na: 3\n", "poet.yaml:3: the key 'a' is already given at poet.yaml:1"),
        ("a: &x 1\nb: *x\n", "poet.yaml:2: the YAML cannot be read: aliases"),
        ("a: 1\n2: b\n", "poet.yaml:2: a key must be text"),
        ("a: 1\n[x]: b\n", "poet.yaml:2: a key must be text"),
        ("a: !!python/object:os.system 1\n", "poet.yaml:1: recipes do not use the tag '!!python/object:os.system'"),
        ("a: 1\n---\nb: 1\n", "poet.yaml:2: the YAML cannot be read"),
        ("a: 1\nb: \x01\n", "poet.yaml:2: the YAML cannot be read"),
        ('a: "\\ud800"\n', "poet.yaml:1: a value that cannot be read"),
        ('a: "\\UFFFFFFFF"\n', "poet.yaml:1: the YAML cannot be read"),
        ("a: " + "9" * 5000, "poet.yaml:1: a value that cannot be read"),
        ("a: " + "[" * 2000, "poet.yaml:1: the YAML cannot be read: nested too deeply"),
        ("\tname: x", "poet.yaml:1: the YAML cannot be read"),
    ],
)
def test_unreadable_yaml_is_refused_with_its_line(write: Write, text: str, said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        read_document(write(text))
    assert str(raised.value).startswith(said)
    assert str(raised.value).count("\n") <= 1


def test_missing_folder_binary_and_large_files(place: Path) -> None:
    with pytest.raises(RecipeError, match=r"absent\.yaml: no such recipe file"):
        read_document(Path("absent.yaml"))
    with pytest.raises(RecipeError, match="this is a folder"):
        read_document(place)
    (place / "model.gguf").write_bytes(b"GGUF\xff\xfe")
    with pytest.raises(RecipeError, match="byte 4 is not UTF-8"):
        read_document(place / "model.gguf")
    (place / "corpus.txt").write_bytes(b"a" * (LARGEST_BYTES + 1))
    with pytest.raises(RecipeError, match="too large"):
        read_document(place / "corpus.txt")
    with pytest.raises(RecipeError, match="cannot read"):
        read_document(place / ("x" * 300))
    with pytest.raises(RecipeError, match="cannot read"):
        read_document(Path("a\0b"))


def test_byte_order_mark_is_no_part_of_the_first_key(place: Path) -> None:
    (place / "bom.yaml").write_bytes("name: 詩".encode("utf-8-sig"))
    assert read_document(place / "bom.yaml")[0] == {"name": "詩"}
