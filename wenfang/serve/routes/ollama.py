"""`/api/chat`, `/api/generate` and `/api/tags`, in Ollama's form."""

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from wenfang.serve.demands import Demands
from wenfang.serve.desk import Desk, Route
from wenfang.serve.dispatch import Job
from wenfang.serve.errors import unsupported
from wenfang.serve.models import Served
from wenfang.serve.ollama import OllamaAnswer, OllamaChatRequest, OllamaGenerateRequest, Options, check_turns
from wenfang.serve.prompts import chat_prompt, room_after, tools_of
from wenfang.serve.respond import respond

if TYPE_CHECKING:
    from wenfang.grammar import Grammar

LINES = ("application/x-ndjson", "application/json")


async def chat(desk: Desk, request: Request, asked: OllamaChatRequest) -> Response:
    """Continue a conversation."""
    async with AsyncExitStack() as held:
        served = await held.enter_async_context(desk.models.use(asked.model))
        tools = [tool.shown() for tool in asked.tools]
        marks = await asyncio.to_thread(tools_of, served, tools)
        check_turns(asked.messages)
        messages = [message.shown(i) for i, message in enumerate(asked.messages)]
        prompt = await asyncio.to_thread(chat_prompt, served, messages, tools)
        answer = OllamaAnswer(served, len(prompt), chat=True, tools=marks)
        grammar = Demands(tools, [tool.function.strict for tool in asked.tools], "auto").grammar(marks)
        job = _job(served, prompt, asked.options, "messages", grammar)
        return await _respond(desk, request, held, served, answer, job, stream=asked.stream)


async def generate(desk: Desk, request: Request, asked: OllamaGenerateRequest) -> Response:
    """Answer a prompt, or continue a text."""
    async with AsyncExitStack() as held:
        served = await held.enter_async_context(desk.models.use(asked.model))
        prompt = await asyncio.to_thread(_generate_prompt, served, asked)
        answer = OllamaAnswer(served, len(prompt), chat=False)
        job = _job(served, prompt, asked.options, "prompt")
        return await _respond(desk, request, held, served, answer, job, stream=asked.stream)


def _generate_prompt(served: Served, asked: OllamaGenerateRequest) -> list[int]:
    if asked.raw:
        if asked.system is not None:  # Raw text goes round the template, which would have said it.
            raise unsupported("system")
        return served.engine.tokenizer.begin(asked.prompt)
    system: list[dict[str, Any]] = [] if asked.system is None else [{"role": "system", "content": asked.system}]
    return chat_prompt(served, [*system, {"role": "user", "content": asked.prompt}], [], param="prompt")


def _job(served: Served, prompt: list[int], options: Options, param: str, grammar: "Grammar | None" = None) -> Job:
    room = room_after(served, prompt, param=param)
    limit = room if options.num_predict is None else min(room, options.num_predict)
    size = served.engine.vocab_size
    return prompt, options.sampling().params(vocab_size=size, max_tokens=limit, grammar=grammar)


async def _respond(
    desk: Desk,
    request: Request,
    held: AsyncExitStack,
    served: Served,
    answer: OllamaAnswer,
    job: Job,
    *,
    stream: bool,
) -> Response:
    desk.metrics.read(served.name, len(job[0]))
    generation = held.enter_context(served.start([job]))
    return await respond(request, answer, generation, held, desk.limits, stream=stream)


async def tags(desk: Desk, request: Request, _: None) -> Response:
    """The models on offer."""
    described = [desk.models.describe(name) for name in desk.models.names()]
    models = [
        {
            "name": one["id"],
            "model": one["id"],
            "modified_at": datetime.fromtimestamp(one["created"], UTC).isoformat(),
            "details": {"format": "wenfang"},
        }
        for one in described
    ]
    return JSONResponse({"models": models})


ROUTES = (
    Route("POST", "/api/chat", "Ollama: continue a conversation.", chat, OllamaChatRequest, LINES),
    Route("POST", "/api/generate", "Ollama: answer or continue.", generate, OllamaGenerateRequest, LINES),
    Route("GET", "/api/tags", "Ollama: the models on offer.", tags),
)
