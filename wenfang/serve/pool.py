"""Several models and their adapters within a memory budget: loaded when asked for, let go when others need the room."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wenfang.core.errors import InputError, WenfangError
from wenfang.core.language import say
from wenfang.core.openai import api_key
from wenfang.serve.dispatch import MAX_GENERATIONS, Dispatcher, Meter
from wenfang.serve.errors import ApiError
from wenfang.serve.models import Served, describe, no_such_model

if TYPE_CHECKING:
    from wenfang.engine import Speculation, TextEngine
    from wenfang.model.quantized import Quantization


@dataclass(frozen=True)
class Source:
    """A model on disk.

    Args:
        name: what clients call it.
        path: its folder or GGUF file.
        adapters: folders of adapters on it, by what clients call them.
        speculation: who guesses ahead, if anybody.
        quantize: what its weights are rounded to, if to anything.
        engine: `wenfang`, `vllm`, or the address of a server that writes, whose adapters are on offer with the model.
    """

    name: str
    path: Path
    adapters: dict[str, Path] = field(default_factory=dict)
    speculation: "Speculation | None" = None
    quantize: "Quantization | None" = None
    engine: str = "wenfang"

    @cached_property
    def memory_bytes(self) -> int:
        """What its weights take in memory, with those of its adapters, by their files, and of the model that guesses.

        Raises:
            InputError, ModelError: no such model, or it cannot be quantised.
        """
        from wenfang.engine import DraftModel
        from wenfang.model import load_config
        from wenfang.model.size import loaded_bytes

        weights = loaded_bytes(load_config(self.path), self.quantize)
        if isinstance(self.speculation, DraftModel):
            weights += loaded_bytes(self.speculation.model.config, None)
        files = [file for folder in self.adapters.values() for file in folder.glob("*.safetensors")]
        return weights + sum(file.stat().st_size for file in files)


@dataclass
class _Loaded:
    source: Source
    served: dict[str, Served]
    users: int = 0
    last_used: float = 0.0


class ModelPool:
    """Models of which as many are in memory as fit.

    Args:
        sources: what is on offer, the default first.
        memory_bytes: the most that the weights of loaded models may take; None has no bound.
        meter: told about every token.

    Raises:
        InputError: two models of one name, or one that is larger than the budget.
    """

    def __init__(self, sources: Sequence[Source], *, memory_bytes: int | None, meter: Meter) -> None:
        self._budget = memory_bytes
        self._meter = meter
        self._created = int(time.time())
        self._home: dict[str, Source] = {}
        self._loaded: dict[str, _Loaded] = {}
        self._lock = asyncio.Lock()
        for source in sources:
            for name in (source.name, *source.adapters):
                if name in self._home:
                    raise _clash(name)
                self._home[name] = source
            if memory_bytes is not None and source.memory_bytes > memory_bytes:
                raise InputError(
                    say(
                        zh=f"{source.name!r} 需要 {source.memory_bytes:,} 位元組，超過記憶體預算 {memory_bytes:,}。"
                        "請提高 --memory-gb，或用 --quantize。",
                        en=f"{source.name!r} takes {source.memory_bytes:,} bytes, the memory budget is "
                        f"{memory_bytes:,}. Raise --memory-gb, or use --quantize.",
                    )
                )

    def names(self) -> list[str]:
        """Models and adapters, the default first."""
        return list(self._home)

    def describe(self, name: str) -> dict[str, Any]:
        """OpenAI's model object; the context shows once the model was loaded."""
        source = self._source(name)
        loaded = self._loaded.get(source.name)
        context = None if loaded is None else loaded.served[name].engine.context
        parent = None if name == source.name else source.name
        return {**describe(name, self._created, context), "parent": parent, "loaded": loaded is not None}

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Served]:
        """The model, loaded if it is not."""
        source = self._source(name)
        loaded = self._loaded.get(source.name) or await self._load(source)
        loaded.users += 1  # Nothing is awaited between finding it and this, so nobody lets it go.
        try:
            yield loaded.served[name]
        finally:
            loaded.users -= 1
            loaded.last_used = time.monotonic()

    def loaded(self) -> list[Served]:
        """One for each model in memory."""
        return [loaded.served[loaded.source.name] for loaded in list(self._loaded.values())]

    def load(self, name: str) -> _Loaded:
        """Open a model and its adapters, whatever the budget.

        Raises:
            InputError, ModelError: a file cannot be used, or an adapter that a server lists has the model's name.
        """
        source = self._source(name)
        engine, adapters = _open(source)
        if source.name in adapters:  # A server's adapters show only now.
            engine.close()
            raise _clash(source.name)
        engine.name = source.name
        dispatcher = Dispatcher(engine, meter=self._meter)
        served = {source.name: Served(dispatcher)}
        served |= {adapter: Served(dispatcher, adapter=adapter) for adapter in adapters}
        self._home |= dict.fromkeys(adapters, source)
        self._loaded[source.name] = _Loaded(source, served)
        return self._loaded[source.name]

    def close(self) -> None:
        """Cancel what is being written and let every model go."""
        while self._loaded:
            self._unload(self._loaded.popitem()[1])

    async def _load(self, source: Source) -> _Loaded:
        """Open a model beside the event loop, one at a time; who asks for another one goes on."""
        async with self._lock:
            if (loaded := self._loaded.get(source.name)) is not None:  # While we waited for our turn.
                return loaded
            await self._make_room(source.memory_bytes)
            try:
                return await asyncio.to_thread(self.load, source.name)
            except WenfangError as error:
                raise ApiError(str(error), status=500, kind="server_error", code="model_not_loaded") from None

    def _source(self, name: str) -> Source:
        if name not in self._home:
            raise no_such_model(name, self.names())
        return self._home[name]

    async def _make_room(self, needed: int) -> None:
        """Let go of idle models, the one unused for longest first.

        Raises:
            ApiError: 503, while those in use leave no room.
        """
        if self._budget is None:
            return
        idle = sorted((m for m in self._loaded.values() if not m.users), key=lambda m: m.last_used)
        busy = sum(m.source.memory_bytes for m in self._loaded.values() if m.users)
        if busy + needed > self._budget:
            raise ApiError(
                say(
                    zh="記憶體被使用中的模型占滿。請稍後再試。",
                    en="Models in use fill the memory budget. Try again in a moment.",
                ),
                status=503,
                kind="server_error",
                code="overloaded",
                retry_after_s=5,
            )
        while sum(m.source.memory_bytes for m in self._loaded.values()) + needed > self._budget:
            unused = idle.pop(0)
            if unused.users:  # Asked for again while another one was closed.
                return await self._make_room(needed)
            del self._loaded[unused.source.name]
            await asyncio.to_thread(self._unload, unused)

    def _unload(self, loaded: _Loaded) -> None:
        dispatcher = loaded.served[loaded.source.name].dispatcher
        dispatcher.close()
        dispatcher.engine.close()


def _clash(name: str) -> InputError:
    return InputError(
        say(
            zh=f"兩個模型都叫 {name!r}。請把其中一個的資料夾或轉接器改名。",
            en=f"Two models are called {name!r}. Rename the folder, or the adapter, of one of them.",
        )
    )


def _open(source: Source) -> "tuple[TextEngine, list[str]]":
    """The engine, and the names of its adapters."""
    from wenfang.engine import Engine, RemoteEngine, VllmEngine

    if source.engine != "wenfang":
        vllm = source.engine == "vllm"
        remote = (
            VllmEngine(source.path, source.adapters)
            if vllm
            else RemoteEngine(source.engine, source.path, key=api_key())
        )
        return remote, remote.adapters
    engine = Engine.load(
        source.path, max_batch=MAX_GENERATIONS, speculation=source.speculation, quantize=source.quantize
    )
    for adapter, folder in source.adapters.items():
        engine.load_adapter(adapter, folder)
    return engine, list(source.adapters)
