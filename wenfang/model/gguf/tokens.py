"""A Hugging Face tokenizer as the vocabulary of a GGUF file, only where llama.cpp would cut text the same way."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tokenizers
from gguf import TokenType

from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.model.gguf.pretokenizers import IGNORE_MERGES, PRE_TOKENIZERS, expressions
from wenfang.model.gguf.vocabulary import SPACE, Vocabulary, tokenizer_json

PROBES = 4096
"""Tokens, evenly chosen, that are tried in every neighbourhood before a vocabulary is trusted."""
NEIGHBOURS = ("", "a", "山", "7", "。", " ", "\n", "　")


def vocabulary_of(document: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary llama.cpp needs for a `tokenizer.json`.

    llama.cpp knows pre-tokenizers by name only. A byte-level tokenizer must therefore use one of those names'
    expressions exactly. One with byte fallback becomes SentencePiece's kind, which has no pre-tokenizer at all; that
    is tried on several thousand pieces of text and refused if a single one is cut differently.

    Raises:
        ModelError: llama.cpp would cut text otherwise, or has no such kind of tokenizer.
    """
    model = document["model"]
    if model.get("type") != "BPE":
        raise _refused(
            say(zh=f"llama.cpp 這裡只支援 BPE，不是 {model.get('type')!r}", en=f"{model.get('type')!r} is not BPE")
        )
    names = {step.get("type") for step in _steps(document.get("decoder"), "decoders")}
    if "ByteLevel" in names:
        return _byte_level(document)
    if model.get("byte_fallback"):
        vocabulary = _sentencepiece(document)
        _try_out(document, vocabulary)
        return vocabulary
    raise _refused(say(zh="未知字沒有位元組可退", en="it has neither a byte-level alphabet nor byte fallback"))


def rebuilt_alike(document: Mapping[str, Any], vocabulary: Vocabulary) -> bool:
    """Whether a reader of the vocabulary alone gets the same rules, so that the file need not carry the original."""
    rebuilt = tokenizer_json(vocabulary)
    if vocabulary.model == "gpt2":
        return True  # The expressions were compared when the pre-tokenizer was named.
    return all(document.get(part) == rebuilt[part] for part in ("normalizer", "pre_tokenizer"))


def _byte_level(document: Mapping[str, Any]) -> Vocabulary:
    model = document["model"]
    cuts = expressions(document.get("pre_tokenizer"))
    ignore = bool(model.get("ignore_merges"))
    named = (n for n, known in PRE_TOKENIZERS.items() if known == cuts and (n in IGNORE_MERGES) == ignore)
    pre = next(named, None)
    if pre is None or document.get("normalizer") is not None:
        raise _refused(
            say(
                zh="llama.cpp 沒有同樣規則的預分詞（tokenizer.ggml.pre）",
                en="llama.cpp has no pre-tokenizer (tokenizer.ggml.pre) with its rules",
            )
        )
    tokens, types = _tokens(document)
    return Vocabulary("gpt2", tokens, types, pre=pre, merges=[" ".join(pair) for pair in _pairs(model)])


def _sentencepiece(document: Mapping[str, Any]) -> Vocabulary:
    tokens, types = _tokens(document)
    marks = [step for step in _steps(document.get("normalizer"), "normalizers") if step.get("type") == "Replace"]
    metaspace = [s for s in _steps(document.get("pre_tokenizer"), "pretokenizers") if s.get("type") == "Metaspace"]
    writes_spaces = not marks and not metaspace
    if writes_spaces:
        tokens, types = _with_marks(tokens, types)
    prepends = [s for s in _steps(document.get("normalizer"), "normalizers") if s.get("type") == "Prepend"]
    prefix = bool(prepends) or any(step.get("prepend_scheme") in ("first", "always") for step in metaspace)
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(_pairs(document["model"])):
        token = left + right
        ranks.setdefault(token.replace(" ", SPACE) if writes_spaces else token, rank)
    scores = [float(-ranks.get(token, 0)) for token in tokens]
    return Vocabulary("llama", tokens, types, scores=scores, space_prefix=prefix)


