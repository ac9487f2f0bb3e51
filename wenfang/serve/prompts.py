"""From what a request says to token ids that fit the model."""

from typing import TYPE_CHECKING, Any

from wenfang.core.errors import InputError
from wenfang.core.language import say
from wenfang.serve.errors import ApiError
from wenfang.serve.models import Served
from wenfang.serve.toolcalls import ToolFormat, tool_format

if TYPE_CHECKING:
    from wenfang.tokenizer import Message


def chat_prompt(
    served: Served, messages: list[dict[str, Any]], tools: list[dict[str, Any]], *, param: str = "messages"
) -> list[int]:
    """Token ids of a conversation, ready for the model to answer.

    Raises:
        ApiError: the chat template refuses the conversation.
    """
    conversation: list[Message] = [message_of(message) for message in messages]
    try:
        return served.engine.tokenizer.chat(conversation, tools=tools or None, add_generation_prompt=True)
    except InputError as error:
        raise ApiError(str(error), param=param, code="invalid_value") from None


def message_of(message: dict[str, Any]) -> "Message":
    """The same with the type that tokenizers ask for."""
    shown: Message = {"role": message["role"], "content": message["content"]}
    if "tool_calls" in message:
        shown["tool_calls"] = message["tool_calls"]
    if "tool_call_id" in message:
        shown["tool_call_id"] = message["tool_call_id"]
    return shown


def tools_of(served: Served, tools: list[dict[str, Any]]) -> ToolFormat | None:
    """How the model writes calls, when it is given tools.

    Raises:
        ApiError: its chat template shows no calls that could be read.
    """
    if not tools:
        return None
    if (found := tool_format(served.engine.tokenizer)) is None:
        raise ApiError(
            say(
                zh="這個模型的聊天範本不支援工具呼叫。請移除 'tools'，或換模型。",
                en="This model's chat template knows no tool calls. Remove 'tools' or choose another model.",
            ),
            param="tools",
            code="unsupported_parameter",
        )
    return found


def room_after(served: Served, prompt: list[int], *, param: str, least: int = 1) -> int:
    """Tokens that can follow the prompt, `least` or more.

    Raises:
        ApiError: there is no room, or no prompt.
    """
    context = served.engine.context
    if not prompt:
        raise ApiError(
            say(zh=f"參數 {param!r} 是空的。", en=f"Invalid value for {param!r}: it is empty."),
            param=param,
            code="invalid_value",
        )
    if len(prompt) + least > context:
        no_room = " and leaves no room for an answer" if least else ""
        raise ApiError(
            say(
                zh=f"提示有 {len(prompt)} 個詞元，而模型的上下文只有 {context} 個。請縮短。",
                en=f"This model's context is {context} tokens, but the prompt takes {len(prompt)}{no_room}. "
                "Shorten it.",
            ),
            param=param,
            code="context_length_exceeded",
        )
    return context - len(prompt)


def check_ids(served: Served, ids: list[int], *, param: str) -> None:
    """Refuse ids that the model has no embedding for.

    Raises:
        ApiError: the first such id.
    """
    size = served.engine.vocab_size
    if outside := [token for token in ids if token >= size]:
        raise ApiError(
            say(
                zh=f"參數 {param!r} 的詞元 {outside[0]} 不在詞彙表裡（共 {size} 個）。",
                en=f"Invalid value for {param!r}: token {outside[0]} is not in the vocabulary of {size}.",
            ),
            param=param,
            code="invalid_value",
        )
