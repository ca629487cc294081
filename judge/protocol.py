"""The interface of every classifier: which of *these* categories does this image violate?

**One scale.** In every judged row, `Scores.unsafe` is the largest of its covered categories' scores. So a threshold on
`unsafe` and the same threshold on every category are one rule (`prompts.verdict`), rows sorted by either have the same
meaning, and thresholds per category start from what a classifier promises for the whole. Classifiers compute the whole
and the categories each in its own way, which need not agree; so each of them ends with `on_one_scale`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from prompts.reading import PromptMode
from prompts.taxonomy import Taxonomy

Match = Literal["members", "name"]
"""How categories are mapped to fixed ones (`judge.baselines.coverage.match_categories`)."""

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor
    from torch.nn import Module

    from .data.preprocessing import ImagePreprocessing


@dataclass(frozen=True)
class Scores:
    """Probabilities for a batch of B images under a taxonomy of K categories.

    NaN marks what was not judged or is not covered, with the reason in `reasons`; it never means safe.
    """

    unsafe: "NDArray[np.float64]"
    """(B,) probability in [0, 1] that any category is violated."""
    categories: "NDArray[np.float64]"
    """(B, K) score in [0, 1] per category, in the taxonomy's order; the largest of a judged row is `unsafe`."""
    reasons: tuple[str | None, ...]
    """B reasons, None where the image was judged."""
    decided_by: tuple[str, ...] | None = None
    """B names of the stage that decided (`filter`, `student`, `judge`), from a cascade; else None."""
    because: tuple[str, ...] | None = None
    """B short reasons why that stage decided so, from a cascade; else None."""
    separate: "NDArray[np.float64] | None" = None
    """(B, K) probability per category as the classifier computed it, before `on_one_scale`; None where that is the same
    as `categories`. Used for distillation and calibration, not for verdicts."""
    notes: tuple[str | None, ...] | None = None
    """B remarks on rows that were judged, such as that the prompt was not read; None where there is none."""
    unanswered: tuple[bool, ...] | None = None
    """Of B rows, whether a service left a part of what was asked unanswered (no connection, too many requests), so that
    asking again later may change the row; None where nothing was."""

    @property
    def category_probabilities(self) -> "NDArray[np.float64]":
        """(B, K) probability per category on its own: `separate`, or `categories` where there is none."""
        return self.categories if self.separate is None else self.separate


def rows_of(scores: Scores, start: int, stop: int) -> Scores:
    """Rows `start` to `stop` of scores."""
    if start == 0 and stop == len(scores.unsafe):
        return scores
    rows = slice(start, stop)
    return replace(
        scores,
        unsafe=scores.unsafe[rows],
        categories=scores.categories[rows],
        reasons=scores.reasons[rows],
        decided_by=None if scores.decided_by is None else scores.decided_by[rows],
        because=None if scores.because is None else scores.because[rows],
        separate=None if scores.separate is None else scores.separate[rows],
        notes=None if scores.notes is None else scores.notes[rows],
        unanswered=None if scores.unanswered is None else scores.unanswered[rows],
    )


def on_one_scale(scores: Scores) -> Scores:
    """Scale the categories of every row so that the largest covered one is `unsafe`.

    With p of a category, m the largest p of its row and u the whole, the score is u * p / m. So `unsafe` and the order
    of the categories stay, all scores stay in [0, 1], and where m equals u nothing changes. Ratios are kept, and not
    differences of logits, because closed answers divide one probability among the categories: with 0.6 and 0.001 under
    a whole of 0.9999, a shift of logits would raise the second to 0.87.

    Where the whole is 0, so are all covered categories. Where all of them are 0 and the whole is not, the violated one
    is not known, and each gets the whole. NaN stays NaN. A row whose whole is NaN was not judged; the scores of its
    single categories stay as they are. A row without any covered category keeps its whole.
    """
    import numpy as np

    # (B, 1) and (B, K)
    whole, found = scores.unsafe[:, None], scores.categories
    # fmax ignores NaN: categories that are not covered have no part in the maximum.
    highest = np.fmax.reduce(found, axis=1, keepdims=True, initial=np.nan)
    # Where every category is 0, part is 1 and each gets the whole.
    part = np.divide(found, highest, out=np.ones_like(found), where=highest > 0)
    # The product can exceed the whole by one rounding, and then `unsafe` were not the largest score.
    moved = np.minimum(part * whole, whole)
    unchanged = np.isnan(found) | np.isnan(whole) | (highest == whole)
    moved = np.where(unchanged, found, moved)
    if np.array_equal(moved, found, equal_nan=True):
        return scores
    return replace(scores, categories=moved, separate=scores.category_probabilities)


class Classifier(Protocol):
    """Anything that scores images under a taxonomy chosen for this call.

    What only some classifiers can do is a Protocol of its own below, to be tested with `isinstance`. Such a test
    compares names of members only, so each of these Protocols has a member that no other has.
    """

    name: str

    def score(
        self, images: "Sequence[Image]", prompts: Sequence[str | None] | None, taxonomy: Taxonomy
    ) -> Scores:
        """Score B images of any form with B prompts (or none at all) under `taxonomy`.

        Arguments of the wrong form raise `QuestionError`; an image that cannot be opened is a row of NaN with the
        reason. Decorate yours with `judge.inputs.validate_inputs`, which does both.
        """
        ...


@runtime_checkable
class MultiLabelClassifier(Classifier, Protocol):
    """A classifier that can be asked about each category on its own."""

    supports_multilabel: bool
    """Always True; a classifier without this member cannot."""

    def score(
        self,
        images: "Sequence[Image]",
        prompts: Sequence[str | None] | None,
        taxonomy: Taxonomy,
        *,
        multilabel: bool = False,
    ) -> Scores:
        """As `Classifier.score`; with `multilabel`, every category is a question of its own."""
        ...


