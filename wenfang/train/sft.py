"""The stage `train.sft`: a model learns to answer from conversations."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wenfang.core.artifact import Summary, check_artifact
from wenfang.core.errors import DataError, InputError
from wenfang.core.language import say
from wenfang.core.report import Reporter
from wenfang.model import load_config, load_model, save_model
from wenfang.tokenizer import Message, Tokenizer
from wenfang.train.adapter import adapt, merged
from wenfang.train.card import model_card
from wenfang.train.config import SftConfig
from wenfang.train.documents import TextCount
from wenfang.train.loop import train
from wenfang.train.objective import Rows, next_token
from wenfang.train.packing import Document, tell_waste
from wenfang.train.peft import save_adapter, their_names


def run(config: SftConfig, out: Path, report: Reporter) -> Summary:
    """Fine-tune on the assistant's tokens and write the model as a Hugging Face folder.

    Raises:
        InputError: an input is missing, of another kind or damaged, or the context exceeds the model's.
        DataError: a line is not a conversation, one is too long, or there are none.
    """
    check_artifact(config.conversations, "conversations")
    architecture = load_config(config.model)
    if config.context > architecture.context:
        raise InputError(
            say(
                zh=f"context={config.context} 超過模型的 {architecture.context}。請調小。",
                en=f"context={config.context} exceeds the model's {architecture.context}. Lower it.",
            )
        )
    tokenizer = Tokenizer.load(config.model, model_vocab_size=architecture.vocab_size)
    training, validation = (
        _rows(config.conversations / f"{split}.jsonl", tokenizer, config, report, out)
        for split in ("train", "validation")
    )
    tell_waste(training.packed, report)
    model = load_model(config.model)
    task = next_token(training, validation, config)
    torch.manual_seed(config.seed)
    adapt(model, config.adapter)
    their_names(model)  # Refuse now what could not be written after hours of training.
    summary: Summary = {"packing_waste": round(training.waste, 4)}
    summary |= train(model, task, config, out, report, label=say(zh="對話微調", en="fine-tuning"))
    if config.adapter.method != "full":
        save_adapter(model, out / "adapter", config.adapter, base=config.model)
    with merged(model):
        save_model(
            model,
            out,
            tokenizer=config.model,
            bos_id=tokenizer.bos_id,
            end_id=tokenizer.end_id,
            dtype=getattr(torch, config.save_as),
            card=model_card("train.sft", config, summary, out),
        )
    return summary


@dataclass(frozen=True)
class Conversation:
    """One line of a JSONL file in OpenAI's form."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    """Function definitions that the assistant may call."""


def read_conversations(path: Path) -> Iterator[tuple[int, Conversation]]:
    """Line number and content of each conversation of a JSONL file.

    Raises:
        DataError: the file cannot be read, or a line is not `{"messages": […]}`; names file and line.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                yield number, _conversation(path, number, line)
    except FileNotFoundError:
        raise DataError(
            say(
                zh=f"沒有檔案 {str(path)!r}。對話是一個資料夾，裡面有 train.jsonl 與 validation.jsonl。",
                en=f"No file {str(path)!r}. Conversations are a folder with train.jsonl and validation.jsonl.",
            )
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            say(zh=f"{str(path)!r} 無法讀取：{error}", en=f"{str(path)!r} cannot be read: {error}")
        ) from None


def _conversation(path: Path, number: int, line: str) -> Conversation:
    try:
        values = json.loads(line)
        messages, tools = values["messages"], values.get("tools")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _not_messages(path, number, repr(error)) from None
    for items in (messages, tools or []):
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise _not_messages(path, number, repr(items)[:120])
    return Conversation([_with_objects(path, number, message) for message in messages], tools or None)


def _with_objects(path: Path, number: int, message: Message) -> Message:
    """The same with the arguments of calls as the server hands them to the template: objects, not the text of one."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    try:
        shown = [
            call | {"function": _with_object(call["function"])} if "function" in call else _with_object(call)
            for call in calls
        ]
    except (ValueError, KeyError, TypeError):
        raise DataError(
            say(
                zh=f"{str(path)!r} 第 {number} 行的 tool_calls 要是 "
                f'{{"type": "function", "function": {{"name": …, "arguments": "{{…}}"}}}} 的清單：{str(calls)[:120]}',
                en=f"{str(path)!r} line {number}: tool_calls must be a list of "
                f'{{"type": "function", "function": {{"name": …, "arguments": "{{…}}"}}}}, not {str(calls)[:120]}',
            )
        ) from None
    return {**message, "tool_calls": shown}


