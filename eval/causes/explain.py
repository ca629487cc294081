"""Why the classifiers of a benchmark fail, as one record (UnsafeBench, sections 3.1, 4.1 and 4.2)."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.benchmark.predictions import Predictions
from judge.errors import ConfigError
from prompts.example import Example

from .attack_loss import loss_under_attack
from .case_study import study_cases
from .chosen_images import IMAGES, choose_images
from .clusters import CLUSTERS, cluster_failures
from .confidence import describe_confidence
from .diffusion_style import STEPS, DiffusionStyle
from .embedding import Projection, embed_images, embedding_map, separation, similarity_to_originals
from .review import TABLE, read_review, write_review
from .shift import distribution_shift, measure_images
from .variations import GRIDS, STRENGTHS, PainterlyFilter, Style, Variation, draw_variations

if TYPE_CHECKING:
    from judge.encoders.dual import DualEncoder
    from judge.protocol import Classifier

PARTS = ("shift", "map", "separation", "clusters", "case_study", "confidence", "attack_loss")
"""Keys of the record that are None where a part was not made."""
MOST_NAMED = 20
"""Unreadable images that a record names; all are counted."""

Load = Callable[[str], "Classifier"]
Progress = Callable[[str], Any]


@dataclass(frozen=True)
class CauseOptions:
    """How failures are explained."""

    threshold: float = 0.5
    """Probability from which a verdict is unsafe."""
    category: str | None = None
    """Key of the category that clusters and case study are about, as those of the paper; None for all."""
    projection: Projection = "tsne"
    """Of the map."""
    clusters: int = CLUSTERS
    """Clusters of each kind of failure in each source."""
    groups: Mapping[str, Sequence[str]] | None = None
    """Groups of classifiers that fail together (`clusters.cluster_failures`)."""
    case_labels: Sequence[str] | None = None
    """Classifiers of the case study (`chosen_images.choose_images`)."""
    case_source: str = "real"
    """Source of its images."""
    images: int = IMAGES
    """Images of the case study, at most."""
    strengths: Sequence[float] = STRENGTHS
    """Of the style."""
    grids: Sequence[int] = GRIDS
    """Copies a side."""
    style_model: Path | None = None
    """Folder of a Stable Diffusion pipeline; None paints with a plain filter."""
    style_steps: int = STEPS
    """Of that pipeline's schedule."""
    review: Path | None = None
    """Folder of the variations for a person to look at (`review`); written where it has no table yet. The pictures
    show what the benchmark holds, not blurred."""
    keep: Collection[str] | None = None
    """Ids of the images whose variations were looked at and still show the same; instead of `review`."""
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1 or min(self.clusters, self.images, self.batch_size) < 1:
            raise ConfigError(
                f"threshold {self.threshold:g}, clusters {self.clusters}, images {self.images}, batch_size "
                f"{self.batch_size}: the threshold is over 0 and at most 1, the others are at least 1."
            )
        if self.review is not None and self.keep is not None:
            raise ConfigError("Give `review` or `keep`: both say which pictures still show the same.")


