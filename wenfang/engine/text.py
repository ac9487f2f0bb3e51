"""Token ids into text as they come: whole characters only, and nothing of a stop string."""

from wenfang.tokenizer import Tokenizer

LONGEST_UTF8 = 4


class TextStream:
    """Decodes one completion piece by piece. The pieces joined are the text up to the first stop string."""

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._pending: list[int] = []
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take one token; returns the text that is now certain."""
        self._pending.append(token)
        text = self._tokenizer.decode(self._pending)
        # A character spread over several byte tokens decodes to U+FFFD until its last byte is there.
        if text.endswith("\ufffd") and len(self._pending) < LONGEST_UTF8:
            return ""
        self._pending = []
        return self._release(text)

    def finish(self) -> str:
        """The rest of the text, once no token follows."""
        text = self._release(self._tokenizer.decode(self._pending)) + ("" if self.stopped else self._held)
        self._pending, self._held = [], ""
        return text

    def _release(self, text: str) -> str:
        self._held += text
        found = [self._held.find(stop) for stop in self._stop if stop in self._held]
        if found:
            self.stopped = True
            certain, self._held = self._held[: min(found)], ""
            return certain
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        certain, self._held = self._held[:cut], self._held[cut:]
        return certain


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
