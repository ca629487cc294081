"""Does style or layout hide what an image shows? Classifiers on painted and tiled versions of images they recognise.

UnsafeBench, section 4.1, "Case Study on Artistic Representation and Grid Layout", Figure 7. Each variation is compared
with its original as this study shows it: at most 512 pixels a side, and without its prompt, which could decide alone.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from eval.benchmark.parts import PartFolder
from eval.benchmark.predict import ClassifierFailedError, predict
from eval.benchmark.predictions import About, Prediction
from eval.metrics.comparisons import paired_bootstrap
from eval.metrics.intervals import image_interval
from judge.data.images import pixels_hash
from judge.errors import CheckpointError, ConfigError, MissingExtraError
from judge.protocol import Classifier
from prompts.example import Example

from .chosen_images import ChosenImages
from .outcomes import outcome
from .variations import Variation

DRAWS = 2000
"""Bootstrap samples of a difference."""
MOST_REASONS = 5
"""Reasons for unjudged pictures that a record names."""

Booleans = NDArray[np.bool_]


def study_cases(
    chosen: ChosenImages,
    variations: Sequence[Variation],
    abouts: Mapping[str, About],
    load: Callable[[str], Classifier],
    folder: Path,
    *,
    keep: Collection[str] | None = None,
    threshold: float = 0.5,
    batch_size: int = 8,
    seed: int = 0,
    progress: Callable[[str], Any] = lambda text: None,
) -> dict[str, Any]:
    """Ask every classifier about the variations of the images that it should flag.

    A classifier that cannot be loaded, or fails on everything, is left out with the reason.

    Args:
        chosen: images and classifiers.
        variations: of these images, by `variations.draw_variations`.
        abouts: label -> how it was asked in the benchmark, as it is here.
        load: label -> the classifier; they are loaded one after the other. A `LookupError` says that only its
            predictions are there.
        folder: keeps what was said, so that a killed run goes on.
        keep: ids of the images that still show the same in all variations; None: nobody looked.
        threshold: probability from which a verdict is unsafe.
        batch_size: pictures in one call.
        seed: of the bootstrap.
        progress: called with a line about what is done next.

    Returns:
        `images`, ids; `candidates`, how many they were drawn from; `dropped`, ids that `keep` lacks; `left_out`,
        label -> reason; `classifiers`, label -> `images` (those that are unsafe under what it covers), `original`,
        `style` and `grid` (lists of cells) and `reasons` of unjudged pictures; and `together`, the same cells over all
        classifiers. A cell is `level`; `images`; `right`, `unjudged`; `share` right with its `interval`; and `drop`,
        the share of originals less this one, paired by image, with `drop_interval` (95 %; over several classifiers
        whole images are drawn). An unjudged picture is not right. Shares are None without images.
    """
    kept = [v for v in variations if keep is None or v.id in keep]
    shown = {example.id: example for example in chosen.examples}
    pictures = [_as_example(shown[v.id], v) for v in kept]
    home = folder / _digest(variations)
    left_out = dict(chosen.left_out)
    rows: dict[str, dict[str, Prediction]] = {}
    for label in chosen.labels if pictures else ():
        about = replace(abouts[label], dataset=f"{abouts[label].dataset}, varied")
        progress(f"case study: {label} on {len(pictures)} pictures")
        try:
            parts = PartFolder(home / quote(label, safe=""), about)
            if {one.id for one in pictures} <= parts.done():
                found = [parts.rows[one.id] for one in pictures]  # nothing to load it for
            else:
                found = list(predict(load(label), pictures, about, parts, batch_size=batch_size).rows)
        except (ClassifierFailedError, CheckpointError, ConfigError, MissingExtraError) as error:
            left_out[label] = str(error)
        except LookupError:
            left_out[label] = "only its predictions were given"
        else:
            rows[label] = {row.id: row for row in found if row.truth}
    tables = {label: _Table(found, kept, threshold) for label, found in rows.items()}
    return {
        "images": list(dict.fromkeys(v.id for v in kept)),
        "candidates": chosen.candidates,
        "dropped": sorted(set(shown) - {v.id for v in kept}),
        "left_out": left_out,
        "classifiers": {
            label: {**_cells([table], seed), "reasons": _reasons(rows[label].values())}
            for label, table in tables.items()
        },
        "together": _cells(list(tables.values()), seed) if tables else None,
    }


def _as_example(example: Example, variation: Variation) -> Example:
    """A variation as an image to ask about; labels are those of what it was made of."""
    return replace(example, id=_row_id(variation), image=variation.image, prompt=None)


def _row_id(variation: Variation) -> str:
    return f"{variation.id}/{variation.name}"


def _digest(variations: Sequence[Variation]) -> str:
    """Of the pictures, as those of another style or seed are asked about anew."""
    digest = hashlib.sha256()
    for variation in variations:
        digest.update(f"{_row_id(variation)}\n{pixels_hash(variation.image)}\n".encode())
    return digest.hexdigest()[:16]


class _Table:
    """What one classifier said: (I, V) arrays of its I images and the V variations, the original first."""

    def __init__(
        self, rows: Mapping[str, Prediction], variations: Sequence[Variation], threshold: float
    ) -> None:
        levels = {v.name: (v.kind, v.level) for v in variations}
        self.levels = list(levels.values())
        names = dict.fromkeys(v.id for v in variations)
        self.images = [name for name in names if f"{name}/original" in rows]
        found = [[outcome(rows[f"{name}/{level}"], threshold) for level in levels] for name in self.images]
        shape = (len(self.images), len(levels))
        self.right: Booleans = np.array([[one == "right" for one in row] for row in found]).reshape(shape)
        self.unjudged: Booleans = np.array([[one == "unjudged" for one in row] for row in found]).reshape(
            shape
        )


def _cells(tables: Sequence[_Table], seed: int) -> dict[str, Any]:
    """`images`, `original`, `style` and `grid` of one classifier, or of several together."""
    right = np.concatenate([table.right for table in tables]).astype(np.bool_)  # (R, V)
    unjudged = np.concatenate([table.unjudged for table in tables])
    images = np.array([name for table in tables for name in table.images], dtype=np.str_)
    cells: dict[str, list[dict[str, Any]]] = {"original": [], "style": [], "grid": []}
    for column, (kind, level) in enumerate(tables[0].levels):
        hits = right[:, column]
        cell: dict[str, Any] = {
            "level": level,
            "images": len(hits),
            "right": int(hits.sum()),
            "unjudged": int(unjudged[:, column].sum()),
            **dict.fromkeys(("share", "interval", "drop", "drop_interval")),
        }
        if len(hits):
            cell |= {"share": float(hits.mean()), "interval": list(image_interval(hits, images))}
        if len(hits) and kind != "original":
            drop = paired_bootstrap(right[:, 0], hits, groups=images, draws=DRAWS, seed=seed)
            cell |= {"drop": drop.mean, "drop_interval": [drop.low, drop.high]}
        cells[kind].append(cell)
    original = cells["original"][0] if cells["original"] else None
    return {"images": len(set(images)), **cells, "original": original}


def _reasons(rows: Collection[Prediction]) -> dict[str, int]:
    reasons = Counter(row.reason or "no reason" for row in rows if row.unsafe != row.unsafe)
    return dict(reasons.most_common(MOST_REASONS))
