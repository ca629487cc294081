"""What the recipes of heads with fixed categories share: their data, their run folder, and how they are measured.

They answer the questions that judge and student answer at the end (`eval.questions.draw_evaluation` with the same
seed), so their rows can stand in one table.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from judge.baselines.classifier import FixedClassifier
from judge.baselines.fit import FitOptions, Targets, judge_targets, label_targets
from judge.classifiers import load_classifier
from judge.data.examples import ExampleSet, check_splits, load_examples
from judge.errors import ConfigError
from judge.protocol import Classifier
from judge.runs.folder import RunDir
from judge.runs.machine import environment
from prompts import FlipOptions, Taxonomy, load_taxonomy
from prompts.example import Example

from .metrics.judged import JudgedRow, summarise
from .options import RecipeOptions
from .predict import predict_questions, summarise_evaluation
from .questions import Evaluation

TEACHERS = ("labels", "judge")


@dataclass
class HeadOptions(RecipeOptions):
    """What a head learns from, and what it is asked at the end."""

    output_dir: str = field(default="runs/head", metadata={"help": "Run folder to write; new or empty."})
    encoder: str = field(
        default="tiny-clip", metadata={"help": "CLIP or SigLIP: hub id, folder or tiny-clip."}
    )
    encoder_revision: str = field(default="main", metadata={"help": "Of the hub."})
    encoder_dtype: str = field(default="float32", metadata={"help": "float32, bfloat16 or float16."})
    cache: str | None = field(
        default="runs/features", metadata={"help": "Folder of computed features; null keeps none."}
    )
    dataset: str = field(
        default="digits",
        metadata={
            "help": "digits, unsafebench, folder:PATH, dataset:NAME or an external set (judge.data.examples)."
        },
    )
    taxonomy: str = field(default="digits", metadata={"help": "A taxonomy that ships, or a YAML file."})
    held_out: list[str] = field(
        default_factory=list, metadata={"help": "Keys of categories that training must not see."}
    )
    teacher: str = field(default="labels", metadata={"help": "What is learnt: labels, or what a judge says."})
    judge: str = field(default="runs/demo", metadata={"help": "The judge of teacher: judge; a run folder."})
    flip: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "Policies of the evaluation: any field of prompts.FlipOptions. In a YAML only."},
    )
    max_failures: float = field(
        default=0.01, metadata={"help": "Largest share, 0 to 1, of unusable rows before the run stops."}
    )
    limit: int | None = field(default=None, metadata={"help": "Use at most so many rows of each split."})
    test_rows: int = field(default=1600, metadata={"help": "Test questions asked at the end."})
    threshold: float = field(default=0.5, metadata={"help": "P(unsafe) from which an image is flagged."})
    judge_batch_size: int = field(default=32, metadata={"help": "Images in one forward pass of a judge."})

    def __post_init__(self) -> None:
        if self.teacher not in TEACHERS:
            raise ConfigError(f"teacher is {self.teacher!r}; use one of {', '.join(TEACHERS)}.")

    @property
    def flips(self) -> FlipOptions:
        """How the evaluation's policies are drawn."""
        return FlipOptions(held_out=frozenset(self.held_out), **self.flip)

    def trained(self, taxonomy: Taxonomy) -> Taxonomy:
        """The taxonomy without what is held out."""
        keys = self.flips.training_keys(taxonomy)
        return taxonomy.select(category.name for category in taxonomy if category.key in keys)


def open_run(kind: str, data: HeadOptions, options: FitOptions) -> RunDir:
    """The run folder, made by the first process; the others wait for it."""
    state = PartialState()
    if state.is_main_process:
        run = RunDir.create(data.output_dir, kind=kind)
        run.write_taxonomy(data.trained(load_taxonomy(data.taxonomy)))
        run.write_environment()
        run.write_config({**asdict(data), **asdict(options)})
    state.wait_for_everyone()
    return RunDir.open(data.output_dir, kind=kind)


