"""Responses, Ollama's interface and tool calls: what is streamed is what is sent whole, to the official client too."""

import json
from collections.abc import Iterator
from types import SimpleNamespace

import httpx
import pytest
from openai import OpenAI
from serve.fakes import FakeEngine, FakeTokenizer, live

from wenfang.engine import Delta, SamplingParams
from wenfang.serve import create_app

CALLS = [("weather", {"city": "臺北"}), ("time", {})]
REPLY = "我查一下。\n" + "\n".join(
    f"<tool_call>\n{json.dumps({'name': n, 'arguments': a}, ensure_ascii=False)}\n</tool_call>" for n, a in CALLS
)
TOOL = {"name": "weather", "description": "Weather.", "parameters": {"type": "object", "properties": {}}}
TOOLS = [{"type": "function", "function": TOOL}]
ASK = [{"role": "user", "content": "天氣？"}]


class ToolTokenizer(FakeTokenizer):
    """Writes conversations as Qwen2.5's template does."""

    def chat(self, messages, *, add_generation_prompt=True, tools=None):
        text = json.dumps(tools) if tools else ""
        for m in messages:
            text += f"<{m['role']}>{m['content'] or ''}"
            for call in m.get("tool_calls", ()):
                text += f"\n<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
        return [ord(c) for c in text + ("<assistant>" if add_generation_prompt else "")]


class Caller(FakeEngine):
    """Answers with `REPLY`, `cut` characters at a time."""

    name, context, cut = "caller", 4000, 1

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = ToolTokenizer()
        self.prompts = list[str]()
        self.reply = REPLY

    def write(self, prompt: list[int], params: SamplingParams) -> Iterator[Delta]:
        self.prompts.append("".join(map(chr, prompt)))
        pieces = [self.reply[i : i + self.cut] for i in range(0, len(self.reply), self.cut)]
        for i, piece in enumerate(pieces, 1):
            yield Delta(piece, "stop" if i == len(pieces) else None, i)


@pytest.fixture(scope="module")
def caller() -> Iterator[SimpleNamespace]:
    engine = Caller()
    with live(create_app(engine)) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        yield SimpleNamespace(engine=engine, url=url, client=client)


@pytest.mark.parametrize("cut", [1, 3, 7, 1000])
def test_streamed_tool_calls_are_the_whole_ones(caller, cut: int) -> None:
    caller.engine.cut = cut
    whole = caller.client.chat.completions.create(model="caller", messages=ASK, tools=TOOLS).choices[0]
    assert [(c.function.name, json.loads(c.function.arguments)) for c in whole.message.tool_calls] == CALLS
    assert whole.message.content == "我查一下。"
    assert whole.finish_reason == "tool_calls"
    with caller.client.chat.completions.stream(model="caller", messages=ASK, tools=TOOLS) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert streamed.message.content == whole.message.content
    assert [(c.function.name, c.function.arguments) for c in streamed.message.tool_calls] == [
        (c.function.name, c.function.arguments) for c in whole.message.tool_calls
    ]
    assert streamed.finish_reason == "tool_calls"


@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_without_parallel_calls_an_answer_ends_with_its_first(caller, cut: int) -> None:
    caller.engine.cut = cut
    asked = {"model": "caller", "messages": ASK, "tools": TOOLS, "parallel_tool_calls": False, "n": 2}
    whole = caller.client.chat.completions.create(**asked)
    with caller.client.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion()
    for answer in (whole, streamed):
        for choice in answer.choices:
            assert [(c.function.name, json.loads(c.function.arguments)) for c in choice.message.tool_calls] == CALLS[:1]
            assert (choice.message.content, choice.finish_reason) == ("我查一下。", "tool_calls")
    first_ends = REPLY.index("</tool_call>") + len("</tool_call>")
    assert whole.usage.completion_tokens == 2 * -(-first_ends // cut)  # A piece is a token here.
    tools = [{"type": "function", **TOOL}]
    answer = caller.client.responses.create(model="caller", input="天氣？", tools=tools, parallel_tool_calls=False)
    assert [item.name for item in answer.output if item.type == "function_call"] == ["weather"]
    assert (answer.parallel_tool_calls, answer.status) == (False, "completed")


def test_without_tools_the_same_words_are_text(caller) -> None:
    for asked in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        answer = caller.client.chat.completions.create(model="caller", messages=ASK, **asked).choices[0]
        assert answer.message.content == REPLY
        assert answer.message.tool_calls is None
        assert "Weather." not in caller.engine.prompts[-1]


def test_results_go_back_to_the_model(caller) -> None:
    first = caller.client.chat.completions.create(model="caller", messages=ASK, tools=TOOLS).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "晴"}
    caller.client.chat.completions.create(model="caller", messages=[*ASK, first, result], tools=TOOLS)
    assert '{"name": "weather", "arguments": {"city": "臺北"}}' in caller.engine.prompts[-1]
    assert "<tool>晴" in caller.engine.prompts[-1]


