"""`arbiter judge`: files, folders and lists of paths -> verdicts, printed as they come."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from judge.errors import ConfigError
from judge.protocol import MultiLabelClassifier
from judge.publish.hub import model_hash
from judge.verdicts.rows import Judging
from prompts.printable import printable
from prompts.taxonomy import Taxonomy
from prompts.taxonomy_file import load_taxonomy

from .completion import complete_order
from .image_files import FoundFile, find_images, say_missing
from .judging import JudgeCall
from .options import (
    BatchSizeOption,
    CategoriesOption,
    CustomOption,
    DeviceOption,
    PromptModeOption,
    QuietOption,
    RunOption,
    StageJudgeOption,
    TaxonomyOption,
    ThresholdOption,
    choose_categories,
    default_taxonomy,
    load_judge,
    own_threshold,
    read_threshold,
    threshold_for,
    warn_outside_promise,
    warn_without_evidence,
)
from .prompt_table import PromptTable, read_prompt_table
from .terminal import Terminal
from .verdict_output import SORTED_BY, Outputs

if TYPE_CHECKING:
    from judge.calibration.thresholds import Thresholds
    from judge.protocol import Classifier

# \b keeps the line breaks of a paragraph; other paragraphs are wrapped to the terminal.
JUDGE_EPILOG = """\
\b
Exit codes:
  0  every image was judged, and none is flagged
  1  at least one image is flagged (even if others could not be judged)
  2  stopped by an error of any kind, whatever was flagged before;
     --debug prints where it happened
  3  no image is flagged, but at least one could not be judged; it is not safe
  130, 141  interrupted (Ctrl-C), or the reader of the output left (| head):
     the remaining images were not judged

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
  arbiter judge uploads/ --judge runs/demo --sort score \\
      --threshold three=0.9,seven=0.3 --html verdicts.html
  find uploads -name '*.png' -print0 | arbiter judge - -0 --judge runs/demo
  arbiter judge uploads/ --judge runs/cascade \\
      --stage-judge http://localhost:8000/v1#model
"""

PromptOption = Annotated[
    str | None, typer.Option(metavar="TEXT", help="The text all these images were generated from.")
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.csv", help="A prompt for each image: a table with the columns path and prompt."
    ),
]
NullOption = Annotated[
    bool, typer.Option("-0", "--null", help="Paths from standard input end with NUL, as of find -print0.")
]
CsvOption = Annotated[
    Path | None, typer.Option("--csv", metavar="FILE.csv", help="Also write a table for spreadsheets.")
]
HtmlOption = Annotated[
    Path | None,
    typer.Option(
        "--html", metavar="FILE.html", help="Also write a page of blurred pictures to look through."
    ),
]
SortOption = Annotated[
    str | None,
    typer.Option(
        metavar="BY",
        help=f"Print at the end, by {', '.join(SORTED_BY)}.",
        show_default="as judged",
        autocompletion=complete_order,
    ),
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
    prompts: PromptsOption = None,
    prompt_mode: PromptModeOption = "max",
    threshold: ThresholdOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    csv_file: CsvOption = None,
    html_file: HtmlOption = None,
    sort: SortOption = None,
    multilabel: Annotated[
        bool, typer.Option("--multilabel", help="Score every category on its own.")
    ] = False,
    batch_size: BatchSizeOption = 8,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> int:
    """Judge images: one line each, in the order given.

    PATH is a file, a folder, or - for standard input: an image, or a list of paths.
    """
    terminal = Terminal(quiet=quiet)
    # Mistakes are found before a model of many gigabytes is loaded.
    outputs = Outputs(terminal, as_json, csv_file, html_file, sort)
    given = read_threshold(threshold)
    asked = choose_categories(load_taxonomy(taxonomy), categories, custom) if taxonomy else None
    if asked:
        threshold_for(asked, given)
    table = _read_prompts(prompt, prompts)
    files, number = _list_files(paths, null, terminal)
    with terminal.progress() as bar:
        bar.describe(f"loading {judge}")
        classifier = load_judge(
            judge, stage_judge=stage_judge, device=device, batch_size=batch_size, prompt_mode=prompt_mode
        )
        if multilabel and not isinstance(classifier, MultiLabelClassifier):
            raise ConfigError(f"--multilabel: {classifier.name} always scores its categories in its own way.")
        asked = asked or choose_categories(default_taxonomy(classifier), categories, custom)
        limits = own_threshold(classifier, asked, given if threshold else None, terminal.notice)
        _warn(classifier, judge, asked, given, terminal)
        judging = Judging(
            asked, limits, classifier.name, model_hash(judge) if outputs.needs_model_hash else None
        )
        prompt_of = table.prompt_of if table else lambda path: prompt
        call = JudgeCall(classifier, judging, prompt_of, multilabel, thumbnails=html_file is not None)
        bar.describe("judging", number)
        counts = outputs.write(bar.count(call.judge_files(files, batch_size)), judging)
    for line in (*counts.lines(), *(table.remarks() if table else ())):
        terminal.notice(line)
    if call.promise is not None:
        terminal.notice(f"promise: {printable(call.promise)}")
    return counts.exit_code


def _read_prompts(prompt: str | None, prompts: Path | None) -> PromptTable | None:
    if prompt is not None and prompts is not None:
        raise ConfigError("Give --prompt for all images, or --prompts for each, not both.")
    return None if prompts is None else read_prompt_table(prompts)


def _list_files(
    paths: Sequence[str], null: bool, terminal: Terminal
) -> tuple[Iterator[FoundFile], int | None]:
    """The files, and their number where that is shown and known.

    Raises:
        ConfigError: there are none.
    """
    say_missing(paths, terminal.notice)
    found = find_images(paths, null=null, tell=terminal.notice)
    if terminal.draws_progress and "-" not in paths:
        first = list(found)
        number = len(first)
    else:  # one is enough to know that the judge is needed; a list may still be arriving
        first, number = [*islice(found, 1)], None
    if not first:
        raise ConfigError("No images found in what was given; name files, folders, or - for standard input.")
    return chain(first, found), number


def _warn(
    classifier: "Classifier",
    judge: str,
    taxonomy: Taxonomy,
    given: "float | dict[str, float] | Thresholds",
    terminal: Terminal,
) -> None:
    """Say what makes verdicts of this judge under this taxonomy less sure; rows say it of each image."""
    if not isinstance(given, float | dict) and given.judge != classifier.name:
        terminal.notice(f"arbiter: thresholds were fitted for {given.judge}, not for {classifier.name}")
    warn_outside_promise(classifier, taxonomy, terminal.notice)
    warn_without_evidence(classifier, judge, taxonomy, terminal.notice)