def load_splits(data: HeadOptions, taxonomy: Taxonomy, run: RunDir) -> tuple[list[Example], ExampleSet]:
    """Training examples that violate nothing held out, and the test set; no image in both."""
    train, test = (
        load_examples(
            data.dataset,
            split=split,
            taxonomy=taxonomy,
            max_failures=data.max_failures,
            limit=data.limit,
            ledger=run.path / f"skipped-{split}.jsonl" if PartialState().is_main_process else None,
        )
        for split in ("train", "test")
    )
    check_splits(train, test)
    held_out = frozenset(data.held_out)
    return [example for example in train.examples if not example.violates & held_out], test


def find_targets(
    data: HeadOptions, examples: Sequence[Example], trained: Taxonomy, progress: Any = None
) -> Targets:
    """What the head learns: labels, or the judge's probabilities, asked for by all processes together."""
    if data.teacher == "labels":
        return label_targets(examples, trained)
    state = PartialState()
    judge = load_classifier(data.judge, device=str(state.device), batch_size=data.judge_batch_size)
    with state.split_between_processes(list(examples)) as mine:
        found = judge_targets(judge, mine, trained, batch_size=data.judge_batch_size, progress=progress)
    if state.num_processes == 1:
        return found
    parts = gather_object([(found.unsafe, found.categories)])
    unsafe, categories = (torch.cat(column) for column in zip(*parts, strict=True))
    return Targets(unsafe, categories)


def ask(classifier: Classifier, evaluation: Evaluation) -> list[JudgedRow]:
    """Judge an evaluation's questions, shared out over the processes; every process gets all verdicts."""
    state = PartialState()
    with state.split_between_processes(list(evaluation.questions)) as mine:
        judged = predict_questions(classifier, mine)
    return gather_object(judged) if state.num_processes > 1 else judged


def measure(classifier: FixedClassifier, evaluation: Evaluation, threshold: float) -> dict[str, Any]:
    """Ask a classifier every question, with both ways of mapping categories where it has categories.

    Returns:
        `summarise_evaluation` with the kindest mapping, and beside it `f1_everything` (flips and held-out
        categories in one), `f1_by_name` and `by_name` (the same summary with `match="name"`; both None for a
        classifier that looks at no category), and `rows` for each mapping.
    """
    found: dict[str, Any] = {"f1_by_name": None, "by_name": None}
    judged = ask(classifier, evaluation)
    summary = summarise_evaluation(evaluation, judged, threshold)
    found |= summary | {"f1_everything": summarise(judged, threshold)["f1"], "judged": {"rows": judged}}
    if classifier.scores_categories:
        by_name = copy.copy(classifier)
        by_name.match = "name"
        judged = ask(by_name, evaluation)
        found["by_name"] = summarise_evaluation(evaluation, judged, threshold)
        found["by_name"]["f1_everything"] = summarise(judged, threshold)["f1"]
        found["f1_by_name"] = found["by_name"]["f1"]
        found["judged"]["by_name"] = judged
    return found


def write_results(
    run: RunDir,
    classifier: FixedClassifier,
    found: dict[str, Any],
    history: Sequence[dict[str, float]],
    started: float,
) -> str:
    """metrics.json, every judged row and the losses; gives the lines to print back."""
    place = environment()
    numbers = {key: value for key, value in found.items() if key != "judged"}
    run.write_metrics(
        numbers
        | {
            "seconds": time.time() - started,
            "parameters": sum(parameter.numel() for parameter in classifier.head.parameters()),
            "taxonomy_hash": classifier.default_taxonomy.hash,
            "machine": place["machine"],
            "versions": place["packages"],
            "commit": place["git"],
        }
    )
    for name, judged in found["judged"].items():
        run.write_rows(name, (row.to_dict() for row in judged))
    run.write_rows("history", history)
    lines = [f"{'':32}{'by members':>12}{'by name':>12}"]
    labels = {
        "f1": "F1",
        "safe_to_unsafe": "flip safe -> unsafe",
        "unsafe_to_safe": "flip unsafe -> safe",
        "heldout_f1": "F1, held-out categories",
        "f1_everything": "F1, both together",
        "unjudged_share": "could not judge",
    }
    for key, label in labels.items():
        columns = [found, found["by_name"] or {}]
        shown = ["-" if column.get(key) is None else f"{column[key]:.3f}" for column in columns]
        lines.append(f"{label:32}{shown[0]:>12}{shown[1]:>12}")
    return "\n".join([*lines, f"{time.time() - started:.0f} s in all; {Path(run.path) / 'metrics.json'}"])
