"""Which parameters servers with OpenAI's interface are known to honour, and requests in their words.

Some of them drop what they do not know in silence, so a parameter is sent only where it is known to be read. Who
answers shows in `owned_by` of the list of models.
"""

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from wenfang.core.errors import InputError
from wenfang.core.language import say
from wenfang.engine.completion import TokenLogprob
from wenfang.engine.params import SamplingParams
from wenfang.grammar import Choice, Grammar, JsonObject, JsonSchema, Lark, Regex, ToolCalls

OPENAI = frozenset(
    {"temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias", "stop", "seed", "max_tokens"}
)
"""Parameters that every such server honours."""


@dataclass(frozen=True)
class Dialect:
    """What a kind of server reads.

    Args:
        parameters: those of our parameters that it honours.
        echoes_ids: whether it can give a prompt's log-probabilities without its text, of which it would spell the
            special tokens, too.
        llguidance: whether it hands grammars to llguidance as they come, with what that has beyond Lark's notation and
            beyond JSON Schema.
    """

    parameters: frozenset[str]
    echoes_ids: bool = False
    llguidance: bool = False


ANY = Dialect(OPENAI)
DIALECTS = {
    "vllm": Dialect(
        OPENAI | {"top_k", "min_p", "repetition_penalty", "logprobs", "prompt_logprobs", "grammar"},
        echoes_ids=True,
        llguidance=True,
    ),
    "wenfang": Dialect(frozenset(field.name for field in fields(SamplingParams)) - {"dry_sequence_breakers"}),
}
"""By `owned_by`; any other server speaks `ANY`."""

_TOKEN = "token_id:"
"""How servers name a token when asked for ids: its text may be half a character, or that of another token."""


def request_body(params: SamplingParams, dialect: Dialect) -> dict[str, Any]:
    """The sampling parameters of a `POST /v1/completions`.

    Raises:
        InputError: one of them would be dropped there.
    """
    default = SamplingParams()
    chosen = {f.name: getattr(params, f.name) for f in fields(params)}
    chosen = {name: value for name, value in chosen.items() if value != getattr(default, name)}
    for name in chosen:
        if name not in dialect.parameters:
            raise not_honoured(name)
    # A server's own defaults may differ.
    body = {name: getattr(params, name) for name in OPENAI if getattr(params, name) not in (None, (), {})} | chosen
    if body.pop("prompt_logprobs", False):
        body["echo"] = True
        if dialect.echoes_ids:
            body["return_token_ids"] = True
    if "logprobs" in body:
        body["return_tokens_as_token_ids"] = True
    if (grammar := body.pop("grammar", None)) is not None:
        body["structured_outputs"] = _structured_outputs(grammar, llguidance=dialect.llguidance)
    return body


def _structured_outputs(grammar: Grammar, *, llguidance: bool) -> dict[str, Any]:
    """A grammar as vLLM (0.12 and later) or our own server takes it."""
    match grammar:
        case JsonObject() if llguidance:
            return {"json": JsonSchema(JsonObject.SCHEMA).styled}
        case JsonObject():
            return {"json_object": True}
        case JsonSchema():
            return {"json": grammar.styled if llguidance else json.loads(grammar.schema)}
        case Regex():
            return {"regex": grammar.pattern}
        case Choice():
            return {"choice": list(grammar.options)}
        case Lark():
            return {"grammar": grammar.grammar}
        case ToolCalls() if llguidance:
            return {"grammar": grammar.lark()}
        case ToolCalls():
            functions = {name: json.loads(schema) for name, schema in grammar.functions}
            otherwise = None if grammar.otherwise is None else json.loads(grammar.otherwise)
            return {"tool_calls": {**asdict(grammar), "functions": functions, "otherwise": otherwise}}
    raise not_honoured("grammar")


def read_logprobs(body: dict[str, Any], top: int) -> list[TokenLogprob | None]:
    """The `logprobs` of a choice, its tokens named by id; None stands for the first token of a prompt.

    Args:
        top: how many alternatives were asked for; some servers add the chosen token to them.

    Raises:
        ValueError: the server names tokens otherwise.
    """
    found: list[TokenLogprob | None] = []
    tops = body.get("top_logprobs") or [None] * len(body["tokens"])
    for name, logprob, others in zip(body["tokens"], body["token_logprobs"], tops, strict=True):
        if logprob is None:
            found.append(None)
            continue
        best = sorted((others or {}).items(), key=lambda item: -item[1])[:top]
        found.append(TokenLogprob(_id(name), logprob, tuple((_id(token), value) for token, value in best)))
    return found


def _id(name: str) -> int:
    if not name.startswith(_TOKEN):
        raise ValueError(f"{name[:40]!r} is no token id")
    return int(name.removeprefix(_TOKEN))


def not_honoured(name: str) -> InputError:
    """A parameter that the server would perhaps ignore."""
    return InputError(
        say(
            zh=f"不支援參數 {name!r}：書寫的伺服器未必理會它。請移除後再試。",
            en=f"Unsupported parameter: the server that writes is not known to honour {name!r}. "
            "Remove it and try again.",
        )
    )
