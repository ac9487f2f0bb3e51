"""The Mamba-2 layer against the one in `transformers` (its plain torch path)."""

import pytest
import torch
from transformers import Mamba2Config as TheirConfig
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from wenfang.model.mixers.config import Mamba2Config
from wenfang.model.mixers.mamba2 import Mamba2

NAMES = {"norm.weight": "norm_weight", "out_proj.weight": "o_proj.weight"}


@pytest.mark.parametrize(
    ("groups", "conv_bias", "conv_width", "length"), [(1, True, 4, 37), (2, False, 2, 16), (4, True, 3, 5)]
)
def test_same_outputs_as_transformers(groups: int, conv_bias: bool, conv_width: int, length: int) -> None:
    torch.manual_seed(5)
    their_config = TheirConfig(
        hidden_size=24, num_heads=4, head_dim=12, expand=2, state_size=5, n_groups=groups, conv_kernel=conv_width,
        use_conv_bias=conv_bias, chunk_size=16, num_hidden_layers=1, layer_norm_epsilon=1e-4,
    )  # fmt: skip
    theirs = Mamba2Mixer(their_config, layer_idx=0).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    config = Mamba2Config(
        heads=4, head_dim=12, state_dim=5, groups=groups, conv_width=conv_width, conv_bias=conv_bias, chunk=8
    )
    ours = Mamba2(config, dim=24, norm_eps=1e-4, layer=0)
    ours.load_state_dict({NAMES.get(name, name): weight for name, weight in theirs.state_dict().items()})
    x_BTD = torch.randn(2, length, 24)
    with torch.no_grad():
        # The same fp32 arithmetic in chunks of another size.
        torch.testing.assert_close(ours.mix(x_BTD, None, None)[0], theirs(x_BTD), rtol=1e-5, atol=2e-6)
