"""Our classifiers as what attacks are run on: `adversarial.problem.Victim` for judge, student, filters and cascade.

Two paths lead through a victim and must agree. `margins` is differentiable in the pixels and is what attacks climb.
`score` is what an operator runs, image processor and all, and alone says whether an attack succeeded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.special import expit, logit
from torch import Tensor, nn

from adversarial.errors import AttackError
from adversarial.problem import Context, Problem
from adversarial.storing import to_images
from adversarial.threat import ThreatModel
from eval.questions import Question
from judge.cascade.cascade import Cascade
from judge.cascade.margins import PATHS, Path
from judge.data.images import open_image
from judge.encoders.pixels import preprocess
from judge.errors import CheckpointError
from judge.protocol import Classifier
from prompts.taxonomy import Taxonomy

Array = NDArray[np.float64]
_FORWARD_ONLY = {
    "RemoteJudge": "it answers over HTTP",
    "OnnxStudent": "it is an exported ONNX graph, which has no backward pass",
}
_REPEATED = 1e-3
"""Difference in probability that two passes over the same pixels may show."""


@dataclass
class ClassifierVictim:
    """A classifier under attack; its weights are frozen from now on, so that gradients go to the pixels only.

    A LoRA judge is attacked with its adapter beside the base, as it is deployed.

    Attributes:
        classifier: who is asked; it stays in its own dtype, pixels stay float32.
        category: ask whether this category is violated, instead of any; each context's policy must have it.
        name: what tables call it; by default the classifier's name.
        threshold: probability from which the deployment flags; margins and scores are moved so that it is 0 and 0.5.
        path: of a cascade: the stage through which an attack leads (`judge.cascade.margins`).
        no_gradients: None where `margins` is differentiable, else which part is not.
    """

    classifier: Classifier
    category: str | None = None
    name: str = ""
    threshold: float = 0.5
    path: Path = "any"
    no_gradients: str | None = field(init=False)

    def __post_init__(self) -> None:
        """Freeze the weights.

        Raises:
            AttackError: a threshold, path or category that this classifier cannot have.
        """
        self.name = self.name or self.classifier.name
        if not 0 < self.threshold < 1:
            raise AttackError(f"The threshold is {self.threshold}; it is a probability between 0 and 1.")
        if isinstance(self.classifier, Cascade):
            _check_cascade(self, self.classifier)
        elif self.path != "any":
            raise AttackError(f"{self.name} is no cascade, so no path {self.path!r} leads through it.")
        for module in _modules(self.classifier):
            module.requires_grad_(False)
        self.no_gradients = _why_no_gradients(self.classifier)

    def margins(self, pixels: Tensor, contexts: Sequence[Context]) -> Tensor:
        """(B, 3, H, W) floats in [0, 1] and B contexts -> (B,) float32; positive means it says unsafe.

        Without gradients the pictures are stored as bytes and scored on the real path, as a stranger would query it;
        what it could not judge has margin 0, no success for anyone.

        Raises:
            AttackError: a context whose policy is no taxonomy.
        """
        parts, places = [], []
        for taxonomy, rows in _by_policy(contexts):
            some = pixels if len(rows) == len(pixels) else pixels[rows]
            parts.append(self._margins(some, [contexts[row] for row in rows], taxonomy))
            places += rows
        if len(parts) == 1:
            return parts[0]
        found = torch.cat(parts) if parts else pixels.new_zeros(0)
        return found[torch.tensor(places, dtype=torch.long).argsort().to(found.device)]

    def _margins(self, pixels: Tensor, contexts: Sequence[Context], taxonomy: Taxonomy) -> Tensor:
        if self.no_gradients is not None:
            scores = self.score(to_images(pixels), contexts)
            answers = np.clip(np.nan_to_num(scores, nan=0.5), 1e-6, 1 - 1e-6)
            return torch.from_numpy(logit(answers)).float()
        options: dict[str, Any] = {} if self.category is None else {"category": self.category}
        if self.path != "any":
            options["path"] = self.path
        classifier: Any = self.classifier
        margins: Tensor = classifier.pixel_margins(pixels, [c.prompt for c in contexts], taxonomy, **options)
        return margins.float() - float(logit(self.threshold))

    def score(self, images: "Sequence[Image.Image]", contexts: Sequence[Context]) -> Array:
        """B pictures by the real path -> (B,) p(unsafe), 0.5 the threshold, NaN unjudged."""
        found = np.full(len(images), np.nan)
        for taxonomy, rows in _by_policy(contexts):
            prompts = [contexts[row].prompt for row in rows]
            scores = self.classifier.score([images[row] for row in rows], prompts, taxonomy)
            column = scores.unsafe
            if self.category is not None:
                column = scores.categories[:, taxonomy.index(self.category)]
            found[rows] = column
        return found if self.threshold == 0.5 else _moved(found, self.threshold)


def as_victim(classifier: Classifier, **options: Any) -> ClassifierVictim:
    """The classifier under attack; `options` are those of `ClassifierVictim`."""
    return ClassifierVictim(classifier, **options)


def check_victim(
    victim: ClassifierVictim,
    images: "Sequence[Image.Image]",
    contexts: Sequence[Context],
    *,
    tolerance: float = 0.02,
) -> None:
    """See that a victim is what it seems, on a few clean pictures.

    Raises:
        AttackError: a module in training mode, answers that differ from pass to pass, or margins that disagree with
            the real path by more than `tolerance` in probability (of a cascade: verdicts that do, beyond it).
    """
    for root in _modules(victim.classifier):
        for name, module in root.named_modules():
            if module.training:
                raise AttackError(
                    f"{victim.name} has {type(module).__name__} {name!r} in training mode, where dropout and batch "
                    "statistics change answers; call .eval() on the model before it is attacked."
                )
    passes = [_answers(victim, images, contexts) for _ in range(2)]
    change = float(np.abs(passes[0] - passes[1]).max(initial=0.0))
    if change > _REPEATED:
        raise AttackError(
            f"{victim.name} answers the same pictures differently from pass to pass (by {change:.3f}): something in "
            "it is random, such as dropout that eval mode does not switch off. Set its rate to 0 before an attack."
        )
    real = victim.score(images, contexts)
    distance = np.abs(passes[0] - real)
    if isinstance(victim.classifier, Cascade):  # its margin is a distance to the other verdict and no logit
        distance = np.where((passes[0] >= 0.5) != (real >= 0.5), np.abs(real - 0.5), 0.0)
    distance = np.nan_to_num(distance, nan=0.0)
    if len(distance) and distance.max() > tolerance:
        worst = int(distance.argmax())
        raise AttackError(
            f"{victim.name} scores picture {worst} {real[worst]:.3f} on its real path and {passes[0][worst]:.3f} by "
            f"its margin, more than {tolerance:g} apart: preprocessing differs between the two. See that both resize, "
            "crop and normalise alike."
        )


@dataclass(frozen=True)
class Prepared:
    """Questions whose pictures have one size, ready for attacks."""

    problem: Problem
    """Of the rows that the victim judges right on the real path; may be empty."""
    places: list[int]
    """Which question each of the problem's rows is."""
    misjudged: list[int]
    """Questions that the victim gets wrong without any attack; left out, for the report to count."""
    unjudged: list[int]
    """Questions that the victim could not judge; left out too."""
    scores: dict[int, float]
    """p(unsafe) of every question named here, clean and on the real path; NaN where unjudged."""


