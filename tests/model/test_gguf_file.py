"""GGUF files that lie: refused by name, in bounded memory; quantised tensors as the format's own package reads them."""

import resource
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize, quantize
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judge_llama_cpp import llama_cpp
from test_folder import SHAPES, write

from wenfang.core.errors import ModelError
from wenfang.model import load_config, load_model
from wenfang.model.gguf import GGUFFile, export_gguf, load_gguf_tokenizer
from wenfang.model.gguf.header import READABLE
from wenfang.tokenizer import Tokenizer

STRING, ARRAY, UINT32, FLOAT32 = 8, 9, 4, 6


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def gguf_bytes(keys: list[bytes], tensors: list[bytes], data: bytes = b"", *, version: int = 3) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join((*keys, *tensors))
    return head + bytes(-len(head) % 32) + data


HOSTILE = {
    "empty": (b"", "it is empty"),
    "wrong magic": (b"GGML" + bytes(40), "is not a GGUF file"),
    "short": (b"GGUF\3", "version claims 4 bytes"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648"),
    "version 1": (gguf_bytes([], [], version=1), "version 1;"),
    "many tensors": (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0), "claims 9,223,372,036,854,775,808 tensors"),
    "many keys": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**64 - 1), "and 18,446,744,073,709,551,615 entries"),
    "huge key": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62) + bytes(64), "a metadata key claims"),
    "huge string": (gguf_bytes([key("a", STRING, struct.pack("<Q", 2**63) + b"x")], []), "'a' claims"),
    "not UTF-8": (gguf_bytes([key("a", STRING, text(b"\xff"))], []), "'a' is not UTF-8"),
    "unknown type": (gguf_bytes([key("a", 77, bytes(8))], []), "'a' has the unknown type 77"),
    "huge array": (gguf_bytes([key("a", ARRAY, struct.pack("<IQ", UINT32, 2**61))], []), "'a' is too long"),
    "huge strings": (gguf_bytes([key("a", ARRAY, struct.pack("<IQ", STRING, 2**22))], []), "'a' is too long"),
    "short array": (gguf_bytes([key("a", ARRAY, struct.pack("<IQ", UINT32, 2**20))], []), "'a' claims 4,194,304 bytes"),
    "nested": (gguf_bytes([key("a", ARRAY, struct.pack("<IQIQ", ARRAY, 1, ARRAY, 1))], []), "an array of arrays"),
    "key twice": (gguf_bytes([key("a", UINT32, bytes(4))] * 2, []), "'a' stands there twice"),
    "alignment 0": (gguf_bytes([key("general.alignment", UINT32, bytes(4))], []), "general.alignment=0"),
    "alignment 3": (gguf_bytes([key("general.alignment", UINT32, struct.pack("<I", 3))], []), "a power of two"),
    "alignment text": (gguf_bytes([key("general.alignment", STRING, text("32"))], []), "general.alignment='32'"),
    "dimensions": (gguf_bytes([], [tensor("w", [1] * 5)]), "'w' has 5 dimensions"),
    "many dimensions": (gguf_bytes([], [text("w") + struct.pack("<I", 2**31)]), "'w' has 2147483648 dimensions"),
    "absurd shape": (gguf_bytes([], [tensor("w", [2**62, 2**62])], bytes(64)), "'w' of shape .* ends beyond the file"),
    "overflowing": (gguf_bytes([], [tensor("w", [4], offset=2**64 - 32)], bytes(64)), "'w' of shape .* ends beyond"),
    "cut off": (gguf_bytes([], [tensor("w", [64])], bytes(64)), r"'w' of shape \[64\] ends beyond the file"),
    "twice": (gguf_bytes([], [tensor("w", [0]), tensor("w", [8])], bytes(64)), "'w' stands there twice"),
    "overlap": (gguf_bytes([], [tensor("v", [8]), tensor("w", [8])], bytes(64)), "'w' overlaps another tensor"),
    "row": (gguf_bytes([], [tensor("w", [31], kind=8)], bytes(64)), "that Q8_0 does not allow"),
    "unaligned": (gguf_bytes([], [tensor("w", [8], offset=1)], bytes(64)), "place 1 that F32 does not allow"),
    "kind": (gguf_bytes([], [tensor("w", [8], kind=999)], bytes(64)), "'w' has the unknown type 999"),
}


