"""Which models this server offers, and the one place where a request gets hold of one."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from wenfang.core.errors import TokenizerError
from wenfang.core.language import say
from wenfang.serve.dispatch import Dispatcher, Generation, Job
from wenfang.serve.errors import ApiError

if TYPE_CHECKING:
    from wenfang.engine import TextEngine


class Served:
    """A loaded model, perhaps with an adapter, and what requests need to know about it."""

    def __init__(self, dispatcher: Dispatcher, *, adapter: str | None = None) -> None:
        self.dispatcher = dispatcher
        self.adapter = adapter

    @property
    def engine(self) -> "TextEngine":
        """Where its tokens come from."""
        return self.dispatcher.engine

    @property
    def name(self) -> str:
        """What clients call it."""
        return self.adapter or self.engine.name

    def start(self, jobs: Sequence[Job]) -> Generation:
        """Begin one choice for each job.

        Raises:
            Overloaded: too many are in progress; nothing was started.
        """
        return self.dispatcher.start_all(jobs, adapter=self.adapter)

    @cached_property
    def tokens(self) -> list[str]:
        """Every token as the vocabulary spells it, by id."""
        return self.engine.tokenizer.tokens

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that no text contains."""
        return frozenset(self.engine.tokenizer.special_ids)

    def token_bytes(self, token: int) -> bytes:
        """What a token stands for, a special one's name; of those that the model alone knows, nothing."""
        return self._spelled[token] if token < len(self._spelled) else b""

    @cached_property
    def _spelled(self) -> list[bytes]:
        try:
            return self.engine.tokenizer.token_bytes
        except TokenizerError:  # Of a kind whose tokens have no bytes of their own.
            return [token.encode() for token in self.tokens]


class Models(Protocol):
    """The models on offer."""

    def names(self) -> list[str]:
        """What clients may ask for, the default first."""
        ...

    def describe(self, name: str) -> dict[str, Any]:
        """OpenAI's model object.

        Raises:
            ApiError: no such model.
        """
        ...

    def use(self, name: str) -> AbstractAsyncContextManager[Served]:
        """The loaded model, for as long as the block lasts.

        Raises:
            ApiError: no such model, or no room to load it now.
        """
        ...

    def loaded(self) -> list[Served]:
        """Those in memory."""
        ...

    def close(self) -> None:
        """Cancel what is being written."""
        ...


class OneModel:
    """A single model, loaded before the server starts."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._served = Served(dispatcher)
        self._created = int(time.time())

    def names(self) -> list[str]:
        """The one."""
        return [self._served.name]

    def describe(self, name: str) -> dict[str, Any]:
        """OpenAI's model object."""
        self._check(name)
        return describe(name, self._created, self._served.engine.context)

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Served]:
        """The one."""
        self._check(name)
        yield self._served

    def loaded(self) -> list[Served]:
        """The one."""
        return [self._served]

    def close(self) -> None:
        """Cancel what is being written."""
        self._served.dispatcher.close()

    def _check(self, name: str) -> None:
        if name != self._served.name:
            raise no_such_model(name, self.names())


def describe(name: str, created: int, context: int | None) -> dict[str, Any]:
    """OpenAI's model object; the context is None while nobody has opened the model."""
    return {"id": name, "object": "model", "created": created, "owned_by": "wenfang", "context_length": context}


def no_such_model(asked: str, served: list[str]) -> ApiError:
    """A model that is not on offer."""
    known = ", ".join(map(repr, served))
    return ApiError(
        say(
            zh=f"沒有模型 {asked[:200]!r}。這裡提供的是 {known}。",
            en=f"The model {asked[:200]!r} does not exist. This server offers {known}.",
        ),
        status=404,
        param="model",
        code="model_not_found",
    )
