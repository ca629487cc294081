"""Speed of the classifiers that run from their wheels, and what they say of harmless pictures.

    python scripts/bench_rivals.py                      # 320 pictograms of `signs`, one CPU thread
    python scripts/bench_rivals.py --images 64 --threads 2 --batch_size 1

NudeNet 3 (both orders of channels) and open_nsfw score scenes of pictograms, which show no body. Seconds are those of
the processor, all threads together, so that other work on the machine does not count; the pictures are in memory, and
resizing and the network are counted. The classifiers take turns in each of `--repeats` rounds; medians are compared.
The last line is JSON.
"""

import argparse
import json
import time
from typing import Any

import numpy as np

from eval.classifiers import load
from eval.timing import medians, time_in_turns
from judge.data.images import open_image
from judge.standins.signs.examples import signs_examples
from prompts import load_taxonomy

RIVALS: dict[str, tuple[str, dict[str, Any]]] = {
    "nudenet": ("nudenet", {}),
    "nudenet, rgb": ("nudenet", {"channels": "rgb"}),
    "open_nsfw": ("open_nsfw", {}),
}
"""Name in the table -> name in `eval.classifiers`, and options."""


def main() -> None:
    """Load the classifiers, score the pictures, print speed and scores."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    images = [open_image(example.image) for example in signs_examples("test", count=options.images)]
    sexual = load_taxonomy("unsafebench").select(["Sexual"])
    common = {"threads": options.threads, "batch_size": options.batch_size}
    rivals = {title: load(name, **common, **own) for title, (name, own) in RIVALS.items()}
    scores = {title: rival.score(images, None, sexual).unsafe for title, rival in rivals.items()}
    taken = medians(
        time_in_turns(
            {title: lambda rival=rival: rival.score(images, None, sexual) for title, rival in rivals.items()},
            repeats=options.repeats,
            warm_up=False,
            clock=time.process_time,
        )
    )
    print(f"{len(images)} pictograms of {images[0].width} x {images[0].height}, {options.threads} threads")
    print(f"{'':14}{'images/CPU-s':>14}{'median':>10}{'highest':>10}{'flagged':>10}")
    found = {}
    for title, own in scores.items():
        found[title] = {
            "images_per_cpu_second": round(len(images) / taken[title], 1),
            "median": float(np.median(own)),
            "highest": float(own.max()),
            "flagged": int((own >= 0.5).sum()),
        }
        speed, middle, highest, flagged = found[title].values()
        print(f"{title:14}{speed:14.1f}{middle:10.4f}{highest:10.4f}{flagged:10d}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
