"""The stage `train.sft`: a model learns to answer from conversations."""

import json
from collections.abc import Iterator
from pathlib import Path

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
from wenfang.train.loop import train
from wenfang.train.objective import Rows, next_token
from wenfang.train.packing import Document, pack
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
    training = _rows(config.conversations / "train.jsonl", tokenizer, config, report)
    validation = _rows(config.conversations / "validation.jsonl", tokenizer, config, report)
    model = load_model(config.model)
    task = next_token(training, validation, config)
    torch.manual_seed(config.seed)
    adapt(model, config.adapter)
    their_names(model)  # Refuse now what could not be written after hours of training.
    summary = train(model, task, config, out, report, label=say(zh="對話微調", en="fine-tuning"))
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
            card=model_card("train.sft", config, summary),
        )
    return summary


def read_conversations(path: Path) -> Iterator[tuple[int, list[Message]]]:
    """Line number and messages of each conversation of a JSONL file.

    Raises:
        DataError: the file cannot be read, or a line is not `{"messages": […]}`; names file and line.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                yield number, _messages(path, number, line)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            say(zh=f"{str(path)!r} 無法讀取：{error}", en=f"{str(path)!r} cannot be read: {error}")
        ) from None


def _messages(path: Path, number: int, line: str) -> list[Message]:
    try:
        messages: list[Message] = json.loads(line)["messages"]
    except (ValueError, KeyError, TypeError) as error:
        raise _not_messages(path, number, repr(error)) from None
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise _not_messages(path, number, repr(messages)[:120])
    return messages


def _not_messages(path: Path, number: int, found: str) -> DataError:
    return DataError(
        say(
            zh=f'{str(path)!r} 第 {number} 行不是 {{"messages": [{{"role": …, "content": …}}]}}：{found}',
            en=f'{str(path)!r} line {number} is not {{"messages": [{{"role": …, "content": …}}]}}: {found}',
        )
    )


def _rows(path: Path, tokenizer: Tokenizer, config: SftConfig, report: Reporter) -> Rows:
    """Tokenise and pack one split; the loss counts what the assistant says, its end token included."""
    characters, too_long, documents = 0, 0, list[Document]()
    for number, messages in read_conversations(path):
        try:
            pairs = tokenizer.chat_with_mask(messages)
        except InputError as error:
            raise DataError(f"{str(path)!r}, {say(zh=f'第 {number} 行', en=f'line {number}')}: {error}") from None
        if len(pairs) > config.context + 1:
            too_long += 1
            if config.too_long == "error":
                raise DataError(
                    say(
                        zh=f"{str(path)!r} 第 {number} 行有 {len(pairs)} 個 token，超過 context={config.context}。"
                        "請加大 context，或設 too_long: truncate／drop。",
                        en=f"{str(path)!r} line {number} has {len(pairs)} tokens, more than context={config.context}. "
                        "Raise context, or set too_long: truncate or drop.",
                    )
                )
            pairs = pairs[: config.context + 1] if config.too_long == "truncate" else []
        ids, said = [id_ for id_, _ in pairs], [mine for _, mine in pairs]
        if any(said[1:]):
            documents.append((ids, said))
            characters += sum(len(m["content"]) for m in messages if m["role"] == "assistant")
    if too_long:
        report.warn(
            say(
                zh=f"{path.name}：{too_long} 段對話過長，處置為 {config.too_long}",
                en=f"{path.name}: {too_long} conversations were too long ({config.too_long})",
            )
        )
    if not documents:
        raise DataError(
            say(zh=f"{str(path)!r} 沒有可學的對話。", en=f"{str(path)!r} holds no conversation to learn from.")
        )
    learned = sum(sum(said[1:]) for _, said in documents)
    return Rows(pack(documents, config.context), characters / learned)
