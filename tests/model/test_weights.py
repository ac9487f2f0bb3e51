"""Safetensors in shards and as one file, judged by the library that defines the format, and hostile files."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from wenfang.core.errors import ModelError
from wenfang.model import Decoder, DecoderConfig, load_model, save_model
from wenfang.model.families import family_for
from wenfang.model.folder import stored_tensors
from wenfang.model.gguf import GGUFFile
from wenfang.model.weights import INDEX, SafetensorsFolder, read_header, read_tensor


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    return {name: entry.shape for name, entry in read_header(path).items()}


CONFIG = DecoderConfig(vocab_size=300, dim=16, layers=2, heads=2, kv_heads=1, head_dim=8, hidden=24, context=32)
SHARD_BYTES = 20_000


@pytest.fixture
def sharded(tmp_path: Path, tokenizer_folder: Path) -> Path:
    """A model folder of several shards."""
    torch.manual_seed(0)
    model = Decoder(CONFIG)
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(model, folder, tokenizer=tokenizer_folder, bos_id=1, end_id=2, card="test", max_shard_bytes=SHARD_BYTES)
    return folder


def write_raw(path: Path, header: object, body: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_shards_open_in_transformers_and_here_with_the_same_weights(sharded: Path) -> None:
    shards = sorted(sharded.glob("*.safetensors"))
    assert len(shards) > 2
    # The embedding (300 × 16 fp32) fits one shard; no shard holds more tensors than the limit allows.
    assert all(sum(t.nbytes for t in load_file(path).values()) <= SHARD_BYTES for path in shards)
    theirs = AutoModelForCausalLM.from_pretrained(sharded).state_dict()
    model = load_model(sharded)
    ours = stored_tensors(model, family_for(model.config))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())
    index = json.loads((sharded / INDEX).read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == sum(weight.nbytes for weight in ours.values())


def test_weights_stay_mapped_where_the_format_allows(tmp_path: Path) -> None:
    """A child opens 100 MB of weights and reads them; no memory of its own (anonymous pages) is taken for them."""
    save_file({"a": torch.ones(5_000, 5_000)}, tmp_path / "model.safetensors")
    program = (
        "import sys, torch; from pathlib import Path; from wenfang.model.weights import *\n"
        "private = lambda: sum(int(line.split()[1]) for line in open('/proc/self/smaps_rollup')"
        " if line.startswith('Anonymous:')) * 1024\n"
        "before = private(); w = SafetensorsFolder(Path(sys.argv[1]))\n"
        "t = read_tensor(w, 'a', torch.float32)\n"
        "assert float(t.sum(dtype=torch.float64)) == 25e6\n"
        "print(private() - before)"
    )
    out = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(out.stdout) < 20e6


def test_a_tensor_that_nobody_holds_is_out_of_memory(tmp_path: Path) -> None:
    """Weights that are rounded one by one must not stay mapped: they would count as often as all of them."""
    save_file({name: torch.ones(5_000_000) for name in "abc"}, tmp_path / "model.safetensors")
    writer = GGUFWriter(tmp_path / "model.gguf", "llama")
    for name in "abc":
        writer.add_tensor(name, np.ones(5_000_000, np.float32))
    for write_part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write_part()
    writer.close()
    for source in (SafetensorsFolder(tmp_path), GGUFFile(tmp_path / "model.gguf")):
        before = _mapped_bytes()
        held = source.read("a")
        assert float(held.sum(dtype=torch.float64)) == 5e6
        assert 19e6 < _mapped_bytes() - before < 21e6
        for name in "bc":
            held = source.read(name)
            assert float(held.sum(dtype=torch.float64)) == 5e6
        assert _mapped_bytes() - before < 21e6
        del held


def _mapped_bytes() -> int:
    """Of files, in this process's memory."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile:")) * 1024


