"""A recipe's YAML as plain values that remember the line each was written on.

Scalars follow the YAML 1.2 core schema, so `1e-3` is a number and `no` is a word; `1_000_000` is a number too.
Aliases, tags of other types and duplicate keys are errors.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wenfang.core.errors import RecipeError
from wenfang.core.language import say

Keys = tuple[str | int, ...]
"""Where a value stands inside a document: `("stages", "sft", "with", "epochs")`."""

LARGEST_BYTES = 256_000
DEEPEST = 32
_TAG = "tag:yaml.org,2002:"
_INTEGER_BASES = {"0x": 16, "0o": 8}


@dataclass
class Places:
    """Where each value was written, in words ready to stand before a message."""

    source: str
    known: dict[Keys, str] = field(default_factory=dict)

    def of(self, keys: Keys) -> str:
        """The place of a value, or of the nearest thing around it that was written down."""
        for length in range(len(keys), -1, -1):
            if (found := self.known.get(keys[:length])) is not None:
                return found
        return self.source

    def replace(self, keys: Keys, place: str) -> None:
        """Everything at and under `keys` now comes from `place`."""
        self.known = {known: at for known, at in self.known.items() if known[: len(keys)] != keys}
        self.known[keys] = place


def read_document(path: Path) -> tuple[Any, Places]:
    """The values of a YAML file and their places.

    Raises:
        RecipeError: no such file, not a text file, not YAML, or YAML that a recipe does not use.
    """
    text = _read_text(path)
    places = Places(str(path))
    root = _compose(text, str(path))
    if root is None:
        raise RecipeError(say(zh=f"{path}：檔案是空的。", en=f"{path}: the file is empty."))
    return _value(root, (), places), places


def parse_value(text: str, place: str) -> Any:
    """One YAML value from the command line, such as the `2` of `sft.epochs=2`.

    Raises:
        RecipeError: not YAML; the message names `place`.
    """
    node = _compose(text, place, numbered=False)
    if node is None:
        return None
    places = Places(place)
    places.known[()] = place
    return _value(node, (), places, numbered=False)


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST_BYTES:
            raise RecipeError(say(zh=f"{path}：檔案太大，不像配方。", en=f"{path}: too large to be a recipe."))
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        hint = say(zh="找不到配方檔。請檢查路徑。", en="no such recipe file. Check the path.")
    except IsADirectoryError:
        hint = say(zh="這是資料夾，不是配方檔。", en="this is a folder, not a recipe file.")
    except UnicodeDecodeError as error:
        hint = say(
            zh=f"第 {error.start} 位元組不是 UTF-8。請將檔案存成 UTF-8。",
            en=f"byte {error.start} is not UTF-8. Save the file as UTF-8.",
        )
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path.
        reason = getattr(error, "strerror", None) or error
        hint = say(zh=f"無法讀取配方檔：{reason}。", en=f"cannot read the recipe: {reason}.")
    raise RecipeError(f"{path}: {hint}") from None


class _Loader(yaml.SafeLoader):
    """Composes nodes and resolves scalars; refuses what would make a document larger than it looks."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self._refuse(
                say(zh="不支援別名（*），請直接寫出該值", en="aliases (*) are not used here; write the value out")
            )
        if self.depth == DEEPEST:
            self._refuse(say(zh="巢狀太深", en="nested too deeply"))
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def _refuse(self, problem: str) -> None:
        peek: Any = self.peek_event
        raise yaml.MarkedYAMLError(None, None, problem, peek().start_mark)


_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), ["", *_first])


def _compose(text: str, source: str, *, numbered: bool = True) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, problem = mark.line + 1 if mark else 1, error.problem or error.context or ""
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        problem = say(zh=f"不允許的字元 {error.character!r}", en=f"a character {error.character!r} that YAML forbids")
    except (ValueError, OverflowError) as error:  # An escape such as "\UFFFFFFFF" that is no character.
        line, problem = 1, str(error)
    place = f"{source}:{line}" if numbered else source
    raise RecipeError(
        say(
            zh=f"{place}: 無法讀懂這段 YAML：{problem}。請檢查縮排、冒號與引號。",
            en=f"{place}: the YAML cannot be read: {problem}. Check indentation, colons and quotes.",
        )
    )


def _value(node: yaml.Node, keys: Keys, places: Places, *, numbered: bool = True) -> Any:
    place = f"{places.source}:{node.start_mark.line + 1}" if numbered else places.source
    places.known.setdefault(keys, place)
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        return [_value(item, (*keys, i), places, numbered=numbered) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        return _mapping(node, keys, places, numbered=numbered)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, place)
    raise _unsupported(node.tag, place)


def _mapping(node: yaml.MappingNode, keys: Keys, places: Places, *, numbered: bool) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        place = f"{places.source}:{key_node.start_mark.line + 1}" if numbered else places.source
        key = _scalar(key_node, place) if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            raise RecipeError(
                say(
                    zh=f"{place}: 鍵必須是文字；若是數字請加引號。",
                    en=f"{place}: a key must be text; quote it if it is a number.",
                )
            )
        if key in values:
            first = places.of((*keys, key))
            raise RecipeError(
                say(
                    zh=f"{place}: 鍵 {key!r} 重複，先前寫在 {first}。請刪去其一。",
                    en=f"{place}: the key {key!r} is already given at {first}. Remove one of them.",
                )
            )
        places.known[(*keys, key)] = place
        values[key] = _value(value_node, (*keys, key), places, numbered=numbered)
    return values


def _scalar(node: yaml.ScalarNode, place: str) -> str | int | float | bool | None:
    text: str = node.value
    tag = node.tag.removeprefix(_TAG)
    try:
        text.encode()  # A lone surrogate from an escape is no text that anything else could read.
        if tag == "str":
            return text
        if tag == "null":
            return None
        if tag == "bool" and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if tag == "int":
            return int(text.replace("_", ""), _INTEGER_BASES.get(text[:2], 10))
        if tag == "float":
            return float(text.replace("_", ""))
    except ValueError:
        raise RecipeError(
            say(zh=f"{place}: 無法讀取的值 {text[:40]!r}。", en=f"{place}: a value that cannot be read: {text[:40]!r}.")
        ) from None
    raise _unsupported(node.tag, place)


def _unsupported(tag: str, place: str) -> RecipeError:
    name = tag.replace(_TAG, "!!")
    return RecipeError(
        say(zh=f"{place}: 配方不使用標籤 {name!r}。", en=f"{place}: recipes do not use the tag {name!r}.")
    )
