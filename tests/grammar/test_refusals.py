"""Grammars that are faulty, hostile or beyond any guarantee: refused with the place, or they work."""

import json
from collections.abc import Callable

import pytest

from wenfang.core.errors import InputError
from wenfang.grammar import (
    BrokenPromise,
    Choice,
    Grammar,
    GrammarCompiler,
    JsonSchema,
    Lark,
    Regex,
    ToolCalls,
    fill_masks,
)
from wenfang.grammar import judge as judge_module
from wenfang.grammar.judge import judge
from wenfang.tokenizer import Tokenizer


def deep_rules(depth: int) -> str:
    return "start: r0\n" + "\n".join(f'r{i}: "a" r{i + 1}' for i in range(depth)) + f'\nr{depth}: "z"'


BRANCHES = "start: " + " | ".join(f"r{i}" for i in range(5000)) + "\n" + "\n".join(f'r{i}: "a{i}"' for i in range(5000))


def nested(keyword: str, depth: int) -> object:
    schema: object = {"type": "string"}
    for i in range(depth):
        tagged = {"type": "object", "properties": {"k": {"const": i}, "v": schema}, "required": ["k"]}
        schema = {keyword: [tagged, {"type": "integer"}]}
    return schema


def of(schema: object) -> Callable[[], Grammar]:
    return lambda: JsonSchema.of(schema)


REFUSED: dict[str, tuple[Callable[[], Grammar], str]] = {
    "false": (of(False), "schema is false|anyOf is empty"),
    "not a schema": (of(5), r"\$.*5 is not of type"),
    "invalid": (of({"properties": {"a": {"type": "text"}}}), r"\$\.properties\.a\.type.*'text'"),
    "no JSON": (lambda: JsonSchema("{"), "not valid JSON"),
    "not JSON at all": (of({"const": float("nan")}), "not valid JSON"),
    "remote $ref": (of({"items": {"$ref": "https://example.org/a"}}), r"\$\.items.*example\.org.*never fetched"),
    "missing $ref": (of({"$ref": "#/$defs/none"}), "none"),
    "$ref to itself": (of({"$ref": "#"}), "no text can fulfil"),
    "unsupported keyword": (of({"properties": {"a": {"uniqueItems": True}}}), r"\$\.properties\.a.*'uniqueItems'"),
    "misspelt keyword": (of({"type": "string", "maxLenght": 3}), "'maxLenght'.*maxLength"),
    "lenience": (of({"x-guidance": {"lenient": True}}), "'x-guidance'"),
    "unknown format": (of({"type": "string", "format": "iri"}), "'iri'"),
    "unsatisfiable": (
        of({"type": "object", "properties": {"a": {"type": "integer", "minimum": 5, "maximum": 3}}, "required": ["a"]}),
        "unsatisfiable",
    ),
    "ambiguous oneOf": (of({"items": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}), r"\$\.items.*oneOf"),
    "look-around in a pattern": (of({"properties": {"a": {"pattern": "(?=a)b"}}}), r"\$\.properties\.a.*\(\?="),
    "a pattern nobody can check": (of({"pattern": "a{1,5000}"}), "5000"),
    "repeated keys": (of({"type": "object", "minProperties": 2}), "minProperties"),
    "too deep": (of(nested("oneOf", 60)), "nested deeper"),
    "too long": (of({"enum": ["春" * 200_000]}), "524,288"),
    "look-ahead": (lambda: Regex("(?=a)b"), r"1\(8\).*look-around"),
    "back-reference": (lambda: Regex(r"(a)\1"), "backreferences"),
    "open group": (lambda: Regex("(a"), "unclosed group"),
    "nobody else reads it": (lambda: Regex(r"\w\x{61}"), "No second program"),
    "nothing matches": (lambda: Regex(r"[^\s\S]"), "no text can fulfil"),
    "undefined rule": (lambda: Lark('start: "x" foo'), r'1\(8\).*unknown name: "foo"'),
    "no start": (lambda: Lark('foo: "x"'), "no start rule"),
    "endless left recursion": (lambda: Lark('start: start "a"'), "no text can fulfil"),
    "empty": (lambda: Lark(""), "[Ee]mpty"),
    "unknown special token": (lambda: Lark('start: <|none|> "x"'), "none"),
    "JSON in a grammar": (lambda: Lark('start: %json {"type": "null"}'), "No second program reads this grammar"),
    "a special token in a grammar": (lambda: Lark('start: <|end|> "x"'), "No second program.*line 1 column 8"),
    "any token of some ids": (lambda: Lark("start: <[1-3]>"), "No second program"),
    "an attribute": (lambda: Lark("start: a\na[lazy]: /a+/"), "No second program"),
    "both terminals": (lambda: Lark("start: A\nA: /a+/ & /(aa)+/"), "No second program"),
    "all but a terminal": (lambda: Lark("start: A\nA: ~/a+/"), "No second program"),
    "a directive": (lambda: Lark('%llguidance {"no_forcing": true}\nstart: "a"'), "No second program"),
    "repeated without end": (lambda: Lark('start: "a"{2,}'), "No second program"),
    "no options": (lambda: Choice(()), "choice"),
    "bad arguments": (lambda: ToolCalls((("f", '{"uniqueItems": true}'),), "", ""), r"f\.parameters.*uniqueItems"),
    "bad form instead of calls": (
        lambda: ToolCalls((("f", "{}"),), "<a>", "", otherwise='{"uniqueItems": true}'),
        r"\$.*uniqueItems",
    ),
    "a key twice": (lambda: JsonSchema('{"type": "string", "type": "number"}'), "'type' appears twice"),
    "ever deeper rules": (lambda: Lark(deep_rules(25_000)), "too complex"),
}


