"""The kernel against the exact product of what its codes stand for, in fp64."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from native.processors import compiled_for

from wenfang.native import quantized
from wenfang.native.quantized import GROUP, Bits, linear, look_up, pack, packed_bytes, unpack

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")


def _largest_error(bits: Bits, N: int, inputs: int, outputs: int) -> float:
    """Distance from the exact product, in units of the result's rounding to bf16 plus that of x to eight bits."""
    torch.manual_seed(N)
    weight = pack(torch.randn(outputs, inputs) * torch.rand(outputs, 1), bits)
    x = (torch.randn(N, inputs) * 10 ** torch.randn(N, 1)).bfloat16()
    assert (weight.codes.nbytes, weight.scales.nbytes) == packed_bytes(outputs, inputs, bits)
    dense = unpack(weight).double()
    exact = x.double() @ dense.T
    groups_x, groups_w = (F.pad(t.double().abs(), (0, -inputs % GROUP)).unflatten(1, (-1, GROUP)) for t in (x, dense))
    steps = groups_x.amax(2) / 127
    allowed = exact.abs() * 2**-8 + steps / 2 @ groups_w.sum(2).T + 1e-5 * x.double().abs() @ dense.abs().T
    return float(((linear(x, weight).double() - exact).abs() / allowed).max())


@needs_compiler
@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize(
    ("N", "inputs", "outputs"),
    [(1, 64, 16), (1, 576, 192), (3, 33, 17), (8, 31, 5), (15, 100, 47), (20, 1, 1), (33, 640, 100)],
)
def test_products_are_those_of_the_dequantised_weight(bits: Bits, N: int, inputs: int, outputs: int) -> None:
    assert _largest_error(bits, N, inputs, outputs) <= 1


@needs_compiler
@pytest.mark.parametrize("bits", [8, 6, 4])
def test_a_row_is_the_same_in_any_company(bits: Bits) -> None:
    torch.manual_seed(0)
    weight, x = pack(torch.randn(80, 200), bits), torch.randn(29, 200).bfloat16()
    whole = linear(x, weight)
    for n in range(1, 29):  # Tiles take sixteen at a time.
        assert torch.equal(linear(x[:n], weight), whole[:n])
        assert torch.equal(linear(x[n:], weight), whole[n:])


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_codes_are_within_half_a_step_of_the_weight(bits: Bits) -> None:
    weight = torch.linspace(-3, 5, 40 * 96).view(40, 96)
    symmetric = weight.abs().amax(1, keepdim=True) / ((1 << bits - 1) - 1)
    range_ = (weight.max() - weight.min()) / 40 / 3 / 15 if bits == 4 else symmetric
    # Scales and ends are bf16, which moves every level of a group by up to 2⁻⁹ of them.
    slack = 5 * 2**-8
    assert ((unpack(pack(weight, bits)) - weight).abs() <= range_ / 2 * 1.001 + slack).all()


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_zeros_and_the_largest_numbers_stay_what_they_are(bits: Bits) -> None:
    weight = torch.zeros(16, 32)
    assert torch.equal(unpack(pack(weight, bits)), weight)
    assert (linear(torch.full((1, 32), 3e38).bfloat16(), pack(weight, bits)) == 0).all()
    assert (linear(torch.zeros(1, 32).bfloat16(), pack(torch.ones(16, 32), bits)) == 0).all()


@needs_compiler
@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_sums_of_a_group_do_not_overflow(bits: Bits, sign: int) -> None:
    weight = torch.ones(16, 64)
    weight[:, ::32] = 0.0
    x = sign * torch.ones(1, 64)
    packed = pack(weight, bits)
    torch.testing.assert_close(linear(x, packed), x @ unpack(packed).T, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("compiled", [True, False])
def test_rows_are_those_of_the_whole(bits: Bits, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, rows = pack(torch.randn(40, 100), bits), torch.tensor([[0, 39], [17, 17]])
    if not compiled:
        monkeypatch.setattr(quantized, "_library", lambda: None)
    assert torch.equal(look_up(weight, rows), unpack(weight)[rows])
    for outside in (-1, 40):
        with pytest.raises(IndexError):
            look_up(weight, torch.tensor([3, outside]))


@needs_compiler
@pytest.mark.parametrize("processor", ["avx512", "amx", "haswell", "x86-64"])
def test_other_processors_compute_the_same(processor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AVX2 runs wherever AVX512 does; plain C++, and what has loops for its instructions, run everywhere."""
    if processor == "haswell" and "avx2" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("needs AVX2")
    torch.manual_seed(0)
    weights = [pack(torch.randn(40, 100), bits) for bits in (8, 6, 4)]
    x = torch.randn(43, 100).bfloat16()
    native = [linear(x, weight) for weight in weights]
    library = compiled_for(processor, quantized.SOURCE, tmp_path)
    monkeypatch.setattr(quantized, "_library", lambda: library)
    for weight, expected in zip(weights, native, strict=True):
        # Fused multiply-adds may move the last bit before rounding to bf16.
        torch.testing.assert_close(linear(x, weight), expected, rtol=2**-7, atol=1e-3)
        assert torch.equal(linear(x[30:], weight), linear(x, weight)[30:])  # Of 43, tiles take 32.
        assert torch.equal(look_up(weight, torch.arange(40)), unpack(weight))


def test_without_a_compiler_torch_multiplies_and_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "load", lambda source: None)
    quantized._library.cache_clear()
    weight, x = pack(torch.randn(20, 40), 8), torch.randn(3, 40)
    with pytest.warns(RuntimeWarning, match=r"g\+\+"):
        y = linear(x, weight)
    torch.testing.assert_close(y, x @ unpack(weight).T)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        linear(x, weight)
    quantized._library.cache_clear()
