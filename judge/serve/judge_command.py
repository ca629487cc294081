"""`arbiter judge`: files, folders and lists of paths -> verdicts, printed as they come."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from judge.errors import ConfigError, ImageError
from judge.lessons.evidence import evidence_of
from judge.protocol import MultiLabelClassifier, PromisesMissRate, score_each_category
from judge.verdicts.from_scores import unjudged, verdict_of_frames, verdicts_from_scores
from prompts.printable import printable
from prompts.taxonomy import Taxonomy
from prompts.taxonomy_file import load_taxonomy
from prompts.verdict import Verdict

from .exit_codes import EXIT_FLAGGED, EXIT_SAFE, EXIT_UNJUDGED, print_stderr
from .image_files import FoundFile, find_images
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

if TYPE_CHECKING:
    from PIL.Image import Image

    from judge.data.frames import Frames
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
130 is an interrupt (Ctrl-C).

Of a folder, every file is judged that has an image's suffix or starts like an image; other files are counted. A file
that cannot be judged is a line too. Linked folders are followed once. Of an animation, the frames that differ most are
judged, and the worst decides.

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
    call = _JudgeCall(classifier, asked, limits, prompt, multilabel)
    code = _print_verdicts(call.judge_files(chain([first], found), batch_size), asked, as_json)
    if call.promise is not None:
        print_stderr(f"promise: {printable(call.promise)}")
    return code


class _JudgedFile(NamedTuple):
    """A line of the output."""

    path: str
    verdict: Verdict
    frame: str = ""
    """Of an animation, the frame that the verdict is about."""


@dataclass
class _OpenedFile:
    """A file before it is judged: its frames, or the reason why it has none."""

    path: str
    reason: str = ""
    frames: "Frames | None" = None

    @property
    def images(self) -> "Sequence[Image]":
        """The image, or the frames of an animation that are judged."""
        return () if self.frames is None else self.frames.images


@dataclass(frozen=True)
class _JudgeCall:
    """What all images are judged with: the classifier, and what turns its scores into verdicts."""

    classifier: "Classifier"
    taxonomy: Taxonomy
    threshold: float | dict[str, float]
    prompt: str | None
    multilabel: bool

    @cached_property
    def evidence(self) -> str:
        """What is known of the classifier under this taxonomy."""
        return evidence_of(self.classifier).of_policy(self.taxonomy)

    @cached_property
    def promise(self) -> str | None:
        """What a cascade promises under this taxonomy; None of other classifiers."""
        return (
            self.classifier.promise(self.taxonomy) if isinstance(self.classifier, PromisesMissRate) else None
        )

    def judge_files(self, found: Iterable[FoundFile], batch_size: int) -> Iterator[_JudgedFile]:
        """One verdict per file, in order, as soon as a batch of files is judged; an animation has the worst frame's."""
        for files in _batches(map(_open, found), batch_size):
            images = [image for file in files for image in file.images]
            # An animation may have more frames than a batch, so a chunk of images may end within a file.
            chunks = (images[start : start + batch_size] for start in range(0, len(images), batch_size))
            verdicts = iter([verdict for chunk in chunks for verdict in self.judge_batch(chunk)])
            for file in files:
                if file.frames is None:
                    yield _JudgedFile(file.path, unjudged(file.reason, self.taxonomy, self.classifier.name))
                else:
                    of_file = list(islice(verdicts, len(file.images)))
                    yield _JudgedFile(file.path, *verdict_of_frames(file.frames, of_file))
            sys.stdout.flush()  # a pipe is block-buffered, and its reader should see each batch

    def judge_batch(self, images: "Sequence[Image]") -> list[Verdict]:
        """One verdict per image."""
        prompts = [self.prompt] * len(images)
        if self.multilabel:
            scores = score_each_category(self.classifier, images, prompts, self.taxonomy)
        else:
            scores = self.classifier.score(images, prompts, self.taxonomy)
        return verdicts_from_scores(
            scores,
            self.taxonomy,
            threshold=self.threshold,
            model=self.classifier.name,
            evidence=self.evidence,
            promise=self.promise,
        )


def _open(found: FoundFile) -> _OpenedFile:
    from judge.data.frames import open_frames

    if found.reason is not None:
        return _OpenedFile(found.path, found.reason)
    try:
        return _OpenedFile(found.path, frames=open_frames(found.path))
    except ImageError as error:
        return _OpenedFile(found.path, str(error))


def _batches(files: Iterable[_OpenedFile], size: int) -> Iterator[list[_OpenedFile]]:
    """Files in groups of at least `size` images, or of `size` files."""
    batch: list[_OpenedFile] = []
    for file in files:
        batch.append(file)
        # A file that cannot be opened has no image; many of them must not wait for images that may never come.
        if len(batch) >= size or sum(len(file.images) for file in batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


def _print_verdicts(files: Iterable[_JudgedFile], taxonomy: Taxonomy, as_json: bool) -> int:
    """Print a line per file as it is judged, then the counts on standard error; return the exit code."""
    counts = {"unsafe": 0, "safe": 0, "unjudged": 0}
    for file in files:
        counts[file.verdict.status] += 1
        print(_json_line(file) if as_json else _text_line(file, taxonomy))
    print_stderr(
        f"{sum(counts.values())} images: {counts['unsafe']} flagged, {counts['safe']} safe, "
        f"{counts['unjudged']} not judged"
    )
    if counts["unsafe"]:
        return EXIT_FLAGGED
    return EXIT_UNJUDGED if counts["unjudged"] else EXIT_SAFE


def _json_line(file: _JudgedFile) -> str:
    return json.dumps({"path": file.path, **file.verdict.to_dict()}, allow_nan=False)


def _text_line(file: _JudgedFile, taxonomy: Taxonomy) -> str:
    verdict, width = file.verdict, max(map(len, taxonomy.names))
    probability = "-" if verdict.unsafe is None else f"{verdict.unsafe:.3f}"
    line = f"{verdict.status:<8}  {probability:>5}  {verdict.category or '-':<{width}}  {file.path}"
    note = "; ".join(filter(None, (verdict.reason or file.frame, verdict.note)))
    return printable(f"{line}  ({note})" if note else line)
