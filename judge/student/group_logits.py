"""A student's raw logits on drawn groups, beside their labels: what its calibration is fitted on."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from judge.data.images import open_image
from prompts.flip import Group

from .student import Student


def group_logits(student: Student, groups: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """Logits and labels of all rows of the groups.

    Returns:
        Two CPU tensors (N, 1 + K): the whole policy in column 0, then its categories, K the most of any group. Labels
        are 0.0 or 1.0; NaN where a label is unknown, and in columns that a shorter policy does not have.
    """
    logits, labels = [], []
    for group in groups:
        tokens = student.encoder.encode_images([open_image(row.example.image) for row in group.rows])
        with torch.no_grad():
            # whole (B,), categories (B, K of this group)
            whole, categories = student.logits(tokens, [row.prompt for row in group.rows], group.taxonomy)
        logits.append(torch.cat([whole[:, None], categories], dim=1).cpu())
        known = [(row.unsafe, *group.taxonomy.label(row.example)) for row in group.rows]
        labels.append(
            torch.tensor([[float("nan") if one is None else float(one) for one in row] for row in known])
        )
    columns = 1 + max(len(group.taxonomy) for group in groups)

    def stack(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([F.pad(part, (0, columns - part.shape[1]), value=float("nan")) for part in parts])

    return stack(logits), stack(labels)