@runtime_checkable
class MixedClassifier(Classifier, Protocol):
    """A classifier that scores images under a taxonomy each, at little more than the cost of one for all."""

    def score_mixed(
        self, images: "Sequence[Image]", prompts: Sequence[str | None], taxonomies: Sequence[Taxonomy]
    ) -> list[Scores]:
        """As `score`, of each of B images alone, under its own taxonomy.

        Args:
            images: B, as `judge.data.images.open_image` returns them.
            prompts: B prompts, None where there is none.
            taxonomies: B of them.

        Returns:
            B scores of one row each.
        """
        ...


@runtime_checkable
class ScoresFeatures(Classifier, Protocol):
    """A classifier that encodes an image once and scores it under any number of taxonomies.

    Features are what its own `encode` methods return: of B images, to be handed to `score_features` and nothing else.
    """

    @property
    def image_preprocessing(self) -> "ImagePreprocessing | None":
        """What is done to an image before it is encoded, for other processes to do; None where it cannot be told."""
        ...

    def encode_images(self, images: "Sequence[Image]") -> Any:
        """Features of B RGB images, as `judge.data.images.open_image` returns them."""
        ...

    def encode_resized(self, pixels: "NDArray[np.uint8]") -> Any:
        """Features of B images (B, H, W, 3) that `image_preprocessing.resized` gave; those of `encode_images`."""
        ...

    def score_features(
        self, features: Any, prompts: Sequence[str | None] | None, taxonomies: Sequence[Taxonomy]
    ) -> list[Scores]:
        """What `score` gives for these B images and prompts under each taxonomy, but for rounding.

        Returns:
            One `Scores` of B rows for each taxonomy, in their order.
        """
        ...


@runtime_checkable
class DifferentiableClassifier(Classifier, Protocol):
    """A classifier with gradients from its verdict to the pixels, as attacks and robust training need them."""

    def pixel_margins(
        self,
        pixels: "Tensor",
        prompts: Sequence[str | None] | None,
        taxonomy: Taxonomy,
        *,
        category: str | None = None,
    ) -> "Tensor":
        """How far the verdict is from the other one, differentiable in the pixels.

        Args:
            pixels: (B, 3, H, W) floats in [0, 1], at the images' own size; what the model does to them is done here.
            prompts: B prompts, or None.
            taxonomy: what is asked.
            category: name of a category, to ask about its score, on one scale with the whole, instead.

        Returns:
            (B,) float32; positive where `Scores.unsafe` (or that category's score) is over 0.5, else negative.
        """
        ...


@runtime_checkable
class ForwardOnlyClassifier(Protocol):
    """A classifier without gradients, and why; attacks query it, or transfer from another."""

    why_no_gradients: str
    """The end of a sentence, such as `it answers over HTTP`."""


@runtime_checkable
class OwnsModules(Protocol):
    """A classifier, or an `nn.Module`, whose torch modules can be frozen, moved and switched to eval mode."""

    def modules(self) -> "Iterable[Module]":
        """Every module that its scores come from; those inside another one need not be named again."""
        ...


@runtime_checkable
class HasImageProcessor(Protocol):
    """A classifier whose images go through an image processor of transformers."""

    @property
    def image_processor(self) -> Any:
        """The processor that resizes, crops and normalises the images."""
        ...


@runtime_checkable
class HasEncoder(Protocol):
    """A classifier with an encoder: a `DualEncoder` of images and texts, or what writes a judge's chats."""

    @property
    def encoder(self) -> object:
        """The encoder; ask for its class before use."""
        ...


@runtime_checkable
class ReadsPrompts(Protocol):
    """A classifier that reads the prompts of images, in a way that can be chosen (`judge.readings`)."""

    prompt_mode: PromptMode


@runtime_checkable
class HasDefaultTaxonomy(Protocol):
    """A classifier that was made for one taxonomy, used where the caller names none."""

    default_taxonomy: Taxonomy | None


@runtime_checkable
class HasFixedCategories(Protocol):
    """A classifier whose categories were fixed before it was asked, and are mapped to the caller's."""

    @property
    def default_taxonomy(self) -> Taxonomy:
        """Its own categories."""
        ...

    @property
    def match(self) -> Match:
        """How the caller's categories are mapped to its own (`judge.baselines.coverage.match_categories`)."""
        ...

    @property
    def scores_categories(self) -> bool:
        """Whether it scores its categories; if not, it gives one score for any policy."""
        ...


@runtime_checkable
class PromisesMissRate(Protocol):
    """A classifier that was calibrated to a miss rate, for some taxonomies only."""

    def outside_promise(self, taxonomy: Taxonomy) -> str | None:
        """Why the promise does not hold under a taxonomy, on one line; None where it does."""
        ...

    def promise(self, taxonomy: Taxonomy) -> str:
        """The promise and what it was calibrated on, on one line; or `withdrawn` and why."""
        ...


def modules_of(classifier: object) -> "Iterable[Module]":
    """The torch modules of a classifier; none where it does not name any."""
    return classifier.modules() if isinstance(classifier, OwnsModules) else ()


def score_each_category(
    classifier: Classifier, images: "Sequence[Image]", prompts: Sequence[str | None], taxonomy: Taxonomy
) -> Scores:
    """Scores in whose `category_probabilities` each category is a question of its own, where the classifier can."""
    if isinstance(classifier, MultiLabelClassifier):
        return classifier.score(images, prompts, taxonomy, multilabel=True)
    return classifier.score(images, prompts, taxonomy)
