"""Requests that must fulfil a grammar, beside others that need not, on a model that knows nothing."""

import json
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import pytest

from wenfang.core.errors import InputError
from wenfang.engine import Engine, SamplingParams
from wenfang.grammar import BrokenPromise, Choice, JsonSchema, Lark, Regex

SCHEMA = {
    "type": "object",
    "properties": {
        "詩題": {"type": "string", "maxLength": 6},
        "體裁": {"enum": ["五言絕句", "七言律詩"]},
        "句數": {"type": "integer", "minimum": 1, "maximum": 8},
    },
    "required": ["詩題", "體裁", "句數"],
    "additionalProperties": False,
}
WAYS = [
    {"temperature": 0.0},
    {"seed": 3, "top_p": 0.9},
    {"seed": 4, "mirostat_tau": 3.0},
    {"seed": 5, "top_n_sigma": 1.0},
]


def test_every_way_of_drawing_fulfils_the_schema_and_leaves_others_alone(engine: Engine) -> None:
    prompt = engine.tokenizer.encode("春眠不覺曉")
    free = SamplingParams(seed=1, max_tokens=30)
    alone = engine.generate([prompt], free)
    ways = [SamplingParams(**way, grammar=JsonSchema.of(SCHEMA), max_tokens=200) for way in WAYS]
    with ThreadPoolExecutor() as pool:
        beside = pool.submit(engine.generate, [prompt], free)
        answers = list(pool.map(lambda params: engine.generate([prompt], params)[0], ways))
    assert beside.result() == alone
    for answer in answers:
        jsonschema.validate(json.loads(answer.text), SCHEMA)
        assert answer.finish_reason == "stop"
        assert "詩題" in answer.text  # As itself, not as an escape.


def test_forced_tokens_change_nothing_but_the_number_of_draws(engine: Engine) -> None:
    prompt = engine.tokenizer.encode("春眠")
    params = {"seed": 2, "grammar": JsonSchema.of(SCHEMA), "max_tokens": 200}
    (forced,) = engine.generate([prompt], SamplingParams(**params))
    (drawn,) = engine.generate([prompt], SamplingParams(**params, logprobs=0))  # Draws each, to know its probability.
    assert (forced.text, forced.token_ids) == (drawn.text, drawn.token_ids)
    with engine.stream(prompt, SamplingParams(**params)) as stream:
        pieces = sum(1 for _ in stream)
    assert pieces < len(forced.token_ids) - 20


def test_json_that_is_never_closed_ends_with_length(engine: Engine) -> None:
    prompt = engine.tokenizer.encode("春眠")
    grammar = JsonSchema.of({"type": "array", "items": {"type": "integer"}, "minItems": 500})
    (answer,) = engine.generate([prompt], SamplingParams(seed=1, grammar=grammar, max_tokens=12))
    assert (answer.finish_reason, len(answer.token_ids)) == ("length", 12)
    assert answer.text.startswith("[")


def test_choice_and_regex_end_by_themselves(engine: Engine) -> None:
    prompt = engine.tokenizer.encode("春眠")
    (choice,) = engine.generate([prompt], SamplingParams(seed=1, grammar=Choice(("春", "秋分"))))
    assert (choice.text in ("春", "秋分"), choice.finish_reason) == (True, "stop")
    (digits,) = engine.generate([prompt], SamplingParams(seed=1, grammar=Regex("[0-9]{4}年")))
    assert (digits.text[:4].isdigit(), digits.text[4:]) == (True, "年")


def test_what_cannot_be_kept_fails_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = engine.tokenizer.encode("春眠")
    with pytest.raises(InputError, match="foo"):
        engine.stream(prompt, SamplingParams(grammar=Lark("start: foo")))
    with pytest.raises(InputError, match="stop"):
        SamplingParams(grammar=Regex("a"), stop=("a",))
    dead_end = Lark('start: "a" x\nx: x "b"')
    monkeypatch.setattr("wenfang.grammar.compiler.judge", lambda *_: None)
    with pytest.raises(InputError, match="dead end"):
        engine.generate([prompt], SamplingParams(grammar=dead_end, temperature=0.0))
    monkeypatch.setattr(Choice, "check", lambda *_: (_ for _ in ()).throw(BrokenPromise("not kept")))
    with pytest.raises(BrokenPromise):
        engine.generate([prompt], SamplingParams(grammar=Choice(("春",))))
    assert engine.generate([prompt], SamplingParams(max_tokens=3))
