"""Continuous batching: requests join and leave one running batch, each with its own way of choosing tokens."""

import atexit
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from wenfang.core.allocator import trim_memory
from wenfang.core.errors import InputError, WenfangError
from wenfang.core.language import say
from wenfang.engine.batch import Batch
from wenfang.engine.blocks import BLOCK, BlockPool
from wenfang.engine.cache import affordable_blocks
from wenfang.engine.completion import Completion, Delta
from wenfang.engine.embedding import EmbeddingRequest
from wenfang.engine.load import load_tokenizer
from wenfang.engine.params import SamplingParams
from wenfang.engine.request import Generation, Request, SearchRequest
from wenfang.engine.runner import Runner
from wenfang.engine.sampling import Sampler
from wenfang.engine.scheduler import Occupancy, Scheduler
from wenfang.engine.search import BeamParams, BeamSearch, ContrastiveParams, ContrastiveSearch, Search
from wenfang.engine.speculation import LookAhead, Speculation, check_speculation, make_drafter
from wenfang.engine.stream import Stream
from wenfang.engine.text import TextStream, continuation
from wenfang.grammar import GrammarCompiler
from wenfang.model import Decoder, load_model
from wenfang.model.quantized import Quantization, load_quantized
from wenfang.native.threads import release_threads
from wenfang.tokenizer import Tokenizer

SearchParams = BeamParams | ContrastiveParams