def test_writing_to_a_loaded_model_leaves_its_file_alone(sharded: Path) -> None:
    before = {path.name: path.read_bytes() for path in sharded.glob("*.safetensors")}
    with torch.no_grad():
        for weight in load_model(sharded).parameters():
            weight.fill_(7.0)
    assert before == {path.name: path.read_bytes() for path in sharded.glob("*.safetensors")}


def test_a_tied_head_may_be_stored_too_but_must_agree(tmp_path: Path, tokenizer_folder: Path) -> None:
    config = CONFIG.model_copy(update={"tie_embeddings": True})
    save_model(Decoder(config), tmp_path, tokenizer=tokenizer_folder, bos_id=1, end_id=2, card="test")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path)
    load_model(tmp_path)
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"'lm_head.weight' should equal 'model.embed_tokens.weight'"):
        load_model(tmp_path)


def repoint(folder: Path, target: str) -> None:
    """Make the index say that the final norm is in `target`."""
    path = folder / INDEX
    index = json.loads(path.read_text(encoding="utf-8"))
    index["weight_map"]["model.norm.weight"] = target
    path.write_text(json.dumps(index), encoding="utf-8")


def shard_of(folder: Path, name: str) -> Path:
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    return folder / index["weight_map"][name]


def outside_by_link(folder: Path) -> None:
    shard = shard_of(folder, "model.norm.weight")
    away = folder.parent / "elsewhere"
    away.mkdir()
    shard.rename(away / shard.name)
    shard.symlink_to(away / shard.name)


def edit_shard(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        shard = shard_of(folder, "model.norm.weight")
        tensors = load_file(shard)
        change(tensors)
        save_file(tensors, shard)

    return edit


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda f: repoint(f, "../model-00001-of-00002.safetensors"), "points outside its folder: '../model"),
        (lambda f: repoint(f, "/etc/passwd"), "points outside its folder: '/etc/passwd'"),
        (lambda f: repoint(f, "sub/model.safetensors"), "points outside its folder"),
        (lambda f: repoint(f, ".."), "lacks its weights, '..'"),
        (lambda f: repoint(f, "nothing.safetensors"), "lacks its weights, 'nothing.safetensors'"),
        (lambda f: repoint(f, "a\0b"), "points outside"),
        (outside_by_link, "is a link that leads out of its folder"),
        (lambda f: (f / INDEX).write_text("{"), "index.json' is damaged"),
        (lambda f: (f / INDEX).write_text('{"weight_map": [1]}'), "no usable weight_map"),
        (lambda f: (f / INDEX).write_text('{"weight_map":' + "[" * 100_000), "no usable weight_map"),
        (lambda f: shard_of(f, "model.norm.weight").unlink(), "lacks its weights, 'model-"),
        (edit_shard(lambda t: t.pop("model.norm.weight")), "lacks the tensor 'model.norm.weight', which .*index.json"),
        (edit_shard(lambda t: t.update(x=torch.ones(1))), "holds the tensor 'x', unlike what .*index.json says"),
        (edit_shard(lambda t: t.update({"model.norm.weight": torch.ones(16, dtype=torch.int32)})), "stored as 'I32'"),
        (edit_shard(lambda t: t["model.norm.weight"].fill_(float("inf"))), "model.norm.weight holds NaN or infinity"),
    ],
)
def test_a_hostile_folder_is_refused_by_file_and_tensor(damage, told: str, sharded: Path) -> None:
    damage(sharded)
    with pytest.raises(ModelError, match=told):
        load_model(sharded)