def explain_failures(
    examples: Sequence[Example],
    all_predictions: Sequence[Predictions],
    folder: Path,
    *,
    encoder: "DualEncoder | None" = None,
    cache: Path | None = None,
    load: Load | None = None,
    options: CauseOptions = CauseOptions(),
    attack_run: Path | None = None,
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """Everything of this room, as JSON types of bounded size; `eval.reports.causes_figures` draws it.

    A part that cannot be made (no encoder, no image to vary) is None, and `not_made` says why.

    Args:
        examples: the images of the benchmark.
        all_predictions: of each classifier on them, matched by id.
        folder: keeps what classifiers say in the case study, so that a killed run goes on.
        encoder: of images, for the map and the clusters; None leaves these two out.
        cache: folder of features (`judge.encoders.features`); None keeps them in memory.
        load: label of a classifier (`About.label`) -> the classifier, for the case study, which asks about new
            images; classifiers are loaded one after the other, and a label that is not known (`LookupError`) is left
            out. None leaves the case study out.
        options: thresholds, counts and seeds.
        attack_run: folder of a run of `recipes/attack.py`, for losses under attack; None leaves them out.
        progress: called with a line about what is done next.

    Returns:
        `shift` (`shift.distribution_shift`), `map` (`embedding.embedding_map`), `separation`
        (`embedding.separation`), `clusters` (`clusters.cluster_failures`), `case_study` (`case_study.study_cases`,
        with `style`, `review` and `similarity` added), `confidence` (`confidence.describe_confidence`),
        `attack_loss` (`attack_loss.loss_under_attack`); `unreadable`, how many `images` could not be opened and the
        `reasons` of the first; `not_made`: part -> reason.

    Raises:
        ConfigError: options that name what is not there, or a review about other pictures.
        CheckpointError: a style model, attack run or cache that cannot be read.
        MissingExtraError: a style model without diffusers.
    """
    record: dict[str, Any] = dict.fromkeys(PARTS)
    not_made: dict[str, str] = {}
    # Before minutes of work, as it may be missing.
    style = _style(options) if load is not None else None
    progress(f"causes: measuring {len(examples)} images")
    measured = measure_images(examples)
    readable = measured.examples
    record["shift"] = distribution_shift(measured, seed=options.seed)
    record["confidence"] = describe_confidence(
        all_predictions, threshold=options.threshold, seed=options.seed
    )
    if encoder is None:
        not_made |= dict.fromkeys(("map", "separation", "clusters"), "no encoder of images was given")
    else:
        progress(f"causes: embedding {len(readable)} images with {encoder.name}")
        record |= _embedded(encoder, cache, readable, all_predictions, options)
    if load is None or style is None:
        not_made["case_study"] = "no classifiers were given, only their predictions"
    else:
        found = _case_study(readable, all_predictions, folder, load, style, encoder, options, progress)
        if isinstance(found, str):
            not_made["case_study"] = found
        else:
            record["case_study"] = found
    if attack_run is None:
        not_made["attack_loss"] = "no run of recipes/attack.py was given"
    else:
        record["attack_loss"] = loss_under_attack(attack_run, seed=options.seed)
    reasons = dict(list(measured.unreadable.items())[:MOST_NAMED])
    return record | {
        "unreadable": {"images": len(measured.unreadable), "reasons": reasons},
        "not_made": not_made,
    }


def _style(options: CauseOptions) -> Style:
    if options.style_model is None:
        return PainterlyFilter()
    return DiffusionStyle.load(options.style_model, seed=options.seed, steps=options.style_steps)


def _embedded(
    encoder: "DualEncoder",
    cache: Path | None,
    examples: Sequence[Example],
    all_predictions: Sequence[Predictions],
    options: CauseOptions,
) -> dict[str, Any]:
    """`map`, `separation` and `clusters`."""
    vectors = embed_images(encoder, examples, cache)
    clusters = cluster_failures(
        vectors,
        [example.id for example in examples],
        all_predictions,
        groups=options.groups,
        category=options.category,
        clusters=options.clusters,
        threshold=options.threshold,
        seed=options.seed,
    )
    drawn = embedding_map(vectors, examples, projection=options.projection, seed=options.seed)
    return {
        "map": drawn | {"encoder": encoder.name},
        "separation": separation(vectors, examples, seed=options.seed),
        "clusters": clusters,
    }


def _case_study(
    examples: Sequence[Example],
    all_predictions: Sequence[Predictions],
    folder: Path,
    load: Load,
    style: Style,
    encoder: "DualEncoder | None",
    options: CauseOptions,
    progress: Progress,
) -> dict[str, Any] | str:
    """The case study, or why there is none."""
    chosen = choose_images(
        examples,
        all_predictions,
        labels=options.case_labels,
        images=options.images,
        source=options.case_source,
        category=options.category,
        threshold=options.threshold,
        seed=options.seed,
    )
    if not chosen.examples:
        return f"no unsafe image of source {options.case_source!r} is judged right by " + ", ".join(
            chosen.labels or ("anybody",)
        )
    progress(
        f"causes: {len(chosen.examples)} images in {len(options.strengths)} strengths of a style, and tiled"
    )
    variations = draw_variations(chosen.examples, style, strengths=options.strengths, grids=options.grids)
    keep, review = _reviewed(variations, options)
    found = study_cases(
        chosen,
        variations,
        {one.about.label: one.about for one in all_predictions},
        load,
        folder,
        keep=keep,
        threshold=options.threshold,
        batch_size=options.batch_size,
        seed=options.seed,
        progress=progress,
    )
    similarity = None if encoder is None else similarity_to_originals(encoder, variations)
    return found | {"style": style.describe(), "review": review, "similarity": similarity}


def _reviewed(
    variations: Sequence[Variation], options: CauseOptions
) -> tuple[Collection[str] | None, dict[str, Any]]:
    """Ids of the images to keep, None for all; and `made` and `said` about the review."""
    if options.keep is not None:
        return options.keep, {
            "made": True,
            "said": "variations were looked at by whoever gave the ids to keep",
        }
    if options.review is None:
        return None, {"made": False, "said": "nobody looked whether the variations still show the same"}
    write_review(options.review, variations)
    keep = read_review(options.review, variations)
    if keep is not None:
        return keep, {"made": True, "said": f"a person looked at all variations, by {TABLE}"}
    return None, {
        "made": False,
        "said": "nobody looked yet whether the variations still show the same; they are in the folder for review, "
        f"whose {TABLE} waits for a yes or no under keep, and then a second run",
    }
