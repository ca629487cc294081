"""Training a detector on pairs: soft labels of finished pictures, many wordings of categories, looks at many steps."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from judge.encoders.dual import DualEncoder
from judge.errors import ConfigError, PipelineError
from prompts.taxonomy import Category, Taxonomy

from .category_texts import text_of
from .learned import LearnedDetector, Lessons
from .pairs import PairStore
from .saved import architecture
from .targets import Batch, Targets, label_loss
from .text_reading import unread_parts


@dataclass(frozen=True)
class TrainingOptions:
    """How long and how fast."""

    epochs: int = 10
    """Looks at each pair: one an epoch, after a step drawn anew."""
    batch_size: int = 48
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    wordings: int = 24
    """Wordings of the whole taxonomy that are taken in turn: names, aliases, definitions, rewordings."""
    held_back: float = 0.05
    """Share of the prompts by which the best epoch is chosen."""
    average: float = 0.995
    """Decay of the moving average of the weights, which is what is kept."""
    seed: int = 0


def train_detector(
    detector: LearnedDetector,
    store: PairStore,
    rows: Sequence[int] | NDArray[np.int64],
    *,
    categories: Sequence[str] | None = None,
    options: TrainingOptions | None = None,
    encoder: DualEncoder | None = None,
    progress: Callable[[int, float, float], None] | None = None,
) -> list[float]:
    """Train a detector of any family on some rows of a store.

    Args:
        detector: changed in place; afterwards it answers within its lessons.
        store: pairs, labels, looks.
        rows: to train on; those without any label, such as pictures of NaN, are left out.
        categories: names of those to show; any other of the store's is held out: its labels are not used, nor its
            words as a query. Pictures and prompts that show it stay. None for all.
        options: how.
        encoder: the one whose features of finished pictures the store holds; it also says where texts are there.
        progress: called with (epoch, training loss, loss on prompts held back) after each epoch.

    Returns:
        The loss of each epoch on the prompts held back; empty for a family that is fitted and not trained by steps.

    Raises:
        PipelineError: the pairs are of a pipeline of another architecture.
        ConfigError: no rows, categories that the rows have no labels of, or a loss that is not finite.
    """
    options = options or TrainingOptions()
    if store.about["architecture"] != architecture(detector.pipeline):
        raise PipelineError(
            f"The pairs in {store.folder} were made by another pipeline ({store.about['architecture']}) than the "
            f"detector's ({architecture(detector.pipeline)}). Collect pairs of this one."
        )
    rows = np.asarray(rows, np.int64)
    taxonomy = store.taxonomy.select(categories) if categories is not None else store.taxonomy
    columns = np.array([store.taxonomy.index(name) for name in taxonomy.names])
    rows = rows[~np.isnan(store.labels[rows]).all(axis=1)]
    if not len(rows):
        raise ConfigError("There are no pairs with labels to train on; collect some first.")
    unlabelled = np.flatnonzero(np.isnan(store.labels[rows][:, columns]).all(axis=0))
    if len(unlabelled):
        names = [repr(taxonomy.names[place]) for place in unlabelled]
        raise ConfigError(
            f"No picture to train on has a label of {', '.join(names)}. Leave them out (`categories`), or label with a "
            "classifier that judges them."
        )
    rng = np.random.default_rng(options.seed)
    wordings = reworded(
        taxonomy,
        options.wordings,
        rng,
        fits=lambda category: unread_parts(detector.pipeline, [text_of(category)]) == (None,),
    )
    learn, check = _held_back(store, rows, options.held_back, rng)
    lessons = Lessons.of(detector.pipeline, wordings, (store.pairs[row].prompt for row in rows))
    torch.manual_seed(options.seed)
    detector.lessons = None  # what it learns now may contradict what it knew
    detector.prepare(store, learn, taxonomy)
    losses: list[float] = []
    store.load()
    if any(True for _ in detector.head.parameters()):
        targets = Targets(detector, store, columns, wordings, encoder)
        losses = _train(detector, targets, learn, check, options, rng, progress)
    log_snrs = [store.log_snrs[step] for step in store.at]
    detector.finish(lessons, (min(log_snrs), max(log_snrs)))
    return losses


def reworded(
    taxonomy: Taxonomy,
    count: int,
    rng: np.random.Generator,
    fits: Callable[[Category], bool] = lambda category: True,
) -> list[Taxonomy]:
    """The taxonomy as it is, and up to `count` - 1 wordings of it by the aliases and rewordings of its categories.

    A wording that does not fit (the text encoder) is drawn again, a few times, and else left as it was.
    """
    found = {taxonomy.hash: taxonomy}
    if any(category.aliases or category.rewordings for category in taxonomy):
        for _ in range(count - 1):
            changed = replace(
                taxonomy, categories=tuple(_reworded(category, rng, fits) for category in taxonomy)
            )
            found[changed.hash] = changed
    return list(found.values())


def _reworded(
    category: Category, rng: np.random.Generator, fits: Callable[[Category], bool], tries: int = 8
) -> Category:
    for _ in range(tries):
        changed = replace(
            category,
            name=str(rng.choice([category.name, *category.aliases])),
            definition=str(rng.choice([category.definition, *category.rewordings])),
            aliases=(),
        )
        if fits(changed):
            return changed
    return replace(category, aliases=())


def _held_back(
    store: PairStore, rows: NDArray[np.int64], share: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to learn from, and rows of other prompts to choose the best epoch by (the same where prompts are few)."""
    prompts = sorted({store.pairs[row].prompt for row in rows})
    back = {prompts[place] for place in rng.permutation(len(prompts))[: int(share * len(prompts))]}
    kept = np.array([store.pairs[row].prompt in back for row in rows])
    return (rows[~kept], rows[kept]) if kept.any() and not kept.all() else (rows, rows)