def test_the_links_of_the_hub_cache_are_followed(sharded: Path, tmp_path: Path) -> None:
    expected = load_model(sharded).state_dict()
    snapshot, blobs = tmp_path / "snapshots" / "abc", tmp_path / "blobs"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(sharded.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    found = load_model(snapshot).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("header", "body", "told"),
    [
        (b"", b"", "not JSON"),
        (b"[]", b"", "not a JSON object"),
        (b'{"a":' + b"[" * 100_000, b"", "not JSON"),
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12), "'b' overlaps"),
        ({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, bytes(20), "'b' overlaps its neighbour or leaves a gap"),
        ({"a": entry([2], 0, 8)}, bytes(4), "tensors take 8 bytes, it holds 4"),
        ({"a": entry([2], 0, 8)}, bytes(12), "tensors take 8 bytes, it holds 12"),
        ({"a": entry([2**62, 8], 0, 8)}, bytes(8), "'a' has the shape .4611686018427387904, 8., which does not fit"),
        ({"a": entry([-2, -1], 0, 8)}, bytes(8), "'a' has no usable header entry"),
        ({"a": entry([2], 8, 0)}, bytes(8), "'a' has the shape"),
        ({"a": entry([2], 0, 2, "F8_E4M3")}, bytes(2), "'a' is stored as 'F8_E4M3'"),
        ({"a": entry([2], 0, 8) | {"shape": "x"}}, bytes(8), "'a' has no usable header entry"),
        ({"a": 3}, b"", "'a' has no usable header entry"),
    ],
)
def test_a_hostile_header_is_refused_by_name(header, body: bytes, told: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=told) as caught:
        read_header(write_raw(tmp_path / "model.safetensors", header, body))
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_a_claim_of_eight_exabytes_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for length in (2**63, 2**64 - 1, 2**31):
        path.write_bytes(length.to_bytes(8, "little") + b"{}")
        with pytest.raises(ModelError, match="its header claims"):
            read_header(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000


def test_a_header_length_that_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    """A header of 640 bytes begins with 80 02, as does a pickle of protocol 2."""
    text = json.dumps({"a": entry([1], 0, 4)}).encode().ljust(640)
    assert write_raw(tmp_path / "model.safetensors", text, bytes(4)).read_bytes()[:2] == b"\x80\x02"
    assert shapes_in(tmp_path / "model.safetensors") == {"a": (1,)}


def test_finite_numbers_whose_sum_overflows_are_accepted(tmp_path: Path) -> None:
    large = torch.full((8,), 3e38)
    save_file({"a": large}, tmp_path / "model.safetensors")
    assert torch.equal(read_tensor(SafetensorsFolder(tmp_path), "a", torch.float32), large)


numbers = st.integers(min_value=-2, max_value=40) | st.sampled_from([2**31, 2**63, 2**64, 10**30])
loose_entry = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I8", "F99"]) | st.none(),
        "shape": st.lists(numbers, max_size=3) | st.text(max_size=3),
        "data_offsets": st.lists(numbers, max_size=3),
    },
)


@given(
    header=st.dictionaries(st.text(max_size=4), loose_entry, max_size=3) | st.binary(max_size=40),
    body=st.binary(max_size=40),
    cut=st.integers(min_value=0, max_value=8),
)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_header_is_read_as_the_library_reads_it_or_refused(header, body: bytes, cut: int, tmp_path: Path) -> None:
    """Nothing but ModelError comes out, and whatever is accepted the format's own library reads alike."""
    path = write_raw(tmp_path / "model.safetensors", header, body)
    path.write_bytes(path.read_bytes()[: path.stat().st_size - cut])
    try:
        shapes = shapes_in(path)
    except ModelError:
        return
    with safe_open(path, framework="pt") as file:
        assert shapes == {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_well_formed_files_are_all_accepted(data: st.DataObject, tmp_path: Path) -> None:
    shape = st.lists(st.integers(0, 4), max_size=3)
    shapes = data.draw(st.dictionaries(st.text(min_size=1, max_size=4), shape, max_size=12))
    shapes.pop("__metadata__", None)
    kinds = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])
    tensors = {name: torch.zeros(shape, dtype=data.draw(kinds)) for name, shape in shapes.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert shapes_in(tmp_path / "model.safetensors") == {n: tuple(t.shape) for n, t in tensors.items()}