def problem_of(
    victim: ClassifierVictim,
    questions: Sequence[Question],
    threat: ThreatModel,
    *,
    batch_size: int = 32,
    seed: int = 0,
) -> list[Prepared]:
    """What an attacker with this threat model would do to these questions, one problem for each size of picture.

    opposite: all questions; safe: unsafe ones; force: images that do not violate the category, under policies that have
    it; hide: images that do. Questions that the goal is not about are in none of the lists. In the space `input` the
    pictures go through the victim's image processor first, to the size that its model sees.

    Raises:
        AttackError: a victim of another category than the goal's, no question that the goal is about, or an input
            size that is not known or not the same for all stages.
        ImageError: a picture that cannot be opened.
    """
    if threat.category != victim.category:
        raise AttackError(
            f"The goal {threat.goal!r} is about the category {threat.category!r} and {victim.name} is asked about "
            f"{victim.category!r}; give both the same: ClassifierVictim(classifier, category=...)."
        )
    signs = {place: sign for place, q in enumerate(questions) if (sign := sign_of(q, threat))}
    if not signs:
        raise AttackError(
            f"None of {len(questions)} questions is one that the goal {threat.goal!r} could be about"
            + (f": no policy has {threat.category!r} with such images." if threat.category else ".")
        )
    contexts = {place: Context(questions[place].row.prompt, questions[place].row.taxonomy) for place in signs}
    pictures = {place: open_image(questions[place].row.example.image) for place in signs}
    if threat.space == "input":
        pictures = {place: at_input_size(victim, picture) for place, picture in pictures.items()}
    scores = dict(zip(signs, victim.score(list(pictures.values()), list(contexts.values())), strict=True))
    sizes: dict[tuple[int, int], list[int]] = {}
    for place, picture in pictures.items():
        sizes.setdefault(picture.size, []).append(place)
    prepared = []
    for size, members in sizes.items():
        unjudged = [place for place in members if np.isnan(scores[place])]
        right = [place for place in members if (scores[place] >= 0.5) == (signs[place] > 0)]
        right = [place for place in right if place not in unjudged]
        misjudged = [place for place in members if place not in {*right, *unjudged}]
        problem = Problem(
            victim,
            _as_pixels([pictures[place] for place in right], size),
            [contexts[place] for place in right],
            torch.tensor([float(signs[place]) for place in right]),
            threat,
            batch_size=batch_size,
            seed=seed,
            ids=[questions[place].id for place in right],
        )
        clean = {place: float(scores[place]) for place in members}
        prepared.append(Prepared(problem, right, misjudged, unjudged, clean))
    return prepared