@pytest.mark.parametrize(("content", "told"), HOSTILE.values(), ids=HOSTILE)
def test_a_lying_file_is_refused(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=told):
        GGUFFile(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # kilobytes


@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damage_to_a_header_is_survived(data: st.DataObject, tmp_path: Path) -> None:
    """Whatever bytes are changed or cut: the file opens with tensors inside it, or a ModelError says why not."""
    keys = [key("a", ARRAY, struct.pack("<IQ", STRING, 2) + text("x") + text("yz")), key("b", FLOAT32, bytes(4))]
    raw = bytearray(gguf_bytes(keys, [tensor("v", [4, 2]), tensor("w", [8], offset=32)], bytes(64)))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 65))] = data.draw(st.integers(0, 255))
    path = tmp_path / "m.gguf"
    path.write_bytes(raw[: len(raw) - data.draw(st.sampled_from([0, 0, 0, 8, 100]))])
    try:
        file = GGUFFile(path)
    except ModelError:
        return
    for name, stored in file.tensors.items():
        assert stored.end <= path.stat().st_size
        if stored.kind.name in READABLE:
            assert tuple(file.read(name).shape) == stored.shape


@pytest.mark.parametrize("kind", [0, 1, 8])
def test_a_tensor_without_numbers_is_read(kind: int, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([], [tensor("v", [32, 0], kind=kind), tensor("w", [0], kind=0)], bytes(64)))
    assert GGUFFile(path).read("v").shape == (0, 32)
    assert GGUFFile(path).read("w").shape == (0,)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"])
def test_every_kind_reads_as_the_format_package_reads_it(kind: str, tmp_path: Path) -> None:
    qtype, rng = GGMLQuantizationType[kind], np.random.default_rng(0)
    weight = rng.normal(size=(3, 512)).astype(np.float32)
    if kind.endswith("_K"):  # The package cannot write these: any bytes are valid, but for scales that are not finite.
        raw = rng.integers(0, 256, size=(3, 2, {"Q4_K": 144, "Q5_K": 176, "Q6_K": 210}[kind]), dtype=np.uint8)
        scale = slice(208, 210) if kind == "Q6_K" else slice(0, 4)
        raw[..., scale] = np.full((3, 2, (scale.stop - scale.start) // 2), 0.01, np.float16).view(np.uint8)
        stored = raw.reshape(3, -1)
    else:
        stored = quantize(weight, qtype)
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("w", stored, raw_dtype=qtype)
    for write_part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write_part()
    writer.close()
    found = GGUFFile(tmp_path / "m.gguf").read("w")
    theirs = GGUFReader(tmp_path / "m.gguf").tensors[0]
    torch.testing.assert_close(found.float(), torch.from_numpy(dequantize(theirs.data, qtype)).view(3, 512))
    if not kind.endswith("_K"):
        # Half a step of the coarsest block: 1 in 2^mantissa for floats, the largest value over 127 or 7 for blocks.
        step = {
            "F32": 0,
            "F16": 2e-3,
            "BF16": 2e-2,
            "Q8_0": 0.02,
            "Q4_0": 0.3,
            "Q4_1": 0.25,
            "Q5_0": 0.2,
            "Q5_1": 0.15,
        }[kind]
        torch.testing.assert_close(found.float(), torch.from_numpy(weight), rtol=0, atol=step)


@pytest.fixture
def sound(tmp_path: Path, tokenizer_folder: Path) -> Path:
    write(SHAPES[0].model_copy(update={"vocab_size": 700}), tmp_path, tokenizer_folder)
    export_gguf(tmp_path, tmp_path / "m.gguf", dtype="f32")
    return tmp_path / "m.gguf"


def rewritten(path: Path, change: Callable[[dict, dict], None]) -> None:
    """The same file with its metadata or tensors changed, written by the format's own package."""
    reader = GGUFReader(path)
    keys = {n: (f.contents(), f.types) for n, f in reader.fields.items() if not n.startswith("GGUF.")}
    tensors = {t.name: (np.array(t.data), t.tensor_type) for t in reader.tensors}
    del reader
    change(keys, tensors)
    writer = GGUFWriter(path, keys.pop("general.architecture")[0])
    for name, (value, types) in keys.items():
        writer.add_key_value(name, value, types[0], sub_type=types[-1] if len(types) > 1 else None)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    for write_part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write_part()
    writer.close()


def set_key(name: str, value: object) -> Callable[[dict, dict], None]:
    def change(keys: dict, _tensors: dict) -> None:
        from gguf import GGUFValueType

        kinds = {int: GGUFValueType.UINT32, str: GGUFValueType.STRING, float: GGUFValueType.FLOAT32}
        keys[name] = (value, keys[name][1] if name in keys else [kinds[type(value)]])

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda k, t: t.pop("blk.0.ffn_up.weight"), "m.gguf' lacks the tensor 'blk.0.ffn_up.weight'"),
        (lambda k, t: t.update(extra=(np.ones(3, np.float32), GGMLQuantizationType.F32)), "unknown tensor 'extra'"),
        (lambda k, t: t["output_norm.weight"][0].fill(np.nan), "output_norm.weight holds NaN"),
        (
            lambda k, t: t.update({"output_norm.weight": (np.ones(5, np.float32), 0)}),
            r"output_norm.weight has shape \[5\]",
        ),
        (lambda k, t: k.pop("qwen3.block_count"), "lacks the metadata 'qwen3.block_count'"),
        (set_key("qwen3.block_count", 10**9), "num_hidden_layers=1000000000"),
        (set_key("qwen3.block_count", 9_999), "layers=9999, dim=24"),
        (set_key("qwen3.block_count", 0), "qwen3.block_count=0"),
        (set_key("qwen3.embedding_length", 2**32 - 1), "qwen3.embedding_length=4294967295"),
        (set_key("qwen3.expert_count", 8), "qwen3.expert_count=8 cannot be carried"),
        (set_key("qwen3.rope.scaling.type", "su"), "rope.scaling.type='su' cannot be carried"),
        (set_key("qwen3.rope.scaling.type", "yarn"), "it lacks rope.scaling.factor"),
        (set_key("general.architecture", "lama"), "'lama' is not supported; known are llama, qwen3"),
    ],
)
def test_a_file_that_is_another_model_is_refused(change, told: str, sound: Path) -> None:
    rewritten(sound, change)
    with pytest.raises(ModelError, match=told):
        load_model(sound)


