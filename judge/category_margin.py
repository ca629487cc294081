"""The logit of a category's score, as `judge.protocol.on_one_scale` defines it; differentiable, for attacks."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def category_margin(whole: Tensor, log_categories: Tensor, place: int) -> Tensor:
    """Logit of a category's score on one scale with P(unsafe).

    The score is u * r, with u = sigmoid(whole) and r the category's ratio to the largest one. Its logit is computed in
    logarithms, because u and r come so close to 1 that 1 - u * r would be rounded to 0.

    Args:
        whole: (B,) logits of unsafe.
        log_categories: (B, K) log-probabilities of the categories, before they are put on one scale.
        place: index of the category.

    Returns:
        (B,) logits; `whole` itself where no category is larger.
    """
    share = log_categories[:, place] - log_categories.amax(dim=1)
    largest = share >= 0
    share = torch.where(largest, -1.0, share)  # log(1 - exp(0)) has no finite gradient; replaced below
    # 1 - u r = (1 - u) + u (1 - r)
    rest = torch.logaddexp(logsigmoid(-whole), logsigmoid(whole) + torch.log(-torch.expm1(share)))
    return torch.where(largest, whole, logsigmoid(whole) + share - rest)
