"""Time that further taxonomies add to a student: images encoded once and scored under ten taxonomies, beside one.

    python scripts/bench_taxonomies.py                          # tiny-student, one CPU thread
    python scripts/bench_taxonomies.py --student small-student  # after `make signs`

From prepared images of noise without prompts to the scores: the encoder alone, the encoder and the student's head under
one taxonomy of 10 categories, and under ten such taxonomies, no two of which share a phrase. They are cut from the
categories of `unsafebench`, with a number in every phrase of a copy; two examples each make about five phrases a
category. All take turns in each round; medians of the processor's time are compared. Takes seconds; the last line
is JSON.
"""

import argparse
import json
import os
import time
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch

from eval.timing import medians, time_in_turns
from judge import load_classifier
from judge.runs.machine import device_name
from judge.standins.noise import noise_posts
from judge.student.student import Student
from prompts import Taxonomy, load_taxonomy

TAXONOMIES = CATEGORIES = 10


def main() -> None:
    """Load the student, time it, print the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", default="tiny-student", help="a name or folder of `load_classifier`")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=21)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    student = load_classifier(options.student)
    if not isinstance(student, Student):
        parser.error(f"{options.student} is no student in PyTorch; give tiny-student, or the folder of one.")
    load = os.getloadavg()[0]
    found = time_taxonomies(student, options.batch, options.rounds)
    print(f"{options.student}, batch {options.batch}, {found['phrases']} phrases in {TAXONOMIES} taxonomies")
    for name, taken in found["milliseconds_per_image"].items():
        print(f"    {name:24}{taken:8.3f} ms/image")
    print(f"  the head under one taxonomy takes {found['head_over_encoder']:.1%} of the encoder's time")
    print(f"  {TAXONOMIES} taxonomies take {found['ten_over_one']:.2f} times as long as one, all included")
    found |= {
        "machine": device_name("cpu", options.threads),
        "load_average": {"before": load, "after": os.getloadavg()[0]},
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    print(json.dumps(found))


def draw_taxonomies() -> list[Taxonomy]:
    """Ten taxonomies of ten categories, all different."""
    own = load_taxonomy("unsafebench").categories
    drawn = []
    for number in range(TAXONOMIES * CATEGORIES):
        category, copy = own[number % len(own)], number // len(own)
        drawn.append(
            replace(
                category,
                name=f"{category.name} {copy}",
                definition=f"{category.definition} ({copy})",
                examples=tuple(f"{text} {copy}" for text in category.examples[:2]),
            )
        )
    starts = range(0, len(drawn), CATEGORIES)
    return [Taxonomy(f"from {start}", "1", tuple(drawn[start : start + CATEGORIES])) for start in starts]


def time_taxonomies(student: Student, batch: int, rounds: int) -> dict[str, Any]:
    """Milliseconds per image of each variant, and their ratios."""
    student.envelope = None  # it is timed on policies beyond its lessons
    taxonomies = draw_taxonomies()
    images, _ = zip(*noise_posts(batch), strict=True)
    pixels = student.encoder.pixel_values(images)

    def encode() -> torch.Tensor:
        with torch.no_grad():
            return student.encoder.encode_pixel_values(pixels)

    taken = medians(
        time_in_turns(
            {
                "encoder": encode,
                "one taxonomy": lambda: student.score_features(encode(), None, taxonomies[:1]),
                "ten taxonomies": lambda: student.score_features(encode(), None, taxonomies),
            },
            repeats=rounds,
            clock=time.process_time,
        )
    )
    return {
        "phrases": int(student.ask(taxonomies).queries.kinds.numel()),
        "milliseconds_per_image": {name: 1000 * seconds / batch for name, seconds in taken.items()},
        "head_over_encoder": taken["one taxonomy"] / taken["encoder"] - 1,
        "ten_over_one": taken["ten taxonomies"] / taken["one taxonomy"],
    }


if __name__ == "__main__":
    main()