def at_input_size(victim: ClassifierVictim, picture: Image.Image) -> Image.Image:
    """The picture as the victim's image processor resizes and crops it, in bytes.

    Raises:
        AttackError: no processor is known, or one would change its result again: then stages see different sizes.
    """
    processors = [_image_processor(stage) for stage in _stages(victim.classifier)]
    if not all(processors):
        raise AttackError(
            f"The size at which {victim.name} sees pictures is not known here; attack the posted file (space='file')."
        )
    small = _resized(processors[0], picture)
    if not all(_resized(one, small) == small for one in processors):
        raise AttackError(
            f"{victim.name} would resize its own input of {small.width} x {small.height} again, as its stages see "
            "pictures of different sizes; attack the posted file (space='file')."
        )
    return small


def sign_of(question: Question, threat: ThreatModel) -> int:
    """1 where the goal is a safe verdict, -1 where it is an unsafe one, 0 where the question is not about it."""
    row = question.row
    if threat.category is None:
        return 1 if row.unsafe else -1 if threat.goal == "opposite" else 0
    names = [name.casefold() for name in row.taxonomy.names]
    if threat.category.casefold() not in names:
        return 0
    violated = row.taxonomy.categories[row.taxonomy.index(threat.category)].label(row.example)
    if violated is None:  # nobody knows, so nobody can say who is wrong
        return 0
    return (1 if violated else 0) if threat.goal == "hide" else (0 if violated else -1)


def _by_policy(contexts: Sequence[Context]) -> list[tuple[Taxonomy, list[int]]]:
    found: dict[Taxonomy, list[int]] = {}
    for row, context in enumerate(contexts):
        if not isinstance(context.policy, Taxonomy):
            raise AttackError(
                f"Context {row} has the policy {context.policy!r}; our classifiers are asked under a Taxonomy."
            )
        found.setdefault(context.policy, []).append(row)
    return list(found.items())


