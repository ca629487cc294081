"""Collate groups of rows into one packed batch: each policy once, followed by its rows; loss on answer tokens only."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from cachetools import LRUCache
from torch import Tensor

from judge.data.images import open_image
from judge.vlm.encode import ChatEncoder, Encoded, Variant
from judge.vlm.masks import own_image, per_layer_kind
from judge.vlm.pack import stack_visual
from judge.vlm.positions import chain_positions
from prompts.errors import ArbiterError
from prompts.example import Example
from prompts.flip.rows import Group, Row
from prompts.template import Chat

from .answers import check_length, question_and_answers, shared_start

if TYPE_CHECKING:
    from PIL.Image import Image

EncodedImage = tuple[tuple[int, ...], dict[str, Tensor]]
"""Image tokens and pixel tensors, as `ChatEncoder.encode_image` returns them."""
PACKED = ("input_ids", "position_ids", "attention_mask", "logits_to_keep", "labels")
"""Keys that `pack_groups` returns; the others that reach the model are pixel tensors."""


class PixelCache:
    """Images as the processor returns them, up to `limit` bytes; the least recently used is evicted."""

    def __init__(self, encoder: ChatEncoder, limit: int = 2 * 1024**3) -> None:
        self.encoder = encoder
        self._cache: LRUCache[str, EncodedImage] = LRUCache(limit, getsizeof=_bytes)

    def get(self, example: Example) -> EncodedImage:
        """The image tokens of an example, and its pixel tensors with a leading dimension of one."""
        cached = self._cache.get(example.id)
        if cached is not None:
            return cached
        image: Image = open_image(example.image)
        encoded = self.encoder.encode_image(image)
        if _bytes(encoded) <= self._cache.maxsize:  # LRUCache refuses values larger than itself
            self._cache[example.id] = encoded
        return encoded


def _bytes(encoded: EncodedImage) -> int:
    return sum(tensor.nbytes for tensor in encoded[1].values())


@dataclass
class GroupCollator:
    """Turns N groups of G rows into the inputs of one forward call.

    Attributes:
        encoder: of the base that is trained.
        max_length: most tokens of a row. A longer one raises, because truncating would cut the answer.
        model: used only for its position scheme.
    """

    encoder: ChatEncoder
    max_length: int
    model: Any
    pixels: PixelCache = field(init=False)

    def __post_init__(self) -> None:
        self.pixels = PixelCache(self.encoder)

    def __call__(self, groups: Sequence[Group]) -> dict[str, Any]:
        """Batch N groups of G rows: see `pack_groups`, and the pixel tensors.

        `image_ids` are N * G example ids in the order of the pixels, and `image_lengths` how many entries of
        `pixel_values` each has.
        """
        rows = [row for group in groups for row in group.rows]
        images = [self.pixels.get(row.example) for row in rows]
        encoded = [self._encode(row, tokens) for row, (tokens, _) in zip(rows, images, strict=True)]
        sizes = {len(group.rows) for group in groups}
        if len(sizes) != 1:
            raise ArbiterError(
                f"Groups of one batch differ in size ({sorted(sizes)}); draw groups of one size."
            )
        visual = stack_visual([pixels for _, pixels in images])
        packed = pack_groups(self.model, encoded, len(groups), visual)
        lengths = [len(pixels["pixel_values"]) for _, pixels in images]
        about = {"image_ids": [row.example.id for row in rows], "image_lengths": lengths}
        return {**packed, **visual, **about}

    def _encode(self, row: Row, image_tokens: tuple[int, ...]) -> Encoded:
        """The tokens of a row, whose only continuation is the right answer."""
        chat, answers = question_and_answers(row, self.encoder.template)
        encoded = self.encoder.encode_row([Variant(Chat(chat.messages, answers))], image_tokens)
        check_length(row, len(encoded), self.max_length)
        right = replace(
            encoded.continuations[0], tokens=shared_start([c.tokens for c in encoded.continuations])
        )
        return replace(encoded, questions=((right,),))


def pack_groups(
    model: Any, encoded: Sequence[Encoded], groups: int, visual: dict[str, Tensor]
) -> dict[str, Any]:
    """Lay N * G encoded rows out for `judge.vlm.training.attention`.

    Args:
        model: used only for its position scheme.
        encoded: rows group by group, each with one continuation, its answer.
        groups: N.
        visual: pixel tensors of all rows, for positions.

    Returns:
        With policies padded to P tokens, rows to L, S = P + G * L, and A answer tokens in all:
        `input_ids` (N, S); `position_ids` (N, S) or (3, N, S), restarting after each policy;
        `attention_mask` (N, G, L, P + L), True where a row's token may attend (a dictionary of such masks where
        kinds of layers see different tokens); `logits_to_keep` (N, S), True where an answer token is predicted;
        `labels` (A,) those tokens, in the order of the kept logits.

    Raises:
        ArbiterError: rows of a group differ before the image.
    """
    each = len(encoded) // groups
    answers = [row.continuations[0].tokens for row in encoded]
    # The last answer token is predicted but never an input.
    bodies = [row.chain + answer[:-1] for row, answer in zip(encoded, answers, strict=True)]
    policies = [encoded[start].prefix for start in range(0, len(encoded), each)]
    for index, row in enumerate(encoded):
        if row.prefix != policies[index // each]:
            raise ArbiterError("Rows of one group differ before the image; a group shares one policy.")
    policy, length = max(map(len, policies)), max(map(len, bodies))

    ids = torch.zeros(groups, policy + each * length, dtype=torch.long)
    keep = torch.zeros_like(ids, dtype=torch.bool)
    real = torch.zeros(len(encoded), policy, dtype=torch.bool)  # False at padding behind a shorter policy
    padded = torch.zeros(len(encoded), length, dtype=torch.long)
    for index, (row, body, answer) in enumerate(zip(encoded, bodies, answers, strict=True)):
        group, slot = divmod(index, each)
        start = policy + slot * length
        ids[group, : len(row.prefix)] = torch.tensor(row.prefix, dtype=torch.long)
        padded[index, : len(body)] = torch.tensor(body)
        ids[group, start : start + length] = padded[index]
        # A token is predicted at the position before it: from the last of the chain on.
        keep[group, start + len(row.chain) - 1 : start + len(row.chain) - 1 + len(answer)] = True
        real[index, : len(row.prefix)] = True

    offsets = torch.tensor([len(row.prefix) for row in encoded])
    mask = _group_mask(model, padded, real, offsets)
    lengths = torch.tensor([len(body) for body in bodies])
    own = chain_positions(model, padded, lengths, visual, 0)
    # Positions continue the row's own policy, not its padding; (N * G, L) -> (N, G * L), after (3,) for Qwen-VL.
    own = (own + offsets[:, None]).reshape(*own.shape[:-2], groups, each * length)
    before = torch.arange(policy).expand(*own.shape[:-1], policy)
    return {
        "input_ids": ids,
        "position_ids": torch.cat([before, own], dim=-1),
        "attention_mask": _by_group(mask, groups),
        "logits_to_keep": keep,
        "labels": torch.tensor([token for answer in answers for token in answer]),
    }


def _group_mask(model: Any, ids: Tensor, real: Tensor, offsets: Tensor) -> Tensor | dict[str, Tensor]:
    """(R, L, P + L) of R rows `ids` (R, L): the whole policy, True in `real` (R, P), then the row itself causally.

    Padding behind a row is after all its tokens. `offsets` (R,) are the lengths of the policies.
    """
    rows, length = ids.shape
    own = torch.ones(length, length, dtype=torch.bool).tril().expand(rows, -1, -1)
    image = own_image(model, ids)
    if image is not None:
        own = own | image
    allowed = torch.cat([real[:, None].expand(-1, length, -1), own], dim=-1)
    places = offsets[:, None] + torch.arange(length)
    keys = torch.cat([torch.arange(real.shape[1]).expand(rows, -1), places], dim=1)
    return per_layer_kind(model, allowed, places, keys)


def _by_group(mask: Tensor | dict[str, Tensor], groups: int) -> Any:
    """(N * G, L, P + L) -> (N, G, L, P + L)."""
    if isinstance(mask, dict):
        return {kind: _by_group(part, groups) for kind, part in mask.items()}
    return mask.reshape(groups, -1, *mask.shape[1:])
