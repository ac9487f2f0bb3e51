"""One row of the running batch: its tokens and the cache blocks that hold them."""

from dataclasses import dataclass, field

from wenfang.engine.adapters import Adapter
from wenfang.engine.blocks import BLOCK, ROOT, BlockPool
from wenfang.model.memory import State


@dataclass(eq=False)
class Sequence:
    """Tokens, of which the first `computed` have their keys and values in `table`'s blocks."""

    tokens: list[int]
    computed: int = 0
    table: list[int] = field(default_factory=list)
    identities: list[int] = field(default_factory=list)
    """Of the leading blocks that are full and registered."""
    states: dict[str, State] = field(default_factory=dict)
    """Of recurrent parts of the model, after the first `computed` tokens."""
    adapter: Adapter | None = None
    """What is added to the model for this row."""

    @property
    def waiting(self) -> int:
        """Tokens not computed yet."""
        return len(self.tokens) - self.computed

    def adopt_prefix(self, pool: BlockPool) -> None:
        """Hold every cached block that this sequence begins with; its last token stays to be computed."""
        while (end := (len(self.table) + 1) * BLOCK) < len(self.tokens):
            found = pool.find(self._parent, tuple(self.tokens[end - BLOCK : end]))
            if found is None:
                return
            block, identity = found
            pool.share(block)
            self.table.append(block)
            self.identities.append(identity)
            self.computed = end

    def missing_blocks(self, tokens: int) -> int:
        """Blocks still needed to hold the first `tokens` tokens."""
        return max(0, -(-tokens // BLOCK) - len(self.table))

    def reserve(self, pool: BlockPool, tokens: int) -> bool:
        """Take blocks for the first `tokens` tokens; False, with nothing taken, when there are too few."""
        missing = self.missing_blocks(tokens)
        if missing > pool.available:
            return False
        self.table += [block for _ in range(missing) if (block := pool.take()) is not None]
        return True

    def advance(self, pool: BlockPool, tokens: int) -> None:
        """Note that `tokens` more are computed, and make the blocks that are now full findable."""
        self.computed += tokens
        while (end := (len(self.identities) + 1) * BLOCK) <= self.computed:
            block = self.table[len(self.identities)]
            self.identities.append(pool.register(block, self._parent, tuple(self.tokens[end - BLOCK : end])))

    def guessing(self, guesses: list[int]) -> "Sequence":
        """This sequence as it would be with further tokens, over the same blocks."""
        return Sequence(self.tokens + guesses, self.computed, self.table, adapter=self.adapter)

    def fork(self, pool: BlockPool) -> "Sequence":
        """A second sequence with the same tokens that shares the full blocks; the rest must be copied or computed."""
        full = self.computed // BLOCK
        for block in self.table[:full]:
            pool.share(block)
        return Sequence(
            list(self.tokens), full * BLOCK, self.table[:full], self.identities[:full], adapter=self.adapter
        )

    def release(self, pool: BlockPool) -> None:
        """Give all blocks back; what was registered may still be found."""
        pool.release(self.table)
        self.table, self.identities, self.computed, self.states = [], [], 0, {}

    @property
    def _parent(self) -> int:
        if self.identities:
            return self.identities[-1]
        return ROOT if self.adapter is None else -self.adapter.number
