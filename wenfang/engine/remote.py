"""A model behind an address: any server with OpenAI's interface that takes prompts as token ids.

Text becomes token ids here, with the model's own tokenizer and chat template, and comes back as text. So whatever the
server behind makes of messages, roles or special tokens, it is asked for nothing but to continue token ids.
"""

import functools
import http.client
import json
import math
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wenfang.core.errors import InputError, WenfangError
from wenfang.core.language import say
from wenfang.core.openai import error_message, read_events
from wenfang.engine.completion import Delta, TokenLogprob
from wenfang.engine.dialects import ANY, DIALECTS, not_honoured, read_logprobs, request_body
from wenfang.engine.load import load_tokenizer
from wenfang.engine.params import SamplingParams
from wenfang.engine.scheduler import Occupancy
from wenfang.grammar.judge import judge
from wenfang.model import load_config

SILENCE_S = 600.0
"""How long a server may say nothing."""


class RemoteEngine:
    """The interface of `Engine` as a server needs it, with the writing done elsewhere.

    Args:
        url: the server's address, with or without `/v1`.
        folder: the model's folder or GGUF file; its tokenizer and shape are used, not its weights.
        model: what the model is called there; by default the first that the server lists.
        key: the server's key, if it asks for one.

    Raises:
        InputError: nobody answers at the address, or not as such a server does, or it lists no such model.
        ModelError, TokenizerError: the folder cannot be used.
    """

    def __init__(
        self,
        url: str,
        folder: Path,
        *,
        model: str | None = None,
        key: str | None = None,
    ) -> None:
        config = load_config(folder)
        self.name = folder.resolve().name
        self.vocab_size = config.vocab_size
        self.tokenizer = load_tokenizer(folder)
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._headers = {"Content-Type": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self.active = set[RemoteStream]()
        listed, others = self._listed(model)
        self._model = listed["id"]
        self.adapters = [one["id"] for one in others if one.get("parent") == self._model]
        """Adapters on the model that the server lists, by their names there."""
        self.dialect = DIALECTS.get(listed.get("owned_by", ""), ANY)
        specials = [self.tokenizer.tokens[id_] for id_ in self.tokenizer.special_ids]
        self._judge = functools.lru_cache(64)(functools.partial(judge, specials=specials))
        limits = (listed.get("max_model_len"), listed.get("context_length"), (listed.get("meta") or {}).get("n_ctx"))
        self.context = min(config.context, *(limit for limit in limits if isinstance(limit, int)), config.context)

    def stream(self, prompt: Sequence[int], params: SamplingParams, *, adapter: str | None = None) -> "RemoteStream":
        """Generate and yield pieces as they come. Closing the stream hangs up, which cancels the request there.

        Raises:
            InputError: the prompt leaves no room in the context, or the server is not known to honour a parameter, or
                the grammar is refused, or there is no such adapter.
        """
        asked = request_body(params, self.dialect)
        if adapter not in (None, *self.adapters):
            raise not_honoured("adapter")
        room = self.context - len(prompt)
        if not prompt or room < 1:
            raise InputError(
                say(
                    zh=f"提示有 {len(prompt)} 個 token；上下文是 {self.context}。",
                    en=f"The prompt has {len(prompt)} tokens; this model's context is {self.context}.",
                )
            )
        if params.grammar is not None:
            self._judge(params.grammar)
        asked |= {"model": adapter or self._model, "prompt": list(prompt), "stream": True}
        asked |= {"max_tokens": min(params.max_tokens or room, room), "stream_options": {"include_usage": True}}
        return RemoteStream(self, json.dumps(asked).encode(), prompt, params)

    def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Vectors as the server makes them, of length 1. Another engine may pool its states in another way than ours.

        Raises:
            InputError: the server refuses, or makes none.
            WenfangError: it does not answer.
        """
        body = {"model": self._model, "input": [list(prompt) for prompt in prompts]}
        connection = self.connect()
        try:
            answer = json.load(self.ask(connection, "/embeddings", json.dumps(body).encode()))
            return [_unit(one["embedding"]) for one in sorted(answer["data"], key=lambda one: one["index"])]
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
            raise self.gone(error) from None
        finally:
            connection.close()

    @property
    def occupancy(self) -> Occupancy:
        """Requests under way; what the server's batch and cache hold, it alone knows."""
        return Occupancy(len(self.active), 0, 0, 0)

    def close(self) -> None:
        """Nothing is held."""

    def connect(self) -> http.client.HTTPConnection:
        """A connection that is not yet made."""
        try:
            parts = urlsplit(self._url)
            kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
            kind: type[http.client.HTTPConnection] = kinds[parts.scheme]
            return kind(parts.hostname or "", parts.port, timeout=SILENCE_S)
        except (KeyError, ValueError):
            raise InputError(
                say(zh=f"{self._url!r} 不是 http 或 https 網址。", en=f"{self._url!r} is no http or https address.")
            ) from None

    def ask(
        self, connection: http.client.HTTPConnection, path: str, body: bytes | None = None
    ) -> http.client.HTTPResponse:
        """Send a request.

        Raises:
            InputError: the server refuses it as it is.
            OSError, HTTPException: it refuses for another reason, or does not answer.
        """
        connection.request("GET" if body is None else "POST", urlsplit(self._url).path + path, body, self._headers)
        answer = connection.getresponse()
        if answer.status == 200:
            return answer
        said = answer.read(1 << 16).decode(errors="replace")
        message = None
        with suppress(ValueError):
            message = error_message(json.loads(said))
        if answer.status in (404, 501) and message is None:
            raise InputError(
                say(
                    zh=f"書寫的伺服器沒有 {path!r}：{said[:200]}",
                    en=f"The server that writes has no {path!r}: {said[:200]}",
                )
            )
        reason = (message or said)[:500]
        if answer.status in (400, 404, 422, 501):
            raise InputError(reason)
        raise ConnectionError(f"{answer.status} {reason}")

    def gone(self, error: Exception) -> WenfangError:
        """The server does not answer."""
        why = str(error).rstrip(".。")
        return WenfangError(say(zh=f"{self._url!r} 沒有回應：{why}。", en=f"{self._url!r} does not answer: {why}."))

    def _listed(self, model: str | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """What the server says of the model, and of all."""
        connection = self.connect()
        try:
            models: list[dict[str, Any]] = json.load(self.ask(connection, "/models"))["data"]
            return next(one for one in models if model in (None, one["id"])), models
        except (ValueError, LookupError, TypeError, StopIteration):
            raise InputError(
                say(
                    zh=f"{self._url!r} 沒有列出模型{f' {model!r}' if model else ''}，不是 OpenAI 相容的伺服器。",
                    en=f"{self._url!r} lists no model{f' {model!r}' if model else ''}; it is no server with OpenAI's "
                    "interface.",
                )
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise InputError(str(self.gone(error))) from None
        finally:
            connection.close()


class RemoteStream:
    """A completion as the server writes it. Belongs to the thread that iterates; any thread may close it."""

    def __init__(self, engine: RemoteEngine, body: bytes, prompt: Sequence[int], params: SamplingParams) -> None:
        self._engine, self._body, self._params = engine, body, params
        self._echoed_tokens = len(prompt) if params.prompt_logprobs else 0
        self._echoed_text = 0
        if params.prompt_logprobs and not engine.dialect.echoes_ids:
            self._echoed_text = len(engine.tokenizer.decode(prompt))
        self._socket: socket.socket | None = None
        self._closed = False
        self._deltas = self._read()

    def __iter__(self) -> Iterator[Delta]:
        return self._deltas

    def each(self, take: Callable[[Delta], None]) -> None:
        """Hand every piece to `take` as it comes."""
        for delta in self._deltas:
            take(delta)

    def close(self) -> None:
        """Hang up; a thread that waits for the next piece finds that there is none."""
        self._closed = True
        if self._socket is not None:
            with suppress(OSError):  # The server was quicker.
                self._socket.shutdown(socket.SHUT_RDWR)

    def _read(self) -> Iterator[Delta]:
        connection = self._engine.connect()
        self._engine.active.add(self)
        try:
            connection.connect()
            self._socket = connection.sock
            if not self._closed:
                yield from self._pieces(connection)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not self._closed:
                raise self._engine.gone(error) from None
        finally:
            self._engine.active.discard(self)
            connection.close()

    def _pieces(self, connection: http.client.HTTPConnection) -> Iterator[Delta]:
        """The last one comes when the server has said how many tokens there were."""
        written, said, tokens, cached, reason = 0, "", None, 0, None
        for event in read_events(self._engine.ask(connection, "/completions", self._body)):
            usage = event.get("usage") or {}
            tokens = usage.get("completion_tokens", tokens)
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or cached
            for choice in event.get("choices", ()):
                reason = choice.get("finish_reason") or reason
                text = self._without_echo(choice.get("text") or "")
                of_prompt, logprobs = self._logprobs(choice)
                written += len(logprobs) or bool(text)
                said += text
                if text or logprobs or of_prompt:
                    yield Delta(text, None, written, logprobs, of_prompt)
        if self._closed:
            return
        if reason not in ("stop", "length"):
            raise self._engine.gone(ConnectionError(f"finish_reason {reason!r}"))
        if reason == "stop" and self._params.grammar is not None:
            self._params.grammar.check(said)  # Whatever the server thinks of it.
        yield Delta("", reason, written if tokens is None else tokens, cached_tokens=cached)

    def _without_echo(self, text: str) -> str:
        """What is new of a text that may begin with the prompt's."""
        new = text[self._echoed_text :]
        self._echoed_text -= len(text) - len(new)
        return new

    def _logprobs(self, choice: dict[str, Any]) -> tuple[tuple[TokenLogprob | None, ...], tuple[TokenLogprob, ...]]:
        """Those of the prompt, and those of what was written."""
        if self._params.logprobs is None or not choice.get("logprobs"):
            return (), ()
        try:
            found = read_logprobs(choice["logprobs"], self._params.logprobs)
        except (LookupError, TypeError) as error:
            raise ValueError(f"logprobs: {error!r}") from None
        of_prompt, new = found[: self._echoed_tokens], found[self._echoed_tokens :]
        self._echoed_tokens -= len(of_prompt)
        return tuple(of_prompt), tuple(one for one in new if one is not None)


def _unit(vector: list[float]) -> list[float]:
    length = math.hypot(*vector) or 1.0
    return [value / length for value in vector]
