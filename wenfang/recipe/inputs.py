"""The artifacts a stage reads: references to earlier stages, folders from outside, and their fingerprints."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wenfang.core.artifact import MANIFEST, check_artifact, fingerprint_of, fingerprint_path
from wenfang.core.config import Config, Input, input_fields
from wenfang.core.errors import InputError
from wenfang.core.language import say
from wenfang.recipe.document import Keys

_REFERENCE = re.compile(r"\$\{\s*([^{}]*?)\s*\}")


def reference(text: str) -> str | None:
    """The stage that a value such as `${corpus}` stands for; None for any other value."""
    match = _REFERENCE.fullmatch(text)
    return match[1] if match else None


def strings(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """Every text inside a value, with where it stands."""
    if isinstance(value, str):
        yield keys, value
    elif isinstance(value, dict):
        for key, member in value.items():
            yield from strings(member, (*keys, key))
    elif isinstance(value, list):
        for i, member in enumerate(value):
            yield from strings(member, (*keys, i))


def connect(value: Any, outputs: Mapping[str, Path]) -> Any:
    """The value with each `${stage}` replaced by that stage's output folder."""
    if isinstance(value, str):
        stage = reference(value)
        return value if stage is None else str(outputs[stage])
    if isinstance(value, dict):
        return {key: connect(member, outputs) for key, member in value.items()}
    if isinstance(value, list):
        return [connect(member, outputs) for member in value]
    return value


def input_paths(config: Config) -> Iterator[tuple[Keys, Path, Input]]:
    """Each path a config reads from, with its field and the kind of artifact wanted there."""
    for field, wanted in input_fields(type(config)).items():
        for keys, path in _paths(getattr(config, field), (field,)):
            yield keys, path, wanted


def check_input(path: Path, wanted: Input) -> None:
    """Check that something of the wanted kind is there to be read.

    Raises:
        InputError: nothing there, another kind of artifact, a damaged one, or one that may not be read.
    """
    found = True
    try:
        if wanted.kind == "source":
            found = path.exists()
        else:
            check_artifact(path, wanted.kind)
        lacking = wanted.file is not None and not any((path / name).is_file() for name in (MANIFEST, wanted.file))
    except (OSError, ValueError) as error:  # A name too long, a folder closed to us, a NUL in the path.
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(say(zh=f"無法讀取 {str(path)!r}：{why}。", en=f"cannot read {str(path)!r}: {why}.")) from None
    if not found:
        raise InputError(
            say(
                zh=f"找不到 {str(path)!r}（從 {str(Path.cwd())!r} 找起）。請檢查路徑。",
                en=f"nothing is at {str(path)!r} (seen from {str(Path.cwd())!r}). Check the path.",
            )
        )
    if lacking:
        raise InputError(
            say(
                zh=f"{str(path)!r} 不是 {wanted.kind}：沒有 {wanted.file}。請檢查路徑。",
                en=f"{str(path)!r} is no {wanted.kind}: it has no {wanted.file}. Check the path.",
            )
        )


def input_fingerprints(config: Config, known: Mapping[Path, str] | None = None) -> dict[str, str]:
    """The fingerprint of each input, by field. `known` gives those of outputs that do not exist yet.

    Raises:
        InputError: an input is missing or cannot be read.
    """
    return {
        field: _fingerprint(value, known or {})
        for field in input_fields(type(config))
        if (value := getattr(config, field)) is not None
    }


def _fingerprint(value: Any, known: Mapping[Path, str]) -> str:
    if isinstance(value, Path):
        return known.get(value) or fingerprint_path(value)
    if isinstance(value, Mapping):
        return fingerprint_of({str(key): _fingerprint(member, known) for key, member in value.items()})
    return fingerprint_of([_fingerprint(member, known) for member in value])


def _paths(value: Any, keys: Keys) -> Iterator[tuple[Keys, Path]]:
    if isinstance(value, Path):
        yield keys, value
    elif isinstance(value, Mapping):
        for key, member in value.items():
            yield from _paths(member, (*keys, key))
    elif isinstance(value, (list, tuple)):
        for i, member in enumerate(value):
            yield from _paths(member, (*keys, i))
