"""Everything that can be wrong in a recipe is found before anything runs, with file and line."""

import contextlib
import string
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_stages import RAN, RECIPE, TINY, ModelConfig

from wenfang.core.errors import RecipeError, WenfangError
from wenfang.recipe import load_recipe, make_plan

Write = Callable[[str], Path]


def _changed(old: str, new: str) -> str:
    assert old in RECIPE
    return RECIPE.replace(old, new, 1)


def _error(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as raised:
        load_recipe(path, overrides, stages=TINY)
    message = str(raised.value)
    assert raised.value.exit_code == 2
    assert message.count("\n") <= 1
    return message


def test_a_sound_recipe_becomes_steps_in_running_order(write: Write) -> None:
    recipe = load_recipe(write(RECIPE), stages=TINY)
    assert recipe.name == "poet"
    assert [step.id for step in recipe.steps] == ["corpus", "base", "tuned"]
    config = recipe.steps[1].config({"corpus": Path("runs/poet/corpus/1234")})
    assert isinstance(config, ModelConfig)
    assert config.corpus == Path("runs/poet/corpus/1234")
    assert config.epochs == 2


def test_the_order_of_writing_is_free(write: Write) -> None:
    text = """\
name: poet
stages:
  tuned: {uses: tiny.model, with: {corpus: "${corpus}", base: "${ base }"}}
  base: {uses: tiny.model, with: {corpus: "${corpus}"}}
  corpus: {uses: tiny.corpus, with: {source: verse.txt}}
"""
    recipe = load_recipe(write(text), stages=TINY)
    assert [step.id for step in recipe.steps] == ["corpus", "base", "tuned"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: poet", "nmae: poet", "poet.yaml:1: unknown key 'nmae'. Did you mean 'name'?"),
        ("name: poet\n", "", "poet.yaml:1: 'name' is missing."),
        ("name: poet", "name: 2024", "poet.yaml:1: the name 2024 must be letters"),
        ("name: poet", "name: ../up", "poet.yaml:1: the name '../up' must be letters"),
        ("  base:", "  a.b:", "poet.yaml:7: the name 'a.b' must be letters"),
        ("    uses: tiny.model", "    use: tiny.model", "poet.yaml:8: unknown key 'use'. Did you mean 'uses'?"),
        ("tiny.model", "tiny.modle", "poet.yaml:8: there is no stage 'tiny.modle'. Did you mean 'tiny.model'?"),
        ("tiny.model", "[tiny.model]", "poet.yaml:8: there is no stage ['tiny.model']."),
        (
            "epochs: 2",
            "epoch: 2",
            "poet.yaml:11: base (tiny.model): there is no option 'epoch'. Did you mean 'epochs'?",
        ),
        ("epochs: 2", "zzz: 2", "poet.yaml:11: base (tiny.model): there is no option 'zzz'. Known are corpus, epochs,"),
        ("epochs: 2", "epochs: two", "poet.yaml:11: base (tiny.model): 'epochs' is 'two'; it must be a whole number."),
        ("epochs: 2", 'epochs: "2"', "poet.yaml:11: base (tiny.model): 'epochs' is '2'; it must be a whole number."),
        ("epochs: 2", "epochs: 2.5", "poet.yaml:11: base (tiny.model): 'epochs' is 2.5; it must be a whole number."),
        ("epochs: 2", "epochs: true", "poet.yaml:11: base (tiny.model): 'epochs' is True; it must be a whole number."),
        ("epochs: 2", "epochs: 0", "poet.yaml:11: base (tiny.model): 'epochs' is 0; it must be at least 1."),
        ("epochs: 2", "epochs: 101", "poet.yaml:9: base (tiny.model): epochs (101) would take for ever"),
        ("epochs: 2", "rate: 11", "poet.yaml:9: rate 11.0 explodes"),
        ("epochs: 2", "rate: fast", "poet.yaml:11: base (tiny.model): 'rate' is 'fast'; it must be a number."),
        (
            "epochs: 2",
            "shape: {dim: 3}",
            "poet.yaml:11: base (tiny.model): 'shape.dim' is 3; it must be a multiple of 2.",
        ),
        (
            "epochs: 2",
            "shape: {dmi: 3}",
            "poet.yaml:11: base (tiny.model): there is no option 'shape.dmi'. Did you mean 'dim'?",
        ),
        (
            "epochs: 2",
            "shape: {deep: 1}",
            "poet.yaml:11: base (tiny.model): 'shape.deep' is 1; it must be true or false.",
        ),
        ("epochs: 2", "shape: wide", "poet.yaml:11: base (tiny.model): 'shape' is 'wide'; it must be a mapping"),
        ("epochs: 2", "corpus: x", "poet.yaml:11: the key 'corpus' is already given at poet.yaml:10"),
        (
            "source: verse.txt",
            "script: latin",
            "poet.yaml:5: corpus (tiny.corpus): the input 'source' (a source) is missing.",
        ),
        (
            "verse.txt",
            "verse.txt\n      script: latin",
            "poet.yaml:7: corpus (tiny.corpus): 'script' is 'latin'; it must be",
        ),
        ("verse.txt", "verse.txt\n      title: 5", "poet.yaml:7: corpus (tiny.corpus): 'title' is 5; it must be text."),
        ("verse.txt", "absent.txt", "poet.yaml:6: source: nothing is at 'absent.txt'"),
        ("verse.txt", "x" * 300, "poet.yaml:6: source: cannot read"),
        (
            "verse.txt",
            "verse.txt\n      more: [verse.txt, no.txt]",
            "poet.yaml:7: source"[:12] + " more: nothing is at 'no.txt'",
        ),
        ("${corpus}", "${corpsu}", "poet.yaml:10: no stage is named 'corpsu'. Did you mean 'corpus'?"),
        ("${corpus}", "${}", "poet.yaml:10: no stage is named ''."),
        (
            "base: ${base}",
            "base: ${corpus}",
            "poet.yaml:16: '${corpus}' makes a corpus; a model is needed here. Use ${base}, ${tuned}.",
        ),
        (
            "corpus: ${corpus}",
            "corpus: ${base}",
            "poet.yaml:10: '${base}' makes a model; a corpus is needed here. Use ${corpus}.",
        ),
        ("verse.txt", "${base}", "poet.yaml:6: '${base}' makes a model; a source is needed here."),
        ("verse.txt", "data/${base}", "poet.yaml:6: 'data/${base}' can only be the whole value of an input"),
        (
            "verse.txt",
            "verse.txt\n      title: ${base}",
            "poet.yaml:7: '${base}' can only be the whole value of an input",
        ),
        ("${corpus}", "verse.txt", "poet.yaml:10: corpus: No folder 'verse.txt'"),
        ("epochs: 2", "base: ${tuned}", "poet.yaml:9: stages refer to each other in a cycle: base → tuned → base."),
        ("epochs: 2", "base: ${base}", "poet.yaml:9: stages refer to each other in a cycle: base → base."),
    ],
)
def test_each_mistake_is_named_with_its_line(write: Write, old: str, new: str, said: str) -> None:
    message = _error(write(_changed(old, new)))
    assert message.startswith(said), message
    assert not RAN
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("just words", "poet.yaml:1: expected the keys `name:`, `stages:` here."),
        ("name: poet\nstages: []\n", "poet.yaml:2: 'stages' must hold at least one stage"),
        ("name: poet\nstages: {}\n", "poet.yaml:2: 'stages' must hold at least one stage"),
        ("name: poet\nstages:\n  a: tiny.corpus\n", "poet.yaml:3: expected the keys `uses:`, `with:` here."),
        ("name: poet\nstages:\n  a:\n    with: {}\n", "poet.yaml:3: 'uses' is missing."),
        ("name: poet\nstages:\n  a:\n    uses: tiny.corpus\n    with: [x]\n", "poet.yaml:5: 'with' must hold options"),
        ("name: poet\nstages:\n  a:\n    uses: tiny.corpus\n", "poet.yaml:3: a (tiny.corpus): the input 'source'"),
    ],
)
def test_a_wrong_shape_is_named_with_its_line(write: Write, text: str, said: str) -> None:
    assert _error(write(text)).startswith(said)


