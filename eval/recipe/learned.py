"""Whether a training taught anything, in one sentence, with the usual causes and what its numbers cannot show.

Decided on accuracy, because flagging every image has an F1 of 0.67 where half of them are unsafe: what was learned has
to beat the better of two constant answers, and the model before training, by more than chance. Told in F1.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prompts import Example, Taxonomy

ENOUGH_IMAGES = 100
"""Test images below which a sentence says how few they are; an interval of a share is then 0.1 wide or more."""
ENOUGH_POSITIVES = 5
"""Test images of a category below which its own numbers say next to nothing."""

USABLE_F1 = 0.8
"""F1 from which what was learned is called so without reservation."""


@dataclass(frozen=True)
class Learned:
    """What a training did, for whoever reads no table."""

    learned: bool | None
    """None where that cannot be told: too few answers, or a base that was as good already."""
    sentence: str
    """The verdict, with the numbers behind it."""
    causes: tuple[str, ...] = ()
    """What it usually is where nothing or little was learned, the likeliest first; each says what to do."""
    limits: tuple[str, ...] = ()
    """What the numbers cannot show."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def to_text(self) -> str:
        """The sentence, and a line for each cause and each limit."""
        lines = [self.sentence]
        if self.causes:
            lines += ["Usual causes:", *(f"  - {cause}" for cause in self.causes)]
        if self.limits:
            lines += ["What these numbers cannot show:", *(f"  - {limit}" for limit in self.limits)]
        return "\n".join(lines)


def judge_training(
    before: Mapping[str, Any] | None,
    after: Mapping[str, Any],
    *,
    test: Sequence[Example] = (),
    taxonomy: Taxonomy | None = None,
    held_out: Sequence[str] = (),
    history: Sequence[Mapping[str, Any]] = (),
    train_images: int | None = None,
) -> Learned:
    """Say whether a training taught anything.

    Args:
        before: `eval.metrics.judged.summarise` of the model before training; None where it was not asked.
        after: the same of the trained model, on the same questions.
        test: the images that the questions were drawn from, for what the numbers cannot show.
        taxonomy: the user's categories.
        held_out: keys of categories that no training policy contained.
        history: the trainer's log, with `loss`, `learning_rate` and `step`.
        train_images: how many images were trained on.
    """
    learned, sentence = _verdict(before, after)
    poor = learned is False or (learned is True and after["f1"] < USABLE_F1)
    causes = _causes(after, history, train_images) if poor else ()
    return Learned(learned, sentence, causes, _limits(after, test, taxonomy, held_out))


def judge_hardening(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    robust: Mapping[str, tuple[float, float]],
    attacked: int,
    test: Sequence[Example] = (),
    taxonomy: Taxonomy | None = None,
    held_out: Sequence[str] = (),
) -> Learned:
    """Say whether training against attacks made a classifier more robust, and what that cost on clean images.

    Args:
        before: `eval.metrics.judged.summarise` of clean answers of the classifier it began with.
        after: the same of the hardened one, on the same questions.
        robust: budget -> robust accuracy before and after, the largest budget last.
        attacked: how many questions were attacked.
        test: the images that the questions were drawn from.
        taxonomy: the user's categories.
        held_out: keys of categories that no training policy contained.
    """
    limits = (
        "A quick attack shows that training worked, not how robust it is: `arbiter attack` measures that.",
        *_limits(after, test, taxonomy, held_out),
    )
    clean = f"F1 on clean images {_shown(after['f1'])}, {_shown(before['f1'])} before"
    if not robust or not attacked:
        return Learned(None, f"Cannot tell: nothing was attacked; {clean}.", (), limits)
    budget, (was, now) = list(robust.items())[-1]
    found = (
        f"robust accuracy at {budget} {_shown(now)} on {attacked} questions, {_shown(was)} before; {clean}."
    )
    low = before["intervals"]["accuracy"][0]
    if low is not None and after["accuracy"] < low:
        causes = ("the price is too high: a smaller --epsilon, or a lower learning rate, keeps more of it",)
        return Learned(False, f"Worse on clean images: {found}", causes, limits)
    # Two shares of the same number of questions, as if independent: wider than the paired difference.
    error = math.sqrt((was * (1 - was) + now * (1 - now)) / attacked)
    if now - was > 1.96 * error:
        return Learned(True, f"Hardened: {found}", (), limits)
    if now - was >= 0.1:
        return Learned(None, f"Cannot tell from so few attacked questions: {found}", (), limits)
    causes = ("too few steps or images, or too large an --epsilon for this model: train longer first",)
    return Learned(False, f"Not hardened: {found}", causes, limits)


