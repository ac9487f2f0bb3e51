"""Masks computed one after the other and side by side."""

import numpy as np
import pytest

from wenfang.grammar import GrammarCompiler, Regex, fill_masks, matcher


def test_masks_are_the_same_one_by_one_and_in_parallel(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    grammars = [Regex(pattern) for pattern in ("[0-9]+", "春[夏秋]冬", "[a-z]{3}", "(甲|乙)丙")]
    found = []
    for patience_s in (60.0, 0.0):
        monkeypatch.setattr(matcher, "PATIENCE_S", patience_s)
        matchers = [compiler.matcher(grammar) for grammar in grammars]
        fill_masks(matchers)
        found.append([m.blocked() for m in matchers])
    assert np.array_equal(found[0], found[1])
    assert all(0 < blocked_V.sum() < len(blocked_V) for blocked_V in found[0])