def drop_tokens(keys: dict, _tensors: dict) -> None:
    tokens, types = keys["tokenizer.ggml.tokens"]
    keys["tokenizer.ggml.tokens"] = (tokens[:10], types)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (set_key("tokenizer.ggml.eos_token_id", 99_999), "eos_token_id=99999"),
        (lambda k, t: k.pop("tokenizer.ggml.eos_token_id"), "names no end token"),
        (lambda k, t: k.pop("tokenizer.ggml.tokens"), "lacks the metadata 'tokenizer.ggml.tokens'"),
        (drop_tokens, "its vocabulary has 10 tokens, its embedding 700 rows"),
        (set_key("tokenizer.huggingface.json", "{"), "tokenizer.huggingface.json is damaged"),
    ],
)
def test_a_damaged_vocabulary_is_refused(change, told: str, sound: Path) -> None:
    rewritten(sound, change)
    with pytest.raises(ModelError, match=told):
        load_gguf_tokenizer(sound)


@pytest.mark.parametrize("said", [True, False, None])
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_a_text_begins_with_what_the_file_says_as_in_llama_cpp(model: str, said: bool | None, sound: Path) -> None:
    def change(keys: dict, _tensors: dict) -> None:
        keys.pop("tokenizer.huggingface.json", None)
        _, types = keys.pop("tokenizer.ggml.add_bos_token")
        if said is not None:
            keys["tokenizer.ggml.add_bos_token"] = (said, types)
        if model == "gpt2":
            keys.pop("tokenizer.ggml.scores")
            keys["tokenizer.ggml.model"] = ("gpt2", keys["tokenizer.ggml.model"][1])
            keys["tokenizer.ggml.pre"] = ("gpt-2", keys["tokenizer.ggml.model"][1])
            tokens, types = keys["tokenizer.ggml.tokens"]
            joined = next(t for t in tokens if len(t) == 2 and set(t) <= set(tokens))
            keys["tokenizer.ggml.merges"] = ([" ".join(joined)], types)

    rewritten(sound, change)
    tokenizer = Tokenizer(*load_gguf_tokenizer(sound))
    begins = tokenizer.begin("ab") == [tokenizer.bos_id, *tokenizer.encode("ab")]
    assert begins is (model == "llama" if said is None else said)
    with llama_cpp(sound, context=16) as theirs:
        assert (theirs.tokenize("ab", begin=True)[:1] == [tokenizer.bos_id]) is begins


def test_the_config_comes_back(sound: Path) -> None:
    assert load_config(sound) == load_config(sound.parent)


def test_numbers_beyond_f16_are_refused(sound: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = sound.parent / "model.safetensors"
    tensors = load_file(weights)
    tensors["lm_head.weight"][0, 0] = 1e6
    save_file(tensors, weights)
    with pytest.raises(ModelError, match="holds numbers beyond the range of f16"):
        export_gguf(sound.parent, sound.parent / "n.gguf", dtype="f16")
    assert not list(sound.parent.glob("n.gguf*"))
