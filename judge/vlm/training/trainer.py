"""Training: fresh flipped rows every epoch, the policy of a group computed once, metrics that mean something.

`JudgeTrainer` is transformers' Trainer, so accelerate, DeepSpeed, checkpoints, resuming and loggers work as people
know them. It changes three things: what is logged at evaluation, the loss (answer tokens only, on logits that are
computed at answer positions only), and, where the vision tower is frozen, that each image passes it once.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback

from judge.vlm.pack import split_visual, stack_visual
from prompts.example import Example
from prompts.flip import FlipOptions, Group, draw_groups
from prompts.taxonomy import Taxonomy

from .collate import PACKED

FEATURE_BYTES = 4 * 1024**3
"""Most memory that kept image features may take; past it, images go through the tower again."""


class FlippedGroups(Dataset[Group]):
    """The groups of the current epoch; `set_epoch` draws others."""

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
        self.groups = self._drawn(0)

    def _drawn(self, epoch: int) -> list[Group]:
        return draw_groups(*self._source, seed=self._seed, epoch=epoch, groups=self._count)

    def set_epoch(self, epoch: int) -> None:
        """Draw the groups of this epoch, unless they are there already."""
        if epoch != self.epoch:
            self.epoch, self.groups = epoch, self._drawn(epoch)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Group:
        return self.groups[index]


class _NewEpoch(TrainerCallback):  # type: ignore[misc]
    """Redraws at the start of each epoch, also of one that a resumed run begins in the middle of."""

    def __init__(self, dataset: FlippedGroups) -> None:
        self.dataset = dataset

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.dataset.set_epoch(math.floor((state.epoch or 0.0) + 1e-6))


def answer_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Mean cross-entropy of the answer tokens, over all of them in an optimizer step.

    `outputs.logits` is (A, V) at the A positions that predict `labels` (A,). With `num_items_in_batch`, the sum is
    divided by that count, so gradient accumulation and several processes weigh every token alike.
    """
    total = F.cross_entropy(outputs.logits.float(), labels, reduction="sum")
    return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)


class ImageFeatureCache:
    """Projected image features by example id, for a tower and projector that do not change.

    Of families that feed several depths of the tower to the language model (Qwen3-VL), all of them are kept.
    """

    def __init__(self, limit: int = FEATURE_BYTES) -> None:
        self.limit, self.size = limit, 0
        self._kept: dict[str, tuple[Tensor, ...]] = {}
        self._form: Any = None

    @staticmethod
    def supports(model: Any) -> bool:
        """Whether this model takes ready features and nothing before its language model is trained."""
        takes = "mm_encoder_outputs" in inspect.signature(model.get_base_model().forward).parameters
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        return takes and all("language_model" in name for name in trained)

    def get(self, model: Any, ids: Sequence[str], visual: dict[str, Tensor]) -> Any:
        """The features of a batch, as `mm_encoder_outputs` wants them; None where its pixels cannot be told apart."""
        images = split_visual(visual, len(ids))
        if images is None:
            return None
        found = {name: self._kept[name] for name in ids if name in self._kept}
        fresh = {name: image for name, image in zip(ids, images, strict=True) if name not in found}
        if fresh:
            with torch.no_grad():
                seen = model.get_image_features(**stack_visual(list(fresh.values())), return_dict=True)
            self._form = type(seen)
            levels = (seen.pooler_output, *(getattr(seen, "deepstack_features", None) or ()))
            for name, *features in zip(fresh, *levels, strict=True):
                found[name] = tuple(features)
                self._keep(name, found[name])
        pooled, *deeper = zip(*(found[name] for name in ids), strict=True)
        deep = {"deepstack_features": deeper} if deeper else {}
        return {"image": self._form(pooler_output=pooled, **deep)}

    def _keep(self, name: str, features: tuple[Tensor, ...]) -> None:
        size = sum(feature.nbytes for feature in features)
        if self.size + size <= self.limit:
            self._kept[name] = tuple(feature.clone() for feature in features)
            self.size += size


class JudgeTrainer(Trainer):  # type: ignore[misc]
    """See the module text.

    Args:
        evaluator: judges held-out rows with the current model and returns numbers; called at each evaluation on
            every process.
        keep_features: pass each image through the frozen tower once; ignored where something before the
            language model is trained, where the family takes no ready features or lays its pixels out in a way
            that is not known here, and under DeepSpeed.
        options: Trainer's own.
    """

    def __init__(
        self,
        *,
        evaluator: Callable[[Any], Mapping[str, float]] | None = None,
        keep_features: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(compute_loss_func=answer_loss, **options)
        # Our labels are aligned with the kept logits; Trainer would leave the first one out of its count.
        self._loss_shifts_labels = False
        self.evaluator = evaluator
        # Under ZeRO-3 ranks must run the same modules in the same order, which a cache does not promise.
        suits = (
            keep_features and not self.is_deepspeed_enabled and ImageFeatureCache.supports(options["model"])
        )
        self.features = ImageFeatureCache() if suits else None
        if isinstance(self.train_dataset, FlippedGroups):
            self.add_callback(_NewEpoch(self.train_dataset))

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Trainer's, after the pixels were exchanged for kept features."""
        ids = inputs.pop("image_ids")
        if self.features is not None:
            visual = {key: value for key, value in inputs.items() if key not in PACKED}
            plain = self.accelerator.unwrap_model(model).get_base_model()
            features = self.features.get(plain, ids, visual)
            if features is not None:
                rest = {key: value for key, value in inputs.items() if key in PACKED}
                inputs = {**rest, "mm_encoder_outputs": features}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Judge the held-out rows; the memory this takes does not depend on the vocabulary."""
        if self.evaluator is None:
            return {}
        training = self.model.training
        self.model.eval()
        found = self.evaluator(self.accelerator.unwrap_model(self.model))
        self.model.train(training)
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in found.items()}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics
