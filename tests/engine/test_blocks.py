"""The block pool against a model of it that keeps every sequence's tokens."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wenfang.engine.blocks import BLOCK, BlockPool, CacheError
from wenfang.engine.sequence import Sequence

SAME_HASH = 2**61 - 1
"""hash(2**61 - 1) == hash(0) in CPython, so blocks that differ in it collide."""


class Pool(RuleBasedStateMachine):
    """Sequences come, grow, fork and go; what a block holds is remembered beside the pool."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(6)
        self.alive: list[Sequence] = []
        self.content: dict[int, list[int]] = {}

    def compute(self, sequence: Sequence) -> None:
        if sequence.reserve(self.pool, len(sequence.tokens)):
            for i in range(sequence.computed, len(sequence.tokens)):
                self.content.setdefault(sequence.table[i // BLOCK], [-1] * BLOCK)[i % BLOCK] = sequence.tokens[i]
            sequence.advance(self.pool, sequence.waiting)
            self.alive.append(sequence)
        else:
            sequence.release(self.pool)

    @rule(blocks=st.lists(st.sampled_from([0, SAME_HASH]), max_size=4), rest=st.integers(1, 20))
    def begin(self, blocks: list[int], rest: int) -> None:
        sequence = Sequence([token for token in blocks for _ in range(BLOCK)] + [7] * rest)
        sequence.adopt_prefix(self.pool)
        assert sequence.computed < len(sequence.tokens)
        for i in range(sequence.computed):
            assert self.content[sequence.table[i // BLOCK]][i % BLOCK] == sequence.tokens[i]
        self.compute(sequence)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), more=st.integers(1, 20))
    def grow(self, data: st.DataObject, more: int) -> None:
        sequence = data.draw(st.sampled_from(self.alive))
        self.alive.remove(sequence)
        sequence.tokens += [9] * more
        self.compute(sequence)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        self.alive.append(data.draw(st.sampled_from(self.alive)).fork(self.pool))

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.alive))
        self.alive.remove(sequence)
        sequence.release(self.pool)

    @invariant()
    def books_balance(self) -> None:
        self.pool.check([sequence.table for sequence in self.alive])

    @invariant()
    def every_sequence_still_holds_its_tokens(self) -> None:
        for sequence in self.alive:
            held = [token for block in sequence.table for token in self.content[block]]
            assert held[: sequence.computed] == sequence.tokens[: sequence.computed]


Pool.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
TestPool = Pool.TestCase


def test_equal_hashes_of_different_tokens_are_told_apart() -> None:
    assert hash((0,) * BLOCK) == hash((SAME_HASH,) * BLOCK)
    pool = BlockPool(4)
    first = Sequence([0] * BLOCK + [1])
    first.reserve(pool, BLOCK + 1)
    first.advance(pool, BLOCK + 1)
    stranger = Sequence([SAME_HASH] * BLOCK + [1])
    stranger.adopt_prefix(pool)
    assert stranger.table == []


def test_a_lost_or_doubled_block_is_noticed() -> None:
    pool = BlockPool(3)
    sequence = Sequence([1] * 20)
    sequence.reserve(pool, 20)
    pool.check([sequence.table])
    for tables in ([], [sequence.table, sequence.table], [sequence.table[:1]]):
        with pytest.raises(CacheError):
            pool.check(tables)
