"""Token ids into text as they come: whole characters only, and nothing of a stop string."""

from collections.abc import Sequence

from wenfang.tokenizer import Tokenizer

BROKEN = "\ufffd"
"""What bytes decode to that are no character, or none yet."""

LONGEST_BROKEN = 16
"""An end of this many broken bytes will never be a character."""

LONGEST_UTF8 = 4

CONTEXT = 8
"""Tokens of the prompt that are decoded along, more than any decoder looks back."""


class TextStream:
    """Decodes one completion piece by piece. The pieces joined are the text up to the first stop string.

    Args:
        tokenizer: decodes.
        stop: strings that end the text and are not part of it.
        prompt: token ids before the completion. Some decoders drop the space before a text's first word, so each
            piece is decoded behind the one before it, and the first behind the end of the prompt.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...], prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._pending: list[int] = []
        self._given = 0
        self._held = ""
        self.stopped = False
        # One of four ends of the prompt does not begin within a character.
        for length in range(CONTEXT, CONTEXT + LONGEST_UTF8):
            self._settle(list(prompt[-length:]))
            if self._before:
                break

    def push(self, token: int) -> str:
        """Take one token; returns the text that is now certain."""
        self._pending.append(token)
        text = self._decode()
        # A character spread over several byte tokens decodes to U+FFFD until its last byte is there.
        whole = text.rstrip(BROKEN)
        if len(whole) < len(text) <= len(whole) + LONGEST_BROKEN:
            piece, self._given = whole[self._given :], max(self._given, len(whole))
            return self._release(piece)
        piece = text[self._given :]
        # A special token has no text; what follows it still stands behind the word before it.
        self._settle(self._pending if text else [*self._before, *self._pending])
        return self._release(piece)

    def finish(self) -> str:
        """The rest of the text, once no token follows."""
        text = self._release(self._decode()[self._given :]) + ("" if self.stopped else self._held)
        self._pending, self._held = [], ""
        return text

    def _settle(self, before: list[int]) -> None:
        """Go on behind these tokens, unless they end within a character: then what follows is decoded alone."""
        text = self._tokenizer.decode(before)
        self._before, self._before_text = ([], "") if text.endswith(BROKEN) else (before, text)
        self._pending, self._given = [], 0

    def _decode(self) -> str:
        """The pending tokens' text behind what came before."""
        joined = self._tokenizer.decode([*self._before, *self._pending])
        if joined.startswith(self._before_text):
            return joined[len(self._before_text) :]
        return self._tokenizer.decode(self._pending)  # Bytes that break the run of bytes before them, for now.

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


def continuation(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text of `tokens` behind `prompt`."""
    stream = TextStream(tokenizer, (), prompt)
    return "".join([*map(stream.push, tokens), stream.finish()])


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
