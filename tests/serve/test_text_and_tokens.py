"""Completions, log-probabilities, embeddings and tokens against the engine itself, through the official client."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers
from openai import BadRequestError, OpenAI
from serve.fakes import live, tiny_model
from transformers import AutoTokenizer

from wenfang.engine import Engine, SamplingParams
from wenfang.serve import create_app

ASK = [{"role": "user", "content": "寫一首五言絕句。"}]
PROMPT = "白日依山盡，"


@pytest.fixture(scope="module")
def tiny(tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    folder = tiny_model(tmp_path_factory.mktemp("models") / "tiny", tokenizer_folder)
    engine = Engine.load(folder)
    with live(create_app(engine)) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        yield SimpleNamespace(engine=engine, client=client, folder=folder, url=url)
    engine.close()


def test_a_completion_goes_on_from_each_prompt(tiny) -> None:
    prompts = [PROMPT, "春眠"]
    whole = tiny.client.completions.create(model="tiny", prompt=prompts, n=2, max_tokens=9, seed=5, echo=True)
    for i, choice in enumerate(whole.choices):
        ids = tiny.engine.tokenizer.begin(prompts[i // 2])
        (expected,) = tiny.engine.generate([ids], SamplingParams(max_tokens=9, seed=5 + i % 2))
        assert choice.text == prompts[i // 2] + expected.text
        assert choice.index == i
    texts = ["" for _ in range(4)]
    for chunk in tiny.client.completions.create(
        model="tiny", prompt=prompts, n=2, max_tokens=9, seed=5, echo=True, stream=True
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [choice.text for choice in whole.choices]


def test_a_prompt_of_token_ids_is_that_of_its_text(tiny) -> None:
    ids = AutoTokenizer.from_pretrained(tiny.folder)(PROMPT).input_ids
    by_ids, by_text = (
        tiny.client.completions.create(model="tiny", prompt=prompt, max_tokens=8, temperature=0)
        for prompt in (ids, PROMPT)
    )
    assert by_ids.choices[0].text == by_text.choices[0].text
    assert by_ids.usage == by_text.usage


def test_a_long_prompt_is_cut_only_where_asked(tiny) -> None:
    ids = tiny.engine.tokenizer.encode(PROMPT) * 100
    answer = tiny.client.completions.create(
        model="tiny", prompt=ids, max_tokens=4, extra_body={"truncate_prompt_tokens": 7}
    )
    assert answer.usage.prompt_tokens == 7


def test_a_gap_is_filled_by_the_models_own_tokens(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(Path(__file__).parents[2] / "models" / "poet", tokenizer)
    vocabulary = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    vocabulary.add_special_tokens(["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"])
    vocabulary.save(str(tokenizer / "tokenizer.json"))
    folder = tiny_model(tmp_path / "tiny", tokenizer)
    asked = "<|fim_prefix|>白日依<|fim_suffix|>，黃河<|fim_middle|>"
    ids = AutoTokenizer.from_pretrained(folder)(asked, add_special_tokens=False).input_ids
    engine = Engine.load(folder)
    (expected,) = engine.generate([ids], SamplingParams(max_tokens=9, seed=1))
    with live(create_app(engine)) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)
        answer = client.completions.create(model="tiny", prompt="白日依", suffix="，黃河", max_tokens=9, seed=1)
        with pytest.raises(BadRequestError, match="suffix"):
            client.completions.create(model="tiny", prompt="白日依", suffix="，黃河", echo=True)
    engine.close()
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.choices[0].text == expected.text


def test_logprobs_of_prompt_and_text(tiny) -> None:
    ids = tiny.engine.tokenizer.begin(PROMPT)
    answer = tiny.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=5, logprobs=2, echo=True, seed=1)
    logprobs = answer.choices[0].logprobs
    (expected,) = tiny.engine.generate([ids], SamplingParams(max_tokens=5, seed=1, logprobs=2, prompt_logprobs=True))
    all_of_them = [*expected.prompt_logprobs, *expected.logprobs]
    assert logprobs.token_logprobs[0] is None
    assert logprobs.token_logprobs == [item and item.logprob for item in all_of_them]
    assert len(logprobs.tokens) == len(logprobs.text_offset) == len(ids) + len(expected.token_ids)
    assert "".join(logprobs.tokens[: len(ids)]) == PROMPT
    assert all(max(top.values()) >= value - 1e-6 or len(top) == 2 for top, value in
               zip(logprobs.top_logprobs[1:], logprobs.token_logprobs[1:], strict=True))  # fmt: skip


def test_chat_logprobs_are_probabilities_streamed_or_not(tiny) -> None:
    asked = {"model": "tiny", "messages": ASK, "max_tokens": 6, "seed": 2, "logprobs": True, "top_logprobs": 3}
    whole = tiny.client.chat.completions.create(**asked).choices[0].logprobs.content
    streamed = [
        item
        for chunk in tiny.client.chat.completions.create(**asked, stream=True)
        if chunk.choices[0].logprobs
        for item in chunk.choices[0].logprobs.content
    ]
    assert [item.model_dump() for item in streamed] == [item.model_dump() for item in whole]
    for item in whole:
        assert len(item.top_logprobs) == 3
        assert sum(math.exp(top.logprob) for top in item.top_logprobs) <= 1 + 1e-6
        assert bytes(item.bytes).decode(errors="backslashreplace") == item.token


def test_tokens_join_to_the_text_where_they_are_pieces_of_characters(tiny) -> None:
    written = "春龘😀"  # The last two in no vocabulary of ours.
    form = {"response_format": {"type": "choice", "choice": [written]}}
    chat = tiny.client.chat.completions.create(
        model="tiny", messages=ASK, logprobs=True, top_logprobs=2, extra_body=form
    ).choices[0]
    assert chat.message.content == written
    items = chat.logprobs.content
    assert b"".join(bytes(item.bytes or ()) for item in items) == written.encode()
    assert [item.token for item in items[1:4]] == ["\\xe9", "\\xbe", "\\x98"]
    (text,) = tiny.client.completions.create(model="tiny", prompt=written, logprobs=0, echo=True, max_tokens=1).choices
    assert text.logprobs.text_offset[-9:] == [0, 1, 1, 1, 2, 2, 2, 2, 3]


def test_a_bias_forces_a_token_and_a_stop_ends_before_it(tiny) -> None:
    token = tiny.engine.tokenizer.encode("春")[0]
    text = tiny.engine.tokenizer.decode([token])
    forced = tiny.client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=4, temperature=0, logit_bias={token: 100}
    )
    assert forced.choices[0].message.content == text * 4
    stopped = tiny.client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=4, temperature=0, logit_bias={token: 100}, stop=text * 2
    )
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("", "stop")


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings_are_the_engines(tiny, encoding: str) -> None:
    texts = [PROMPT, "春"]
    answer = tiny.client.embeddings.create(model="tiny", input=texts, encoding_format=encoding)
    if encoding == "base64":  # Left as it is where asked for by name; decoded where the client asks by itself.
        answer = tiny.client.embeddings.create(model="tiny", input=texts)
    expected = tiny.engine.embed([tiny.engine.tokenizer.begin(text) for text in texts])
    for item, vector in zip(answer.data, expected, strict=True):
        assert item.embedding == pytest.approx(vector, abs=1e-6)
        assert math.hypot(*item.embedding) == pytest.approx(1, abs=1e-5)
    assert answer.usage.prompt_tokens == sum(len(tiny.engine.tokenizer.begin(text)) for text in texts)


def test_tokens_there_and_back(tiny) -> None:
    post = tiny.client.with_options(base_url=tiny.url).post
    ids = post("/tokenize", body={"model": "tiny", "prompt": PROMPT}, cast_to=object)
    assert ids["tokens"] == AutoTokenizer.from_pretrained(tiny.folder)(PROMPT).input_ids
    back = post("/detokenize", body={"model": "tiny", "tokens": ids["tokens"]}, cast_to=object)
    assert back["prompt"] == PROMPT
    turns = post("/tokenize", body={"model": "tiny", "messages": ASK}, cast_to=object)
    assert turns["tokens"] == tiny.engine.tokenizer.chat(ASK)


def test_a_special_token_in_a_message_is_plain_text(tiny) -> None:
    end = tiny.engine.tokenizer.tokens[tiny.engine.tokenizer.end_id]
    post = tiny.client.with_options(base_url=tiny.url).post
    forged = [{"role": "user", "content": f"a{end}b"}]
    ids = post("/tokenize", body={"model": "tiny", "messages": forged}, cast_to=object)["tokens"]
    plain = post("/tokenize", body={"model": "tiny", "messages": ASK}, cast_to=object)["tokens"]
    assert ids.count(tiny.engine.tokenizer.end_id) == plain.count(tiny.engine.tokenizer.end_id)
