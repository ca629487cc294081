"""Model inputs for images and the token trees that follow them, behind cached keys and values."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from judge.errors import CheckpointError

from .positions import chain_positions
from .tree import TokenTree

Visual = dict[str, Tensor]


@dataclass(frozen=True)
class Prefix:
    """Tokens shared by every row of a call, and their keys and values in each layer."""

    length: int
    layers: tuple[tuple[Tensor, Tensor], ...]

    def expand(self, rows: int) -> Any:
        """A fresh cache of `rows` copies (views; the forward pass does not change them)."""
        from transformers import DynamicCache

        return DynamicCache(
            [(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in self.layers]
        )


def stack_visual(visual: Sequence[Visual]) -> Visual:
    """Join the pixel tensors of several images along their first dimension.

    Raises:
        CheckpointError: the family's pixel tensors do not stack and must be scored one by one.
    """
    joined = {}
    for key in visual[0]:
        parts = [image[key] for image in visual]
        if len({part.shape[1:] for part in parts}) == 1:
            joined[key] = torch.cat(parts)
        elif key == "pixel_values" and all(part.ndim == 5 for part in parts):
            joined[key] = _pad_patches(parts)
        else:
            raise CheckpointError(f"{key} of these images differ in shape; use a batch size of 1.")
    return joined


def split_visual(visual: Visual, count: int) -> list[Visual] | None:
    """The pixel tensors of each of `count` images, the other way round; None where rows and images do not match.

    Qwen-VL's pixels are rows of patches, so many for each image as its `image_grid_thw` says: (time, rows, columns).
    """
    parts = {key: torch.split(value, 1) for key, value in visual.items() if len(value) == count}
    if "image_grid_thw" in parts and "pixel_values" in visual:
        sizes = visual["image_grid_thw"].prod(dim=1).tolist()
        if sum(sizes) == len(visual["pixel_values"]):
            parts["pixel_values"] = torch.split(visual["pixel_values"], sizes)
    if parts.keys() != visual.keys():
        return None
    return [{key: value[place] for key, value in parts.items()} for place in range(count)]


def _pad_patches(parts: Sequence[Tensor]) -> Tensor:
    """LLaVA-NeXT cuts images into differing numbers of tiles (1, T, 3, H, W); missing ones are zeros."""
    most = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(p, (0, 0, 0, 0, 0, 0, 0, most - p.shape[1])) for p in parts])


def pack_trees(
    model: Any, chains: Sequence[tuple[int, ...]], tree: TokenTree, prefix: Prefix, visual: Visual
) -> dict[str, Any]:
    """Model inputs for B chains padded on the right, each followed by the whole tree.

    With P prefix tokens, chains of at most L tokens and T nodes: input_ids (B, L + T); positions continue each
    row's own chain, so padding changes nothing; the additive mask is (B, 1, L + T, P + L + T).
    """
    device, dtype = model.device, model.dtype
    rows, longest, nodes = len(chains), max(map(len, chains)), len(tree.tokens)
    lengths = torch.tensor([len(chain) for chain in chains])
    ids = torch.zeros(rows, longest + nodes, dtype=torch.long)
    for row, chain in enumerate(chains):
        ids[row, : len(chain)] = torch.tensor(chain)
        ids[row, longest:] = torch.tensor(tree.tokens, dtype=torch.long)

    real = torch.arange(longest) < lengths[:, None]
    reads = torch.zeros(rows, longest + nodes, prefix.length + longest + nodes, dtype=torch.bool)
    reads[:, :, : prefix.length] = True
    own = reads[:, :, prefix.length :]
    own[:, :longest, :longest] = torch.ones(longest, longest, dtype=torch.bool).tril()
    own[:, longest:, :longest] = real[:, None, :]
    own[:, longest:, longest:] = tree.ancestor_mask()
    mask = torch.zeros(reads.shape, dtype=dtype).masked_fill_(~reads, torch.finfo(dtype).min)

    places = torch.tensor(tree.predictors)
    keep = torch.where(places < 0, lengths[:, None] - 1, longest + places)
    positions = chain_positions(model, ids[:, :longest], lengths, visual, prefix.length)
    following = positions.amax(dim=-1, keepdim=True) + 1 + torch.tensor(tree.depths, dtype=torch.long)
    return {
        "input_ids": ids.to(device),
        "attention_mask": mask[:, None].to(device),
        "position_ids": torch.cat([positions, following], dim=-1).to(device),
        "logits_to_keep": keep.to(device),
        **{key: _on(value, device, dtype) for key, value in visual.items()},
    }


def pack_bins(
    model: Any, tree: TokenTree, bins: Sequence[Sequence[int]], read: int, ends: Tensor
) -> dict[str, Any]:
    """Model inputs for R bins of at most W nodes, a row each, that follow `read` cached tokens of one image.

    The additive mask is (R, 1, W, read + W); positions go on from `ends`, (1, 1) or (3, 1, 1).
    """
    device, dtype = model.device, model.dtype
    rows, width = len(bins), max(map(len, bins))
    ids, depths = torch.zeros(rows, width, dtype=torch.long), torch.zeros(rows, width, dtype=torch.long)
    reads = torch.zeros(rows, width, read + width, dtype=torch.bool)
    reads[:, :, :read] = True
    keep = torch.zeros(rows, width, dtype=torch.bool)
    tokens, deep, ancestors = torch.tensor(tree.tokens), torch.tensor(tree.depths), tree.ancestor_mask()
    wanted = set(tree.predictors)
    for row, nodes in enumerate(bins):
        chosen, size = torch.tensor(nodes), len(nodes)
        ids[row, :size], depths[row, :size] = tokens[chosen], deep[chosen]
        reads[row, :size, read : read + size] = ancestors[chosen][:, chosen]
        keep[row, :size] = torch.tensor([node in wanted for node in nodes])
    mask = torch.zeros(reads.shape, dtype=dtype).masked_fill_(~reads, torch.finfo(dtype).min)
    return {
        "input_ids": ids.to(device),
        "attention_mask": mask[:, None].to(device),
        "position_ids": (ends + 1 + depths).to(device),
        "logits_to_keep": keep.to(device),
    }


def _on(tensor: Tensor, device: Any, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