def _verdict(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> tuple[bool | None, str]:
    rows, unsafe, unjudged = (int(after[key]) for key in ("rows", "unsafe_rows", "unjudged"))
    if not 0 < unsafe < rows:
        kind = "unsafe" if unsafe else "safe"
        return (
            None,
            f"Cannot tell: {f'all {rows} test questions are {kind}' if rows else 'no test question'}.",
        )
    if 2 * unjudged > rows:
        return False, f"Could not judge {unjudged:,} of {rows:,} test questions."
    caught, cleared = _rates(after)
    numbers = f"recall {_shown(after['recall'])}, precision {_shown(after['precision'])}"
    if caught >= 0.95 and cleared <= 0.1:
        return False, f"Flags everything: {numbers}."
    if caught <= 0.05 and cleared >= 0.9:
        return False, f"Flags nothing: {numbers}."
    return _compared(before, after, max(unsafe, rows - unsafe) / rows)


def _compared(
    before: Mapping[str, Any] | None, after: Mapping[str, Any], constant: float
) -> tuple[bool | None, str]:
    """The verdict beside the model before training, and beside the better constant answer, of accuracy `constant`."""
    f1, accuracy = f"F1 {_with_interval(after, 'f1')} on {_images(after)}", after["accuracy"]
    low, _ = after["intervals"]["accuracy"]
    if before is not None and accuracy < before["intervals"]["accuracy"][0]:
        was = f"accuracy {_shown(before['accuracy'])} before, {_shown(accuracy)} after"
        return False, f"Worse than before: {was}; {f1}."
    if low <= constant:
        found = f"accuracy {_with_interval(after, 'accuracy')}, one answer to everything has {_shown(constant)}; {f1}"
        if accuracy >= constant + 0.1:  # the answers are good, and too few to count
            return None, f"Cannot tell from so few test images: {found}."
        same = before is not None and accuracy <= before["intervals"]["accuracy"][1]
        return False, f"{'Did not change' if same else 'Learned too little to show'}: {found}."
    word = "Learned" if after["f1"] >= USABLE_F1 else "Learned some of it"
    if before is None:
        return True, f"{word}: {f1}."
    if accuracy > before["intervals"]["accuracy"][1]:
        return True, f"{word}: {f1}; {_shown(before['f1'])} before."
    return None, f"Did not change, and was as good before training: {f1}; {_shown(before['f1'])} before."


def _rates(summary: Mapping[str, Any]) -> tuple[float, float]:
    """Shares of the unsafe rows that were flagged, and of the safe rows that were called safe."""
    rows, unsafe, recall = summary["rows"], summary["unsafe_rows"], summary["recall"]
    return recall, (summary["accuracy"] * rows - recall * unsafe) / (rows - unsafe)


def _causes(
    after: Mapping[str, Any], history: Sequence[Mapping[str, Any]], train_images: int | None
) -> tuple[str, ...]:
    """What to look at, first what these numbers point at."""
    losses = [float(entry["loss"]) for entry in history if entry.get("loss") is not None]
    steps = max((int(entry.get("step", 0)) for entry in history), default=0)
    found = []
    if after.get("auc") is not None and after["auc"] >= 0.9:
        found.append(
            f"the threshold: images are ranked well (AUC {_shown(after['auc'])}), so thresholds fitted with "
            "`arbiter calibrate` may be all it takes"
        )
    if any(not math.isfinite(loss) for loss in losses) or (losses and losses[-1] > 1.5 * losses[0]):
        found.append(
            f"the learning rate is too high: the loss went from {losses[0]:.2f} to {losses[-1]:.2f}; "
            "divide --learning_rate by 10"
        )
    elif losses and losses[-1] > 0.5 * losses[0]:
        found.append(
            f"too few steps ({steps}), or too low a learning rate: the loss only fell from {losses[0]:.2f} to "
            f"{losses[-1]:.2f}; double --max_steps or --num_train_epochs first, then --learning_rate"
        )
    elif losses:
        few = f" ({train_images} images)" if train_images is not None else ""
        found.append(
            f"learned by heart: the loss fell from {losses[0]:.2f} to {losses[-1]:.2f}, and new images are judged "
            f"badly; give more images{few}, or fewer steps ({steps})"
        )
    found.append(
        "labels or categories of the table are mixed up, or definitions do not say what the images show: look at the "
        "wrong verdicts in report.html"
    )
    found.append(
        "the base cannot see what decides: try a larger one (--model_name_or_path), or larger images"
    )
    return tuple(found)


def _limits(
    after: Mapping[str, Any], test: Sequence[Example], taxonomy: Taxonomy | None, held_out: Sequence[str]
) -> tuple[str, ...]:
    found, images = [], int(after["images"])
    if images < ENOUGH_IMAGES:
        width = ""
        if after["f1"] is not None and None not in after["intervals"]["f1"]:
            low, high = after["intervals"]["f1"]
            width = f": any F1 from {_shown(low)} to {_shown(high)} fits these answers"
        found.append(f"{after['rows']:,} questions about {_images(after)} are only {_images(after)}{width}.")
    if test and taxonomy is not None:
        found += _thin_categories(test, taxonomy)
    if after["pair_score"] is None:
        found.append(
            "No image stood under two policies of opposite label, so obedience to the list is not measured."
        )
    if taxonomy is not None and not held_out:
        found.append(
            "No category was held out (--held_out KEY), so nothing is known about categories that were not in training."
        )
    elif held_out and not after.get("heldout_rows"):
        found.append(f"No question was about the categories held out ({', '.join(sorted(held_out))}).")
    return tuple(found)


def _thin_categories(test: Sequence[Example], taxonomy: Taxonomy) -> list[str]:
    """Which of the user's categories no test image violates, or hardly any."""
    count = Counter(key for example in test for key in example.violates)
    having = {category.name: sum(count[key] for key in category.members) for category in taxonomy}
    none = [name for name, number in having.items() if not number]
    few = [f"{name} ({number})" for name, number in having.items() if 0 < number < ENOUGH_POSITIVES]
    return [
        f"{about}: {', '.join(names)}."
        for about, names in (
            ("No test image violates these, so nothing is known about them", none),
            ("Very few test images violate these, so their own numbers say little", few),
        )
        if names
    ]


def _images(summary: Mapping[str, Any]) -> str:
    number = int(summary["images"])
    return f"{number:,} test image{'' if number == 1 else 's'}"


def _with_interval(summary: Mapping[str, Any], key: str) -> str:
    low, high = summary["intervals"][key]
    return f"{_shown(summary[key])} ({_shown(low)} to {_shown(high)})"


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
