"""The server in front of the engine itself, with a tiny random model."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import httpx
import jsonschema
import pydantic
import pytest
from openai import BadRequestError, OpenAI, pydantic_function_tool
from serve.fakes import live, tiny_model

from wenfang.engine import Engine, SamplingParams
from wenfang.engine.blocks import BLOCK
from wenfang.model import load_model
from wenfang.serve import Dispatcher, create_app
from wenfang.tokenizer import Tokenizer
from wenfang.tokenizer.train import CHAT_TEMPLATE

POET = Path(__file__).parents[2] / "models" / "poet"
ASK = [{"role": "user", "content": "寫一首五言絕句。"}]


@pytest.fixture
def engine(tokenizer_folder: Path, tmp_path: Path) -> Iterator[Engine]:
    engine = Engine.load(tiny_model(tmp_path / "tiny", tokenizer_folder))
    yield engine
    engine.close()


def test_the_api_says_what_the_engine_writes(engine: Engine) -> None:
    prompt = engine.tokenizer.chat(ASK, add_generation_prompt=True)
    (expected,) = engine.generate([prompt], SamplingParams(max_tokens=40, seed=5))
    with live(create_app(engine)) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        whole = client.chat.completions.create(model="tiny", messages=ASK, max_tokens=40, seed=5)
        chunks = list(
            client.chat.completions.create(
                model="tiny",
                messages=ASK,
                max_tokens=40,
                seed=5,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    assert whole.choices[0].message.content == expected.text
    assert whole.choices[0].finish_reason == expected.finish_reason
    assert whole.usage.prompt_tokens == len(prompt)
    assert whole.usage.completion_tokens == len(expected.token_ids)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected.text
    assert chunks[-1].usage == whole.usage


def test_an_answer_has_the_form_that_was_asked_for(engine: Engine) -> None:
    schema = {
        "type": "object",
        "properties": {"詩題": {"type": "string", "maxLength": 4}, "句數": {"enum": [4, 8]}},
        "required": ["詩題", "句數"],
        "additionalProperties": False,
    }
    with live(create_app(engine)) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)

        def ask(form: dict) -> str | None:
            return (
                client.chat.completions.create(model="tiny", messages=ASK, seed=5, response_format=form, max_tokens=150)
                .choices[0]
                .message.content
            )

        def respond(form: dict, **more: object) -> str:
            asked = {"model": "tiny", "input": ASK, "text": {"format": form}, "max_output_tokens": 150, **more}
            with client.responses.stream(**asked, extra_body={"seed": 5}) as stream:
                final = stream.get_final_response()
            assert final.text.format.type == form["type"]
            assert client.responses.create(**asked, extra_body={"seed": 5}).output_text == final.output_text
            return final.output_text

        answer = json.loads(ask({"type": "json_schema", "json_schema": {"name": "poem", "schema": schema}}) or "")
        assert json.loads(respond({"type": "json_schema", "name": "poem", "schema": schema, "strict": True})) == answer
        assert respond({"type": "json_object"}) == ask({"type": "json_object"})
        assert ask({"type": "choice", "choice": ["春", "秋"]}) in ("春", "秋")
        faulty = {"properties": {"詩題": {"uniqueItems": True}}}
        with pytest.raises(BadRequestError, match=r"\$\.properties\.詩題.*uniqueItems"):
            ask({"type": "json_schema", "json_schema": {"name": "poem", "schema": faulty}})
        with pytest.raises(BadRequestError, match=r"\$\.properties\.詩題.*uniqueItems"):
            respond({"type": "json_schema", "name": "poem", "schema": faulty})
    assert (set(answer), answer["句數"] in (4, 8)) == ({"詩題", "句數"}, True)


SCHEMAS = {
    "weather": {"type": "object", "properties": {"city": {"enum": ["臺北", "高雄"]}}, "required": ["city"]},
    "time": {"type": "object", "properties": {"zone": {"type": "integer", "minimum": -12, "maximum": 14}},
             "required": ["zone"]},
}  # fmt: skip
for _schema in SCHEMAS.values():
    _schema["additionalProperties"] = False
TOOLS = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in SCHEMAS.items()]


@pytest.fixture(params=[CHAT_TEMPLATE])
def caller(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """A model that knows nothing, with the poet's tokenizer and our template."""
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(POET, tokenizer)
    config = json.loads((tokenizer / "tokenizer_config.json").read_text())
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": request.param}))
    engine = Engine.load(tiny_model(tmp_path / "tiny", tokenizer, context=768))
    yield engine
    engine.close()


