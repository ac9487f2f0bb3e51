"""`POST /v1/responses`, without memory."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from fastapi import Request, Response

from wenfang.serve.desk import Desk, Route
from wenfang.serve.models import Served
from wenfang.serve.prompts import chat_prompt, room_after, tools_of
from wenfang.serve.respond import respond
from wenfang.serve.responses import ResponsesRequest
from wenfang.serve.responses_answer import ResponsesAnswer


async def responses(desk: Desk, request: Request, asked: ResponsesRequest) -> Response:
    """Answer an input."""
    asked.check()
    async with AsyncExitStack() as held:
        served = await held.enter_async_context(desk.models.use(asked.model))
        tools = asked.shown_tools()
        marks = await asyncio.to_thread(tools_of, served, tools)
        prompt = await asyncio.to_thread(_prompt, served, asked, tools)
        room = room_after(served, prompt, param="input")
        limit = room if asked.max_output_tokens is None else min(room, asked.max_output_tokens)
        grammar = asked.demands.grammar(marks)
        params = asked.params(vocab_size=served.engine.vocab_size, max_tokens=limit, grammar=grammar)
        desk.metrics.read(served.name, len(prompt))
        generation = held.enter_context(served.start([(prompt, params)]))
        # A grammar sees to the number of calls by itself, and its text is validated once it has ended.
        several = asked.parallel_tool_calls or grammar is not None
        answer = ResponsesAnswer(served, asked, len(prompt), marks, parallel_calls=several)
        return await respond(request, answer, generation, held, desk.limits, stream=asked.stream)


def _prompt(served: Served, asked: ResponsesRequest, tools: list[dict[str, Any]]) -> list[int]:
    """The conversation's token ids; where truncation was asked for, without the oldest turns that do not fit."""
    messages = asked.conversation()
    prompt = chat_prompt(served, messages, tools, param="input")
    kept = 1 if asked.instructions is not None else 0
    while asked.truncation == "auto" and len(prompt) >= served.engine.context and len(messages) > kept + 1:
        del messages[kept]
        while len(messages) > kept + 1 and messages[kept]["role"] == "tool":  # Its call is gone.
            del messages[kept]
        prompt = chat_prompt(served, messages, tools, param="input")
    return prompt


ROUTES = (
    Route(
        "POST",
        "/v1/responses",
        "Answer an input; nothing is stored.",
        responses,
        ResponsesRequest,
        ("application/json", "text/event-stream"),
    ),
)
