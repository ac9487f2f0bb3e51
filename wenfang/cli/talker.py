"""Who answers in a conversation: a model in this process, or a server."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from wenfang.cli.orders import Conversation
from wenfang.core.errors import InputError, WenfangError
from wenfang.core.language import say
from wenfang.core.openai import api_key, error_code, error_message, read_events

if TYPE_CHECKING:
    from wenfang.engine import Engine, SamplingParams, Speculation
    from wenfang.model.quantized import Quantization

SILENCE_S = 600
"""How long a server may say nothing."""


@dataclass(frozen=True)
class Piece:
    """Some of a reply; how many tokens there are so far, and of how many guesses how many were right."""

    text: str
    tokens: int
    drafted: int = 0
    accepted: int = 0
    cut: bool = False
    """Whether this is the last piece of a reply that did not end by itself."""


class Talker(Protocol):
    """Answers questions."""

    def reply(self, talk: Conversation, question: str) -> Iterator[Piece]:
        """The reply, piece by piece.

        Raises:
            InputError: the question cannot be answered as it is, such as one that is too long.
            WenfangError: the answer came to nothing half way.
        """
        ...


@contextmanager
def open_talker(
    model: str,
    talk: Conversation,
    *,
    speculation: "Speculation | None" = None,
    quantize: "Quantization | None" = None,
) -> Iterator[Talker]:
    """A folder, file or run loaded here; or the server at an `http://` or `https://` address.

    Args:
        model: the folder, file, run or address.
        talk: the conversation to be.
        speculation: who guesses ahead, for a model loaded here.
        quantize: what its weights are rounded to.

    Raises:
        InputError, ModelError: there is no such model, or `talk` asks for what cannot be.
    """
    if model.startswith(("http://", "https://")):
        if speculation is not None or quantize is not None:
            raise InputError(
                say(
                    zh="猜詞與量化的選項只用於本機載入的模型。",
                    en="Options for guessing ahead and quantising need a model loaded here.",
                )
            )
        yield Server(model)
        return
    from wenfang.engine import Engine
    from wenfang.studio import find_model

    _params(talk)
    with closing(Engine.load(find_model(Path(model)).model, speculation=speculation, quantize=quantize)) as engine:
        yield Local(engine)


class Local:
    """A model in this process."""

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine

    def reply(self, talk: Conversation, question: str) -> Iterator[Piece]:
        """The reply, piece by piece."""
        from wenfang.studio.prompt import fit_prompt

        prompt = fit_prompt(self._engine, talk.read, question, system=talk.system)
        for delta in self._engine.stream(prompt, _params(talk)):
            cut = delta.finish_reason == "length"
            yield Piece(delta.text, delta.completion_tokens, delta.drafted, delta.accepted, cut)


class Server:
    """Any server with OpenAI's interface.

    Args:
        url: its address, with or without `/v1`.

    Raises:
        InputError: nobody answers there, or not as such a server does.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._key = api_key()
        with self._open("/models") as answer:
            try:
                self._model = json.load(answer)["data"][0]["id"]
            except (ValueError, LookupError, TypeError):
                raise InputError(
                    say(zh=f"{url!r} 不是 OpenAI 相容的伺服器。", en=f"{url!r} is no server with OpenAI's interface.")
                ) from None

    def reply(self, talk: Conversation, question: str) -> Iterator[Piece]:
        """The reply, piece by piece."""
        body = {
            "model": self._model,
            "temperature": talk.temperature,
            "top_p": talk.top_p,
            "max_tokens": talk.max_tokens,
            "seed": talk.next_seed,
            "response_format": _response_format(talk),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        tokens, cut, ended = 0, False, False
        with self._ask(talk, question, {k: v for k, v in body.items() if v is not None}) as answer:
            for event in read_events(answer):
                text = "".join(choice["delta"].get("content") or "" for choice in event["choices"])
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens + bool(text))
                cut = cut or any(choice.get("finish_reason") == "length" for choice in event["choices"])
                ended = ended or any(choice.get("finish_reason") for choice in event["choices"])
                yield Piece(text, tokens, cut=cut)
        if not ended:
            raise WenfangError(
                say(zh="伺服器沒有把回答說完就斷線。", en="The server left before its answer was whole.")
            )

    def _ask(self, talk: Conversation, question: str, body: dict[str, Any]) -> http.client.HTTPResponse:
        """Begin a reply; the oldest turns are left out where the context does not hold them all."""
        system = [{"role": "system", "content": talk.system}] if talk.system else []
        earlier = talk.messages()[len(system) :] if talk.remember else []
        while True:
            messages = [*system, *earlier, {"role": "user", "content": question}]
            try:
                return self._open("/chat/completions", {**body, "messages": messages})
            except _TooLong:
                if not earlier:
                    raise
                earlier = earlier[2:]

    def _open(self, path: str, body: dict[str, Any] | None = None) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self._url + path, data, headers)
            answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=SILENCE_S)
        except urllib.error.HTTPError as error:
            raise _refusal(error) from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise InputError(
                say(
                    zh=f"{self._url!r} 沒有回應：{reason}。請檢查網址，或先啟動 `wenfang serve`。",
                    en=f"{self._url!r} does not answer: {reason}. Check the address, or start `wenfang serve` first.",
                )
            ) from None
        return answer


def _params(talk: Conversation) -> "SamplingParams":
    from wenfang.engine import SamplingParams
    from wenfang.grammar import JsonSchema

    return SamplingParams(
        temperature=talk.temperature,
        top_p=talk.top_p,
        max_tokens=talk.max_tokens,
        seed=talk.next_seed,
        grammar=None if talk.schema is None else JsonSchema(talk.schema),
    )


def _response_format(talk: Conversation) -> dict[str, Any] | None:
    """The same demand in OpenAI's form."""
    if talk.schema is None:
        return None
    described = {"name": "reply", "schema": json.loads(talk.schema), "strict": True}
    return {"type": "json_schema", "json_schema": described}


class _TooLong(InputError):
    """More than the context holds."""


def _refusal(error: urllib.error.HTTPError) -> InputError:
    """What the server says is wrong."""
    said = code = None
    with suppress(ValueError):
        body = json.load(error)
        said, code = error_message(body), error_code(body)
    return (_TooLong if code == "context_length_exceeded" else InputError)(said or f"{error.code} {error.reason}")
