"""Truncation rules as pure functions: logits in, the same logits with the excluded tokens at -inf out.

Shapes: N rows (requests), V vocabulary. A parameter has one value per row, `_N1`. Each row's result depends on that
row alone, bit for bit. Tokens already at -inf stay excluded and count for nothing.
"""

import torch
from torch import Tensor

NUCLEI = (64, 1024)
"""Sizes that a nucleus is looked for in, one after the other; only if it is larger is the whole vocabulary sorted."""


def top_k(logits_NV: Tensor, k_N1: Tensor) -> Tensor:
    """The k highest logits; ties with the lowest of them stay."""
    k_N1 = k_N1.long().clamp(max=logits_NV.shape[1])
    highest_NK = logits_NV.topk(int(k_N1.max()), dim=-1).values
    return _keep(logits_NV, logits_NV >= highest_NK.gather(1, k_N1 - 1))


def top_p(logits_NV: Tensor, p_N1: Tensor) -> Tensor:
    """Nucleus sampling (Holtzman et al. 2020): the smallest set of likeliest tokens with total probability p; ties
    with the least likely of them stay."""
    probabilities_NV = logits_NV.softmax(-1)
    least_N1, rows = torch.empty_like(p_N1), torch.arange(len(logits_NV))
    for size in NUCLEI:
        highest_NK = probabilities_NV[rows].topk(min(size, logits_NV.shape[1]), dim=-1).values
        least_N1[rows] = _least_of_nucleus(highest_NK, p_N1[rows])
        rows = rows[highest_NK.cumsum(-1)[:, -1] < p_N1[rows, 0]]
        if not len(rows):
            break
    else:
        sorted_NV = probabilities_NV[rows].sort(dim=-1, descending=True).values
        least_N1[rows] = _least_of_nucleus(sorted_NV, p_N1[rows])
    return _keep(logits_NV, probabilities_NV >= least_N1)


def min_p(logits_NV: Tensor, p_N1: Tensor) -> Tensor:
    """Tokens at least p times as likely as the likeliest (Nguyen et al. 2024)."""
    return _keep(logits_NV, logits_NV >= logits_NV.amax(-1, keepdim=True) + p_N1.log())


def typical(logits_NV: Tensor, p_N1: Tensor) -> Tensor:
    """Locally typical sampling (Meister et al. 2023): the tokens whose surprise is nearest the entropy, as few as
    reach total probability p."""
    log_NV = logits_NV.log_softmax(-1)
    probabilities_NV = log_NV.exp()
    surprise_NV = -log_NV.where(log_NV.isfinite(), torch.zeros(()))
    entropy_N1 = _row_sum(probabilities_NV * surprise_NV)
    distance_NV = (surprise_NV - entropy_N1).abs().where(log_NV.isfinite(), torch.tensor(torch.inf))
    order_NV = distance_NV.argsort(dim=-1, stable=True)
    sorted_NV = probabilities_NV.gather(1, order_NV)
    kept_NV = sorted_NV.cumsum(-1) - sorted_NV < p_N1
    kept_NV[:, 0] = True
    return _keep(logits_NV, _unsorted(kept_NV, order_NV))


def top_n_sigma(logits_NV: Tensor, n_N1: Tensor) -> Tensor:
    """Logits within n standard deviations of the highest (Tang et al. 2024); the same at any temperature."""
    finite_NV = logits_NV.isfinite()
    count_N1 = finite_NV.sum(-1, keepdim=True)
    values_NV = logits_NV.where(finite_NV, torch.zeros(()))
    mean_N1 = _row_sum(values_NV) / count_N1
    variance_N1 = _row_sum((values_NV - mean_N1).square() * finite_NV) / count_N1
    return _keep(logits_NV, logits_NV >= logits_NV.amax(-1, keepdim=True) - n_N1 * variance_N1.sqrt())


def exclude_top_choices(logits_NV: Tensor, threshold_N1: Tensor) -> Tensor:
    """XTC (Weidmann 2024), when its die says so: of the tokens with probability ≥ threshold, only the least likely."""
    probabilities_NV = logits_NV.softmax(-1)
    top_NV = probabilities_NV >= threshold_N1
    least_N1 = probabilities_NV.where(top_NV, torch.tensor(2.0)).argmin(-1, keepdim=True)
    return _keep(logits_NV, ~top_NV.scatter(1, least_N1, False))


def mirostat(logits_NV: Tensor, mu_N1: Tensor) -> Tensor:
    """Mirostat 2 (Basu et al. 2021): tokens whose surprise in bits is at most μ, at least the likeliest."""
    surprise_NV = -logits_NV.log_softmax(-1) / torch.log(torch.tensor(2.0))
    return _keep(logits_NV, (surprise_NV <= mu_N1) | (surprise_NV <= surprise_NV.amin(-1, keepdim=True)))


def _least_of_nucleus(sorted_NK: Tensor, p_N1: Tensor) -> Tensor:
    """The probability of the last token needed to reach p."""
    needed_NK = sorted_NK.cumsum(-1) - sorted_NK < p_N1
    return sorted_NK.gather(1, needed_NK.sum(-1, keepdim=True).clamp(min=1) - 1)


def _keep(logits_NV: Tensor, kept_NV: Tensor) -> Tensor:
    return logits_NV.masked_fill(~kept_NV, -torch.inf)


def _unsorted(kept_NV: Tensor, order_NV: Tensor) -> Tensor:
    return torch.zeros_like(kept_NV).scatter(1, order_NV, kept_NV)


def _row_sum(values_NV: Tensor) -> Tensor:
    """Sum in order. `Tensor.sum` splits a single long row over threads and so rounds it unlike a row among others."""
    return values_NV.cumsum(-1)[:, -1:]