def _with_marks(tokens: list[str], types: list[TokenType]) -> tuple[list[str], list[TokenType]]:
    """The tokens with ▁ for every space, since llama.cpp writes it so before it looks a token up.

    Where the space is no token, its byte stands for it: that byte is then what ▁ means.
    """
    if SPACE in tokens:
        raise _refused(say(zh=f"詞表已有 {SPACE!r}", en=f"its vocabulary holds {SPACE!r} besides the space"))
    spelt = "<0x20>" if " " not in tokens else None
    marked = [
        SPACE if token == spelt else token.replace(" ", SPACE) if kind is TokenType.NORMAL else token
        for token, kind in zip(tokens, types, strict=True)
    ]
    return marked, [TokenType.NORMAL if t == SPACE else kind for t, kind in zip(marked, types, strict=True)]


def _tokens(document: Mapping[str, Any]) -> tuple[list[str], list[TokenType]]:
    """Every token by id with its kind; ids nobody uses become placeholders, as in llama.cpp's own converter."""
    vocab: dict[str, int] = document["model"]["vocab"]
    added = {token["id"]: token for token in document.get("added_tokens", ())}
    by_id = {id_: token for token, id_ in vocab.items()} | {id_: token["content"] for id_, token in added.items()}
    fallback = bool(document["model"].get("byte_fallback"))
    tokens, types = [], []
    for id_ in range(max(by_id) + 1):
        token = by_id.get(id_)
        if id_ in added:
            kind = TokenType.CONTROL if added[id_]["special"] else TokenType.USER_DEFINED
        elif token is None:
            kind = TokenType.UNUSED
        elif fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kind = TokenType.BYTE
        else:
            kind = TokenType.NORMAL
        tokens.append(f"[PAD{id_}]" if token is None else token)
        types.append(kind)
    return tokens, types


def _try_out(document: Mapping[str, Any], vocabulary: Vocabulary) -> None:
    """Cut thousands of short texts by both sets of rules; the first difference refuses the vocabulary."""

    def rust(rules: Mapping[str, Any]) -> tokenizers.Tokenizer:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(rules, ensure_ascii=False))
        tokenizer.encode_special_tokens = True
        return tokenizer

    texts = list(_probes(vocabulary))
    original, rebuilt = (
        [encoding.ids for encoding in rust(rules).encode_batch_fast(texts, add_special_tokens=False)]
        for rules in (document, tokenizer_json(vocabulary))
    )
    for text, ours, theirs in zip(texts, original, rebuilt, strict=True):
        if ours != theirs:
            raise _refused(
                say(
                    zh=f"llama.cpp 會把 {text!r} 切成 {theirs}，而不是 {ours}",
                    en=f"llama.cpp would cut {text!r} into {theirs} instead of {ours}",
                )
            )


def _probes(vocabulary: Vocabulary) -> Iterator[str]:
    """Texts around the tokens: each between neighbours of every kind, and beside another token."""
    plain = [
        token.replace(SPACE, " ")
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
        if kind is TokenType.NORMAL
    ]
    plain.sort(key=len, reverse=True)  # The longer a token, the more merges it takes part in.
    chosen = plain[: PROBES // 2] + plain[PROBES // 2 :: max(1, len(plain) * 2 // PROBES)]
    for i, token in enumerate(chosen):
        yield from (before + token for before in NEIGHBOURS)
        yield from (token + after for after in NEIGHBOURS[1:])
        yield token + chosen[(i * 7919 + 1) % len(chosen)]


def _pairs(model: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    """Merges as pairs, in either of the two ways `tokenizer.json` writes them."""
    for merge in model["merges"]:
        yield merge.split(" ", 1) if isinstance(merge, str) else merge


def _steps(part: Mapping[str, Any] | None, plural: str) -> Sequence[Mapping[str, Any]]:
    """The steps of a part of `tokenizer.json`, be it one or a sequence."""
    steps: Sequence[Mapping[str, Any]] = (part or {}).get(plural, [part or {}])
    return steps


def _refused(why: str) -> ModelError:
    return ModelError(
        say(
            zh=f"這個分詞器無法寫成 GGUF：{why}。",
            en=f"This tokenizer cannot be written to GGUF: {why}.",
        )
    )
