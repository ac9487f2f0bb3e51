"""Who holds which block of the key/value cache, and which blocks hold a prefix worth keeping. Bookkeeping only."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

from wenfang.core.errors import WenfangError
from wenfang.core.language import say

BLOCK = 16
"""Tokens in a block."""

ROOT = 0
"""The parent of a first block; with an adapter it is the adapter's number, negated."""

SPARE = 0
"""The block that padding writes to and reads from; never given out."""


class CacheError(WenfangError):
    """The cache's books do not balance: a defect of the engine, never of a request."""


class BlockPool:
    """Blocks with a count of holders. A full block can be registered under its tokens and the block before it; it is
    then found again until its place is needed.

    A prefix is looked up by (identity of the parent block, token ids) as a dictionary key, so that equal hashes of
    different tokens are told apart, and a child never outlives the meaning of its parent.

    Args:
        count: blocks that can be held, `SPARE` not counted.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count, SPARE, -1))
        self._holders: Counter[int] = Counter()
        self._found: dict[tuple[int, tuple[int, ...]], int] = {}
        self._key: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._identity: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._next_identity = ROOT + 1

    @property
    def available(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free) + len(self._idle)

    def take(self) -> int | None:
        """A block for new tokens, or None when every block is held. The prefix unused for longest is forgotten."""
        if self._free:
            block = self._free.pop()
        elif self._idle:
            block, _ = self._idle.popitem(last=False)
            del self._found[self._key.pop(block)]
            del self._identity[block]
        else:
            return None
        self._holders[block] = 1
        return block

    def share(self, block: int) -> None:
        """Hold a block that somebody holds or that was found."""
        self._holders[block] += 1
        self._idle.pop(block, None)

    def release(self, blocks: Iterable[int]) -> None:
        """Let go of a sequence's blocks, given first to last; later ones are forgotten before earlier ones."""
        for block in reversed(list(blocks)):
            self._holders[block] -= 1
            if self._holders[block]:
                continue
            del self._holders[block]
            if block in self._key:
                self._idle[block] = None
            else:
                self._free.append(block)

    def find(self, parent: int, tokens: tuple[int, ...]) -> tuple[int, int] | None:
        """The block that holds `tokens` after the block with identity `parent`, and its own identity."""
        block = self._found.get((parent, tokens))
        return None if block is None else (block, self._identity[block])

    def register(self, block: int, parent: int, tokens: tuple[int, ...]) -> int:
        """Make a full block findable; returns the identity that its children name as parent."""
        key = (parent, tokens)
        if (other := self._found.get(key)) is not None:
            return self._identity[other]
        identity, self._next_identity = self._next_identity, self._next_identity + 1
        self._found[key], self._key[block], self._identity[block] = block, key, identity
        return identity

    def check(self, tables: Sequence[Sequence[int]]) -> None:
        """Compare the books with the tables of all living sequences.

        Raises:
            CacheError: a block is lost, held twice, or both free and held.
        """
        held = Counter(block for table in tables for block in table)
        places = [*self._free, *self._idle, *self._holders]
        balanced = held == self._holders and sorted(places) == list(range(1, self.count + 1))
        keyed = set(self._key) == set(self._identity) == set(self._found.values())
        if not (balanced and keyed and set(self._idle) <= set(self._key)):
            raise CacheError(
                say(
                    zh=f"快取區塊帳目不符：{len(self._free)} 空、{len(self._idle)} 留、{len(self._holders)} 用，"
                    f"共應 {self.count}；序列持有 {len(held)}。",
                    en=f"The cache's blocks do not add up: {len(self._free)} free, {len(self._idle)} kept and "
                    f"{len(self._holders)} held of {self.count}, while sequences hold {len(held)}.",
                )
            )
