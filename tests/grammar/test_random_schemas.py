"""A model that knows nothing, held to random schemas: whatever it writes, the independent validator accepts."""

import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wenfang.grammar import Grammar, GrammarCompiler, JsonObject, JsonSchema, Lark, Regex, fill_masks
from wenfang.tokenizer import Tokenizer

LONGEST = 400
NAMES = st.sampled_from(["名", "年齡", "a", "b c", 'say "hi"', "路/徑"])

SCALARS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.builds(lambda low, span: {"type": "integer", "minimum": low, "maximum": low + span},
              low=st.integers(-99, 99), span=st.integers(0, 500)),
    st.sampled_from([{"type": "number"}, {"type": "number", "multipleOf": 0.1}, {"type": "integer", "multipleOf": 7}]),
    st.builds(lambda low, span: {"type": "string", "minLength": low, "maxLength": low + span},
              low=st.integers(0, 3), span=st.integers(0, 4)),
    st.sampled_from(["^[一-龥]{2,4}$", "[0-9]+-x", "^(a|b)*c$"]).map(lambda p: {"type": "string", "pattern": p}),
    st.sampled_from(["uuid", "ipv4", "ipv6"]).map(lambda f: {"type": "string", "format": f}),
    st.lists(st.sampled_from(["春", "夏", 3, 1.5, None, True, [1], {"k": "值"}]), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
)  # fmt: skip


def containers(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    objects = st.builds(
        lambda properties, drop, open_: {
            "type": "object",
            "properties": properties,
            "required": [name for i, name in enumerate(properties) if i != drop],
            **({} if open_ else {"additionalProperties": False}),
        },
        st.dictionaries(NAMES, inner, max_size=3),
        st.integers(0, 3),
        st.booleans(),
    )
    arrays = st.builds(
        lambda items, low, span: {"type": "array", "items": items, "minItems": low, "maxItems": low + span},
        inner, st.integers(0, 2), st.integers(0, 2),
    )  # fmt: skip
    unions = st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    referring = inner.map(
        lambda s: {"type": "array", "items": {"$ref": "#/$defs/it"}, "maxItems": 2, "$defs": {"it": s}}
    )
    return st.one_of(objects, arrays, unions, *([referring] if inner is SCALARS else []))


SCHEMAS = st.recursive(SCALARS, containers, max_leaves=5)


def write(grammar: Grammar, compiler: GrammarCompiler, tokenizer: Tokenizer, seed: int) -> str | None:
    """A text drawn at random among the allowed tokens, with a liking for ends; None when it got too long."""
    matcher, dice, written = compiler.matcher(grammar), random.Random(seed), list[int]()
    closing = {tokenizer.end_id, *(tokenizer.encode(mark)[-1] for mark in '"}]')}
    while len(written) < LONGEST:
        if forced := matcher.forced():
            token = forced[0]
        else:
            fill_masks([matcher])
            assert not matcher.failure
            allowed = np.flatnonzero(~matcher.blocked()).tolist()
            ends = closing.intersection(allowed)
            token = dice.choice(sorted(ends) if ends and dice.random() < 0.3 else allowed)
        if token == tokenizer.end_id:
            return tokenizer.decode(written)
        written.append(token)
        matcher.consume(token)
        if matcher.ended:
            return tokenizer.decode(written)
    return None


@settings(max_examples=25, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SCHEMAS, st.integers(0, 99))
def test_whatever_is_written_fulfils_the_schema(
    compiler: GrammarCompiler, tokenizer: Tokenizer, schema: dict, seed: int
) -> None:
    grammar = JsonSchema.of(schema)
    text = write(grammar, compiler, tokenizer, seed)
    if text is None:
        return
    grammar.check(text)
    if "multipleOf" not in grammar.schema:  # jsonschema alone takes 0.3 for no multiple of 0.1.
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize(
    "grammar",
    [
        Lark('start: (line "}")+\nline: WORD? ("," WORD)*\nWORD: /[^,}]*/'),
        Lark('start: e\ne: e "+" e | "(" e ")" | /\\d+/\n%ignore / */'),
        Regex(r"(\w+\s?)+[^\w\s]"),
    ],
)
def test_whatever_is_written_is_derived_and_matched(
    compiler: GrammarCompiler, tokenizer: Tokenizer, grammar: Grammar
) -> None:
    texts = [text for seed in range(9) if (text := write(grammar, compiler, tokenizer, seed)) is not None]
    assert len(texts) > 1
    for text in texts:
        grammar.check(text)


def test_any_object_is_an_object(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    texts = [write(JsonObject(), compiler, tokenizer, seed) for seed in range(20)]
    finished = [text for text in texts if text is not None]
    assert len(finished) > 5
    assert all(isinstance(json.loads(text), dict) for text in finished)
    assert max(map(len, finished)) > 10


def test_a_key_cannot_come_twice_in_disguise(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    schema = JsonSchema.of({"type": "object", "properties": {"a": {"type": "integer"}}})
    matcher = compiler.matcher(schema)
    disguised = tokenizer.encode('{"a": 1, "\\u0061": "x"}')
    assert matcher.inner.validate_tokens(disguised) < len(disguised)
    plain = tokenizer.encode('{"a": 1, "b": "春\\n𠮷"}')
    assert matcher.inner.validate_tokens(plain) == len(plain)


def test_every_forced_token_is_the_tokenizers_own(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    text = '{"詩題": "春曉<|end|>", "句": 4}'
    matcher = compiler.matcher(JsonSchema.of({"const": json.loads(text)}))
    forced = matcher.forced()
    assert tokenizer.end_id not in forced
    assert tokenizer.decode(forced) == text
