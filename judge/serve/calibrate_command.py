"""`arbiter calibrate`: thresholds per category, fitted to the user's own labelled images, for `arbiter judge`."""

import argparse
from pathlib import Path
from typing import Any

from judge.errors import ConfigError
from prompts.printable import printable
from prompts.taxonomy import Taxonomy
from prompts.taxonomy_file import load_taxonomy

_TEXT = """\
The data are labelled images as for training: folder:PATH with a CSV or JSON-lines table (path, prompt, label,
categories), dataset:NAME, or another source of recipes/lora_llava.py. Fit on rows that no training has seen, drawn like
those to come.

examples:
  arbiter calibrate --judge runs/cascade --data folder:mine --taxonomy mine.yaml --out thresholds.yaml
  arbiter calibrate --judge runs/student --data folder:mine --taxonomy mine.yaml --miss-rate 0.05 --out thresholds.yaml
  arbiter judge uploads/ --judge runs/student --taxonomy mine.yaml --threshold thresholds.yaml
"""


def add_calibrate(commands: Any) -> None:
    """Add the command to the parser's commands."""
    calibrate = commands.add_parser(
        "calibrate",
        help="fit a threshold for each category to your own labelled images",
        description="Fit a threshold for each category: of the best F1, or for a promised miss rate.",
        epilog=_TEXT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = calibrate.add_argument
    add("--judge", required=True, metavar="RUN", help="what `arbiter judge` will be called with")
    add("--stage-judge", metavar="JUDGE", help="of a cascade: where its judge is, or none")
    add("--data", required=True, metavar="SPEC", help="folder:PATH, dataset:NAME, ...")
    add("--split", default="validation", metavar="NAME", help="train, validation, test or all [validation]")
    add("--taxonomy", metavar="NAME", help="a shipped taxonomy or a YAML file [the judge's own]")
    add("--categories", metavar="A,B", action="append", help="only these categories")
    add("--custom", metavar='"NAME: DEFINITION"', action="append", default=[], help="one more category")
    add("--miss-rate", type=float, metavar="R", help="promise to miss at most this share, 0 to 1 [best F1]")
    add("--limit", type=int, metavar="N", help="use at most so many images")
    add("--out", required=True, metavar="FILE", type=Path, help="the file to write: .yaml or .json")
    add("--batch-size", type=int, default=8, metavar="N", help="images at once [8]")
    add("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ... [the best there is]")
    calibrate.set_defaults(run=run_calibrate)


def run_calibrate(options: argparse.Namespace) -> int:
    """Judge the labelled images, fit, write the file, print what was fitted."""
    from judge.calibration.thresholds import SUFFIXES, fit_thresholds
    from judge.data.examples import load_examples

    from .exit_codes import EXIT_SAFE
    from .judge_command import choose_categories, load_judge, own_taxonomy, say_outside_promise

    if options.out.suffix not in SUFFIXES:
        raise ConfigError(f"--out {options.out}: a thresholds file ends in {', '.join(SUFFIXES)}.")
    if not options.out.parent.is_dir():  # said before minutes of judging
        raise ConfigError(f"--out {options.out}: there is no folder {options.out.parent}; make it first.")
    if options.miss_rate is not None and not 0 < options.miss_rate < 1:
        raise ConfigError(
            f"--miss-rate {options.miss_rate}: expected a share between 0 and 1, both excluded."
        )
    if options.batch_size < 1 or (options.limit is not None and options.limit < 1):
        raise ConfigError("--batch-size and --limit take positive whole numbers.")
    classifier = load_judge(options)
    named = load_taxonomy(options.taxonomy) if options.taxonomy else own_taxonomy(classifier)
    # The data may name categories that are not asked about.
    everything = choose_categories(named, None, options.custom)
    asked = choose_categories(named, options.categories, options.custom)
    found = load_examples(options.data, split=options.split, taxonomy=everything, limit=options.limit)
    say_outside_promise(classifier, asked)
    truth, scores = _judged(classifier, found.examples, asked, options.batch_size)
    fitted = fit_thresholds(asked, truth, scores, judge=classifier.name, miss_rate=options.miss_rate)
    fitted.save(options.out)
    width = max(map(len, asked.names))
    print(f"{'':{width}}  {'unsafe':>6}  {'safe':>6}  {'threshold':>9}  {'recall':>6}  {'false alarms':>12}")
    for name, one in fitted.thresholds.items():
        print(
            f"{name:{width}}  {one.unsafe:>6}  {one.safe:>6}  {one.threshold:>9.3f}  {one.recall:>6.3f}  "
            f"{one.false_alarm_rate:>12.3f}"
        )
    print(f"Fitted for {fitted.target} on these very rows; measure on others. Wrote {printable(options.out)}")
    return EXIT_SAFE


def _judged(classifier: Any, examples: Any, taxonomy: Taxonomy, batch: int) -> tuple[Any, Any]:
    """(N, K) truth and scores; NaN where nobody knows, or nothing could be judged."""
    import numpy as np

    from judge.data.images import open_image
    from judge.protocol import on_one_scale

    scores = [np.zeros((0, len(taxonomy)))]
    for start in range(0, len(examples), batch):
        part = examples[start : start + batch]
        images, prompts = [open_image(one.image) for one in part], [one.prompt for one in part]
        scores.append(on_one_scale(classifier.score(images, prompts, taxonomy)).categories)
    # None, where nobody knows, becomes NaN.
    truth = np.array([taxonomy.label(one) for one in examples], dtype=np.float64)
    return truth.reshape(len(examples), len(taxonomy)), np.concatenate(scores)
