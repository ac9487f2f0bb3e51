"""`POST /v1/completions`: text goes on, or a gap is filled."""

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from fastapi import Request, Response

from wenfang.core.language import say
from wenfang.serve.completions import CompletionRequest, Start, TextAnswer
from wenfang.serve.desk import Desk, Route
from wenfang.serve.dispatch import Job
from wenfang.serve.errors import ApiError
from wenfang.serve.models import Served
from wenfang.serve.prompts import check_ids, room_after
from wenfang.serve.respond import respond

if TYPE_CHECKING:
    from wenfang.grammar import Grammar

FILL_IN_THE_MIDDLE = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, SmolLM
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
)
"""The tokens before the text in front of the gap, before the text behind it, and before what fills it."""


async def completions(desk: Desk, request: Request, asked: CompletionRequest) -> Response:
    """Continue texts."""
    asked.check()
    async with AsyncExitStack() as held:
        served = await held.enter_async_context(desk.models.use(asked.model))
        starts = await asyncio.to_thread(_starts, served, asked)
        form = asked.structured_outputs
        grammar = None if form is None else form.demanded("structured_outputs")
        jobs = [job for start in starts for job in _jobs(served, asked, start, grammar)]
        prompt_tokens = sum(len(start.ids) for start in starts)
        desk.metrics.read(served.name, prompt_tokens)
        generation = held.enter_context(served.start(jobs))
        answer = TextAnswer(
            served,
            [start for start in starts for _ in range(asked.n)],
            prompt_tokens,
            logprobs=asked.logprobs is not None,
            ids=asked.return_tokens_as_token_ids,
            include_usage=asked.stream_options is not None and asked.stream_options.include_usage,
        )
        return await respond(request, answer, generation, held, desk.limits, stream=asked.stream)


def _starts(served: Served, asked: CompletionRequest) -> list[Start]:
    """What each prompt amounts to."""
    if asked.suffix is not None:
        return [Start(_fill(served, str(asked.prompt), asked.suffix))]
    starts = []
    for prompt in prompts_of(asked.prompt):
        ids = read_prompt(served, prompt, param="prompt")
        if asked.truncate_prompt_tokens is not None:
            ids = ids[-asked.truncate_prompt_tokens :]
        text = prompt if isinstance(prompt, str) and asked.truncate_prompt_tokens is None else None
        echoed = "" if not asked.echo else text if text is not None else served.engine.tokenizer.decode(ids)
        starts.append(Start(ids, echoed))
    return starts


def prompts_of(prompt: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """One text or list of ids for each prompt."""
    if isinstance(prompt, str):
        return [prompt]
    texts = [item for item in prompt if isinstance(item, str)]
    lists = [item for item in prompt if isinstance(item, list)]
    ids = [item for item in prompt if isinstance(item, int)]
    return [*texts, *lists] or [ids]


def read_prompt(served: Served, prompt: str | list[int], *, param: str) -> list[int]:
    """Token ids of a prompt; a text begins as the tokenizer lets texts begin.

    Raises:
        ApiError: an id outside the vocabulary.
    """
    if isinstance(prompt, str):
        return served.engine.tokenizer.begin(prompt)
    check_ids(served, prompt, param=param)
    return prompt


def _jobs(served: Served, asked: CompletionRequest, start: Start, grammar: "Grammar | None") -> list[Job]:
    room = room_after(served, start.ids, param="prompt")
    return [
        (
            start.ids,
            asked.params(
                vocab_size=served.engine.vocab_size,
                max_tokens=min(room, asked.max_tokens),
                choice=choice,
                logprobs=asked.logprobs,
                prompt_logprobs=asked.echo and asked.logprobs is not None,
                grammar=grammar,
            ),
        )
        for choice in range(asked.n)
    ]


def _fill(served: Served, before: str, after: str) -> list[int]:
    """A prompt that asks for what stands between two texts (Bavarian et al. 2022, prefix-suffix-middle).

    Raises:
        ApiError: the tokenizer has no tokens for it.
    """
    ids = {token: id_ for id_, token in enumerate(served.tokens)}
    for names in FILL_IN_THE_MIDDLE:
        if all(name in ids for name in names):
            prefix, suffix, middle = (ids[name] for name in names)
            encode = served.engine.tokenizer.encode
            return [prefix, *encode(before), suffix, *encode(after), middle]
    raise ApiError(
        say(
            zh="不支援參數 'suffix'：這個模型沒有填空用的詞元。",
            en="Unsupported parameter: 'suffix' needs a model with fill-in-the-middle tokens, which this one lacks.",
        ),
        param="suffix",
        code="unsupported_parameter",
    )


ROUTES = (
    Route(
        "POST",
        "/v1/completions",
        "Continue texts, or fill a gap.",
        completions,
        CompletionRequest,
        ("application/json", "text/event-stream"),
    ),
)
