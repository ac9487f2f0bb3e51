"""A model takes up another vocabulary, usually a larger one, and keeps what it knows of the old."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wenfang.model import Decoder
from wenfang.tokenizer import Tokenizer
from wenfang.train.sharding import like, whole


@torch.no_grad()
def adopt_vocabulary(model: Decoder, known: Tokenizer, wanted: Tokenizer) -> list[int]:
    """Give `model`, in place, one embedding and one output row for each token of `wanted`; returns those that are new.

    A token that both spell alike keeps its rows. A new one begins as the mean of the old tokens that spelt its text
    (Gee et al. 2022, "Fast vocabulary transfer"), or of all of them where it stands for a piece of a character.
    """
    before = {token: id_ for id_, token in enumerate(known.tokens)}
    tokens = wanted.tokens
    if tokens == known.tokens:
        return []
    texts = [wanted.decode([id_]) for id_ in range(len(tokens))]
    pieces = [
        [before[token]] if token in before else known.encode(text) if "\ufffd" not in text else []
        for token, text in zip(tokens, texts, strict=True)
    ]
    tied = model.lm_head.weight is model.embed_tokens.weight
    model.embed_tokens.weight = nn.Parameter(_means(model.embed_tokens.weight, pieces))
    model.embed_tokens.num_embeddings = model.lm_head.out_features = len(tokens)
    model.lm_head.weight = model.embed_tokens.weight if tied else nn.Parameter(_means(model.lm_head.weight, pieces))
    model.config = model.config.model_copy(update={"vocab_size": len(tokens)})
    return [id_ for id_, token in enumerate(tokens) if token not in before]


def _means(rows_VD: Tensor, pieces: list[list[int]]) -> Tensor:
    everything_D = rows_VD.mean(0)
    return torch.stack([rows_VD[ids].mean(0) if ids else everything_D for ids in pieces])


@dataclass(frozen=True)
class NewTokens:
    """Tokens whose rows learn alone at first, so that what the model knows is not moved to make up for rough ones."""

    ids: list[int]
    steps: int

    def learn_alone(self, model: Decoder, step: int) -> None:
        """In the first steps, take away every gradient but that of their embedding and output rows."""
        if step >= self.steps:
            return
        tables = (model.embed_tokens.weight, model.lm_head.weight)
        for weight in model.parameters():
            gradient, weight.grad = weight.grad, None
            if gradient is not None and any(weight is table for table in tables):
                all_VD = whole(gradient)
                theirs_VD = torch.zeros_like(all_VD)
                theirs_VD[self.ids] = all_VD[self.ids]
                weight.grad = like(weight, theirs_VD)
