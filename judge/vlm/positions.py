"""Position ids of tokens, for families with 2-D image positions (M-RoPE) and for those without."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def chain_positions(
    model: Any, chains: Tensor, lengths: Tensor, visual: Mapping[str, Tensor], offset: int
) -> Tensor:
    """Position ids of chains that follow `offset` earlier tokens.

    Args:
        model: the vision-language model, possibly wrapped by peft.
        chains: (B, L) token ids padded on the right; each row begins with its image's tokens.
        lengths: (B,) tokens in each row without padding.
        visual: the processor's tensors; `image_grid_thw` (B, 3) for families with rows and columns.
        offset: text tokens before the chains.

    Returns:
        (B, L) for plain families; (3, B, L) for Qwen-VL (time, row, column). Padding repeats the last position,
        so that the largest position of a row is that of its last real token.
    """
    # Clamped, so that padding repeats the last position.
    steps = torch.arange(chains.shape[1]).clamp(max=lengths[:, None] - 1)
    grids = visual.get("image_grid_thw")
    if grids is None:
        return offset + steps
    merge = model.config.vision_config.spatial_merge_size
    rows = [
        _grid_positions(grid.tolist(), merge, int(length), chains.shape[1])
        for grid, length in zip(grids.cpu(), lengths, strict=True)
    ]
    return offset + torch.stack(rows, dim=1)


def _grid_positions(grid: list[int], merge: int, length: int, width: int) -> Tensor:
    """(3, width) ids: image tokens by time, row and column; text continues after the largest of them.

    As in Qwen2-VL (arXiv 2409.12191, section 2.1, M-RoPE).
    """
    # The tower merges `merge` x `merge` patches into one token.
    times, rows, columns = grid[0], grid[1] // merge, grid[2] // merge
    image = torch.stack(
        [
            axis.flatten()
            for axis in torch.meshgrid(
                torch.arange(times), torch.arange(rows), torch.arange(columns), indexing="ij"
            )
        ]
    )
    text = image.max() + 1 + torch.arange(max(length - image.shape[1], 0)).expand(3, -1)
    known = torch.cat([image, text], dim=1)
    padding = known.max().expand(3, width - known.shape[1])
    return torch.cat([known, padding], dim=1)
