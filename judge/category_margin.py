"""`judge.protocol.on_one_scale` as a differentiable margin: the objective of an attack on one category."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def category_margin(whole: Tensor, log_categories: Tensor, place: int) -> Tensor:
    """Logit of a category's score on one scale with the whole.

    The score is u * r, with u = sigmoid(whole) and r the category's ratio to the largest one. Its logit is computed in
    logarithms, because u and r come so near to 1 that 1 - u r would be lost to rounding.

    Args:
        whole: (B,) logits of unsafe.
        log_categories: (B, K) log-probabilities of the categories as the classifier found them.
        place: of the category.

    Returns:
        (B,) logits; that of the whole where no category is larger.
    """
    share = log_categories[:, place] - log_categories.amax(dim=1)
    largest = share >= 0
    share = torch.where(largest, -1.0, share)  # any value with a finite gradient, chosen away below
    # 1 - u r = (1 - u) + u (1 - r)
    rest = torch.logaddexp(logsigmoid(-whole), logsigmoid(whole) + torch.log(-torch.expm1(share)))
    return torch.where(largest, whole, logsigmoid(whole) + share - rest)
