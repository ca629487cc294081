"""Which copies of images `judge.data.perceptual_hash` finds, and how often it takes different images for copies.

    python scripts/measure_copies.py --dataset digits
    python scripts/measure_copies.py --dataset signs:1500

Copies: test images, changed. Different images: every test image against all training images.
"""

import argparse
from collections.abc import Callable
from io import BytesIO

import numpy as np
from PIL import Image

from judge.data.examples import load_examples
from judge.data.images import open_image
from judge.data.perceptual_hash import (
    CORRELATION,
    DISTANCE,
    ImageHashes,
    hash_images,
    near_copies,
)
from prompts import load_taxonomy

RULES = ((DISTANCE, CORRELATION), (DISTANCE, -1.0), (4, -1.0))
"""Distance and correlation; a correlation of -1 leaves the hash alone."""


def jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    """Stored as JPEG."""

    def change(image: Image.Image) -> Image.Image:
        stored = BytesIO()
        image.save(stored, "JPEG", quality=quality)
        return open_image(stored.getvalue())

    return change


def resized(factor: float) -> Callable[[Image.Image], Image.Image]:
    """Of another size."""
    return lambda image: image.resize((round(image.width * factor), round(image.height * factor)))


def cut(share: float) -> Callable[[Image.Image], Image.Image]:
    """Without this share of width and height on each of the four sides, at least a pixel."""

    def change(image: Image.Image) -> Image.Image:
        x, y = max(1, round(image.width * share)), max(1, round(image.height * share))
        return image.crop((x, y, image.width - x, image.height - y))

    return change


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 75": jpeg(75),
    "JPEG 30": jpeg(30),
    "half the size": resized(0.5),
    "twice the size": resized(2.0),
    "brighter": lambda image: image.point(lambda level: min(255, round(1.1 * level + 5))),
    "cut by 2 %": cut(0.02),
    "cut by 5 %": cut(0.05),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
}


def main() -> None:
    """Print a table: a line a change, a column a rule."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--taxonomy", default=None)
    parser.add_argument("--limit", type=int, default=1200, help="test images")
    options = parser.parse_args()
    taxonomy = load_taxonomy(options.taxonomy or options.dataset.partition(":")[0])
    splits = {
        split: load_examples(options.dataset, split=split, taxonomy=taxonomy, limit=limit).examples
        for split, limit in (("train", None), ("test", options.limit))
    }
    images = [open_image(example.image) for example in splits["test"]]
    test = hash_images((str(place), image) for place, image in enumerate(images))
    train = hash_images((example.id, example.image) for example in splits["train"])
    print(
        f"{len(test)} test images against {len(train)} training images; {test.flat.sum()} are nearly uniform"
    )
    print(
        "".join(["found".ljust(24), *(f"{d} bits{f', {c:g}' if c > -1 else ''}".rjust(16) for d, c in RULES)])
    )
    for name, change in CHANGES.items():
        copies = hash_images((str(place), change(image)) for place, image in enumerate(images))
        print("".join([name.ljust(24), *(f"{found(copies, test, *rule):16.1%}" for rule in RULES)]))
    alarms = [len(set(near_copies(test, train, *rule)[:, 0])) for rule in RULES]
    print("".join(["false alarms".ljust(24), *(f"{count / len(test):16.1%}" for count in alarms)]))


def found(copies: ImageHashes, originals: ImageHashes, distance: int, correlation: float) -> float:
    """Share of the copies that are found to be copies of their own original."""
    pairs = near_copies(copies, originals, distance, correlation)
    return float(np.isin(np.arange(len(copies)), pairs[pairs[:, 0] == pairs[:, 1], 0]).mean())


if __name__ == "__main__":
    main()
