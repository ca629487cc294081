"""`arbiter calibrate`: thresholds per category, fitted to the user's own labelled images, for `arbiter judge`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from judge.errors import ConfigError
from prompts.printable import printable
from prompts.taxonomy import Taxonomy
from prompts.taxonomy_file import load_taxonomy

from .exit_codes import EXIT_SAFE
from .options import (
    BatchSizeOption,
    CategoriesOption,
    CustomOption,
    DeviceOption,
    QuietOption,
    RunOption,
    StageJudgeOption,
    TaxonomyOption,
    choose_categories,
    default_taxonomy,
    load_judge,
    warn_outside_promise,
)
from .terminal import Bar, Terminal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from judge.protocol import Classifier
    from prompts.example import Example

CALIBRATE_EPILOG = """\
The data are labelled images as for training: folder:PATH with a CSV or JSON-lines table (path, prompt, label,
categories), dataset:NAME, or another source of recipes/lora_llava.py. Fit on rows that no training has used, drawn from
the same distribution as the images to come.

\b
Examples:
  arbiter calibrate --judge runs/cascade --data folder:mine \\
      --taxonomy mine.yaml --out thresholds.yaml
  arbiter calibrate --judge runs/student --data folder:mine \\
      --taxonomy mine.yaml --miss-rate 0.05 --out thresholds.yaml
  arbiter judge uploads/ --judge runs/student --taxonomy mine.yaml \\
      --threshold thresholds.yaml
"""


def calibrate_thresholds(
    judge: RunOption,
    data: Annotated[str, typer.Option(metavar="SPEC", help="folder:PATH, dataset:NAME, ...")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write: .yaml or .json.")],
    stage_judge: StageJudgeOption = None,
    split: Annotated[
        str, typer.Option(metavar="NAME", help="train, validation, test or all.")
    ] = "validation",
    taxonomy: TaxonomyOption = None,
    categories: CategoriesOption = None,
    custom: CustomOption = None,
    miss_rate: Annotated[
        float | None,
        typer.Option(metavar="R", help="Promise to miss at most this share, 0 to 1.", show_default="best F1"),
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=1, help="Use at most so many images.")] = None,
    batch_size: BatchSizeOption = 8,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> int:
    """Fit a threshold for each category to your own labelled images: of the best F1, or for a promised miss rate."""
    from judge.calibration.thresholds import fit_thresholds
    from judge.data.examples import load_examples

    _check_options(out, miss_rate)
    terminal = Terminal(quiet=quiet)
    named = load_taxonomy(taxonomy) if taxonomy else None
    with terminal.progress() as bar:
        bar.describe(f"loading {judge}")
        classifier = load_judge(judge, stage_judge=stage_judge, device=device, batch_size=batch_size)
        named = named or default_taxonomy(classifier)
        # The labels may name categories that are not asked about.
        everything = choose_categories(named, None, custom)
        asked = choose_categories(named, categories, custom)
        found = load_examples(data, split=split, taxonomy=everything, limit=limit)
        warn_outside_promise(classifier, asked, terminal.notice)
        bar.describe("judging", len(found.examples))
        truth, scores = _score_examples(classifier, found.examples, asked, batch_size, bar)
    fitted = fit_thresholds(asked, truth, scores, judge=classifier.name, miss_rate=miss_rate)
    fitted.save(out)
    terminal.table(
        ("category", "unsafe", "safe", "threshold", "recall", "false alarms"),
        [
            (name, one.unsafe, one.safe, one.threshold, one.recall, one.false_alarm_rate)
            for name, one in fitted.thresholds.items()
        ],
    )
    print(f"Fitted for {fitted.target} on these very rows; measure on others. Wrote {printable(out)}")
    return EXIT_SAFE


def _check_options(out: Path, miss_rate: float | None) -> None:
    """Refuse before minutes of scoring what would fail after them."""
    from judge.calibration.thresholds import SUFFIXES

    if out.suffix not in SUFFIXES:
        raise ConfigError(f"--out {out}: a thresholds file ends in {', '.join(SUFFIXES)}.")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}; make it first.")
    if miss_rate is not None and not 0 < miss_rate < 1:
        raise ConfigError(f"--miss-rate {miss_rate}: expected a share between 0 and 1, both excluded.")


def _score_examples(
    classifier: "Classifier", examples: "Sequence[Example]", taxonomy: Taxonomy, batch_size: int, bar: Bar
) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """(N, K) labels, NaN where unknown, and (N, K) scores in [0, 1], NaN where not judged."""
    import numpy as np

    from judge.data.images import open_image
    from judge.protocol import on_one_scale

    scores = [np.zeros((0, len(taxonomy)))]
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        images, prompts = [open_image(one.image) for one in batch], [one.prompt for one in batch]
        scores.append(on_one_scale(classifier.score(images, prompts, taxonomy)).categories)
        bar.advance(len(batch))
    # A label of None, for unknown, becomes NaN as a float. The reshape gives (0, K) where there are no examples.
    truth = np.array([taxonomy.label(one) for one in examples], dtype=np.float64)
    return truth.reshape(len(examples), len(taxonomy)), np.concatenate(scores)
