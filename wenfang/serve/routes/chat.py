"""`POST /v1/chat/completions`."""

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from fastapi import Request, Response

from wenfang.serve.chat_answer import ChatAnswer
from wenfang.serve.desk import Desk, Route
from wenfang.serve.dispatch import Job
from wenfang.serve.models import Served
from wenfang.serve.prompts import chat_prompt, room_after, tools_of
from wenfang.serve.respond import respond
from wenfang.serve.schema import ChatRequest

if TYPE_CHECKING:
    from wenfang.grammar import Grammar


async def chat_completions(desk: Desk, request: Request, asked: ChatRequest) -> Response:
    """Continue a conversation."""
    asked.check()
    async with AsyncExitStack() as held:
        served = await held.enter_async_context(desk.models.use(asked.model))
        tools = asked.shown_tools()
        marks = await asyncio.to_thread(tools_of, served, tools)
        prompt = await asyncio.to_thread(chat_prompt, served, asked.conversation(), tools)
        grammar = asked.demands.grammar(marks)
        jobs = chat_jobs(served, asked, prompt, grammar)
        desk.metrics.read(served.name, len(prompt))
        generation = held.enter_context(served.start(jobs))
        answer = ChatAnswer(
            served,
            len(prompt),
            asked.n,
            tools=marks,
            # A grammar sees to it by itself, and its text is validated once it has ended.
            parallel_calls=asked.parallel_tool_calls or grammar is not None,
            logprobs=asked.logprobs,
            include_usage=asked.stream_options is not None and asked.stream_options.include_usage,
        )
        return await respond(request, answer, generation, held, desk.limits, stream=asked.stream)


def chat_jobs(served: Served, asked: ChatRequest, prompt: list[int], grammar: "Grammar | None" = None) -> list[Job]:
    """One job for each choice. A `max_tokens` beyond the end of the context is only an upper bound that is never
    reached: such a completion ends with finish_reason `length`."""
    room = room_after(served, prompt, param="messages")
    limit = room if asked.limit is None else min(room, asked.limit)
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    size = served.engine.vocab_size
    return [
        (prompt, asked.params(vocab_size=size, max_tokens=limit, choice=choice, logprobs=logprobs, grammar=grammar))
        for choice in range(asked.n)
    ]


ROUTES = (
    Route(
        "POST",
        "/v1/chat/completions",
        "Continue a conversation.",
        chat_completions,
        ChatRequest,
        ("application/json", "text/event-stream"),
    ),
)
