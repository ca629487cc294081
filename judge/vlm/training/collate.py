"""Groups of rows -> one packed batch: each policy once, its rows behind it, the loss on the answers alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from cachetools import LRUCache
from torch import Tensor

from judge.data.images import open_image
from judge.vlm.encode import ChatEncoder, Encoded, Variant
from judge.vlm.pack import stack_visual
from judge.vlm.positions import chain_positions
from prompts.errors import ArbiterError, ExampleError
from prompts.example import Example
from prompts.flip.rows import Group, Row
from prompts.template import Chat, render

if TYPE_CHECKING:
    from PIL.Image import Image

EncodedImage = tuple[tuple[int, ...], dict[str, Tensor]]
"""Image tokens and pixel tensors, as `ChatEncoder.encode_image` returns them."""
PACKED = ("input_ids", "position_ids", "attention_mask", "logits_to_keep", "labels")
"""What `pack` returns; all else in a batch is pixels and what goes with them."""


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
        max_length: tokens a row may take in all. A longer one stops the run: cutting it would cut the answer.
        model: read for its position scheme only.
    """

    encoder: ChatEncoder
    max_length: int
    model: Any
    pixels: PixelCache = field(init=False)

    def __post_init__(self) -> None:
        self.pixels = PixelCache(self.encoder)

    def __call__(self, groups: Sequence[Group]) -> dict[str, Any]:
        """See `pack`; `image_ids` names the examples in the order of their pixels."""
        rows = [row for group in groups for row in group.rows]
        seen = [self.pixels.get(row.example) for row in rows]
        encoded = [self._encode(row, run) for row, (run, _) in zip(rows, seen, strict=True)]
        sizes = {len(group.rows) for group in groups}
        if len(sizes) != 1:
            raise ArbiterError(f"Groups of one batch differ in size ({sorted(sizes)}); draw them alike.")
        visual = stack_visual([pixels for _, pixels in seen])
        packed = pack(self.model, encoded, len(groups), visual)
        return {**packed, **visual, "image_ids": [row.example.id for row in rows]}

    def _encode(self, row: Row, run: tuple[int, ...]) -> Encoded:
        chat = render(row.taxonomy, row.prompt, template=self.encoder.template, focus=row.focus)
        wanted = None if row.category is None else row.taxonomy.index(row.category)
        answers = [a for a in chat.answers if a.unsafe == row.unsafe and a.category in (wanted, None)]
        if len(answers) != 1:
            raise ExampleError(
                f"{row.example.id}: no single answer for unsafe={row.unsafe}, {row.category!r}."
            )
        variant = Variant(Chat(chat.messages, tuple(answers)))
        encoded = self.encoder.encode_row([variant], run)
        if len(encoded) > self.max_length:
            raise ExampleError(
                f"{row.example.id}: the row takes {len(encoded)} tokens and max_length is {self.max_length}. "
                "Raise max_length, lower max_categories, or shorten the definitions; a cut row would lose its answer."
            )
        return encoded


def pack(model: Any, encoded: Sequence[Encoded], groups: int, visual: dict[str, Tensor]) -> dict[str, Tensor]:
    """Lay N * G encoded rows out for `policy_grouped` attention.

    Returns:
        With policies padded to P tokens, rows to L, S = P + G * L, and A answer tokens in all:
        `input_ids` (N, S); `position_ids` (N, S) or (3, N, S), restarting after each policy;
        `attention_mask` (N, G, L, P + L), True where a row's token reads; `logits_to_keep` (N, S), True where an
        answer token is predicted; `labels` (A,) those tokens, in the order of the kept logits.
    """
    each = len(encoded) // groups
    answers = [row.continuations[0].tokens for row in encoded]
    bodies = [row.chain + answer[:-1] for row, answer in zip(encoded, answers, strict=True)]
    policies = [encoded[start].prefix for start in range(0, len(encoded), each)]
    for index, row in enumerate(encoded):
        if row.prefix != policies[index // each]:
            raise ArbiterError("Rows of one group differ before the image; a group shares one policy.")
    policy, length = max(map(len, policies)), max(map(len, bodies))

    ids = torch.zeros(groups, policy + each * length, dtype=torch.long)
    keep = torch.zeros_like(ids, dtype=torch.bool)
    real = torch.zeros(len(encoded), policy, dtype=torch.bool)
    padded = torch.zeros(len(encoded), length, dtype=torch.long)
    for index, (row, body, answer) in enumerate(zip(encoded, bodies, answers, strict=True)):
        group, slot = divmod(index, each)
        start = policy + slot * length
        ids[group, : len(row.prefix)] = torch.tensor(row.prefix, dtype=torch.long)
        padded[index, : len(body)] = torch.tensor(body)
        ids[group, start : start + length] = padded[index]
        keep[group, start + len(row.chain) - 1 : start + len(row.chain) - 1 + len(answer)] = True
        real[index, : len(row.prefix)] = True

    causal = torch.ones(length, length, dtype=torch.bool).tril()
    reads = torch.cat(
        [real[:, None].expand(-1, length, -1), causal.expand(len(encoded), length, length)], dim=-1
    )
    lengths = torch.tensor([len(body) for body in bodies])
    own = chain_positions(model, padded, lengths, visual, 0)
    offsets = torch.tensor([len(row.prefix) for row in encoded])
    own = (own + offsets[:, None]).reshape(*own.shape[:-2], groups, each * length)
    before = torch.arange(policy).expand(*own.shape[:-1], policy)
    return {
        "input_ids": ids,
        "position_ids": torch.cat([before, own], dim=-1),
        "attention_mask": reads.reshape(groups, each, length, policy + length),
        "logits_to_keep": keep,
        "labels": torch.tensor([token for answer in answers for token in answer]),
    }