def _with_object(function: dict[str, Any]) -> dict[str, Any]:
    """The same with its arguments as an object.

    Raises:
        ValueError: they are none.
    """
    arguments = function["arguments"]
    value = json.loads(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(value, dict):
        raise ValueError(arguments)
    return function | {"arguments": value}


def _not_messages(path: Path, number: int, found: str) -> DataError:
    return DataError(
        say(
            zh=f'{str(path)!r} 第 {number} 行不是 {{"messages": [{{"role": …, "content": …}}]}}：{found}',
            en=f'{str(path)!r} line {number} is not {{"messages": [{{"role": …, "content": …}}]}}: {found}',
        )
    )


def _rows(path: Path, tokenizer: Tokenizer, config: SftConfig, report: Reporter, folder: Path) -> Rows:
    count = TextCount()
    return count.pack(_documents(path, tokenizer, config, report, count), config.context, folder)


def _documents(
    path: Path, tokenizer: Tokenizer, config: SftConfig, report: Reporter, count: TextCount
) -> Iterator[Document]:
    """Tokenise one split; the loss counts what the assistant says, its end token included."""
    too_long = silent = 0
    for number, conversation in read_conversations(path):
        try:
            pairs = tokenizer.chat_with_mask(conversation.messages, tools=conversation.tools)
        except InputError as error:
            raise DataError(f"{str(path)!r}, {say(zh=f'第 {number} 行', en=f'line {number}')}: {error}") from None
        if len(pairs) > config.context + 1:
            too_long += 1
            if config.too_long == "error":
                raise _too_long(path, number, len(pairs), config.context)
            if config.too_long == "drop":
                continue
        ids, said = zip(*pairs[: config.context + 1], strict=True)
        if any(said[1:]):
            learned = [id_ for id_, mine in zip(ids, said, strict=True) if mine]
            count.add(tokenizer.decode(learned), sum(said[1:]))
            yield np.array(ids, np.int32), np.array(said)
        else:  # A row of such documents alone would have nothing to average over.
            silent += 1
    _tell(path, config, report, too_long, silent)
    if not count.tokens:
        raise DataError(
            say(zh=f"{str(path)!r} 沒有可學的對話。", en=f"{str(path)!r} holds no conversation to learn from.")
        )


def _too_long(path: Path, number: int, tokens: int, context: int) -> DataError:
    return DataError(
        say(
            zh=f"{str(path)!r} 第 {number} 行有 {tokens} 個 token，超過 context={context}。"
            "請加大 context，或設 too_long: truncate／drop。",
            en=f"{str(path)!r} line {number} has {tokens} tokens, more than context={context}. "
            "Raise context, or set too_long: truncate or drop.",
        )
    )


def _tell(path: Path, config: SftConfig, report: Reporter, too_long: int, silent: int) -> None:
    """Warn of conversations that are not learned as they stand."""
    if too_long:
        report.warn(
            say(
                zh=f"{path.name}：{too_long} 段對話過長，處置為 {config.too_long}",
                en=f"{path.name}: {too_long} conversations were too long ({config.too_long})",
            )
        )
    if silent:
        report.warn(
            say(
                zh=f"{path.name}：略過 {silent} 段對話，其中（在 context 之內）沒有助理說的話",
                en=f"{path.name}: left out {silent} conversations in which the assistant says nothing (within context)",
            )
        )
