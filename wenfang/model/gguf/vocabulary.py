"""A GGUF file's vocabulary as a Hugging Face tokenizer: byte-level BPE ("gpt2") and SentencePiece ("llama")."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gguf import TokenType

from wenfang.core.errors import ModelError
from wenfang.core.language import say
from wenfang.model.gguf.header import GGUFFile, broken
from wenfang.model.gguf.pretokenizers import IGNORE_MERGES, PRE_TOKENIZERS

SPACE = "▁"
"""What SentencePiece writes for a space (U+2581)."""


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of its tokenizer: the arrays under `tokenizer.ggml`."""

    model: str
    """`gpt2` or `llama`."""
    tokens: Sequence[str]
    types: Sequence[TokenType]
    pre: str = ""
    """Name of the pre-tokenizer; `gpt2` only."""
    merges: Sequence[str] = ()
    """Pairs joined by a space, most frequent first; `gpt2` only."""
    scores: Sequence[float] = ()
    """The higher, the earlier a token is put together; `llama` only."""
    space_prefix: bool = False
    """A space is put before the text; `llama` only."""


def read_tokenizer(file: GGUFFile) -> tuple[dict[str, Any], dict[str, Any]]:
    """The content of `tokenizer.json` and of `tokenizer_config.json`.

    Raises:
        ModelError: the vocabulary is damaged or of a kind that cannot be read.
    """
    tokens = file.strings("tokenizer.ggml.tokens")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None and embedding.shape[0] != len(tokens):
        raise broken(
            file.path,
            say(
                zh=f"詞表有 {len(tokens)} 個詞元，嵌入有 {embedding.shape[0]} 列",
                en=f"its vocabulary has {len(tokens)} tokens, its embedding {embedding.shape[0]} rows",
            ),
        )
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for key, name in (("eot", "eos"), ("eos", "eos"), ("bos", "bos"), ("padding", "pad"), ("unknown", "unk")):
        id_ = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if id_ is None or f"{name}_token" in settings:  # A model that ends its turns ends its replies with them.
            continue
        if not isinstance(id_, int) or not 0 <= id_ < len(tokens):
            raise broken(file.path, f"tokenizer.ggml.{key}_token_id={id_!r}")
        settings[f"{name}_token"] = tokens[id_]
    if "eos_token" not in settings:
        raise broken(file.path, say(zh="沒有結束符號", en="it names no end token (tokenizer.ggml.eos_token_id)"))
    if template := file.metadata.get("tokenizer.chat_template"):
        settings["chat_template"] = template
    settings["add_bos_token"] = file.metadata.get("tokenizer.ggml.add_bos_token", _begins_by_custom(file)) is True
    embedded = file.metadata.get("tokenizer.huggingface.json")
    if embedded is not None:
        return _embedded(file, str(embedded), tokens), settings
    vocabulary = _vocabulary(file)
    ends = {id_ for id_, token in enumerate(tokens) if token in (settings["eos_token"], settings.get("bos_token"))}
    types = [TokenType.CONTROL if id_ in ends else kind for id_, kind in enumerate(vocabulary.types)]
    document = tokenizer_json(replace(vocabulary, types=types))
    if settings["add_bos_token"] and "bos_token" in settings:
        document["post_processor"] = _beginning(settings["bos_token"], tokens.index(settings["bos_token"]))
    return document, settings


def _begins_by_custom(file: GGUFFile) -> bool:
    """Whether texts begin with a token for that where a file does not say so, as llama.cpp has it."""
    keys = file.metadata
    return keys.get("tokenizer.ggml.model") == "llama" or keys.get("tokenizer.ggml.pre") in IGNORE_MERGES


def _beginning(token: str, id_: int) -> dict[str, Any]:
    """What puts a token before every text."""
    begin: list[dict[str, Any]] = [{"SpecialToken": {"id": token, "type_id": 0}}]
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    special = {token: {"id": token, "ids": [id_], "tokens": [token]}}
    both = [*begin, first, *begin, second]
    return {"type": "TemplateProcessing", "single": [*begin, first], "pair": both, "special_tokens": special}


def tokenizer_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """The `tokenizer.json` that cuts text as llama.cpp does with this vocabulary."""
    vocab = {token: id_ for id_, token in enumerate(vocabulary.tokens)}
    special = (TokenType.CONTROL, TokenType.UNKNOWN)
    added = [
        {"id": id_, "content": token, "special": kind in special}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for id_, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in (*special, TokenType.USER_DEFINED)
    ]
    parts = _byte_level(vocabulary) if vocabulary.model == "gpt2" else _sentencepiece(vocabulary)
    model = {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False, "vocab": vocab, **parts["model"]}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added} | parts | {"model": model}


