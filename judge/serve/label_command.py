"""`arbiter label`: a folder, tars, Parquet or JSON lines of images -> Parquet, one row an image."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from judge.errors import ConfigError
from judge.publish.hub import model_hash
from judge.verdicts.rows import Judging
from prompts.printable import printable
from prompts.reading import check_prompt_mode
from prompts.taxonomy import Taxonomy
from prompts.taxonomy_file import load_taxonomy

from .exit_codes import EXIT_SAFE, EXIT_UNJUDGED
from .options import (
    DeviceOption,
    PromptModeOption,
    QuietOption,
    RunOption,
    StageJudgeOption,
    ThresholdOption,
    default_taxonomy,
    load_judge,
    own_threshold,
    read_threshold,
    warn_outside_promise,
    warn_without_evidence,
)
from .terminal import Terminal

if TYPE_CHECKING:
    from judge.calibration.thresholds import Thresholds
    from judge.labelling.job import Job
    from judge.labelling.ray_data import LabellingRayOptions
    from judge.labelling.rows import Engine, Status
    from judge.labelling.run import Tally
    from judge.protocol import Classifier

LABEL_EPILOG = """\
\b
INPUT is a folder with any of these, one such file, or an fsspec URL (s3://bucket/uploads):
  images         one input each
  .tar           webdataset samples: an image, with its prompt in .txt or .json
  .parquet       columns image (bytes) or path, and prompt, id where they are there
  .jsonl         objects with the same keys; image is base64 or a data URL

OUTPUT becomes a folder of Parquet files, one row an input: id, source, sha256, status, reason, and for each taxonomy
its verdict with scores. Only rows of status ok have a verdict under every taxonomy; all others are unjudged, not safe.

Run the same command again after anything that stopped it: what is finished is skipped, and new files are added.

\b
Exit codes:
  0  every input has a verdict under every taxonomy
  2  stopped by an error; what is labelled stays
  3  finished, but some inputs could not be judged; they are not safe
  130  interrupted (Ctrl-C)

\b
Examples:
  arbiter label uploads/ labels/ --judge runs/student --taxonomy digits
  arbiter label s3://bucket/shards labels/ --judge runs/student \\
      --taxonomy ours.yaml --taxonomy theirs.yaml --device cuda
  arbiter label uploads/ labels/ --judge runs/student --engine ray --ray-address auto
  arbiter label uploads/ labels/ --judge runs/student --again timeout,model_error
"""

_VERDICTS = ("unsafe", "safe", "unjudged")
_ENGINES = ("local", "ray")
_CHANGED = "changed"
"""Of `--again`, beside the statuses."""
_COLUMNS = ("image", "path", "prompt", "id")

TaxonomiesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--taxonomy",
        metavar="NAME",
        help="A shipped taxonomy or a YAML file; may be repeated: all are scored in one pass.",
        show_default="the judge's own",
    ),
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--column", metavar="OURS=THEIRS", help="Of tables: image, path, prompt or id is named THEIRS."
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Processes that decode.", show_default="one a core, 16 at most"),
]
SecondsOption = Annotated[
    float, typer.Option(metavar="S", min=0.01, help="Processor time that one image may take to decode.")
]
RayAddressOption = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Of a running cluster.", show_default="a new one here")
]
RayWorkersOption = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Processes that score.", show_default="as many as there is room for"
    ),
]
RayGpusOption = Annotated[float, typer.Option(metavar="G", min=0, help="GPUs of each of them.")]
AgainOption = Annotated[
    str | None,
    typer.Option(
        metavar="STATUS,...",
        help="Also do finished parts again that have rows of these statuses; 'changed': whose files changed.",
    ),
]


def label(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A folder, file or URL.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="The folder of labels.")],
    judge: RunOption,
    stage_judge: StageJudgeOption = None,
    taxonomy: TaxonomiesOption = None,
    threshold: ThresholdOption = None,
    column: ColumnOption = None,
    prompt_mode: PromptModeOption = "max",
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Images in one pass.")] = 64,
    device: DeviceOption = None,
    workers: WorkersOption = None,
    seconds: SecondsOption = 2.0,
    again: AgainOption = None,
    engine: Annotated[str, typer.Option(metavar="NAME", help="local, or ray for a cluster.")] = "local",
    ray_address: RayAddressOption = None,
    ray_workers: RayWorkersOption = None,
    ray_gpus: RayGpusOption = 0,
    quiet: QuietOption = False,
) -> int:
    """Label any number of images, safe to interrupt and to run again."""
    terminal = Terminal(quiet=quiet)
    # Mistakes are found before a model of many gigabytes is loaded.
    ray = _ray_options(engine, ray_address, ray_workers, ray_gpus)
    asked = [load_taxonomy(name) for name in taxonomy or ()]
    given = read_threshold(threshold) if threshold else None
    columns, (redo, renew) = _read_columns(column or ()), _read_again(again)
    from judge.labelling.job import Job, Scoring, check_question, run_job
    from judge.labelling.opening import Opening
    from judge.labelling.scoring import preprocessing_of

    from .label_progress import LabelProgress

    with terminal.progress() as bar:
        bar.describe(f"loading {judge}")
        classifier = load_judge(
            judge, stage_judge=stage_judge, device=device, batch_size=batch_size, prompt_mode=prompt_mode
        )
        asked = asked or [default_taxonomy(classifier)]
        check_question(classifier, asked)
        judgings = _judgings(classifier, judge, asked, given, terminal)
        scoring = Scoring(judge, judgings, stage_judge, device, batch_size, check_prompt_mode(prompt_mode))
        opening = Opening(
            preprocessing_of(classifier), workers=workers or min(os.cpu_count() or 1, 16), seconds=seconds
        )
        job = Job(source, output, scoring, opening, columns, redo, renew)
        bar.describe("listing the input")
        with _engine(job, classifier, ray) as run:
            tally = run_job(
                job, classifier, run, tell=terminal.notice, progress=partial(LabelProgress, terminal, bar)
            )
    return _conclude(tally, output, terminal)


def _judgings(
    classifier: "Classifier",
    judge: str,
    taxonomies: Sequence[Taxonomy],
    given: "float | dict[str, float] | Thresholds | None",
    terminal: Terminal,
) -> "tuple[Judging, ...]":
    """Each taxonomy with its thresholds; a threshold of a category counts in every taxonomy that has it."""
    hashed = model_hash(judge)
    judgings = []
    for taxonomy, limits in zip(taxonomies, _limits(given, taxonomies), strict=True):
        threshold = own_threshold(classifier, taxonomy, limits, terminal.notice)
        judgings.append(Judging(taxonomy, threshold, classifier.name, hashed))
        warn_outside_promise(classifier, taxonomy, terminal.notice)
        warn_without_evidence(classifier, judge, taxonomy, terminal.notice)
    return tuple(judgings)


def _limits(
    given: "float | dict[str, float] | Thresholds | None", taxonomies: Sequence[Taxonomy]
) -> "list[float | dict[str, float] | Thresholds | None]":
    """The thresholds that are about each taxonomy."""
    if not isinstance(given, dict):
        return [given] * len(taxonomies)
    names = [{name.casefold() for name in taxonomy.names} for taxonomy in taxonomies]
    unknown = next((name for name in given if not any(name.casefold() in some for some in names)), None)
    if unknown is not None:
        raise ConfigError(f"--threshold {unknown!r}: no category of the taxonomies has this name.")
    return [{name: limit for name, limit in given.items() if name.casefold() in some} for some in names]


def _ray_options(
    engine: str, address: str | None, workers: int | None, gpus: float
) -> "LabellingRayOptions | None":
    """What `--engine ray` starts; None for this machine alone."""
    if engine not in _ENGINES:
        raise ConfigError(f"--engine {engine!r}: expected {' or '.join(_ENGINES)}.")
    if engine == "ray":
        from judge.labelling.ray_data import LabellingRayOptions

        return LabellingRayOptions(address=address, workers=workers, gpus=gpus)
    if (address, workers, gpus) != (None, None, 0):
        raise ConfigError("--ray-address, --ray-workers and --ray-gpus are about --engine ray; add it.")
    return None


def _read_columns(texts: Sequence[str]) -> dict[str, str]:
    """`--column image=jpg` -> {"image": "jpg"}."""
    found = {}
    for text in texts:
        ours, _, theirs = text.partition("=")
        if ours.strip() not in _COLUMNS or not theirs.strip():
            raise ConfigError(
                f"--column {text!r}: write one of {', '.join(_COLUMNS)}, =, and the table's own name."
            )
        found[ours.strip()] = theirs.strip()
    return found


def _read_again(text: str | None) -> "tuple[frozenset[Status], bool]":
    """`--again`: statuses, and whether what changed is done again, too."""
    from judge.labelling.rows import Status

    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    known = (*get_args(Status), _CHANGED)
    unknown = next((name for name in names if name not in known), None)
    if unknown is not None:
        raise ConfigError(f"--again {unknown!r}: the statuses are {', '.join(known)}.")
    return frozenset(cast("list[Status]", names)) - {_CHANGED}, _CHANGED in names


@contextmanager
def _engine(job: "Job", classifier: "Classifier", ray: "LabellingRayOptions | None") -> "Iterator[Engine]":
    """The engine of this machine, or Ray's, whose cluster is there inside the `with` block."""
    if ray is None:
        from judge.labelling.one_machine import one_machine
        from judge.labelling.scoring import Scorer

        yield one_machine(job.opening, Scorer(classifier, job.scoring.judgings, job.scoring.batch_size))
        return
    from judge.labelling.ray_data import ray_engine

    with ray_engine(job.opening, job.scoring, ray) as engine:
        yield engine


def _conclude(tally: "Tally", output: Path, terminal: Terminal) -> int:
    """Say what the folder holds now, and return the exit code."""
    counts = tally.counts
    terminal.table(
        ("taxonomy", *_VERDICTS),
        [(name, *(some[verdict] for verdict in _VERDICTS)) for name, some in counts.verdicts.items()],
    )
    failed = {status: count for status, count in counts.statuses.items() if status != "ok"}
    for status, count in sorted(failed.items()):
        terminal.notice(f"{count:,} of {counts.statuses.total():,} rows are {status}; `reason` says why")
    terminal.notice(f"{counts.statuses.total():,} rows in {printable(output)}, {tally.rows:,} of them new")
    return EXIT_UNJUDGED if failed else EXIT_SAFE
