"""Training the judge: flipped rows drawn anew each epoch, a loss on answers only, cached features of a frozen tower.

`JudgeTrainer` is transformers' Trainer with three changes: evaluation by a function, the loss (answer tokens only, on
logits that are computed at answer positions only), and each image passes a frozen vision tower once.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from judge.runs.trainer import EvaluatingTrainer
from judge.vlm.families import is_language
from judge.vlm.pack import split_visual, stack_visual
from prompts.example import Example
from prompts.flip import FlipOptions, Group, Row, draw_groups
from prompts.taxonomy import Taxonomy

from .collate import PACKED

FEATURE_BYTES = 4 * 1024**3
"""Limit of the image feature cache; images beyond it go through the tower in every epoch."""


class FlippedGroups(Dataset[Group]):
    """The flipped groups of the current epoch; `set_epoch` draws those of another."""

    def __init__(
        self,
        examples: Sequence[Example],
        taxonomy: Taxonomy,
        options: FlipOptions,
        *,
        seed: int,
        groups: int | None = None,
    ) -> None:
        self._source = examples, taxonomy, options
        self._seed, self._count = seed, groups
        self.epoch = 0
        self.groups = self._draw(0)

    def _draw(self, epoch: int) -> list[Group]:
        return draw_groups(*self._source, seed=self._seed, epoch=epoch, groups=self._count)

    def set_epoch(self, epoch: int) -> None:
        """Draw the groups of this epoch, unless they are the current ones."""
        if epoch != self.epoch:
            self.epoch, self.groups = epoch, self._draw(epoch)

    def sample_rows(self, least: int = 4000) -> list[Row]:
        """Rows of the first epochs, at most ten, until there are at least so many."""
        rows: list[Row] = []
        for epoch in range(10):
            if len(rows) < least:
                rows += [row for group in self._draw(epoch) for row in group.rows]
        return rows

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Group:
        return self.groups[index]


def answer_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Mean cross-entropy of the answer tokens, over all of them in an optimizer step.

    Args:
        outputs: the model's; `logits` is (A, V) at the A positions that predict answer tokens.
        labels: (A,) those tokens.
        num_items_in_batch: answer tokens in the optimizer step. The sum is divided by it, so that gradient accumulation
            and several processes weigh every token alike; None divides by A.
    """
    total = F.cross_entropy(outputs.logits.float(), labels, reduction="sum")
    return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


class ImageFeatureCache:
    """Projected image features by example id, for a frozen tower and projector.

    For families that feed several depths of the tower to the language model (Qwen3-VL), all depths are cached.
    """

    def __init__(self, limit: int = FEATURE_BYTES) -> None:
        self.limit, self.size = limit, 0
        self._cache: dict[str, tuple[Tensor, ...]] = {}
        self._output_class: Any = None
        self._in_a_row = False

    @staticmethod
    def supports(model: Any) -> bool:
        """Whether this model takes precomputed features and trains nothing before its language model."""
        accepts = "mm_encoder_outputs" in inspect.signature(model.get_base_model().forward).parameters
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        return accepts and all(is_language(name) for name in trained)

    def get(self, model: Any, ids: Sequence[str], lengths: Sequence[int], visual: dict[str, Tensor]) -> Any:
        """Features of B images, computed for those that are not cached.

        Args:
            model: the model without adapters' wrapper.
            ids: B example ids.
            lengths: of each image, how many entries of `pixel_values` it has: patches of Qwen-VL, tiles of InternVL.
            visual: their pixel tensors, `pixel_values` (B, 3, H, W), or patches or tiles of all images in a row.

        Returns:
            What `mm_encoder_outputs` takes; None where the pixels cannot be split by image.
        """
        images = split_visual(visual, lengths)
        if images is None:
            return None
        found = {name: self._cache[name] for name in ids if name in self._cache}
        missing = {name: image for name, image in zip(ids, images, strict=True) if name not in found}
        if missing:
            with torch.no_grad():
                output = model.get_image_features(**stack_visual(list(missing.values())), return_dict=True)
            self._output_class = type(output)
            self._in_a_row = isinstance(output.pooler_output, Tensor)
            sizes = dict(zip(ids, lengths, strict=True))
            levels = (
                _by_image(output.pooler_output, [sizes[name] for name in missing]),
                *(getattr(output, "deepstack_features", None) or ()),
            )
            for name, *features in zip(missing, *levels, strict=True):
                found[name] = tuple(features)
                self._store(name, found[name])
        # Per level one tuple of B tensors (P, D), whose numbers of tokens may differ.
        pooled, *deeper = zip(*(found[name] for name in ids), strict=True)
        deep = {"deepstack_features": deeper} if deeper else {}
        return {
            "image": self._output_class(pooler_output=torch.cat(pooled) if self._in_a_row else pooled, **deep)
        }

    def _store(self, name: str, features: tuple[Tensor, ...]) -> None:
        size = sum(feature.nbytes for feature in features)
        if self.size + size <= self.limit:
            # Cloned: the features are views of a whole batch, which would stay in memory.
            self._cache[name] = tuple(feature.clone() for feature in features)
            self.size += size


def _by_image(features: Tensor | Sequence[Tensor], lengths: Sequence[int]) -> Sequence[Tensor]:
    """Features of each image, where a family returns those of all tiles (T, P, D) as one tensor (Gemma-3, InternVL)."""
    return torch.split(features, list(lengths)) if isinstance(features, Tensor) else features


class JudgeTrainer(EvaluatingTrainer):
    """transformers' Trainer with the answer loss and, for a frozen tower, cached image features.

    Args:
        evaluator: scores held-out rows with the current model and returns numbers; its memory does not depend on the
            size of the vocabulary. Called at each evaluation, on every process.
        keep_features: run each image through the frozen tower once. Ignored where something before the language model
            is trained, where the family takes no ready features or lays its pixels out in an unknown way, and under
            DeepSpeed.
        options: Trainer's own.
    """

    def __init__(
        self,
        *,
        evaluator: Callable[[Any], Mapping[str, float]] | None = None,
        keep_features: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(evaluator=evaluator, compute_loss_func=answer_loss, **options)
        # Our labels are aligned with the kept logits; Trainer would leave the first one out of its count.
        self._loss_shifts_labels = False
        # Under ZeRO-3 ranks must run the same modules in the same order, which a cache does not promise.
        cacheable = (
            keep_features and not self.is_deepspeed_enabled and ImageFeatureCache.supports(options["model"])
        )
        self.features = ImageFeatureCache() if cacheable else None

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Trainer's loss, with cached features in place of the pixels."""
        ids, lengths = inputs.pop("image_ids"), inputs.pop("image_lengths")
        if self.features is not None:
            visual = {key: value for key, value in inputs.items() if key not in PACKED}
            # Without the wrappers of DDP and peft: the tower takes part in neither.
            plain = self.accelerator.unwrap_model(model).get_base_model()
            features = self.features.get(plain, ids, lengths, visual)
            if features is not None:
                rest = {key: value for key, value in inputs.items() if key in PACKED}
                inputs = {**rest, "mm_encoder_outputs": features}
        return super().compute_loss(model, inputs, *args, **kwargs)
