"""The compiled step against the same quantised weights run by torch, and against itself in other company."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from native.processors import compiled_for
from torch import Tensor

from wenfang.core.hardware import detect
from wenfang.engine.blocks import BLOCK
from wenfang.engine.cache import PagedCache
from wenfang.model import Decoder, DecoderConfig
from wenfang.model.fused import FusedDecoder, can_fuse
from wenfang.model.memory import AttentionSpec, Memory
from wenfang.model.parts import RopeConfig, YarnScaling
from wenfang.model.quantized import Quantization, quantize
from wenfang.native import decoder

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")

IN_TILES = 0.03
"""Share of the states that tiles may differ by: with them, queries and probabilities are rounded to bf16."""
MOST = IN_TILES if "amx_int8" in detect().instructions else 0.02
"""… and this processor."""
BASE = DecoderConfig(vocab_size=64, dim=64, layers=3, heads=4, kv_heads=2, head_dim=32, hidden=96, context=256)
YARN = RopeConfig(scaling=YarnScaling(factor=2.0, original_context=32), fraction=0.5)
CONFIGS = {
    "qwen3": BASE,
    "biases, odd widths": BASE.model_copy(update={"dim": 72, "hidden": 100, "qkv_bias": True, "o_bias": True}),
    "gemma2": BASE.model_copy(
        update={
            "norm_placement": "sandwich",
            "norm_offset": True,
            "activation": "gelu_tanh",
            "attention_softcap": 20.0,
            "attention_scale": 0.2,
            "windows": (7, None),
            "embedding_scale": 8.0,
            "qk_norm": None,
        }
    ),
    "olmo2": BASE.model_copy(update={"norm_placement": "post", "qk_norm": "projection", "kv_heads": 4}),
    "sinks, yarn, no rope by turns": BASE.model_copy(
        update={"attention_sinks": True, "ropes": (YARN, None), "kv_heads": 1, "windows": (20,)}
    ),
}


def _model(config: DecoderConfig, quantization: Quantization) -> Decoder:
    torch.manual_seed(0)
    model = Decoder(config)
    for name, weight in model.named_parameters():
        scale = weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.3
        torch.nn.init.normal_(weight, float("norm.weight" in name and not config.norm_offset), scale)
    return quantize(model.eval(), quantization)


class _Rounded(Memory):
    """Keys and values in bf16, as a cache keeps them."""

    def attend(self, layer: int, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTV: Tensor, spec: AttentionSpec) -> Tensor:
        return super().attend(layer, q_BHTK, k_BGTK.bfloat16().float(), v_BGTV.bfloat16().float(), spec)


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _few_angles_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that their tables grow within short texts."""
    monkeypatch.setattr("wenfang.model.fused.TURNED_TOGETHER", 16)


def _fused(model: Decoder) -> FusedDecoder:
    assert can_fuse(model)
    cache = PagedCache(model, model.config.attention_layers, 24, 1)
    return FusedDecoder(model, cache.keys_PGK, cache.values_PGV, model.config.context)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_states_are_those_of_the_layers_run_one_by_one(name: str, quantization: Quantization) -> None:
    """Sums in another order now and then move an activation to its next eight-bit step; nothing else differs but what
    tiles round."""
    model, T = _model(CONFIGS[name], quantization), 150
    ids = torch.randint(64, (T,), generator=torch.Generator().manual_seed(1)).tolist()
    expected_TD = model.hidden(torch.tensor([ids]), torch.arange(T)[None], _Rounded(), torch.float32)[0]
    table = [5, 2, 9, 7, 0, 11, 3, 1, 8, 20]
    states_TD = _fused(model).hidden(ids, range(T), [table] * T)
    error = (states_TD - expected_TD).norm() / expected_TD.norm()
    assert error < MOST


@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
@torch.inference_mode()
def test_gates_far_from_zero_are_shut_or_open(name: str) -> None:
    """Where e⁻ˣ is beyond fp32."""
    torch.manual_seed(0)
    model, T = Decoder(CONFIGS[name]), 16
    for parameter, weight in model.named_parameters():
        torch.nn.init.normal_(weight, 1.0 if "norm" in parameter else 0.0, 30.0 if "gate_proj" in parameter else 0.1)
    quantize(model.eval(), "int8")
    expected_TD = model.hidden(torch.arange(T)[None], torch.arange(T)[None], _Rounded(), torch.float32)[0]
    states_TD = _fused(model).hidden(range(T), range(T), [[1]] * T)
    assert (states_TD - expected_TD).norm() / expected_TD.norm() < MOST


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_a_token_is_the_same_in_parts_and_in_company(name: str) -> None:
    model, T = _model(CONFIGS[name], "int4"), 145
    draw = torch.Generator().manual_seed(2)
    one, other = (torch.randint(64, (T,), generator=draw).tolist() for _ in range(2))
    table, second = [5, 2, 9, 0, 11, 6, 22, 8, 7, 13], [1, 3, 4]
    whole_TD = _fused(model).hidden(one, range(T), [table] * T)
    fused = _fused(model)
    fused.hidden(other[:30], range(30), [second] * 30)
    for first, last in ((0, 1), (1, 18), (18, 125), (125, 131), (131, 144)):
        ids, positions = one[first:last], range(first, last)
        part_TD = fused.hidden(ids, positions, [table] * len(ids))
        assert torch.equal(part_TD, whole_TD[first:last])
    both_ND = fused.hidden([other[30], one[144], other[31]], [30, 144, 31], [second, table, second])
    assert torch.equal(both_ND[1], whole_TD[144])
    assert len(table) * BLOCK >= T


@torch.inference_mode()
def test_threads_do_not_change_the_result() -> None:
    model, table = _model(BASE, "int8"), [1, 2, 5, 4, 3]
    before = torch.get_num_threads()
    results = []
    for threads in (1, 5):  # With more, threads share the spans that a row sees.
        torch.set_num_threads(threads)
        fused = _fused(model)
        whole_TD = fused.hidden([*range(64), *range(6)], range(70), [table] * 70)
        results.append(torch.cat((whole_TD, fused.hidden([3], [70], [table]))))
    torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("processor", ["avx512", "amx", "haswell", "x86-64"])
@torch.inference_mode()
def test_other_processors_compute_the_same(processor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if processor == "haswell" and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("needs AVX2")
    model, table = _model(CONFIGS["gemma2"], "int8"), [1, 2, 5, 4, 3]
    call = [*range(64), *range(6)], range(70), [table] * 70
    ids, positions = torch.tensor([call[0]]), torch.arange(70)[None]
    expected_TD = model.hidden(ids, positions, _Rounded(), torch.float32)[0]
    library = compiled_for(processor, decoder.SOURCE, tmp_path)
    monkeypatch.setattr("wenfang.model.fused.step", lambda: library.decoder_step)
    states_TD = _fused(model).hidden(*call)
    error = (states_TD - expected_TD).norm() / expected_TD.norm()
    assert error < (IN_TILES if processor == "amx" else 0.02)
    fused = _fused(model)
    for first, last in ((0, 5), (5, 69), (69, 70)):
        part_TD = fused.hidden(call[0][first:last], call[1][first:last], call[2][first:last])
        assert torch.equal(part_TD, states_TD[first:last])


def test_what_compiled_code_does_not_know_is_left_to_torch() -> None:
    for change in ({"alibi": True}, {"norm": "layer"}, {"head_dim": 8}, {"activation": "relu2"}):
        assert not can_fuse(_model(BASE.model_copy(update=change), "int8"))
    assert not can_fuse(Decoder(BASE))
