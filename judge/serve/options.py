"""The options that `arbiter judge` and `arbiter calibrate` share: the judge, the taxonomy, the thresholds."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from judge.errors import ConfigError
from judge.lessons.evidence import HasEvidence, evidence_of
from judge.protocol import HasDefaultTaxonomy, PromisesMissRate
from prompts.printable import printable
from prompts.reading import check_prompt_mode
from prompts.taxonomy import Taxonomy
from prompts.verdict import DEFAULT_THRESHOLD

from .completion import complete_categories, complete_prompt_mode, complete_run, complete_taxonomy
from .exit_codes import print_stderr

if TYPE_CHECKING:
    from judge.calibration.thresholds import Thresholds
    from judge.protocol import Classifier

RunOption = Annotated[
    str,
    typer.Option(
        "--judge",
        metavar="RUN",
        help="A run folder, student.onnx, http://HOST/v1#MODEL, or hf:ORGANISATION/MODEL.",
        autocompletion=complete_run,
    ),
]
StageJudgeOption = Annotated[
    str | None,
    typer.Option(
        metavar="JUDGE",
        help="Of a cascade: where its judge is, or none.",
        show_default="as it was calibrated",
    ),
]
TaxonomyOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A shipped taxonomy or a YAML file.",
        show_default="the judge's own",
        autocompletion=complete_taxonomy,
    ),
]
ThresholdOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="T",
        help="Flag from this score on in any category; A=T,B=T is for these categories, may be repeated, and leaves "
        "the others at 0.5; or a file of `arbiter calibrate`.",
        show_default="0.5",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
CategoriesOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="A,B", help="Only these categories; may be repeated.", autocompletion=complete_categories
    ),
]
CustomOption = Annotated[
    list[str] | None,
    typer.Option(metavar='"NAME: DEFINITION"', help="One more category; may be repeated."),
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar="ARBITER_DATABASE",
        help="Where queue and decisions of `serve` are kept, such as postgresql+psycopg://USER@HOST/NAME.",
        show_default="SQLite in --state",
    ),
]
DatabasePasswordOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Holds the password of --database, which a list of processes would show in a URL.",
    ),
]
PromptModeOption = Annotated[
    str,
    typer.Option(
        metavar="MODE",
        help="max: the image alone and with its prompt, whichever scores higher; use: with it; ignore: alone.",
        autocompletion=complete_prompt_mode,
    ),
]
BatchSizeOption = Annotated[int, typer.Option(metavar="N", min=1, help="Images in one batch.")]
DeviceOption = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", help="cpu, cuda, cuda:1, ...", show_default="a GPU where there is one"),
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print results and errors only: no progress, counts or remarks.")
]

_SHOWN = 5
"""Categories that a warning names at most."""


def quiet_libraries() -> None:
    """Keep progress bars and notices of libraries off the terminal; their errors are still printed."""
    import logging
    import os
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # peft still asks transformers 5.23 by a name that v6 will drop.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def load_judge(
    run: str,
    *,
    stage_judge: str | None,
    device: str | None,
    batch_size: int,
    prompt_mode: str = "max",
) -> "Classifier":
    """Load what `--judge` names, and what `--stage-judge` names as its last stage."""
    import judge

    quiet_libraries()
    stage = {"stage_judge": stage_judge} if stage_judge else {}
    mode = check_prompt_mode(prompt_mode)
    return judge.load_classifier(run, device=device, batch_size=batch_size, prompt_mode=mode, **stage)


def default_taxonomy(classifier: "Classifier") -> Taxonomy:
    """The taxonomy of the classifier, used where `--taxonomy` is not given.

    Raises:
        ConfigError: it has none.
    """
    taxonomy = classifier.default_taxonomy if isinstance(classifier, HasDefaultTaxonomy) else None
    if taxonomy is None:
        raise ConfigError("This judge has no taxonomy of its own; give --taxonomy NAME or a YAML file.")
    return taxonomy


def warn_outside_promise(
    classifier: "Classifier", taxonomy: Taxonomy, tell: Callable[[str], None] = print_stderr
) -> None:
    """Warn, once, if a cascade was calibrated for something else; `Verdict.because` repeats it for each image."""
    outside = classifier.outside_promise(taxonomy) if isinstance(classifier, PromisesMissRate) else None
    if outside is not None:
        tell(f"arbiter: {printable(classifier.name)}: {printable(outside)}")


def warn_without_evidence(
    classifier: "Classifier", run: str, taxonomy: Taxonomy, tell: Callable[[str], None] = print_stderr
) -> None:
    """Warn, once, of categories that the judge was neither trained nor measured on; `Verdict.evidence` says so too."""
    unknown = evidence_of(classifier).without(taxonomy)
    if not unknown:
        return
    from judge.runs.folder import MANIFEST

    kept = isinstance(classifier, HasEvidence) and classifier.evidence is not None
    if not kept and (Path(run) / MANIFEST).is_file():
        tell(
            f"arbiter: {printable(run)} is older than records of lessons: nobody knows what it was trained and "
            "measured on, and it answers outside of that too; train it again"
        )
        return
    shown = ", ".join(map(repr, unknown[:_SHOWN]))
    rest = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
    tell(
        f"arbiter: {printable(classifier.name)} was neither trained nor measured on {printable(shown)}{rest}, worded "
        "so; `arbiter obedience` measures it on labelled images"
    )


def choose_categories(
    taxonomy: Taxonomy, categories: Sequence[str] | None, custom: Sequence[str] | None
) -> Taxonomy:
    """The taxonomy with the categories of `--custom` added, narrowed to `--categories`; custom ones always stay.

    So `--custom "Balloons: ..." --categories Balloons` judges by the custom category alone.

    Raises:
        TaxonomyError: a category that does not exist, or one that cannot be added.
        ConfigError: a custom category without a definition.
    """
    added = []
    for text in custom or ():
        name, colon, definition = text.partition(":")
        if not (colon and name.strip() and definition.strip()):
            raise ConfigError(f'--custom {text!r}: write "NAME: DEFINITION".')
        added.append(name.strip())
        taxonomy = taxonomy.extend({added[-1]: definition.strip()})
    if not categories:
        return taxonomy
    # `--categories A,B --categories C`; a custom category may be among them, and then keeps its place.
    names = [name.strip() for text in categories for name in text.split(",") if name.strip()]
    selected = {name.casefold() for name in names}
    return taxonomy.select([*names, *(name for name in added if name.casefold() not in selected)])


def parse_threshold(texts: Sequence[str]) -> float | dict[str, float]:
    """`--threshold 0.3`, or `--threshold Violence=0.3,Nudity=0.7` for some categories; never both.

    A name with a comma is understood in an option of its own: `--threshold "Alcohol, tobacco=0.3"`.

    Raises:
        ConfigError: not a number from 0 to 1, two for one category (case ignored), or one for all mixed with some for
            single categories.
    """
    limits: dict[str, float] = {}  # the number for all categories has the name ""
    for text in texts:
        parts = text.split(",")
        for part in parts if all("=" in part for part in parts) else [text]:
            name, _, number = part.rpartition("=")  # the last one: a name may contain "="
            try:
                value = float(number)
            except ValueError:
                value = -1.0
            if not 0 <= value <= 1:  # also refuses NaN
                raise ConfigError(f"--threshold {part!r}: expected a number from 0 to 1, or NAME=number.")
            if name.strip().casefold() in map(str.casefold, limits):
                raise ConfigError(f"--threshold {part!r}: there is one before it already; give each once.")
            limits[name.strip()] = value
    if "" not in limits:
        return limits
    if len(limits) > 1:
        raise ConfigError("--threshold: give one number for all, or NAME=number for each category, not both.")
    return limits[""]


def read_threshold(texts: Sequence[str] | None) -> "float | dict[str, float] | Thresholds":
    """What `--threshold` says: numbers as in `parse_threshold`, or one file of `arbiter calibrate`.

    Raises:
        ConfigError: as `parse_threshold`; or the file cannot be used, or there are other thresholds beside it.
    """
    if not texts:
        return DEFAULT_THRESHOLD
    if not any(text.endswith((".yaml", ".yml", ".json")) for text in texts):
        return parse_threshold(texts)
    if len(texts) > 1:
        raise ConfigError("--threshold: give one file, or numbers, not both; the file can be edited.")
    from judge.calibration.thresholds import load_thresholds

    return load_thresholds(Path(texts[0]))


def own_threshold(
    classifier: "Classifier",
    taxonomy: Taxonomy,
    given: "float | dict[str, float] | Thresholds | None",
    tell: Callable[[str], None] = print_stderr,
) -> float | dict[str, float]:
    """`threshold_for`, or where nothing is given the thresholds that the classifier has of its own, and say so."""
    from judge.calibration.thresholds import HasThresholds

    own = classifier.thresholds if isinstance(classifier, HasThresholds) else None
    if given is not None or own is None:
        return threshold_for(taxonomy, DEFAULT_THRESHOLD if given is None else given)
    found = own.for_known(taxonomy)
    if not found:
        return DEFAULT_THRESHOLD
    shown = ", ".join(f"{name} {value:.3g}" for name, value in found.items())
    tell(
        f"arbiter: thresholds of {printable(classifier.name)} itself ({own.target}): {printable(shown)}; others 0.5"
    )
    return found


def threshold_for(
    taxonomy: Taxonomy, threshold: "float | dict[str, float] | Thresholds"
) -> float | dict[str, float]:
    """The threshold, or the thresholds per category, to judge by this taxonomy.

    Raises:
        TaxonomyError: a threshold for a category that the taxonomy lacks.
        ConfigError: a file with no threshold for any of the categories, or with one for another definition.
    """
    if isinstance(threshold, float):
        return threshold
    if isinstance(threshold, dict):
        for name in threshold:
            taxonomy.index(name)
        return threshold
    return threshold.for_taxonomy(taxonomy)
