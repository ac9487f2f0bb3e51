"""Continuous batching: requests join and leave one running batch, each with its own sampling."""

import queue
import threading
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from wenfang.core.errors import InputError, WenfangError
from wenfang.core.language import say
from wenfang.engine.cache import SlotCache
from wenfang.engine.params import SamplingParams
from wenfang.engine.sampling import Sampler, choose, observe
from wenfang.engine.text import TextStream
from wenfang.model import Decoder, load_model
from wenfang.tokenizer import Tokenizer


def load_tokenizer(folder: Path, *, model_vocab_size: int) -> Tokenizer:
    """The tokenizer of a model folder or GGUF file.

    Args:
        model_vocab_size: how many token ids the model knows; a GGUF file has as many.

    Raises:
        ModelError, TokenizerError: it is missing or cannot be read.
    """
    if folder.is_file():
        from wenfang.model.gguf import load_gguf_tokenizer

        return Tokenizer(*load_gguf_tokenizer(folder))
    return Tokenizer.load(folder, model_vocab_size=model_vocab_size)


@dataclass(frozen=True)
class Delta:
    """A piece of a completion as it is written."""

    text: str
    finish_reason: str | None
    """`stop` or `length` on the last piece, None before."""
    completion_tokens: int
    """Tokens generated so far."""


@dataclass(frozen=True)
class Completion:
    """A whole completion."""

    text: str
    token_ids: list[int]
    finish_reason: str


@dataclass
class _Request:
    prompt: list[int]
    params: SamplingParams
    limit: int
    sampler: Sampler
    text: TextStream
    deltas: "queue.SimpleQueue[Delta | Exception]" = field(default_factory=queue.SimpleQueue)
    slot: int = -1
    cancelled: bool = False