WORKS: dict[str, tuple[Callable[[], Grammar], str]] = {
    "{}": (of({}), '{"a": [1, true, null, "春"]}'),
    "true": (of(True), '"春"'),
    "recursive $ref": (of({"properties": {"c": {"$ref": "#"}}, "type": "object"}), '{"c": {"c": {}}}'),
    "10,000 values": (of({"enum": [f"值{i}" for i in range(10_000)]}), '"值9999"'),
    "deep oneOf": (of(nested("oneOf", 9)), '{"k": 8, "v": {"k": 7, "v": 3}}'),
    "nested quantifiers": (lambda: Regex("(a+)+$"), "aaaa"),
    "a million repetitions": (lambda: Regex("a{1,1000000}"), "aaaa"),
    "left recursion": (lambda: Lark('start: start "a" | "b"'), "baaa"),
    "5,000 rules in a row": (lambda: Lark(deep_rules(5000)), "a" * 5000 + "z"),
    "5,000 rules side by side": (lambda: Lark(BRANCHES), "a4999"),
    "a special token's name as text": (lambda: Choice(("<|end|>", "b")), "<|end|>"),
    "text, then a call": (
        lambda: ToolCalls((("f", '{"additionalProperties": false}'),), "<a/b>\n[c]", "", free=True),
        'a/<a/b>\n[<a/b>\n[c]\n{"name": "f", "arguments": {}}',
    ),
    "text instead of a call": (lambda: ToolCalls((("f", "{}"),), "<a>", "</a>", free=True), "春 <a"),
    "a form instead of a call": (
        lambda: ToolCalls((("f", "{}"),), "<a>", "</a>", otherwise='{"properties": {"a": {}}, "required": ["a"]}'),
        '{"a": "<a>"}',
    ),
    "a call instead of a form": (
        lambda: ToolCalls((("f", "{}"),), "<a>", "</a>", otherwise=r'{"const": 1}'),
        '<a>\n{"name": "f", "arguments": {}}\n</a>',
    ),
    "two calls": (
        lambda: ToolCalls(
            (("f", '{"properties": {"城": {"type": "string"}}, "required": ["城"]}'), ("g", "{}")),
            "<tool_call>",
            "</tool_call>",
            several=True,
        ),
        '<tool_call>\n{"name": "f", "arguments": {"城": "臺北"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>',
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_guaranteed_is_refused_with_the_place(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(InputError, match=message) as caught:
        judge(make(), ["<|end|>"])
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", WORKS)
def test_what_can_be_guaranteed_works(name: str, compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    make, text = WORKS[name]
    grammar = make()
    matcher = compiler.matcher(grammar)
    tokens = tokenizer.encode(text)
    for token in tokens[:20]:
        fill_masks([matcher])
        assert not matcher.failure
        assert not matcher.blocked()[token], (text, tokenizer.decode([token]))
        matcher.consume(token)
    for token in tokens[20:]:
        matcher.consume(token)
    if not matcher.ended:
        fill_masks([matcher])
        assert not matcher.blocked()[tokenizer.end_id]
        assert not matcher.failure


@pytest.mark.parametrize("name", [name for name in WORKS if "5,000" not in name])
def test_what_works_is_validated(name: str) -> None:
    make, text = WORKS[name]
    make().check(text)


def test_a_call_after_text_is_validated() -> None:
    calls = ToolCalls((("f", '{"required": ["x"]}'),), "<a>", "</a>", free=True)
    with pytest.raises(BrokenPromise, match="does not fulfil"):
        calls.check('春<a>{"name": "f", "arguments": {}}</a>')
    for choice in ({"free": True}, {"otherwise": "{}"}):
        with pytest.raises(InputError, match="no mark"):
            ToolCalls((("f", "{}"),), "", "", **choice)
    formed = ToolCalls((("f", "{}"),), "<a>", "", otherwise='{"required": ["a"]}')
    with pytest.raises(BrokenPromise, match="'a' is a required property"):
        formed.check("{}")


def test_a_trial_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge_module, "TRIAL_S", 0.0)
    with pytest.raises(InputError, match="ran out of time"):
        judge(Lark(BRANCHES), [])
    monkeypatch.undo()
    judge(Regex("a"), [])


def test_a_grammar_is_judged_once(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiler.matcher(JsonSchema.of({"const": json.dumps("once")}))
    monkeypatch.setattr("wenfang.grammar.compiler.judge", lambda *_: pytest.fail("judged again"))
    second = compiler.matcher(JsonSchema.of({"const": json.dumps("once")}))
    first.consume(first.forced()[0])
    assert second.forced() != first.forced()


@pytest.mark.parametrize(
    ("pattern", "text", "kept"),
    [
        ("[0-9]{4}年", "2026年", True),
        ("[0-9]{4}年", "2026年。", False),
        ("a|b", "ab", False),
        ("(a+)+$", "a" * 5000 + "b", False),
        ("春.", "春\n", False),
        # RE2 reads the next ones not at all, or in another way.
        (r"\w+", "春", True),
        (r"\w+", "春!", False),
        (r"[\w&&[^a]]+", "ab", False),
        ("a{1,5000}", "a" * 4999, True),
        ("a{1,5000}", "b", False),
    ],
)
def test_a_text_is_matched_again_by_another_engine(pattern: str, text: str, kept: bool) -> None:
    if kept:
        Regex(pattern).check(text)
        return
    with pytest.raises(BrokenPromise, match="does not match the expression"):
        Regex(pattern).check(text)


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        ('start: start "a" | "b"', "baa", "ab"),
        ('start: x* "."\nx: /[^.]*/ | "!"', "春！.", "春.秋"),  # A terminal that may be nothing.
        ('start: SUM\nSUM: INT ("+" INT)*\nINT: /\\p{Nd}+/\n%ignore " "', " 1+٢ ", "1++2"),
        ('start: "春"i ("a".."c")~2', "春ab", "春ad"),
        # llguidance's repetitions, and what only looks like one.
        ('start: "a"{2,3} x{2} // {9}\nx: "b" | /c{1,2}/ "{3}"', "aabcc{3}", "aabc{3}{3}"),
    ],
)
def test_a_derived_text_is_parsed_again_by_another_parser(grammar: str, good: str, bad: str) -> None:
    Lark(grammar).check(good)
    with pytest.raises(BrokenPromise, match="does not derive"):
        Lark(grammar).check(bad)


def test_a_text_that_takes_for_ever_to_validate_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    Regex(r"\w+").check("春")  # The process is there.
    monkeypatch.setattr(judge_module, "TRIAL_S", 2.0)
    Regex(r"\w+").check("春")
    with pytest.raises(BrokenPromise, match="could not be validated"):
        Regex(r"(\w|\w\w)+[0-9]").check("a" * 60)
