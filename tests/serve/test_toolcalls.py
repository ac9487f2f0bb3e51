"""Tool calls out of a stream, cut wherever it may be cut; their marks out of chat templates."""

import json

import pytest

from wenfang.serve.toolcalls import ToolCall, ToolFormat, ToolReader, tool_format

HERMES = ToolFormat("<tool_call>", "</tool_call>")
BARE = ToolFormat("", "")
A = '{"name": "weather", "arguments": {"city": "臺北 </tool_call> {"}}'
B = '{"name": "time", "arguments": {}}'

REPLIES = [
    (HERMES, "沒有工具。\n\n", ["沒有工具。\n\n"]),
    (HERMES, f"<tool_call>\n{A}\n</tool_call>", [ToolCall("weather", '{"city": "臺北 </tool_call> {"}')]),
    (
        HERMES,
        f"我查。\n<tool_call>\n{A}\n</tool_call>\n<tool_call>\n{B}\n</tool_call>\n",
        ["我查。", ToolCall("weather", '{"city": "臺北 </tool_call> {"}'), ToolCall("time", "{}")],
    ),
    (HERMES, f"<tool_call>\n{B}", [ToolCall("time", "{}")]),
    (HERMES, "a <tool_call>not json</tool_call> b", ["a <tool_call>not json</tool_call> b"]),
    (HERMES, 'a <tool_call>{"name": 1}</tool_call> b', ['a <tool_call>{"name": 1}</tool_call> b']),
    (HERMES, 'a <tool_call>{"name"</tool_call> b', ['a <tool_call>{"name"</tool_call> b']),
    (HERMES, f"<tool_call>{B} more", [f"<tool_call>{B} more"]),
    (HERMES, "a < b <tool", ["a < b <tool"]),
    (HERMES, '<tool_call>{"name": "x", "arguments": {"s": "\\', ['<tool_call>{"name": "x", "arguments": {"s": "\\']),
    (BARE, B, [ToolCall("time", "{}")]),
    (BARE, f"See {B}", [f"See {B}"]),
    (BARE, '{"no": "call"} …', ['{"no": "call"} …']),
]


def read(form: ToolFormat, pieces: list[str]) -> list[str | ToolCall]:
    reader, parts = ToolReader(form), list[str | ToolCall]()
    found = [part for piece in pieces for part in reader.push(piece)] + list(reader.finish())
    for part in found:
        if isinstance(part, str) and parts and isinstance(parts[-1], str):
            parts[-1] += part
        else:
            parts.append(part)
    return parts


@pytest.mark.parametrize(("form", "reply", "expected"), REPLIES)
def test_every_cut_gives_the_same_parts(form: ToolFormat, reply: str, expected: list[str | ToolCall]) -> None:
    assert read(form, [reply]) == expected
    assert read(form, list(reply)) == expected
    for at in range(len(reply)):
        assert read(form, [reply[:at], reply[at:]]) == expected


class Templated:
    """A tokenizer with nothing but a template."""

    def __init__(self, write) -> None:
        self.write = write

    def chat(self, messages, *, tools=None, add_generation_prompt=True):
        return self.write(messages) + ("assistant:" if add_generation_prompt else "")

    def decode(self, ids):
        return ids


def qwen(messages):
    """How Qwen2.5's and SmolLM3's templates write calls."""
    said = "".join(
        f"\n<tool_call>\n{json.dumps(c['function'])}\n</tool_call>" for m in messages for c in m.get("tool_calls", ())
    )
    return "user:?\n" + (f"assistant:{said}<|im_end|>\n".replace("<|im_end|>", "") if said else "")


def llama(messages):
    """How Llama 3.1's template writes its one call."""
    calls = [c["function"] for m in messages for c in m.get("tool_calls", ())]
    said = "".join(json.dumps({"name": c["name"], "parameters": c["arguments"]}) for c in calls[:1])
    return "user:?" + (f"assistant:{said}" if said else "")


def test_the_template_shows_the_marks() -> None:
    assert tool_format(Templated(qwen)) == HERMES
    assert tool_format(Templated(llama)) == ToolFormat("", "", "parameters")
    assert tool_format(Templated(lambda messages: "nothing")) is None