def _byte_level(vocabulary: Vocabulary) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in PRE_TOKENIZERS[vocabulary.pre]
    ]
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    cuts = [merge.find(" ", 1) for merge in vocabulary.merges]
    merges = [[merge[:cut], merge[cut + 1 :]] for merge, cut in zip(vocabulary.merges, cuts, strict=True)]
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, bytes_]},
        "post_processor": None,
        "decoder": bytes_,
        "model": {"merges": merges, "byte_fallback": False, "ignore_merges": vocabulary.pre in IGNORE_MERGES},
    }


def _sentencepiece(vocabulary: Vocabulary) -> dict[str, Any]:
    """SentencePiece joins the neighbours whose union scores best; as BPE, each way to cut a token is a merge."""
    tokens, scores = vocabulary.tokens, vocabulary.scores
    plain = {tokens[id_]: id_ for id_, kind in enumerate(vocabulary.types) if kind is TokenType.NORMAL}
    ranked: list[tuple[float, int, int]] = []
    for token, id_ in plain.items():
        for cut in range(1, len(token)):
            left, right = plain.get(token[:cut]), plain.get(token[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[id_], left, right))
    merges = [(tokens[left], tokens[right]) for _, left, right in sorted(ranked)]
    prefix = vocabulary.space_prefix
    normalizers = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
    ]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*normalizers, replace]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"merges": merges, "byte_fallback": True},
    }


def _vocabulary(file: GGUFFile) -> Vocabulary:
    """The arrays of a file, checked against each other."""
    tokens = file.strings("tokenizer.ggml.tokens")
    if len(set(tokens)) != len(tokens):
        raise broken(file.path, say(zh="詞表有重複的詞", en="its vocabulary holds a token twice"))
    numbers = file.numbers("tokenizer.ggml.token_type") if "tokenizer.ggml.token_type" in file.metadata else []
    known = {int(kind): kind for kind in TokenType}
    types = [known.get(int(n), TokenType.NORMAL) for n in numbers] or [TokenType.NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise broken(file.path, say(zh="詞表長短不一", en="tokenizer.ggml.token_type is not as long as the vocabulary"))
    match file.value("tokenizer.ggml.model"):
        case "gpt2":
            return Vocabulary("gpt2", tokens, types, pre=_pre(file), merges=_merges(file, set(tokens)))
        case "llama":
            scores = file.numbers("tokenizer.ggml.scores")
            if len(scores) != len(tokens):
                raise broken(
                    file.path, say(zh="詞表長短不一", en="tokenizer.ggml.scores is not as long as the vocabulary")
                )
            prefix = file.metadata.get("tokenizer.ggml.add_space_prefix", True) is True
            return Vocabulary("llama", tokens, types, scores=scores, space_prefix=prefix)
        case other:
            raise broken(
                file.path,
                say(
                    zh=f"分詞器 {other!r} 尚不支援（支援 gpt2、llama）",
                    en=f"its tokenizer {other!r} is not supported (known are gpt2 and llama)",
                ),
            )


def _pre(file: GGUFFile) -> str:
    pre = str(file.metadata.get("tokenizer.ggml.pre", ""))
    if pre not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise ModelError(
            say(
                zh=f"{str(file.path)!r} 的預分詞 {pre!r} 尚不支援；可用的有 {known}。",
                en=f"{str(file.path)!r} uses the pre-tokenizer {pre!r}, which is not supported; known are {known}.",
            )
        )
    return pre


def _merges(file: GGUFFile, tokens: set[str]) -> list[str]:
    merges = file.strings("tokenizer.ggml.merges")
    for merge in merges:
        cut = merge.find(" ", 1)
        if cut < 0 or not {merge[:cut], merge[cut + 1 :], merge[:cut] + merge[cut + 1 :]} <= tokens:
            raise broken(
                file.path,
                say(zh=f"合併 {merge[:40]!r} 不在詞表", en=f"the merge {merge[:40]!r} is not in its vocabulary"),
            )
    return merges


def _embedded(file: GGUFFile, text: str, tokens: Sequence[str]) -> dict[str, Any]:
    """The Hugging Face tokenizer that the file carries whole, if it is of the file's vocabulary."""
    try:
        document: dict[str, Any] = json.loads(text)
        ids = set(document["model"]["vocab"].values()) | {token["id"] for token in document["added_tokens"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise broken(
            file.path, say(zh="tokenizer.huggingface.json 已損壞", en="tokenizer.huggingface.json is damaged")
        ) from None
    if not ids or len(ids) > len(tokens) or max(ids) >= len(tokens):
        raise broken(
            file.path, say(zh="兩份詞表不符", en="tokenizer.huggingface.json is not of the size of its vocabulary")
        )
    return document
