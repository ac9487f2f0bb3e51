"""A function that a model was taught to call is called in front of a client of OpenAI's, with nothing forcing it."""

import json
from pathlib import Path

import torch
from openai import OpenAI
from serve.fakes import live
from tokenizer.test_chat_template import CONVERSATION, TOOLS

from wenfang.core.report import Reporter
from wenfang.engine import Engine
from wenfang.model import Decoder, DecoderConfig, save_model
from wenfang.serve import create_app
from wenfang.tokenizer import Tokenizer
from wenfang.train import sft
from wenfang.train.config import OptimizerConfig, SftConfig


def test_a_model_that_learned_a_tool_calls_it(tokenizer_folder: Path, tmp_path: Path) -> None:
    base, conversations, out = (tmp_path / name for name in ("base", "conversations", "out"))
    for folder in (base, conversations, out):
        folder.mkdir()
    torch.manual_seed(0)
    size = Tokenizer.load(tokenizer_folder).vocab_size
    model = Decoder(
        DecoderConfig(vocab_size=size, dim=64, layers=2, heads=2, kv_heads=1, head_dim=32, hidden=128, context=512)
    )
    model.initialise()
    save_model(model, base, tokenizer=tokenizer_folder, bos_id=1, end_id=2, card="")
    for split in ("train", "validation"):
        lines = json.dumps({"messages": CONVERSATION, "tools": TOOLS}) + "\n"
        (conversations / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    values = {"steps": 60, "batch": 1, "context": 511, "compile": False, "dtype": "float32"}
    optimizer = OptimizerConfig(lr=5e-3)
    sft.run(SftConfig(model=base, conversations=conversations, optimizer=optimizer, **values), out, Reporter())
    engine = Engine.load(out)
    with live(create_app(engine)) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        asked = {"model": "out", "tools": TOOLS, "temperature": 0}
        messages = CONVERSATION[:2]
        first = client.chat.completions.create(messages=messages, **asked).choices[0]
        assert first.finish_reason == "tool_calls"
        (call,) = first.message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("rhyme", {"字": "山"})
        messages = [*messages, first.message, {"role": "tool", "tool_call_id": call.id, "content": "刪韻"}]
        second = client.chat.completions.create(messages=messages, **asked).choices[0]
    engine.close()
    assert second.message.content == CONVERSATION[4]["content"]