def _check_cascade(victim: ClassifierVictim, cascade: Cascade) -> None:
    if victim.category is not None:
        raise AttackError(
            f"{victim.name} is a cascade, whose score for {victim.category!r} is that of whichever stage decides; "
            "attack its student, its judge or its filters, or ask it under a policy of that category only."
        )
    if victim.threshold != 0.5:
        raise AttackError(
            f"{victim.name} is a cascade with cutoffs of its own, moved to 0.5; leave the threshold out."
        )
    allowed = [path for path in PATHS if path != "judge" or cascade.judge is not None]
    if victim.path not in allowed:
        raise AttackError(f"No path {victim.path!r} through {victim.name}; it has: {', '.join(allowed)}.")


def _stages(classifier: Classifier) -> list[Any]:
    """The classifier, or the stages of a cascade."""
    if isinstance(classifier, Cascade):
        return [classifier.student] + ([] if classifier.judge is None else [classifier.judge])
    return [classifier]


def _image_processor(stage: Any) -> Any:
    owner = getattr(stage, "processor", None) or getattr(stage, "encoder", None)
    return getattr(owner, "image_processor", None)


def _why_no_gradients(classifier: Classifier) -> str | None:
    """The part of a classifier that gives no gradients, or None."""
    for stage in _stages(classifier):
        kind = type(stage).__name__
        who = f"its stage {stage.name!r} is a {kind}: " if stage is not classifier else f"as a {kind}, "
        if not hasattr(stage, "pixel_margins"):
            return who + _FORWARD_ONLY.get(kind, "it has no pixel_margins")
        processor = _image_processor(stage)
        if processor is None:
            continue
        try:
            preprocess(processor, torch.zeros(1, 3, 64, 64))
        except (CheckpointError, AttributeError) as error:
            return (
                f"{who}what its image processor {type(processor).__name__} does is not known here ({error})"
            )
    return None


def _modules(classifier: Classifier) -> Iterator[nn.Module]:
    """Every torch module that belongs to a classifier, once."""
    left: list[Any] = [classifier, *_stages(classifier)]
    seen: set[int] = set()
    while left:
        thing = left.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, nn.Module):
            yield thing
            continue
        values = vars(thing).values()
        left += [v for v in values if isinstance(v, nn.Module) or type(v).__module__.startswith("judge.")]


def _answers(victim: ClassifierVictim, images: "Sequence[Image.Image]", contexts: Sequence[Context]) -> Array:
    """(B,) probabilities by the margins; pictures of one size together."""
    found = np.full(len(images), np.nan)
    for size in dict.fromkeys(image.size for image in images):
        rows = [row for row, image in enumerate(images) if image.size == size]
        with torch.no_grad():
            margins = victim.margins(
                _as_pixels([images[row] for row in rows], size), [contexts[r] for r in rows]
            )
        found[rows] = expit(margins.double().cpu().numpy())
    return found


def _as_pixels(images: "Sequence[Image.Image]", size: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) floats in [0, 1] of B pictures of one (width, height)."""
    pixels = torch.zeros(len(images), 3, size[1], size[0])
    for row, image in enumerate(images):
        pixels[row] = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
    return pixels


def _resized(processor: Any, picture: Image.Image) -> Image.Image:
    values = processor(images=[picture], do_rescale=False, do_normalize=False, return_tensors="pt")[
        "pixel_values"
    ]
    if values.ndim != 4 or values.shape[:2] != (1, 3):
        raise AttackError(
            f"{type(processor).__name__} makes tensors of shape {tuple(values.shape)} of one picture, not one picture "
            "of another size; attack the posted file (space='file')."
        )
    return to_images(values.float() / 255)[0]


def _moved(probability: Array, threshold: float) -> Array:
    """Probabilities with the threshold at 0.5, on the scale of logits; rounding carries none over it."""
    moved = expit(logit(np.clip(probability, 1e-15, 1 - 1e-15)) - logit(threshold))
    found: Array = np.where(
        probability >= threshold, np.maximum(moved, 0.5), np.minimum(moved, np.nextafter(0.5, 0))
    )
    return np.where(np.isnan(probability), np.nan, found)