class Engine:
    """Generates for many callers at once. All public methods may be called from any thread.

    Args:
        model: the decoder, in the dtype it shall compute in; if it gets adapters, for this engine alone.
        tokenizer: its tokenizer.
        name: how clients call the model.
        max_batch: sequences that run at the same time; further ones wait.
        cache_tokens: places of the key/value cache, shared by all; by default the whole context for each
            sequence, or what half of the machine's memory holds.
        speculation: who guesses the next tokens, if anybody. It changes how fast texts come, never the texts.

    Raises:
        InputError: the model cannot decode with this `speculation`.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        name: str,
        max_batch: int = 32,
        cache_tokens: int | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        check_speculation(speculation, model, tokenizer)
        self.name = name
        self.tokenizer = tokenizer
        self.vocab_size = model.config.vocab_size
        wanted = -(-(cache_tokens or max_batch * model.config.context) // BLOCK)
        blocks = wanted if cache_tokens else affordable_blocks(model, wanted)
        self.context = min(model.config.context, blocks * BLOCK)
        self._max_batch, self._blocks = max_batch, blocks
        self._grammars = GrammarCompiler(tokenizer, self.vocab_size)
        self._runner = Runner(model.eval(), blocks, ahead=isinstance(speculation, LookAhead))
        self._scheduler = Scheduler(BlockPool(blocks), max_batch, reuse=not model.config.recurrent)
        self._changed = threading.Condition()
        drafter = make_drafter(speculation, self._runner, blocks)
        self._batch = Batch(self._runner, self._scheduler, self._changed, drafter)
        self._closing = False
        release_threads()  # The engine's thread has its own.
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # A thread that Python ends in the midst of torch's code takes the process with it.

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        max_batch: int = 32,
        speculation: Speculation | None = None,
        quantize: Quantization | None = None,
    ) -> "Engine":
        """Open a model folder or GGUF file; with `quantize`, its projections in that many bits.

        Raises:
            InputError, ModelError, TokenizerError: the folder or a file in it cannot be used.
        """
        # A tokenizer takes several times its memory while it is read, so that comes before the weights.
        tokenizer = load_tokenizer(folder)
        trim_memory()
        model = load_model(folder) if quantize is None else load_quantized(folder, quantize)
        trim_memory()
        return cls(model, tokenizer, name=folder.resolve().name, max_batch=max_batch, speculation=speculation)

    def stream(self, prompt: Sequence[int], params: SamplingParams, *, adapter: str | None = None) -> Stream:
        """Generate and yield pieces as they are certain. Closing the stream cancels the request.

        Raises:
            InputError: the prompt is empty or leaves no room in the context, or a parameter does not fit the model,
                or there is no such adapter.
            WenfangError: the engine was closed or failed.
        """
        request = self._generation(prompt, params, adapter)
        self._submit([request])
        return Stream(request, self._cancel)

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams, *, adapter: str | None = None
    ) -> list[Completion]:
        """Generate for many prompts; with a seed, prompt i uses seed + i.

        Raises:
            InputError, WenfangError: as `stream`.
        """
        requests = [self._generation(prompt, params, adapter, offset=i) for i, prompt in enumerate(prompts)]
        self._submit(requests)
        streams = [Stream(request, self._cancel) for request in requests]
        return [_completion(request, stream.rest()) for request, stream in zip(requests, streams, strict=True)]

    def search(self, prompt: Sequence[int], params: SearchParams, *, adapter: str | None = None) -> list[Completion]:
        """Look for the best continuations: beam search, diverse beams or contrastive search; best first.

        Raises:
            InputError: as `stream`, or the search needs more rows or cache than there are.
            WenfangError: the engine was closed or failed.
        """
        room = self._room(prompt)
        limit = room if params.max_tokens is None else min(params.max_tokens, room)
        search = _search(params, self.tokenizer.end_id, limit)
        request = SearchRequest(list(prompt), search, self._runner.adapters.find(adapter))
        self._check_width(request, limit)
        self._submit([request])
        with Stream(request, self._cancel) as stream:
            stream.rest()
        return [
            Completion(
                continuation(self.tokenizer, prompt, found.token_ids),
                found.token_ids,
                found.finish_reason,
                score=found.score,
            )
            for found in request.search.found()
        ]

    def load_adapter(self, name: str, folder: Path) -> None:
        """Read a PEFT adapter that requests may then name, beside others and the bare model in one batch. A name that
        is taken is given to the new adapter; running requests keep the old one.

        Raises:
            ModelError: the folder cannot be used on this model.
        """
        self._runner.load_adapter(name, folder)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; running requests keep it to their end.

        Raises:
            InputError: there is none of that name.
        """
        self._runner.adapters.unload(name)

    def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """The mean of the model's final states over each prompt, as vectors of length 1.

        Raises:
            InputError: a prompt is empty or longer than the context.
            WenfangError: the engine was closed or failed.
        """
        for prompt in prompts:
            self._room(prompt[:-1] if len(prompt) > 1 else prompt)  # Nothing is to follow it.
        requests = [EmbeddingRequest(list(prompt)) for prompt in prompts]
        self._submit(requests)
        for request in requests:
            with Stream(request, self._cancel) as stream:
                stream.rest()
        return [request.vector for request in requests]

    @property
    def occupancy(self) -> Occupancy:
        """What the engine is busy with at this moment."""
        with self._changed:
            return self._scheduler.occupancy

    def close(self) -> None:
        """Stop; running requests end with an error."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        atexit.unregister(self.close)

    def _generation(
        self, prompt: Sequence[int], params: SamplingParams, adapter: str | None, offset: int = 0
    ) -> Generation:
        room = self._room(prompt)
        if (outside := [token for token in params.logit_bias if token >= self.vocab_size]) != []:
            raise InputError(
                say(
                    zh=f"`logit_bias` 的詞元 {outside[0]} 不在詞彙表裡（共 {self.vocab_size} 個）。",
                    en=f"`logit_bias` names token {outside[0]}, but the vocabulary has {self.vocab_size}.",
                )
            )
        if params.seed is not None:
            params = replace(params, seed=params.seed + offset)
        limit = room if params.max_tokens is None else min(params.max_tokens, room)
        breakers = frozenset(self.tokenizer.encode(text)[-1] for text in params.dry_sequence_breakers)
        text = TextStream(self.tokenizer, params.stop, prompt)
        found = self._runner.adapters.find(adapter)
        matcher = None if params.grammar is None else self._grammars.matcher(params.grammar)
        sampler = Sampler(params, list(prompt), breakers, matcher)
        return Generation(list(prompt), sampler, limit, text, self.tokenizer.end_id, found)

    def _room(self, prompt: Sequence[int]) -> int:
        """Tokens that can follow the prompt."""
        room = self.context - len(prompt)
        if not prompt or room < 1:
            raise InputError(
                say(
                    zh=f"提示有 {len(prompt)} 個 token；上下文是 {self.context}，需在 1 到 {self.context - 1} 之間。",
                    en=f"The prompt has {len(prompt)} tokens; this model's context is {self.context}, "
                    f"so it must have between 1 and {self.context - 1}.",
                )
            )
        return room

    def _check_width(self, request: SearchRequest, limit: int) -> None:
        """Refuse a search that could never have all its rows in the batch and the cache."""
        shared = len(request.prompt) // BLOCK
        own = -(-(len(request.prompt) + limit) // BLOCK) - shared
        most = min(self._max_batch, (self._blocks - shared) // own)
        if request.width > most:
            raise InputError(
                say(
                    zh=f"搜尋需要 {request.width} 列，這裡最多容得下 {most} 列。請減少寬度或 `max_tokens`。",
                    en=f"The search needs {request.width} rows, but there is room for {most} here. "
                    "Lower its width or `max_tokens`.",
                )
            )

    def _submit(self, requests: Iterable[Request]) -> None:
        with self._changed:
            if self._closing:
                raise _closed()
            self._scheduler.add(requests)
            self._changed.notify()

    def _cancel(self, request: Request) -> None:
        """A waiting request leaves at once, a running one before the next step."""
        with self._changed:
            request.cancelled = True
            if request in self._scheduler.waiting:
                self._scheduler.drop(request)
            self._changed.notify()

    def _run(self) -> None:
        """The engine's own thread. Whatever ends it, nobody waits for it any longer."""
        try:
            while not self._closing:
                self._work()
        finally:
            with self._changed:
                self._closing = True
                self._fail(_closed())

    def _work(self) -> None:
        """Wait until there is something to do, with the books checked, and do one step of it."""
        with self._changed:
            if not self._scheduler.busy:
                self._scheduler.check()
            self._changed.wait_for(lambda: self._closing or self._scheduler.busy)
            if self._closing:
                return
            self._scheduler.drop_cancelled()
            self._scheduler.admit()
        try:
            with torch.inference_mode():
                self._batch.step()
        except Exception as error:  # noqa: BLE001 - whatever it is, callers must hear of it and the next ones be served
            with self._changed:
                detail = f"{type(error).__name__}: {error}"
                self._fail(WenfangError(say(zh=f"生成失敗：{detail}", en=f"Generation failed: {detail}")))

    def _fail(self, error: WenfangError) -> None:
        for request in self._scheduler.clear():
            request.fail(error)


def _search(params: SearchParams, end_id: int, limit: int) -> Search:
    if isinstance(params, BeamParams):
        return BeamSearch(params, end_id, limit)
    return ContrastiveSearch(params, end_id, limit)


def _completion(request: Generation, deltas: list[Delta]) -> Completion:
    return Completion(
        "".join(delta.text for delta in deltas),
        request.written,
        deltas[-1].finish_reason or "stop",
        [logprob for delta in deltas for logprob in delta.logprobs],
        [logprob for delta in deltas for logprob in delta.prompt_logprobs],
        drafted=request.drafted,
        accepted=request.accepted,
    )


def _closed() -> WenfangError:
    return WenfangError(say(zh="引擎已關閉。", en="The engine is closed."))
