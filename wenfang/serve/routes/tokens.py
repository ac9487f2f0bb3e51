"""`POST /tokenize`, `/detokenize` and `/v1/embeddings`: texts into numbers and back."""

import array
import asyncio
import base64
from typing import Any, Literal

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field

from wenfang.core.language import say
from wenfang.serve.body import unless_gone
from wenfang.serve.callers import caller_of
from wenfang.serve.completions import Prompt, TokenId
from wenfang.serve.desk import Desk, Route
from wenfang.serve.errors import ApiError, unsupported
from wenfang.serve.models import Served
from wenfang.serve.prompts import chat_prompt, check_ids, room_after
from wenfang.serve.routes.completions import prompts_of, read_prompt
from wenfang.serve.sampling import Strict
from wenfang.serve.schema import MAX_MESSAGES, Message, check_messages, shown_message


class TokenizeRequest(Strict):
    """The body of `POST /tokenize`: a text, or a conversation as the model reads it."""

    model: str
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=MAX_MESSAGES)
    add_special_tokens: bool = True
    """Begin a text with what the tokenizer lets texts begin with."""


class DetokenizeRequest(Strict):
    """The body of `POST /detokenize`."""

    model: str
    tokens: list[TokenId] = Field(max_length=1 << 17)


class EmbeddingRequest(Strict):
    """The body of `POST /v1/embeddings`."""

    model: str
    input: Prompt
    encoding_format: Literal["float", "base64"] = "float"
    truncate_prompt_tokens: int | None = Field(None, ge=1, lt=2**31)
    """Keep only so many tokens of a text, its first ones."""
    user: str | None = None


async def tokenize(desk: Desk, request: Request, asked: TokenizeRequest) -> Response:
    """Token ids of a text or conversation."""
    if (asked.prompt is None) == (asked.messages is None):
        raise ApiError("Give either 'prompt' or 'messages'.", param="prompt", code="invalid_value")
    if asked.messages is not None and not asked.add_special_tokens:  # The template decides how a conversation begins.
        raise unsupported("add_special_tokens")
    async with desk.models.use(asked.model) as served:
        ids = await asyncio.to_thread(_tokenize, served, asked)
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": served.engine.context})


def _tokenize(served: Served, asked: TokenizeRequest) -> list[int]:
    if asked.messages is not None:
        check_messages(asked.messages)
        shown = [shown_message(message, f"messages[{i}]") for i, message in enumerate(asked.messages)]
        return chat_prompt(served, shown, [])
    tokenizer = served.engine.tokenizer
    return (tokenizer.begin if asked.add_special_tokens else tokenizer.encode)(asked.prompt or "")


async def detokenize(desk: Desk, request: Request, asked: DetokenizeRequest) -> Response:
    """The text of token ids."""
    async with desk.models.use(asked.model) as served:
        check_ids(served, asked.tokens, param="tokens")
        return JSONResponse({"prompt": await asyncio.to_thread(served.engine.tokenizer.decode, asked.tokens)})


async def embeddings(desk: Desk, request: Request, asked: EmbeddingRequest) -> Response:
    """The mean of the model's final states over each text, as a vector of length 1."""
    async with desk.models.use(asked.model) as served:
        if served.adapter is not None:
            raise no_embeddings(served.adapter)
        ids = await asyncio.to_thread(_inputs, served, asked)
        tokens = sum(map(len, ids))
        desk.metrics.read(served.name, tokens)
        with served.dispatcher.place():
            vectors = await unless_gone(request, asyncio.to_thread(served.engine.embed, ids), desk.limits)
        caller_of(request).spend(tokens)
    data = [
        {"object": "embedding", "index": i, "embedding": _encoded(vector, asked.encoding_format)}
        for i, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse({"object": "list", "data": data, "model": asked.model, "usage": usage})


def no_embeddings(adapter: str) -> ApiError:
    """The engine embeds with the base alone."""
    return ApiError(
        say(
            zh=f"{adapter!r} 是轉接器，只能用來書寫。請改用底模。",
            en=f"{adapter!r} is an adapter, which only writes. Ask its base model for embeddings.",
        ),
        param="model",
        code="unsupported_model",
    )


def _inputs(served: Served, asked: EmbeddingRequest) -> list[list[int]]:
    inputs = [read_prompt(served, prompt, param="input") for prompt in prompts_of(asked.input)]
    inputs = [ids[: asked.truncate_prompt_tokens] for ids in inputs]
    for ids in inputs:
        room_after(served, ids, param="input", least=0)
    return inputs


def _encoded(vector: list[float], encoding: str) -> Any:
    return base64.b64encode(array.array("f", vector).tobytes()).decode() if encoding == "base64" else vector


ROUTES = (
    Route("POST", "/tokenize", "Token ids of a text or conversation.", tokenize, TokenizeRequest),
    Route("POST", "/detokenize", "The text of token ids.", detokenize, DetokenizeRequest),
    Route("POST", "/v1/embeddings", "Texts as vectors of length 1.", embeddings, EmbeddingRequest),
)
