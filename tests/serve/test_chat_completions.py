"""The official OpenAI client against a live server."""

import threading
import time

import openai
import pytest
from openai import OpenAI

ASK = [{"role": "user", "content": "寫一首五言絕句，題為〈秋夜〉。"}]


def test_the_model_is_listed(client: OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["fake-poet"]
    assert client.models.retrieve("fake-poet").owned_by == "wenfang"


def test_a_completion_has_text_reason_and_usage(client: OpenAI) -> None:
    completion = client.chat.completions.create(model="fake-poet", messages=ASK)
    assert len(completion.choices[0].message.content) == 12
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": len(ASK[0]["content"]),
        "completion_tokens": 12,
        "total_tokens": len(ASK[0]["content"]) + 12,
    }
    assert completion.object == "chat.completion"
    assert completion.id.startswith("chatcmpl-")


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_token_limit_ends_with_length(client: OpenAI, name: str) -> None:
    completion = client.chat.completions.create(model="fake-poet", messages=ASK, **{name: 5})
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens == 5


def test_the_stream_put_together_is_the_completion_of_the_same_seed(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="fake-poet", messages=ASK, seed=7, n=2)
    texts, reasons = ["", ""], [None, None]
    chunks = list(client.chat.completions.create(model="fake-poet", messages=ASK, seed=7, n=2, stream=True))
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [c.message.content for c in whole.choices]
    assert texts[0] != texts[1]
    assert reasons == ["stop", "stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_reports_usage_when_asked(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="fake-poet", messages=ASK, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 12
    assert chunks[-1].usage.prompt_tokens == len(ASK[0]["content"])
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_stream_arrives_while_it_is_written(client: OpenAI, engine) -> None:
    engine.pause_s = 0.05
    times = [time.monotonic() for c in client.chat.completions.create(model="fake-poet", messages=ASK, stream=True)]
    assert times[-1] - times[1] > 8 * engine.pause_s


def test_streams_run_at_the_same_time(client: OpenAI, engine) -> None:
    engine.pause_s = 0.02
    texts: list[str] = []

    def read() -> None:
        stream = client.chat.completions.create(model="fake-poet", messages=ASK, seed=3, stream=True)
        texts.append("".join(c.choices[0].delta.content or "" for c in stream))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(texts) == 8
    assert len(set(texts)) == 1
    assert engine.most_running >= 4


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_stops_the_writing(url: str, engine, stream: bool) -> None:
    engine.tokens, engine.pause_s = 1000, 0.02
    impatient = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=0.5)
    if stream:
        reply = impatient.chat.completions.create(model="fake-poet", messages=ASK, stream=True)
        next(iter(reply))
        reply.close()
    else:
        with pytest.raises(openai.APITimeoutError):
            impatient.chat.completions.create(model="fake-poet", messages=ASK)
    assert engine.closed.wait(2)
    assert engine.running == 0


def test_text_parts_and_nulls_are_understood(client: OpenAI) -> None:
    first = client.chat.completions.create(model="fake-poet", messages=ASK, seed=1)
    history = [{"role": "user", "content": [{"type": "text", "text": "秋"}]}, first.choices[0].message]
    second = client.chat.completions.create(
        model="fake-poet",
        messages=[*history, {"role": "user", "content": "夜"}],
        frequency_penalty=0.5,
        logit_bias={"1": 5},
        response_format={"type": "text"},
        temperature=None,
        stop="。",
        user="somebody",
        extra_body={"top_k": 5},
    )
    assert second.usage.prompt_tokens == 1 + 12 + 1


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "regex", "choice": ["a"]}}, "response_format"),
        ({"extra_body": {"mirostat": 2}}, "mirostat"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 1000}, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "?"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "?", "name": "x"}]}, "messages[0].name"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(client: OpenAI, options: dict, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "fake-poet", "messages": ASK, **options})
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert param in str(caught.value.body["message"])


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-9", messages=ASK)
    assert caught.value.code == "model_not_found"
    assert "fake-poet" in caught.value.body["message"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_a_conversation_longer_than_the_context_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="fake-poet", messages=[{"role": "user", "content": "長" * 200}])
    assert caught.value.code == "context_length_exceeded"
    fits = client.chat.completions.create(
        model="fake-poet", messages=[{"role": "user", "content": "長" * 195}], max_tokens=100
    )
    assert fits.usage.total_tokens == 200


def test_a_failure_of_the_engine_is_reported(client: OpenAI) -> None:
    early, late = ([{"role": "user", "content": text}] for text in ("早錯", "晚錯"))
    with pytest.raises(openai.InternalServerError, match="out of memory"):
        client.chat.completions.create(model="fake-poet", messages=early)
    with pytest.raises(openai.InternalServerError, match="out of memory"):
        client.chat.completions.create(model="fake-poet", messages=early, stream=True)
    with pytest.raises(openai.InternalServerError, match="the ink ran out"):
        client.chat.completions.create(model="fake-poet", messages=late)
    with pytest.raises(openai.APIError, match="the ink ran out"):
        list(client.chat.completions.create(model="fake-poet", messages=late, stream=True))