@pytest.mark.parametrize("cut", [1, 1000])
def test_responses_streamed_and_whole(caller, cut: int) -> None:
    caller.engine.cut = cut
    asked = {"model": "caller", "input": "天氣？", "instructions": "簡短。", "tools": [{"type": "function", **TOOL}]}
    whole = caller.client.responses.create(**asked)
    assert whole.output_text == "我查一下。"
    calls = [item for item in whole.output if item.type == "function_call"]
    assert [(c.name, json.loads(c.arguments)) for c in calls] == CALLS
    assert whole.status == "completed"
    assert "<system>簡短。<user>天氣？" in caller.engine.prompts[-1]
    with caller.client.responses.stream(
        **{**asked, "tools": [{"type": "function", "strict": False, **TOOL}]}
    ) as stream:
        events = list(stream)
        streamed = stream.get_final_response()
    assert streamed.output_text == whole.output_text
    assert [(i.type, getattr(i, "arguments", "")) for i in streamed.output] == [
        (i.type, getattr(i, "arguments", "")) for i in whole.output
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "我查一下。"


def test_a_response_goes_on_from_calls_and_their_outputs(caller) -> None:
    first = caller.client.responses.create(model="caller", input="天氣？", tools=[{"type": "function", **TOOL}])
    calls = [item for item in first.output if item.type == "function_call"]
    outputs = [{"type": "function_call_output", "call_id": c.call_id, "output": "晴"} for c in calls]
    asked = [{"role": "user", "content": "天氣？"}, *first.output, *outputs]
    caller.client.responses.create(model="caller", input=asked, tools=[{"type": "function", **TOOL}])
    assert caller.engine.prompts[-1].count("<tool>晴") == 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": []}, "input"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": ""}]}, "input[0].call_id"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_responses_cannot_do_is_refused(caller, body: dict, param: str) -> None:
    response = httpx.post(f"{caller.url}/v1/responses", json={"model": "caller", "input": "?", **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(param)


def test_the_oldest_turns_give_way_only_where_asked(caller) -> None:
    turns = [{"role": "user", "content": f"{i}" * 900} for i in range(6)]
    body = {"model": "caller", "input": turns, "instructions": "簡短。"}
    assert httpx.post(f"{caller.url}/v1/responses", json=body).json()["error"]["code"] == "context_length_exceeded"
    assert httpx.post(f"{caller.url}/v1/responses", json={**body, "truncation": "auto"}).status_code == 200
    assert "簡短。" in caller.engine.prompts[-1]
    assert "1111" not in caller.engine.prompts[-1]
    assert "5555" in caller.engine.prompts[-1]


def test_ollama_chat_streamed_and_whole(caller) -> None:
    caller.engine.cut = 2
    body = {"model": "caller", "messages": ASK, "tools": TOOLS, "options": {"num_predict": 900, "stop": "停"}}
    whole = httpx.post(f"{caller.url}/api/chat", json={**body, "stream": False}).json()
    lines = [json.loads(line) for line in httpx.post(f"{caller.url}/api/chat", json=body).text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == whole["message"]["content"] == "我查一下。"
    calls = [call for line in lines for call in line["message"].get("tool_calls", ())]
    assert calls == whole["message"]["tool_calls"]
    assert [(c["function"]["name"], c["function"]["arguments"]) for c in calls] == CALLS
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["eval_count"] == whole["eval_count"] > 0
    assert httpx.post(f"{caller.url}/api/chat", json={**body, "options": {"num_ctx": 5}}).status_code == 400


def test_ollama_generate_and_tags(caller) -> None:
    asked = {"model": "caller", "prompt": "天氣？", "stream": False}
    assert httpx.post(f"{caller.url}/api/generate", json=asked).json()["response"] == REPLY
    assert caller.engine.prompts[-1] == "<user>天氣？<assistant>"
    httpx.post(f"{caller.url}/api/generate", json={**asked, "raw": True})
    assert caller.engine.prompts[-1] == "天氣？"
    assert [m["name"] for m in httpx.get(f"{caller.url}/api/tags").json()["models"]] == ["caller"]