def test_a_forced_call_fulfils_its_schema_however_little_the_model_knows(caller: Engine) -> None:
    named = {"type": "function", "function": {"name": "time"}}
    with live(create_app(caller)) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        most = 0
        for seed, (choice, parallel) in enumerate([("required", True), ("required", False), (named, True)] * 4):
            answer = client.chat.completions.create(
                model="tiny", messages=ASK, tools=TOOLS, tool_choice=choice, parallel_tool_calls=parallel, seed=seed
            ).choices[0]  # fmt: skip
            calls = answer.message.tool_calls
            # Allowed to, such a model goes on calling to the end of the context.
            assert answer.finish_reason == "tool_calls" or (choice, parallel) == ("required", True)
            for call in calls:
                jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])
            if choice == named:
                assert [call.function.name for call in calls] == ["time"]
            if not parallel:
                assert len(calls) == 1
            most = max(most, len(calls))
            flat = choice if isinstance(choice, str) else {"type": "function", "name": "time"}
            tools = [{"type": "function", "strict": True, **tool["function"]} for tool in TOOLS]
            asked = {"input": ASK, "tools": tools, "tool_choice": flat, "parallel_tool_calls": parallel}
            with client.responses.stream(model="tiny", **asked, extra_body={"seed": seed}) as stream:
                streamed = list(stream)[-1].response
            assert [(item.name, item.arguments) for item in streamed.output if item.type == "function_call"] == [
                (call.function.name, call.function.arguments) for call in calls
            ]
            assert (streamed.status == "completed") == (answer.finish_reason == "tool_calls")
        with pytest.raises(BadRequestError) as refused:
            client.responses.create(model="tiny", **{**asked, "tools": []})
        assert refused.value.param == "tool_choice"
    assert most > 1


