"""Text as token ids of which none is a special token, whatever the text says.

`tokenizers` can leave special tokens in a text alone, but a model whose vocabulary holds their names finds them there
all the same: Unigram anywhere, WordPiece and WordLevel as words, BPE as a whole word (`ignore_merges`) or by merges. So
what was encoded is looked over, and a name that came out as the special token is cut and encoded in parts.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import compress, pairwise

import tokenizers

from wenfang.core.errors import InputError
from wenfang.core.language import say

UNKNOWN = "\U0010fffe"
"""A character that no text holds, and so no vocabulary."""


class PlainText:
    """Encodes text, with `rust` told to do so.

    Args:
        rust: is told to leave special tokens in text alone.
        special: ids that no text may yield, except that for what the vocabulary has no token for.
    """

    def __init__(self, rust: tokenizers.Tokenizer, special: Iterable[int]) -> None:
        self._rust = rust
        rust.encode_special_tokens = True
        unknown = rust.encode(UNKNOWN, add_special_tokens=False).ids
        self.forbidden = frozenset(special).difference(unknown)

    def encode(self, text: str) -> list[int]:
        """Ids of a text.

        Raises:
            InputError: the vocabulary has a character of it as a special token alone.
        """
        first, *others = (ids for ids, _, _ in self._parts(text))
        return first if not others else [*first, *(id_ for ids in others for id_ in ids)]

    def encode_with_starts(self, text: str) -> Iterator[tuple[int, int]]:
        """Ids of a text, each with the character at which it begins. Raises what `encode` does."""
        for ids, encoding, at in self._parts(text):
            yield from ((id_, at + start) for id_, (start, _) in zip(ids, encoding.offsets, strict=True))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, on all cores. Raises what `encode` does."""
        found = [encoding.ids for encoding in self._rust.encode_batch_fast(list(texts), add_special_tokens=False)]
        clean = self.forbidden.isdisjoint
        return [ids if clean(ids) else self.encode(text) for text, ids in zip(texts, found, strict=True)]

    def begin(self, text: str) -> list[int]:
        """Ids of a text between those that the tokenizer's own post-processor puts around it.

        Raises what `encode` does.
        """
        encoding = self._rust.encode(text, add_special_tokens=True)
        ids, added = list(encoding.ids), encoding.special_tokens_mask
        own = [not flag for flag in added]
        if self.forbidden.isdisjoint(compress(ids, own)):
            return ids
        first = own.index(True)
        return [*ids[:first], *self.encode(text), *ids[first + sum(own) :]]

    def _parts(self, text: str) -> Iterator[tuple[list[int], tokenizers.Encoding, int]]:
        """Ids and encodings that spell a text together, each with where it begins."""
        waiting = [(0, text, self._rust.encode(text, add_special_tokens=False))]
        while waiting:
            at, part, encoding = waiting.pop()
            ids = encoding.ids  # Each time it is asked for, it is made.
            if self.forbidden.isdisjoint(ids):
                yield ids, encoding, at
                continue
            # Behind the first character of each name; what is left of one is cut once more if need be.
            cuts = [0, *self._cuts(part, encoding), len(part)]
            parts = [part[start:end] for start, end in pairwise(cuts)]
            encodings = self._rust.encode_batch(parts, add_special_tokens=False)
            starts = (at + cut for cut in cuts)
            waiting += reversed(list(zip(starts, parts, encodings, strict=False)))

    def _cuts(self, text: str, encoding: tokenizers.Encoding) -> Iterator[int]:
        for id_, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if id_ not in self.forbidden:
                continue
            if end - start < 2:
                raise InputError(
                    say(
                        zh=f"文字裡的 {text[start:end]!r} 在這個模型的詞表裡只是特殊詞元，不能當文字用。請刪去它。",
                        en=f"In this model's vocabulary {text[start:end]!r} is a special token alone and no text. "
                        "Take it out of the text.",
                    )
                )
            yield start + 1