def test_messages_exist_in_chinese(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WENFANG_LANGUAGE", "zh")
    message = _error(write(_changed("epochs: 2", "epochs: two")))
    assert message == "poet.yaml:11: base（tiny.model）: 'epochs' 是 'two'，應為整數。"


class TestOverrides:
    def test_values_are_typed_as_in_the_recipe(self, write: Write) -> None:
        path = write(RECIPE)
        recipe = load_recipe(
            path, ["base.epochs=7", "tuned.shape.dim=16", "tuned.rate=1e-2", "tuned.base="], stages=TINY
        )
        outputs = {"corpus": Path("c"), "base": Path("b")}
        base, tuned = (step.config(outputs) for step in recipe.steps[1:])
        assert isinstance(base, ModelConfig)
        assert isinstance(tuned, ModelConfig)
        assert (base.epochs, base.shape.dim) == (7, 8)
        assert (tuned.epochs, tuned.shape.dim, tuned.rate, tuned.base) == (1, 16, 0.01, None)

    def test_a_reference_may_be_overridden(self, write: Write) -> None:
        recipe = load_recipe(write(RECIPE), ["base.base=${tuned}", "tuned.base=~"], stages=TINY)
        assert [step.id for step in recipe.steps] == ["corpus", "tuned", "base"]

    @pytest.mark.parametrize(
        ("argument", "said"),
        [
            ("base.epochs=two", "base (tiny.model): 'epochs' is 'two'; it must be a whole number."),
            ("base.epoch=2", "base (tiny.model): there is no option 'epoch'. Did you mean 'epochs'?"),
            ("base.shape.dmi=2", "base (tiny.model): there is no option 'shape.dmi'. Did you mean 'dim'?"),
            ("bsae.epochs=2", "the recipe has no 'bsae'. Did you mean 'base'?"),
            ("base.epochs", "write stage.option=value, such as sft.epochs=2."),
            ("epochs=2", "write stage.option=value, such as sft.epochs=2."),
            ("base.=2", "write stage.option=value, such as sft.epochs=2."),
            ("base.epochs.x=2", "'epochs' does not hold further options."),
            ("base.epochs=[1", "the YAML cannot be read"),
            ("base.corpus=${no}", "no stage is named 'no'."),
            ("base.base=${corpus}", "'${corpus}' makes a corpus; a model is needed here."),
            ("corpus.source=no.txt", "source: nothing is at 'no.txt'"),
        ],
    )
    def test_an_error_names_the_argument(self, write: Write, argument: str, said: str) -> None:
        message = _error(write(RECIPE), argument)
        assert message.startswith(f"argument {argument!r}: {said}"), message

    def test_an_error_elsewhere_still_names_its_line(self, write: Write) -> None:
        message = _error(write(_changed("epochs: 2", "epochs: 0")), "tuned.epochs=3")
        assert message.startswith("poet.yaml:11:")


_WORDS = (
    "name stages uses with corpus base tuned source epochs shape dim tiny.corpus tiny.model verse.txt "
    "${corpus} ${base} ${ - : { } [ ] , ' \" & * ! | > % @ ` # ~ true 1 -1 1e9 1e999 .5 0x 2024-01-01"
)
_SPACES = ("\n", "\n  ", "\n    ", ": ", "- ", "\t", "詩", "\u2028", "\ud800", "\0", "<<: ")
_words = st.sampled_from((*_WORDS.split(" "), *_SPACES))


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.lists(_words, max_size=30))
def test_no_text_makes_the_check_stumble(place: Path, words: list[str]) -> None:
    _try(place, "".join(words).encode("utf-8", "surrogatepass"))


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    at=st.integers(0, len(RECIPE)),
    cut=st.integers(0, 12),
    put=st.text(string.printable + "詩\x85\ufeff", max_size=6),
)
def test_no_damage_to_a_sound_recipe_makes_the_check_stumble(place: Path, at: int, cut: int, put: str) -> None:
    _try(place, (RECIPE[:at] + put + RECIPE[at + cut :]).encode())


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(argument=st.text(string.ascii_letters + ".=[]{}:$\"'-1 ", max_size=20).map(lambda text: f"base.{text}"))
def test_no_override_makes_the_check_stumble(place: Path, argument: str) -> None:
    _try(place, RECIPE.encode(), argument)


def _try(place: Path, content: bytes, *overrides: str) -> None:
    """A recipe is either sound enough to plan or refused in words; nothing else may be raised."""
    (place / "fuzz.yaml").write_bytes(content)
    with contextlib.suppress(WenfangError):
        try:
            make_plan(load_recipe(Path("fuzz.yaml"), overrides, stages=TINY), Path("runs"))
        except WenfangError as error:
            named = "fuzz.yaml" in str(error) or any(repr(argument) in str(error) for argument in overrides)
            if not named or str(error).count("\n") > 1:
                raise RuntimeError(f"a poor message: {error}") from error
            raise