class Engine:
    """Generates for many callers at once. All public methods may be called from any thread.

    Args:
        model: the decoder, in the dtype it shall compute in.
        tokenizer: its tokenizer.
        name: how clients call the model.
        max_batch: sequences that run at the same time; further ones wait.
    """

    def __init__(self, model: Decoder, tokenizer: Tokenizer, *, name: str, max_batch: int = 32) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.context = model.config.context
        self._model = model.eval()
        self._cache = SlotCache(model, max_batch)
        self._waiting: deque[_Request] = deque()
        self._running: list[_Request] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)
        self._thread.start()

    @classmethod
    def load(cls, folder: Path, *, max_batch: int = 32) -> "Engine":
        """Open a model folder or GGUF file.

        Raises:
            InputError, ModelError, TokenizerError: the folder or a file in it cannot be used.
        """
        model = load_model(folder)
        tokenizer = load_tokenizer(folder, model_vocab_size=model.config.vocab_size)
        return cls(model, tokenizer, name=folder.resolve().name, max_batch=max_batch)

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> Generator[Delta, None, None]:
        """Generate and yield pieces as they are certain. Closing the iterator cancels the request.

        Raises:
            InputError: the prompt is empty or leaves no room in the context.
            WenfangError: the engine was closed or failed.
        """
        request = self._request(prompt, params)
        self._submit([request])
        return self._deltas(request)

    def generate(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Completion]:
        """Generate for many prompts; with a seed, prompt i uses seed + i.

        Raises:
            InputError, WenfangError: as `stream`.
        """
        requests = [self._request(prompt, params, offset=i) for i, prompt in enumerate(prompts)]
        self._submit(requests)
        completions = []
        for request in requests:
            deltas = list(self._deltas(request))
            text = "".join(delta.text for delta in deltas)
            completions.append(Completion(text, request.sampler.written, deltas[-1].finish_reason or "stop"))
        return completions

    def close(self) -> None:
        """Stop; running requests end with an error."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _request(self, prompt: Sequence[int], params: SamplingParams, offset: int = 0) -> _Request:
        room = self.context - len(prompt)
        if not prompt or room < 1:
            raise InputError(
                say(
                    zh=f"提示有 {len(prompt)} 個 token；上下文是 {self.context}，需在 1 到 {self.context - 1} 之間。",
                    en=f"The prompt has {len(prompt)} tokens; this model's context is {self.context}, "
                    f"so it must have between 1 and {self.context - 1}.",
                )
            )
        limit = room if params.max_tokens is None else min(params.max_tokens, room)
        if params.seed is not None:
            params = replace(params, seed=params.seed + offset)
        breakers = frozenset(self.tokenizer.encode(text)[-1] for text in params.dry_sequence_breakers)
        sampler = Sampler(params, list(prompt), breakers)
        return _Request(list(prompt), params, limit, sampler, TextStream(self.tokenizer, params.stop))

    def _submit(self, requests: list[_Request]) -> None:
        with self._changed:
            if self._closing:
                raise WenfangError(say(zh="引擎已關閉。", en="The engine is closed."))
            self._waiting.extend(requests)
            self._changed.notify()

    def _deltas(self, request: _Request) -> Generator[Delta, None, None]:
        try:
            while True:
                item = request.deltas.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.finish_reason:
                    return
        finally:
            request.cancelled = True

    def _run(self) -> None:
        """The engine's own thread: admit, step, repeat; sleep when there is nothing to do."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._waiting or self._running)
                if self._closing:
                    self._fail(WenfangError(say(zh="引擎已關閉。", en="The engine is closed.")))
                    return
            try:
                with torch.inference_mode():
                    self._admit()
                    self._step()
            except RuntimeError as error:  # Torch ran out of memory or refused a shape: callers must hear of it.
                with self._changed:
                    self._fail(WenfangError(say(zh=f"生成失敗：{error}", en=f"Generation failed: {error}")))

    def _fail(self, error: WenfangError) -> None:
        for request in [*self._running, *self._waiting]:
            request.deltas.put(error)
            if request.slot >= 0:
                self._cache.give_back(request.slot)
        self._running, self._waiting = [], deque()

    def _admit(self) -> None:
        """Move waiting requests into free slots: run their prompts and choose their first token."""
        while self._waiting and self._cache.free:
            request = self._waiting.popleft()
            if request.cancelled:
                continue
            request.slot = self._cache.take()
            self._running.append(request)
            ids_1T = torch.tensor([request.prompt])
            positions_1T = torch.arange(len(request.prompt))[None]
            logits_1TV = self._model(ids_1T, positions_1T, self._cache.prefill(request.slot, 0, len(request.prompt)))
            self._choose([request], logits_1TV[:, -1])

    def _step(self) -> None:
        """One token for every running request."""
        for request in [r for r in self._running if r.cancelled]:
            self._retire(request)
        if not self._running:
            return
        requests = list(self._running)
        slots_N = torch.tensor([r.slot for r in requests])
        positions_N = torch.tensor([len(r.prompt) + len(r.sampler.written) - 1 for r in requests])
        ids_N1 = torch.tensor([[r.sampler.written[-1]] for r in requests])
        memory = self._cache.decode(slots_N, positions_N)
        logits_N1V = self._model(ids_N1, positions_N[:, None], memory)
        self._choose(requests, logits_N1V[:, 0])

    def _choose(self, requests: list[_Request], logits_NV: torch.Tensor) -> None:
        tokens = choose(logits_NV, [r.sampler for r in requests])
        for i, (request, token) in enumerate(zip(requests, tokens, strict=True)):
            observe(logits_NV[i], token, request.sampler)
            self._accept(request, token)

    def _accept(self, request: _Request, token: int) -> None:
        request.sampler.written.append(token)
        ended = token == self.tokenizer.end_id
        text = "" if ended else request.text.push(token)
        if not ended and not request.text.stopped and len(request.sampler.written) < request.limit:
            request.deltas.put(Delta(text, None, len(request.sampler.written)))
            return
        text += request.text.finish()
        reason = "stop" if ended or request.text.stopped else "length"
        request.deltas.put(Delta(text, reason, len(request.sampler.written)))
        self._retire(request)

    def _retire(self, request: _Request) -> None:
        self._running.remove(request)
        self._cache.give_back(request.slot)
