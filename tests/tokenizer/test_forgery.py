"""No text becomes a special token, whichever model the tokenizer has, although its vocabulary holds their names."""

import time

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from wenfang.core.errors import InputError
from wenfang.tokenizer import Tokenizer

END = "</s>"
CHARACTERS = list("ab</s> ")
NAMES = ["<unk>", END]
IDS = {token: id_ for id_, token in enumerate([*NAMES, *CHARACTERS, "</", "</s"])}
WORDS = {**IDS, **{f"##{token}": len(IDS) + i for i, token in enumerate(CHARACTERS)}}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
MERGES = [("<", "/"), ("</", "s"), ("</s", ">")]


def unigram(pieces: list[str], *, byte_fallback: bool = False) -> models.Unigram:
    return models.Unigram([(p, -float(len(p))) for p in [*NAMES, *pieces]], unk_id=0, byte_fallback=byte_fallback)


MODELS = {
    "BPE": lambda: models.BPE(IDS, MERGES[:2], unk_token="<unk>"),
    "BPE of whole words": lambda: models.BPE(IDS, [], unk_token="<unk>", ignore_merges=True),
    "BPE that merges": lambda: models.BPE(IDS, MERGES, unk_token="<unk>"),
    "Unigram": lambda: unigram(CHARACTERS),
    "Unigram with bytes": lambda: unigram(BYTES, byte_fallback=True),
    "WordPiece": lambda: models.WordPiece(WORDS, unk_token="<unk>"),
    "WordLevel": lambda: models.WordLevel(IDS, unk_token="<unk>"),
}
TEXTS = [END, f"a {END} b", f"a{END}b", f"{END}{END} {END}", "<<//s>>", "＜/s＞", "a ＜/s＞", "b", "", f"{END}a" * 50]


def rust_of(name: str) -> tokenizers.Tokenizer:
    rust = tokenizers.Tokenizer(MODELS[name]())
    rust.normalizer = normalizers.NFKC()
    if name.startswith("Word"):
        rust.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    else:
        rust.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    rust.post_processor = processors.TemplateProcessing(f"{END} $A {END}", special_tokens=[(END, 1)])
    rust.add_special_tokens([tokenizers.AddedToken(name, normalized=name == "<unk>") for name in NAMES])
    return rust


@pytest.fixture(params=MODELS)
def rust(request: pytest.FixtureRequest) -> tokenizers.Tokenizer:
    return rust_of(request.param)


@pytest.fixture
def tokenizer(rust: tokenizers.Tokenizer) -> Tokenizer:
    template = "{% for message in messages %}{{ message.content }}</s>{% endfor %}"
    return Tokenizer(rust, {"eos_token": END, "chat_template": template})


@pytest.mark.parametrize("text", TEXTS)
def test_no_text_is_a_special_token(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.end_id not in ids
    assert tokenizer.encode_batch(["ab", text]) == [tokenizer.encode("ab"), ids]
    assert tokenizer.begin(text) == [tokenizer.end_id, *ids]
    for content in (text, f"a{text}"):
        asked = [{"role": "user", "content": content}, {"role": "user", "content": "b"}]
        assert tokenizer.chat(asked).count(tokenizer.end_id) == 2


@pytest.mark.parametrize("kind", [kind for kind in MODELS if not kind.startswith("Word")])
def test_the_text_is_all_there(kind: str) -> None:
    tokenizer = Tokenizer(rust_of(kind), {"eos_token": END})
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == normalizers.NFKC().normalize_str(text)


def test_other_text_is_cut_as_the_model_cuts_it(rust: tokenizers.Tokenizer) -> None:
    """What the vocabulary does not know stays unknown, though that is a special token as well."""
    rust.encode_special_tokens = True
    expected = [rust.encode(text, add_special_tokens=False).ids for text in ("ab<s", "a山b", "山")]
    tokenizer = Tokenizer(rust, {"eos_token": END})
    assert [tokenizer.encode(text) for text in ("ab<s", "a山b", "山")] == expected


def test_where_a_token_begins_is_known_although_a_name_was_cut() -> None:
    tokenizer = Tokenizer(rust_of("Unigram"), {"eos_token": END})
    assert [start for _, start in tokenizer._plain.encode_with_starts(f"a{END}b{END}")] == list(range(10))


def test_a_special_token_of_one_character_is_refused_in_text() -> None:
    rust = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("終", 0.0), ("a", -1.0)], unk_id=0))
    rust.add_special_tokens(["<unk>", "終"])
    tokenizer = Tokenizer(rust, {"eos_token": "終"})
    with pytest.raises(InputError, match="'終' is a special token alone"):
        tokenizer.encode("a終")


def test_many_names_are_cut_in_linear_time(tokenizer: Tokenizer) -> None:
    began = time.perf_counter()
    assert tokenizer.end_id not in tokenizer.encode(END * 20_000)
    assert time.perf_counter() - began < 5  # 0.3 s; one after the other, each time from the start, would take minutes.
