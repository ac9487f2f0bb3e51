"""The gated DeltaNet layer against that of Qwen3-Next in `transformers`."""

import pytest
import torch
from torch import Tensor
from transformers import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from wenfang.model.mixers.config import GatedDeltaNetConfig
from wenfang.model.mixers.gated_deltanet import GatedDeltaNet


def by_kind(fused: Tensor, heads: int, sizes: list[int]) -> list[Tensor]:
    """Qwen3-Next stores its fused projections head by head; ours are one matrix per kind."""
    return [part.flatten(0, 1) for part in fused.unflatten(0, (heads, -1)).split(sizes, 1)]


@pytest.mark.parametrize(("key_heads", "value_heads", "length"), [(2, 4, 75), (3, 3, 9)])
def test_same_outputs_as_transformers(key_heads: int, value_heads: int, length: int) -> None:
    torch.manual_seed(5)
    their_config = Qwen3NextConfig(
        hidden_size=24, linear_num_key_heads=key_heads, linear_num_value_heads=value_heads, linear_key_head_dim=6,
        linear_value_head_dim=10, linear_conv_kernel_dim=3, num_hidden_layers=1, rms_norm_eps=1e-4,
        layer_types=["linear_attention"],
    )  # fmt: skip
    theirs = Qwen3NextGatedDeltaNet(their_config, layer_idx=0).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    config = GatedDeltaNetConfig(
        key_heads=key_heads, value_heads=value_heads, key_dim=6, value_dim=10, conv_width=3, chunk=16
    )
    ours = GatedDeltaNet(config, dim=24, norm_eps=1e-4, layer=0)
    state, repeats = theirs.state_dict(), value_heads // key_heads
    q, k, v, z = by_kind(state.pop("in_proj_qkvz.weight"), key_heads, [6, 6, 10 * repeats, 10 * repeats])
    beta, alpha = by_kind(state.pop("in_proj_ba.weight"), key_heads, [repeats, repeats])
    state |= {"q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v, "z_proj.weight": z}
    state |= {"beta_proj.weight": beta, "alpha_proj.weight": alpha}
    state |= {"norm_weight": state.pop("norm.weight"), "o_proj.weight": state.pop("out_proj.weight")}
    ours.load_state_dict(state)
    x_BTD = torch.randn(2, length, 24)
    with torch.no_grad():
        # The same fp32 arithmetic in chunks of another size; the head norms amplify where an output is near zero.
        torch.testing.assert_close(ours.mix(x_BTD, None, None)[0], theirs(x_BTD), rtol=1e-5, atol=1e-5)
