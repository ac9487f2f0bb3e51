"""Training elsewhere than on the processor, as far as a machine without a GPU can tell."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train.zoo import ADAPTERS, DECODERS, SHAPE, neighbours

from wenfang.core.errors import InputError
from wenfang.model import Decoder, DecoderConfig
from wenfang.model.memory import AttentionSpec, Sight, attention_products
from wenfang.train import flex, placement
from wenfang.train.adapter import adapt
from wenfang.train.config import AdapterConfig
from wenfang.train.loss import cross_entropy_sum
from wenfang.train.placement import choose


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(placement._THERE, "cuda", lambda: False)
    with pytest.raises(InputError, match="device='cuda': this machine, or this build of torch, has none"):
        choose("cuda")


def test_each_process_needs_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(placement._THERE, "cuda", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = list[int]()
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose("auto") == torch.device("cuda", 1)
    assert chosen == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="has 2 GPUs, none for process 3"):
        choose("cuda")


@pytest.mark.parametrize(
    ("changes", "adapter"),
    [*((changes, AdapterConfig()) for changes in DECODERS.values()), *(({}, adapter) for adapter in ADAPTERS)],
    ids=[*DECODERS, *(f"{adapter.method} {adapter.base}" for adapter in ADAPTERS)],
)
def test_a_step_keeps_to_the_device_of_its_weights_and_reads_no_number(
    changes: dict[str, object], adapter: AdapterConfig
) -> None:
    """Tensors of the device `meta` refuse to meet those of the processor, as a GPU's would, and have no numbers."""
    with torch.device("meta"):
        model = Decoder(DecoderConfig(vocab_size=50, **(SHAPE | changes)))
        adapt(model, adapter)
    ids_BT = torch.zeros(2, 16, dtype=torch.long, device="meta")
    known, dtype = neighbours(model.config, ids_BT), torch.bfloat16
    nats = cross_entropy_sum(
        model, ids_BT, ids_BT, ids_BT, ids_BT, dtype, label_smoothing=0.1, z_loss=0.1, neighbours_BSNR=known
    )
    nats.backward()
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    assert all(weight.grad is None or weight.grad.device == weight.device for weight in learned)
    assert any(weight.grad is not None for weight in learned)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "_compiled", lambda function: function)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("window", [None, 5])
def test_flex_attention_sees_what_plain_products_see(window: int | None) -> None:
    torch.manual_seed(0)
    B, H, G, T, K = 2, 4, 2, 300, 16
    q, k, v = torch.randn(B, H, T, K), torch.randn(B, G, T, K), torch.randn(B, G, T, K)
    documents_BT = torch.randint(0, 2, (B, T)).cumsum(1)
    indices_1T = torch.arange(T)[None]
    spec = AttentionSpec(scale=0.3, window=window)
    sight = Sight(indices_1T, indices_1T, allowed_BTS=documents_BT[:, :, None] == documents_BT[:, None, :])
    expected = attention_products(q, k, v, sight.bias(spec, q.dtype), spec)
    mask = flex.block_mask(documents_BT, window)
    torch.testing.assert_close(flex.attention(q, k, v, mask, 0.3), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("uncompiled")
def test_flex_attention_computes_no_block_of_other_documents() -> None:
    T = 1024
    alone = flex.block_mask(torch.arange(T)[None] // 128, None)
    together = flex.block_mask(torch.zeros(1, T, dtype=torch.long), None)
    assert alone.sparsity() == pytest.approx(100 * (1 - 8 / 64))
    assert together.sparsity() == pytest.approx(100 * (1 - 36 / 64))


@pytest.mark.parametrize("own", [None, "elsewhere"])
def test_what_is_compiled_is_kept_in_the_users_cache_or_where_they_say(own: str | None, tmp_path: Path) -> None:
    """In a new process, as torch settles where its cache lies while it is imported."""
    code = "\n".join(
        (
            "from torch._inductor.runtime.cache_dir_utils import cache_dir",
            "from wenfang.train import loop",
            "loop.keep_compiled()",
            "print(cache_dir())",
        )
    )
    given = {} if own is None else {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / own)}
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])} | given
    done = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(tmp_path / (own or "wenfang/inductor"))]


def test_a_cache_that_cannot_be_made_leaves_torch_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wenfang").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # So that it is put back afterwards.
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    placement.keep_compiled()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