def test_a_refused_schema_of_a_tool_is_named_by_the_tools(caller: Engine) -> None:
    function = {"name": "f", "parameters": {"type": "text"}}
    forced = {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    strict = {"tools": [{"type": "function", "function": {**function, "strict": True}}]}
    flat = {"input": "秋", "tools": [{"type": "function", "strict": True, **function}]}
    with live(create_app(caller)) as url:
        for path, body in (
            ("/v1/chat/completions", {"messages": ASK, **forced}),
            ("/v1/chat/completions", {"messages": ASK, **strict, "response_format": {"type": "text"}}),
            ("/v1/responses", {**flat, "text": {"format": {"type": "text"}}}),
            ("/api/chat", {"messages": ASK, **strict}),
        ):
            answer = httpx.post(url + path, json={"model": "tiny", **body}, timeout=60)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")


@pytest.mark.parametrize("caller", [CHAT_TEMPLATE.replace("<tool_call>", "召")], indirect=True)
def test_calls_of_strict_tools_fulfil_their_schemas_and_text_may_come_instead(caller: Engine) -> None:
    class Zone(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        zone: Literal["臺北", "東京"]

    (mark,) = caller.tokenizer.encode("召")
    with live(create_app(caller)) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        asked = {"model": "tiny", "messages": ASK, "tools": [pydantic_function_tool(Zone)]}
        text = client.chat.completions.create(**asked, seed=1, max_tokens=30, logit_bias={mark: -100}).choices[0]
        assert (text.message.tool_calls or [], text.finish_reason) == ([], "length")
        assert len(text.message.content) > 10
        called = client.chat.completions.parse(
            **asked, seed=1, max_tokens=100, logit_bias={mark: 100}, parallel_tool_calls=False
        ).choices[0]
    assert called.finish_reason == "tool_calls"
    assert [type(one.function.parsed_arguments) for one in called.message.tool_calls] == [Zone]


@pytest.mark.parametrize("caller", [CHAT_TEMPLATE.replace("<tool_call>", "召")], indirect=True)
def test_beside_a_form_tools_may_still_be_called(caller: Engine) -> None:
    class Zone(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")
        zone: Literal["臺北", "東京"]

    # The mark's token, and its first bytes alone.
    spelled = enumerate(caller.tokenizer.token_bytes)
    marks = [id_ for id_, name in spelled if name and "召".encode().startswith(name)]
    with live(create_app(caller)) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        tools = [pydantic_function_tool(Zone, name="clock")]
        asked = {"model": "tiny", "messages": ASK, "seed": 1, "max_tokens": 100, "parallel_tool_calls": False}
        flat = [{"type": "function", **tool["function"]} for tool in tools]
        for likely, reason in ((-100, "stop"), (100, "tool_calls")):
            bias = {"logit_bias": dict.fromkeys(marks, likely)}
            choice = client.chat.completions.parse(**asked, **bias, tools=tools, response_format=Zone).choices[0]
            response = client.responses.parse(
                model="tiny",
                input=ASK,
                tools=flat,
                text_format=Zone,
                parallel_tool_calls=False,
                extra_body={"seed": 1, **bias},
            )
            calls = [call.function for call in choice.message.tool_calls or ()]
            assert choice.finish_reason == reason, choice
            if likely > 0:
                assert [type(call.parsed_arguments) for call in calls] == [Zone]
                assert [item.arguments for item in response.output] == [calls[0].arguments]
            else:
                assert not calls
                assert isinstance(choice.message.parsed, Zone)
                assert response.output_parsed == choice.message.parsed
        with pytest.raises(BadRequestError) as refused:
            client.chat.completions.create(
                **asked, tools=tools, extra_body={"response_format": {"type": "choice", "choice": ["a"]}}
            )
        assert refused.value.param == "response_format"
        free = client.chat.completions.create(
            **asked, tools=tools, tool_choice="required", response_format={"type": "text"}
        ).choices[0]
        assert free.finish_reason == "tool_calls"


def test_a_defect_of_the_engine_ends_in_an_error_and_shows_in_its_health(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise IndexError("no such row")

    with live(create_app(engine)) as url:
        body = {"model": "tiny", "messages": ASK, "max_tokens": 2}
        with monkeypatch.context() as broken:
            broken.setattr(engine._batch, "step", fail)
            answers = [httpx.post(f"{url}/v1/chat/completions", json=body), httpx.get(f"{url}/health")]
        assert [answer.status_code for answer in answers] == [500, 503]
        assert all("IndexError: no such row" in answer.text for answer in answers)
        assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 200
        assert httpx.get(f"{url}/health").status_code == 200


def test_stopping_one_choice_leaves_the_others_alone(engine: Engine) -> None:
    prompt = engine.tokenizer.chat(ASK, add_generation_prompt=True)
    params = [SamplingParams(max_tokens=60, temperature=0, logit_bias={engine.tokenizer.end_id: -100})] * 2
    dispatcher = Dispatcher(engine)

    async def read() -> list[int]:
        written = [0, 0]
        with dispatcher.start(prompt, params) as generation:
            async for choice, delta in generation:
                written[choice] = delta.completion_tokens
                generation.stop(0)
        return written

    stopped, other = asyncio.run(read())
    assert other == 60
    assert stopped < 60
    dispatcher.close()


def test_a_prompt_up_to_the_last_place_of_the_cache_is_answered_and_a_longer_one_refused(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    folder = tiny_model(tmp_path / "tiny", tokenizer_folder)
    decoder = load_model(folder)
    tokenizer = Tokenizer.load(folder, model_vocab_size=decoder.config.vocab_size)
    engine = Engine(decoder, tokenizer, name="tiny", cache_tokens=64)
    assert engine.context == 64 < decoder.config.context
    with live(create_app(engine)) as url:
        for length, status in ((63, 200), (64, 400), (65, 400), (decoder.config.context + 1, 400), (100_000, 400)):
            body = {"model": "tiny", "prompt": [5] * length, "max_tokens": 9}
            answer = httpx.post(f"{url}/v1/completions", json=body)
            assert answer.status_code == status
            if status == 200:
                assert answer.json()["usage"]["total_tokens"] == 64
            else:
                assert answer.json()["error"]["code"] == "context_length_exceeded"
    engine.close()


def test_a_response_says_how_much_of_its_prompt_was_cached(engine: Engine) -> None:
    text = "白日依山盡，黃河入海流。" * 6
    length = len(engine.tokenizer.chat([{"role": "user", "content": text}], add_generation_prompt=True))
    with live(create_app(engine)) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        usages = [client.responses.create(model="tiny", input=text, max_output_tokens=4).usage for _ in range(2)]
    assert [usage.input_tokens for usage in usages] == [length, length]
    found = [usage.input_tokens_details.cached_tokens for usage in usages]
    assert found == [0, (length - 1) // BLOCK * BLOCK]  # Whole blocks, and the last token is always computed.
    assert found[1] > 0
