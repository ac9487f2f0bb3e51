"""Grammars ready for one tokenizer: judged once, compiled once, copied for every text."""

import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from wenfang.core.errors import GrammarError
from wenfang.core.language import say
from wenfang.grammar.base import Grammar
from wenfang.grammar.judge import judge
from wenfang.grammar.limits import STACK_BYTES, parser_limits
from wenfang.grammar.matcher import Matcher

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

KEPT = 64
"""Compiled grammars that are kept for the next request."""


class Vocabulary(Protocol):
    """What a tokenizer must tell about itself."""

    end_id: int

    @property
    def token_bytes(self) -> list[bytes]:
        """The bytes each token stands for, by id; a special token's are its name."""

    @property
    def special_ids(self) -> list[int]:
        """Tokens that no text contains."""

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""


class GrammarCompiler:
    """Compiles grammars for a tokenizer. All methods may be called from any thread.

    Args:
        vocabulary: the tokenizer.
        vocab_size: tokens the model knows, possibly more than the tokenizer has.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        self._vocabulary, self._vocab_size = vocabulary, vocab_size
        self._lock = threading.Lock()
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()

    def matcher(self, grammar: Grammar) -> Matcher:
        """A matcher at the beginning of a text. A grammar seen for the first time is judged and compiled here: not in
        the thread that steps the model.

        Raises:
            GrammarError: the grammar cannot be used; the message says why and where.
        """
        with self._lock:
            inner = self._compiled.get(grammar)
            if inner is not None:
                self._compiled.move_to_end(grammar)
        if inner is None:
            inner = self._compile(grammar)
            with self._lock:
                self._compiled[grammar] = inner
                while len(self._compiled) > KEPT:
                    self._compiled.popitem(last=False)
        return Matcher(inner.deep_copy(), grammar, end_id=self._vocabulary.end_id, vocab_size=self._vocab_size)

    def _compile(self, grammar: Grammar) -> "LLMatcher":
        from llguidance import LLMatcher

        tokens = self._vocabulary.token_bytes
        judge(grammar, [tokens[id_].decode(errors="replace") for id_ in self._vocabulary.special_ids])
        tokenizer = self._open()
        with _big_stack() as pool:
            inner = pool.submit(LLMatcher, tokenizer, grammar.source(), log_level=0, limits=parser_limits()).result()
        if inner.is_error():  # Only this vocabulary shows it, such as a mask too costly for so many tokens.
            reason = str(inner.get_error()).partition("\n")[0][:200].rstrip(".")
            raise GrammarError(say(zh=f"文法無法使用：{reason}。", en=f"The grammar cannot be used: {reason}."))
        return inner

    def _open(self) -> "LLTokenizer":
        """Build the tree of all tokens; takes up to seconds for a large vocabulary, once."""
        from llguidance import LLTokenizer, TokenizerWrapper

        with self._lock:
            if self._tokenizer is None:
                wrapper = TokenizerWrapper(_Spelling(self._vocabulary))
                self._tokenizer = LLTokenizer(wrapper, n_vocab=self._vocab_size)
            return self._tokenizer


class _Spelling:
    """A tokenizer as llguidance asks for it: bytes in, tokens out whose bytes are exactly those."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokens = vocabulary.token_bytes
        self.special_token_ids = vocabulary.special_ids
        self.eos_token_id = vocabulary.end_id
        self.bos_token_id = None
        self._encode = vocabulary.encode
        special = set(self.special_token_ids)
        self._ids = {token: id_ for id_, token in enumerate(self.tokens) if token and id_ not in special}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: bytes | str) -> list[int]:
        wanted = text.encode() if isinstance(text, str) else text
        try:
            ids = self._encode(wanted.decode())
        except UnicodeDecodeError:
            return self._longest_first(wanted)
        # Some tokenizers put a space before every text.
        return ids if b"".join(self.tokens[id_] for id_ in ids) == wanted else self._longest_first(wanted)

    def _longest_first(self, wanted: bytes) -> list[int]:
        ids, at = [], 0
        while at < len(wanted):
            end = next(
                (e for e in range(min(len(wanted), at + self._longest), at, -1) if wanted[at:e] in self._ids), at + 1
            )
            ids += [self._ids[wanted[at:end]]] if wanted[at:end] in self._ids else []
            at = end
        return ids


def _big_stack() -> ThreadPoolExecutor:
    """One thread deep enough for whatever a trial has let through."""
    before = threading.stack_size(STACK_BYTES)
    try:
        pool = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        pool.submit(int).result()  # The thread is made now, while the size holds.
        return pool
    finally:
        threading.stack_size(before)
