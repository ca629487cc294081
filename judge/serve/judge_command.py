"""`arbiter judge`: files, folders and lists of paths -> verdicts, printed as they come."""

import json
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Annotated, Any

import typer

from judge.errors import ConfigError
from judge.protocol import MultiLabelClassifier
from judge.verdicts.rows import Judging
from prompts.printable import printable
from prompts.taxonomy import Taxonomy
from prompts.taxonomy_file import load_taxonomy

from .exit_codes import EXIT_FLAGGED, EXIT_SAFE, EXIT_UNJUDGED, print_stderr
from .image_files import find_images
from .judging import JudgeCall, JudgedFile, model_hash
from .options import (
    BatchSizeOption,
    CategoriesOption,
    CustomOption,
    DeviceOption,
    PromptModeOption,
    RunOption,
    StageJudgeOption,
    TaxonomyOption,
    choose_categories,
    default_taxonomy,
    load_judge,
    read_threshold,
    threshold_for,
    warn_outside_promise,
    warn_without_evidence,
)

# \b keeps the line breaks of a paragraph; other paragraphs are wrapped to the terminal.
JUDGE_EPILOG = """\
\b
Exit codes:
  0  every image was judged, and none is flagged
  1  at least one image is flagged (even if others could not be judged)
  2  stopped by an error of any kind, whatever was flagged before;
     --debug prints where it happened
  3  no image is flagged, but at least one could not be judged; it is not safe
130 is an interrupt (Ctrl-C).

Of a folder, every file is judged that has an image's suffix or starts like an image; other files are counted. A file
that cannot be judged is a line too. Linked folders are followed once. Of an animation, the frames that differ most are
judged, a transparent image on white and on black, and the worst of these views decides.

A run cannot send images or keys anywhere: if a cascade was calibrated with a served judge, name that with
--stage-judge. OPENAI_API_KEY is sent only to servers named on the command line. A base model or encoder that a run
names by hub id is downloaded from the hub as safetensors, with a notice; HF_HUB_OFFLINE=1 prevents it.

\b
Examples:
  arbiter judge photo.jpg --judge runs/demo --taxonomy digits \\
      --categories three,seven
  arbiter judge uploads/ --judge runs/demo --json \\
      --custom "Balloons: toy balloons of any colour"
  find uploads -name '*.png' -print0 | arbiter judge - -0 --judge runs/demo
  arbiter judge uploads/ --judge runs/cascade \\
      --stage-judge http://localhost:8000/v1#model
"""

PromptOption = Annotated[
    str | None, typer.Option(metavar="TEXT", help="The text all these images were generated from.")
]
ThresholdOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="T",
        help="Flag from this score on in any category; NAME=T is for one category, may be repeated, and leaves the "
        "others at 0.5; or a file of `arbiter calibrate`.",
        show_default="0.5",
    ),
]
NullOption = Annotated[
    bool, typer.Option("-0", "--null", help="Paths from standard input end with NUL, as of find -print0.")
]


def judge_images(
    # Hidden, because Typer's help would name its type: `PATH <list[str]>`. The docstring says what it is.
    paths: Annotated[list[str], typer.Argument(metavar="PATH", hidden=True)],
    judge: RunOption,
    null: NullOption = False,
    stage_judge: StageJudgeOption = None,
    taxonomy: TaxonomyOption = None,
    categories: CategoriesOption = None,
    custom: CustomOption = None,
    prompt: PromptOption = None,
    prompt_mode: PromptModeOption = "max",
    threshold: ThresholdOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    multilabel: Annotated[
        bool, typer.Option("--multilabel", help="Score every category on its own.")
    ] = False,
    batch_size: BatchSizeOption = 8,
    device: DeviceOption = None,
) -> int:
    """Judge images: one line each, in the order given.

    PATH is a file, a folder, or - for paths from standard input.
    """
    given = read_threshold(threshold)
    asked = None
    if taxonomy:  # mistakes are found before a model of many gigabytes is loaded
        asked = choose_categories(load_taxonomy(taxonomy), categories, custom)
        threshold_for(asked, given)
    found = find_images(paths, null=null)
    first = next(
        found, None
    )  # one file is enough to know that the judge is needed; a list may still be arriving
    if first is None:
        raise ConfigError("No images found in what was given; name files, folders, or - for standard input.")
    classifier = load_judge(
        judge, stage_judge=stage_judge, device=device, batch_size=batch_size, prompt_mode=prompt_mode
    )
    if multilabel and not isinstance(classifier, MultiLabelClassifier):
        raise ConfigError(f"--multilabel: {classifier.name} always scores its categories in its own way.")
    asked = asked or choose_categories(default_taxonomy(classifier), categories, custom)
    limits = threshold_for(asked, given)
    if not isinstance(given, float | dict) and given.judge != classifier.name:
        print_stderr(f"arbiter: thresholds were fitted for {given.judge}, not for {classifier.name}")
    warn_outside_promise(classifier, asked)
    warn_without_evidence(classifier, judge, asked)
    judging = Judging(asked, limits, classifier.name, model_hash(judge) if as_json else None)
    call = JudgeCall(classifier, judging, prompt, multilabel)
    code = _print_verdicts(call.judge_files(chain([first], found), batch_size), asked, as_json)
    if call.promise is not None:
        print_stderr(f"promise: {printable(call.promise)}")
    return code


def _print_verdicts(files: Iterable[JudgedFile], taxonomy: Taxonomy, as_json: bool) -> int:
    """Print a line per file as it is judged, then the counts on standard error; return the exit code."""
    counts = {"unsafe": 0, "safe": 0, "unjudged": 0}
    for file in files:
        counts[file.row["status"]] += 1
        print(json.dumps(file.row, allow_nan=False) if as_json else _text_line(file.row, taxonomy))
    print_stderr(
        f"{sum(counts.values())} images: {counts['unsafe']} flagged, {counts['safe']} safe, "
        f"{counts['unjudged']} not judged"
    )
    if counts["unsafe"]:
        return EXIT_FLAGGED
    return EXIT_UNJUDGED if counts["unjudged"] else EXIT_SAFE


def _text_line(row: Mapping[str, Any], taxonomy: Taxonomy) -> str:
    image, width = row["image"], max(map(len, taxonomy.names))
    probability = "-" if row["unsafe"] is None else f"{row['unsafe']:.3f}"
    line = f"{row['status']:<8}  {probability:>5}  {row['category'] or '-':<{width}}  {image['path']}"
    note = "; ".join(filter(None, (row["reason"] or image["frame"], row["note"])))
    return printable(f"{line}  ({note})" if note else line)
