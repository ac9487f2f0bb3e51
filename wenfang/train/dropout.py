"""Dropout while training, outside the decoder: a model that is served has none."""

import torch.nn.functional as F
from torch import Tensor, nn

from wenfang.model import Decoder


def add_dropout(model: Decoder, share: float) -> None:
    """Leave out a share of what each sublayer adds to the residual stream, in training mode (Srivastava et al. 2014).

    The weights and their names stay as they are.
    """

    def drop(module: nn.Module, _arguments: object, output: Tensor) -> Tensor:
        return F.dropout(output, share, module.training)

    for block in model.layers:
        for name in ("mixer", "mlp"):
            block.get_submodule(name).register_forward_hook(drop)
