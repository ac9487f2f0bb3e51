"""A text as one vector: the mean of the model's final states over its tokens."""

from torch import Tensor

from wenfang.engine.completion import Delta
from wenfang.engine.request import Head, Request


class EmbeddingRequest(Request):
    """Reads a prompt to its end and writes nothing."""

    def __init__(self, prompt: list[int]) -> None:
        super().__init__(prompt)
        self._sum_D: Tensor | None = None
        self._tokens = 0

    @property
    def vector(self) -> list[float]:
        """The mean of the final states, scaled to length 1, once the prompt is read."""
        if self._sum_D is None:
            return []
        return [float(x) for x in self._sum_D / self._sum_D.norm().clamp_min(1e-30)]

    @property
    def _wants_prompt(self) -> bool:
        return True

    def _read(self, hidden_TD: Tensor, head: Head) -> None:
        sum_D = hidden_TD.double().sum(0)
        self._sum_D = sum_D if self._sum_D is None else self._sum_D + sum_D
        self._tokens += len(hidden_TD)
        if self._tokens == len(self.prompt):
            self.finished = True
            self.tell(Delta("", "stop", 0))
