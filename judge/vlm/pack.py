"""Model inputs for images followed by token trees, after a cached prefix."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from judge.errors import CheckpointError

from .masks import additive, own_image, per_layer_kind
from .positions import chain_positions
from .tree import TokenTree

Visual = dict[str, Tensor]
_TILED = ("pixel_values", "pixel_attention_mask")
"""Tensors with a dimension for an image's tiles, as in LLaVA-NeXT and Idefics3."""


@dataclass(frozen=True)
class Prefix:
    """Tokens shared by all rows of a call, and their keys and values in each layer: pairs (1, H, P, D)."""

    length: int
    layers: tuple[tuple[Tensor, Tensor], ...]

    def expand(self, rows: int) -> Any:
        """A fresh cache for `rows` rows.

        The copies are views of one tensor, which is safe: the cache concatenates new keys and values into new tensors
        and never writes to old ones.
        """
        from transformers import DynamicCache

        return DynamicCache(
            [(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in self.layers]
        )


def stack_visual(visual: Sequence[Visual]) -> Visual:
    """Concatenate the pixel tensors of several images along their first dimension.

    Raises:
        CheckpointError: tensors of this family differ in shape, so images must be scored one by one.
    """
    joined = {}
    for key in visual[0]:
        parts = [image[key] for image in visual]
        if len({part.shape[1:] for part in parts}) == 1:  # also patches of Qwen-VL, whose counts differ
            joined[key] = torch.cat(parts)
        elif key in _TILED and len({part.shape[2:] for part in parts}) == 1:
            joined[key] = _pad_tiles(parts)
        else:
            raise CheckpointError(f"{key} of these images differ in shape; use a batch size of 1.")
    return joined


def split_visual(visual: Visual, sizes: Sequence[int]) -> list[Visual] | None:
    """The inverse of `stack_visual`, but for padding: the tensors of each image; None if they cannot be told apart.

    Args:
        visual: the tensors of all images.
        sizes: of each image, the first dimension of its `pixel_values`: one, but for families that lay out patches
            (Qwen-VL) or tiles (InternVL) of all images in a row.
    """
    parts = {key: torch.split(value, 1) for key, value in visual.items() if len(value) == len(sizes)}
    if sum(sizes) == len(visual["pixel_values"]):
        parts["pixel_values"] = torch.split(visual["pixel_values"], list(sizes))
    if parts.keys() != visual.keys():
        return None
    return [{key: value[place] for key, value in parts.items()} for place in range(len(sizes))]


def _pad_tiles(parts: Sequence[Tensor]) -> Tensor:
    """Images cut into different numbers of tiles (1, T, ...), padded with tiles of zeros, which their models drop."""
    most = max(part.shape[1] for part in parts)
    padded = [part.new_zeros(1, most - part.shape[1], *part.shape[2:]) for part in parts]
    return torch.cat([torch.cat(pair, dim=1) for pair in zip(parts, padded, strict=True)])


def pack_trees(
    model: Any,
    chains: Sequence[tuple[int, ...]],
    trees: Sequence[TokenTree],
    prefix: Prefix,
    visual: Visual,
) -> dict[str, Any]:
    """Model inputs for B chains padded on the right, each followed by its tree, also padded.

    The mask must be 4-D and additive: a 2-D mask can only hide padding, but tree nodes that are neighbours in the
    sequence must not attend to each other, and transformers passes a 4-D float mask to attention unchanged.

    Args:
        model: gives device, dtype and position scheme.
        chains: token ids of B rows, at most L each.
        trees: B trees of at most T nodes; rows that ask the same may share one object, whose mask is then made once.
        prefix: P cached tokens before the chains.
        visual: pixel tensors of the B images.

    Returns:
        `input_ids` (B, L + T); `position_ids` (B, L + T) or (3, B, L + T), which continue each row's own chain, so that
        padding changes nothing; `attention_mask` (B, 1, L + T, P + L + T); `logits_to_keep` (B, J), the positions of
        each tree's predictors, the last one repeated where it has fewer; and `visual` on the model's device. Where
        kinds of layers see different tokens, `attention_mask` is a dictionary with one mask a kind.
    """
    device, dtype = model.device, model.dtype
    rows, longest, nodes = len(chains), max(map(len, chains)), max(len(tree.tokens) for tree in trees)
    lengths = torch.tensor([len(chain) for chain in chains])
    ids = torch.zeros(rows, longest + nodes, dtype=torch.long)
    depths = torch.zeros(rows, nodes, dtype=torch.long)
    keep = torch.zeros(rows, max(len(tree.predictors) for tree in trees), dtype=torch.long)
    real = torch.arange(longest) < lengths[:, None]  # (B, L), False at padding
    allowed = torch.zeros(rows, longest + nodes, prefix.length + longest + nodes, dtype=torch.bool)
    allowed[:, :, : prefix.length] = True
    own = allowed[:, :, prefix.length :]
    own[:, :longest, :longest] = torch.ones(longest, longest, dtype=torch.bool).tril()
    # Padding behind a smaller tree attends to the chain, and no node to it.
    own[:, longest:, :longest] = real[:, None, :]
    masks = {id(tree): tree.ancestor_mask() for tree in trees}
    for row, (chain, tree) in enumerate(zip(chains, trees, strict=True)):
        size = len(tree.tokens)
        ids[row, : len(chain)] = torch.tensor(chain)
        ids[row, longest : longest + size] = torch.tensor(tree.tokens, dtype=torch.long)
        depths[row, :size] = torch.tensor(tree.depths, dtype=torch.long)
        own[row, longest : longest + size, longest : longest + size] = masks[id(tree)]
        # Predictor -1 is the last token of the row's chain.
        places = torch.tensor([longest + node if node >= 0 else len(chain) - 1 for node in tree.predictors])
        keep[row] = torch.cat([places, places[-1].expand(keep.shape[1] - len(places))])
    image = own_image(model, ids[:, :longest])
    if image is not None:
        own[:, :longest, :longest] |= image
    # Places along each row's own text; a node's depends on its depth, not on where it stands in the sequence.
    places = prefix.length + torch.cat(
        [torch.arange(longest).expand(rows, -1), lengths[:, None] + depths], dim=1
    )
    keys = torch.cat([torch.arange(prefix.length).expand(rows, -1), places], dim=1)
    mask = per_layer_kind(model, allowed, places, keys)
    positions = chain_positions(model, ids[:, :longest], lengths, visual, prefix.length)
    following = positions.amax(dim=-1, keepdim=True) + 1 + depths
    return {
        "input_ids": ids.to(device),
        "attention_mask": additive(mask, dtype, device),
        "position_ids": torch.cat([positions, following], dim=-1).to(device),
        "logits_to_keep": keep.to(device),
        **{key: _on(value, device, dtype) for key, value in visual.items()},
    }


def pack_bins(
    model: Any, tree: TokenTree, bins: Sequence[Sequence[int]], cached: int, ends: Tensor
) -> dict[str, Any]:
    """Model inputs for the bins of a tree as rows of a batch, after the cached tokens of one image.

    Args:
        model: gives device and dtype.
        tree: the whole tree.
        bins: R sets of at most W nodes, from `TokenTree.bins`.
        cached: tokens in the cache, C.
        ends: (1, 1) or (3, 1, 1), position of the last cached token.

    Returns:
        `input_ids` (R, W), `attention_mask` (R, 1, W, C + W), `position_ids` (R, W) or (3, R, W), and `logits_to_keep`
        (R, W), True at predictors.
    """
    device, dtype = model.device, model.dtype
    rows, width = len(bins), max(map(len, bins))
    ids, depths = torch.zeros(rows, width, dtype=torch.long), torch.zeros(rows, width, dtype=torch.long)
    allowed = torch.zeros(rows, width, cached + width, dtype=torch.bool)
    allowed[:, :, :cached] = True
    keep = torch.zeros(rows, width, dtype=torch.bool)
    tokens, deep, ancestors = torch.tensor(tree.tokens), torch.tensor(tree.depths), tree.ancestor_mask()
    predictors = set(tree.predictors)
    for row, nodes in enumerate(bins):
        # Nodes of a bin are sorted, so ancestors come first and the submatrix of the mask is the bin's own.
        chosen, size = torch.tensor(nodes), len(nodes)
        ids[row, :size], depths[row, :size] = tokens[chosen], deep[chosen]
        allowed[row, :size, cached : cached + size] = ancestors[chosen][:, chosen]
        keep[row, :size] = torch.tensor([node in predictors for node in nodes])
    keys = torch.cat([torch.arange(cached).expand(rows, -1), cached + depths], dim=1)
    mask = per_layer_kind(model, allowed, cached + depths, keys)
    return {
        "input_ids": ids.to(device),
        "attention_mask": additive(mask, dtype, device),
        "position_ids": (ends + 1 + depths).to(device),
        "logits_to_keep": keep.to(device),
    }


def _on(tensor: Tensor, device: Any, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
