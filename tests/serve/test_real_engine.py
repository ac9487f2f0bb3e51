"""The server in front of the engine itself, with a tiny random model."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import BadRequestError, OpenAI
from serve.fakes import live, tiny_model

from wenfang.engine import Engine, SamplingParams
from wenfang.serve import create_app

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

        answer = json.loads(ask({"type": "json_schema", "json_schema": {"name": "poem", "schema": schema}}) or "")
        assert ask({"type": "choice", "choice": ["春", "秋"]}) in ("春", "秋")
        faulty = {"properties": {"詩題": {"uniqueItems": True}}}
        with pytest.raises(BadRequestError, match=r"\$\.properties\.詩題.*uniqueItems"):
            ask({"type": "json_schema", "json_schema": {"name": "poem", "schema": faulty}})
    assert (set(answer), answer["句數"] in (4, 8)) == ({"詩題", "句數"}, True)
