"""What a server needs of whatever writes for it: an engine in this process, or one behind an address."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from wenfang.engine.completion import Delta
from wenfang.engine.params import SamplingParams
from wenfang.engine.scheduler import Occupancy
from wenfang.tokenizer import Tokenizer


class Deltas(Protocol):
    """A completion as it is written. `close`, from any thread, cancels the writing and wakes whoever waits for more."""

    def __iter__(self) -> Iterator[Delta]: ...

    def each(self, take: Callable[[Delta], None]) -> None:
        """Hand every piece to `take` as it is written, in whatever thread writes it; returns after the last, or raises
        what iterating raises. `take` must be quick and raise nothing."""
        ...

    def close(self) -> None: ...


class TextEngine(Protocol):
    """Continues token ids."""

    name: str
    """How clients call the model."""
    tokenizer: Tokenizer
    vocab_size: int
    context: int
    """Most tokens of a prompt and what follows it."""

    def stream(self, prompt: Sequence[int], params: SamplingParams, *, adapter: str | None = None) -> Deltas:
        """Generate and yield pieces as they are certain.

        Raises:
            InputError: it cannot be done as asked.
            WenfangError: the engine was closed or failed.
        """
        ...

    def embed(self, prompts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Vectors of length 1, or an InputError where there are none."""
        ...

    @property
    def occupancy(self) -> Occupancy:
        """What it is busy with at this moment; no blocks where its cache cannot be seen."""
        ...

    def close(self) -> None:
        """Stop; running requests end with an error."""
        ...
