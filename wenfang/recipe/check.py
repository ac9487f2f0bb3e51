"""Checks a whole recipe against the stages' typed configs before anything runs."""

import graphlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from wenfang.core.config import Config, input_fields
from wenfang.core.errors import InputError, RecipeError, nearest
from wenfang.core.language import say
from wenfang.recipe.document import Keys, Places, parse_value, read_document
from wenfang.recipe.inputs import check_input, connect, input_paths, reference, strings
from wenfang.recipe.reasons import first_error, reason
from wenfang.recipe.stages import STAGES, Stage

_NAME = re.compile(r"[^\W_][\w-]{0,63}")
"""Names become folders and the first part of an override, so they hold no dot and no slash."""


@dataclass(frozen=True)
class Step:
    """One named stage of a recipe, its values as written: `${id}` still stands for an output."""

    id: str
    stage: Stage
    values: dict[str, Any]
    places: Places
    needs: frozenset[str]
    """Ids of the stages whose outputs it reads."""

    def place(self, *keys: str | int) -> str:
        """Where one of its values was written."""
        return self.places.of(("stages", self.id, "with", *keys))

    def config(self, outputs: Mapping[str, Path]) -> Config:
        """Its typed config with each reference replaced by an output folder.

        Raises:
            RecipeError: unknown option, wrong type, missing value.
        """
        return _validate(self.stage, connect(self.values, outputs), self)


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; its steps stand in the order they run."""

    name: str
    steps: tuple[Step, ...]


def load_recipe(path: Path, overrides: Sequence[str] = (), *, stages: Mapping[str, Stage] = STAGES) -> Recipe:
    """Read a recipe, apply overrides such as `sft.epochs=2`, and check all of it.

    Raises:
        RecipeError: anything that would keep the recipe from running as written, with file and line.
    """
    document, places = read_document(path)
    _check_keys(document, (), ("name", "stages"), places, required=("name", "stages"))
    recipe_name = _check_name(document["name"], places.of(("name",)))
    written = document["stages"]
    if not isinstance(written, dict) or not written:
        raise RecipeError(
            say(
                zh=f"{places.of(('stages',))}: 'stages' 應為至少一個階段，寫成 `名稱: {{uses: …}}`。",
                en=f"{places.of(('stages',))}: 'stages' must hold at least one stage, as `name: {{uses: …}}`.",
            )
        )
    uses = {name: _check_step(name, written[name], places, stages) for name in written}
    for argument in overrides:
        _override(argument, written, places)
    steps = [_step(name, uses[name], written[name].get("with") or {}, places) for name in written]
    for step in steps:
        _check_values(step, uses)
    return Recipe(recipe_name, tuple(_in_order(steps)))


def _check_keys(value: Any, keys: Keys, known: tuple[str, ...], places: Places, *, required: tuple[str, ...]) -> None:
    place = places.of(keys)
    if not isinstance(value, dict):
        wanted = ", ".join(f"`{key}:`" for key in known)
        raise RecipeError(say(zh=f"{place}: 這裡應寫 {wanted}。", en=f"{place}: expected the keys {wanted} here."))
    for key in value:
        if key not in known:
            hint = nearest(key, known) or say(zh=f"可用的有 {'、'.join(known)}。", en=f"Known are {', '.join(known)}.")
            at = places.of((*keys, key))
            raise RecipeError(say(zh=f"{at}: 不認得的鍵 {key!r}。{hint}", en=f"{at}: unknown key {key!r}. {hint}"))
    for key in required:
        if key not in value:
            raise RecipeError(say(zh=f"{place}: 缺少 {key!r}。", en=f"{place}: {key!r} is missing."))


def _check_name(name: Any, place: str) -> str:
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise RecipeError(
        say(
            zh=f"{place}: 名稱 {name!r} 應為文字、數字、- 或 _，以文字或數字開頭，至多 64 字；純數字請加引號。",
            en=f"{place}: the name {name!r} must be letters, digits, - or _, begin with a letter or digit "
            "and have at most 64; quote a bare number.",
        )
    )


def _check_step(name: str, value: Any, places: Places, stages: Mapping[str, Stage]) -> Stage:
    keys = ("stages", name)
    _check_name(name, places.of(keys))
    _check_keys(value, keys, ("uses", "with"), places, required=("uses",))
    uses, place = value["uses"], places.of((*keys, "uses"))
    if not isinstance(uses, str) or uses not in stages:
        hint = nearest(str(uses), stages) or say(
            zh=f"可用的有 {'、'.join(stages)}。", en=f"Known are {', '.join(stages)}."
        )
        raise RecipeError(
            say(zh=f"{place}: 沒有階段 {uses!r}。{hint}", en=f"{place}: there is no stage {uses!r}. {hint}")
        )
    if not isinstance(value.get("with"), dict | None):
        at = places.of((*keys, "with"))
        raise RecipeError(
            say(
                zh=f"{at}: 'with' 應為選項，寫成 `選項: 值`。",
                en=f"{at}: 'with' must hold options, as `option: value`.",
            )
        )
    return stages[uses]


def _override(argument: str, written: dict[str, Any], places: Places) -> None:
    """Set one value from the command line in place of what the recipe says."""
    place = say(zh=f"參數 {argument!r}", en=f"argument {argument!r}")
    target, equals, text = argument.partition("=")
    name, *path = target.split(".")
    if not equals or not path or not all(path):
        raise RecipeError(
            say(
                zh=f"{place}: 請寫成 階段.選項=值，例如 sft.epochs=2。",
                en=f"{place}: write stage.option=value, such as sft.epochs=2.",
            )
        )
    if name not in written:
        hint = _hint(name, written)
        raise RecipeError(
            say(zh=f"{place}: 配方裡沒有 {name!r}。{hint}", en=f"{place}: the recipe has no {name!r}. {hint}")
        )
    step: dict[str, Any] = written[name]
    inner = step["with"] = step.get("with") or {}
    for key in path[:-1]:
        inner = inner.setdefault(key, {})
        if not isinstance(inner, dict):
            raise RecipeError(
                say(zh=f"{place}: {key!r} 不含其他選項。", en=f"{place}: {key!r} does not hold further options.")
            )
    inner[path[-1]] = parse_value(text, place)
    places.replace(("stages", name, "with", *path), place)


def _step(name: str, stage: Stage, values: dict[str, Any], places: Places) -> Step:
    needs = frozenset(target for _, text in strings(values) if (target := reference(text)) is not None)
    return Step(name, stage, values, places, needs)


def _check_values(step: Step, uses: Mapping[str, Stage]) -> None:
    """Check options, then references, then that what comes from outside is there."""
    stand_ins = {need: Path(f"${{{need}}}") for need in step.needs}
    config = step.config(stand_ins)
    wanted = input_fields(type(config))
    for keys, text in strings(step.values):
        target = reference(text)
        if target is not None and keys[0] in wanted:
            _check_reference(target, wanted[str(keys[0])].kind, step.place(*keys), uses)
        elif "${" in text:
            fields = ", ".join(wanted) or say(zh="（無）", en="(none)")
            raise RecipeError(
                say(
                    zh=f"{step.place(*keys)}: {text!r} 只能當作輸入欄位的整個值；"
                    f"{step.stage.name} 的輸入欄位：{fields}。",
                    en=f"{step.place(*keys)}: {text!r} can only be the whole value of an input; "
                    f"{step.stage.name} has the inputs {fields}.",
                )
            )
    for keys, path, marker in input_paths(config):
        if path not in stand_ins.values():
            try:
                check_input(path, marker)
            except InputError as error:
                raise RecipeError(f"{step.place(*keys)}: {keys[0]}: {error}") from None


def _check_reference(target: str, kind: str, place: str, uses: Mapping[str, Stage]) -> None:
    if target not in uses:
        hint = _hint(target, uses)
        raise RecipeError(
            say(zh=f"{place}: 沒有名為 {target!r} 的階段。{hint}", en=f"{place}: no stage is named {target!r}. {hint}")
        )
    made = uses[target].kind
    if made != kind:
        fitting = [f"${{{name}}}" for name, stage in uses.items() if stage.kind == kind]
        hint = say(zh=f"可用 {'、'.join(fitting)}。", en=f"Use {', '.join(fitting)}.") if fitting else ""
        raise RecipeError(
            say(
                zh=f"{place}: '${{{target}}}' 產出 {made}，這裡需要 {kind}。{hint}".rstrip(),
                en=f"{place}: '${{{target}}}' makes a {made}; a {kind} is needed here. {hint}".rstrip(),
            )
        )


def _hint(name: str, known: Iterable[str]) -> str:
    names = list(known)
    return nearest(name, names) or say(zh=f"有的是 {'、'.join(names)}。", en=f"There are {', '.join(names)}.")


def _validate(stage: Stage, values: dict[str, Any], step: Step) -> Config:
    config_class = stage.config_class()
    try:
        # Strict, so that `epochs: "3"` is an error and not a guess; JSON mode, so that text may be a path.
        return config_class.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        detail = first_error(error)
        place = step.place(*detail["loc"])
        said = say(zh=f"{place}: {step.id}（{stage.name}）", en=f"{place}: {step.id} ({stage.name})")
        raise RecipeError(f"{said}: {reason(detail, config_class)}") from None
    except InputError as error:
        raise RecipeError(f"{step.place()}: {error}") from None


def _in_order(steps: list[Step]) -> list[Step]:
    """The steps so that each comes after what it reads, in the order of writing where that is free."""
    try:
        tuple(graphlib.TopologicalSorter({s.id: s.needs for s in steps}).static_order())
    except graphlib.CycleError as error:
        cycle: list[str] = list(reversed(error.args[1]))
        place = next(step for step in steps if step.id == cycle[0]).place()
        path = " → ".join(cycle)
        raise RecipeError(
            say(
                zh=f"{place}: 階段互相引用成環：{path}。請拆開。",
                en=f"{place}: stages refer to each other in a cycle: {path}. Break it.",
            )
        ) from None
    ordered: list[Step] = []
    while len(ordered) < len(steps):
        done = {step.id for step in ordered}
        ordered.append(next(s for s in steps if s.id not in done and s.needs <= done))
    return ordered