def _train(
    detector: LearnedDetector,
    targets: Targets,
    learn: NDArray[np.int64],
    check: NDArray[np.int64],
    options: TrainingOptions,
    rng: np.random.Generator,
    progress: Callable[[int, float, float], None] | None,
) -> list[float]:
    """Steps of AdamW on the detector's loss; the head becomes the best moving average of any epoch."""
    trained = nn.ModuleList([detector.head, targets])
    optimizer = torch.optim.AdamW(
        trained.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, betas=(0.9, 0.99)
    )
    total = options.epochs * math.ceil(len(learn) / options.batch_size)
    schedule = LambdaLR(optimizer, lambda step: rate(step / total))
    average = AveragedModel(detector.head, avg_fn=moving_average(options.average))
    best, losses = copy.deepcopy(detector.head.state_dict()), list[float]()
    head = detector.head
    for epoch in range(options.epochs):
        trained.train()
        seen = []
        for batch in batches(targets, learn, options.batch_size, rng):
            loss = targets.loss(batch, detector)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(head)
            seen.append(loss.item())
        detector.head = average.module
        losses.append(_checked(detector, targets, check, options.batch_size))
        if not math.isfinite(losses[-1]):
            raise ConfigError(
                f"The loss is {losses[-1]} after epoch {epoch + 1}, so nothing was learnt; try a lower learning_rate."
            )
        if losses[-1] <= min(losses):
            best = copy.deepcopy(average.module.state_dict())
        detector.head = head
        if progress is not None:
            progress(epoch + 1, float(np.mean(seen)), losses[-1])
    head.load_state_dict(best)
    head.eval()
    return losses


def moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """How an average takes in new weights; quickly at first, so that it is not that of the start."""

    def average(old: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
        share = 1 - min(decay, (1 + float(count)) / (10 + float(count)))
        return old + share * (new - old)

    return average


def rate(share: float) -> float:
    """Factor of the learning rate after a share of the steps: up in 3 %, then a cosine to 2 %."""
    return min(1.0, share / 0.03 + 0.01) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


def batches(
    targets: Targets, rows: NDArray[np.int64], size: int, rng: np.random.Generator
) -> Iterator[Batch]:
    """Every row once, in batches of one step and one wording each, drawn anew."""
    shuffled = rng.permutation(rows)
    for start in range(0, len(shuffled), size):
        step = int(rng.choice(targets.store.at))
        wording = targets.wordings[int(rng.integers(len(targets.wordings)))]
        yield targets.batch(shuffled[start : start + size], step, wording)


@torch.no_grad()
def _checked(detector: LearnedDetector, targets: Targets, rows: NDArray[np.int64], size: int) -> float:
    """The loss of the labels alone, under the plain wording, over all steps."""
    detector.head.eval()
    found = []
    for step in targets.store.at:
        for start in range(0, len(rows), size):
            batch = targets.batch(rows[start : start + size], step, targets.wordings[0])
            found.append(label_loss(detector.logits(batch.look, batch.taxonomy), batch.labels).item())
    return float(np.mean(found))
