"""What of a conversation the model is given to read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wenfang.engine import TextEngine
    from wenfang.tokenizer.tokenizer import Message


def fit_prompt(
    engine: "TextEngine", earlier: Sequence[tuple[str, str]], question: str, *, system: str = ""
) -> list[int]:
    """Token ids of a conversation, ready for the reply.

    The oldest turns give way until half of the context is left for the reply; the question never does.

    Args:
        engine: whose tokenizer and context to use.
        earlier: questions and replies before this one.
        question: what is asked now.
        system: what the model is told before everything else.
    """
    turns = list(earlier)
    while True:
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        for asked, answered in turns:
            messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        messages.append({"role": "user", "content": question})
        prompt = engine.tokenizer.chat(messages, add_generation_prompt=True)
        if not turns or len(prompt) <= engine.context // 2:
            return prompt
        turns = turns[1:]
