"""The data of a recipe: its options, its splits, and the questions that all processes judge together."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from eval.metrics.judged import JudgedRow
from eval.predict import predict_questions
from eval.questions import Evaluation
from judge.baselines.fit import Targets, judge_targets
from judge.data.check import stopping_problems
from judge.data.examples import ExampleSet, check_splits, load_examples
from judge.data.labels import label_notes
from judge.errors import ConfigError
from judge.protocol import Classifier
from judge.runs.folder import RunDir
from prompts import FlipOptions, Taxonomy
from prompts.errors import ExampleError
from prompts.example import Example

from .options import RecipeOptions, check_mapping
from .run import log, progress_bar


@dataclass
class DataOptions(RecipeOptions):
    """Which images, and under which categories."""

    dataset: str = field(
        default="digits",
        metadata={
            "help": "digits, signs, unsafebench, folder:PATH, dataset:NAME, or others of judge.data.examples."
        },
    )
    taxonomy: str = field(default="digits", metadata={"help": "A taxonomy that ships, or a YAML file."})
    held_out: list[str] = field(
        default_factory=list, metadata={"help": "Keys of categories that no training policy may contain."}
    )
    flip: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "Label flipping: any field of prompts.FlipOptions. In a YAML only."},
    )
    max_failures: float = field(
        default=0.01, metadata={"help": "Largest share, 0 to 1, of unusable rows before the run stops."}
    )
    limit: int | None = field(default=None, metadata={"help": "Use at most so many rows of each split."})

    def __post_init__(self) -> None:
        check_mapping("flip", self.flip, FlipOptions, without=("held_out",))
        if not 0 <= self.max_failures <= 1:
            raise ConfigError(f"max_failures is {self.max_failures}; it is a share, from 0 to 1.")
        _ = self.flips  # out of range? better now than after the data was read

    @property
    def flips(self) -> FlipOptions:
        """How policies are drawn."""
        return FlipOptions(held_out=frozenset(self.held_out), **self.flip)


def config_by_data(
    demo: Path, own_data: Path, needed: Mapping[str, str]
) -> Callable[[Mapping[str, Any]], Path]:
    """What picks a recipe's own YAML by the options that a user gave (`parse_options`).

    Args:
        demo: the YAML for data that are drawn here, which the demo uses.
        own_data: the one for any other data, with nothing of the demo in it.
        needed: option -> what it is, of those without which other data mean nothing.

    Returns:
        A function that raises `ConfigError` where one of `needed` is missing.
    """

    def choose(given: Mapping[str, Any]) -> Path:
        dataset = str(given.get("dataset", "digits"))
        if dataset.partition(":")[0] in ("digits", "signs"):
            return demo
        for name, what in needed.items():
            if name not in given:
                raise ConfigError(f"--dataset {dataset} needs --{name}: {what}.")
        return own_data

    return choose


def check_own_data(data: DataOptions, taxonomy: Taxonomy) -> None:
    """Stop before a run folder is made where the table of one's own images cannot be trained on.

    Opens no image; other sources are checked as they are loaded.

    Raises:
        ExampleError: the first problem, and what to do about it.
    """
    if not data.dataset.startswith("folder:"):
        return
    found = stopping_problems(data.dataset, taxonomy, flip=data.flips, max_failures=data.max_failures)
    if found:
        more = f" And {len(found) - 1} more: see `arbiter data check`." if len(found) > 1 else ""
        raise ExampleError(f"{found[0].what.rstrip('.')}. {found[0].fix}".rstrip() + more)


def load_splits(
    data: DataOptions,
    taxonomy: Taxonomy,
    splits: Sequence[str] = ("train", "validation", "test"),
    *,
    run: RunDir | None = None,
) -> list[ExampleSet]:
    """Load splits of one data source, check that no picture stands in two of them, and print their sizes.

    Args:
        data: the source, how much of it, and how many rows may be unusable.
        taxonomy: what category names are matched to.
        splits: which, in the order they are given back.
        run: the first process lists rows that could not be used in its `skipped-SPLIT.jsonl`.

    Raises:
        ExampleError: no such source or split, too many unusable rows, or a picture in two splits.
    """
    ledgers = run is not None and PartialState().is_main_process
    sets = [
        load_examples(
            data.dataset,
            split=split,
            taxonomy=taxonomy,
            max_failures=data.max_failures,
            limit=data.limit,
            ledger=run.path / f"skipped-{split}.jsonl" if run is not None and ledgers else None,
        )
        for split in splits
    ]
    check_splits(*sets)
    notes = [note for examples in sets for note in examples.notes]
    for note in dict.fromkeys((*notes, *label_notes([e for one in sets for e in one.examples], taxonomy))):
        log(note)
    skipped = sum(len(examples.skipped) for examples in sets)
    sizes = ", ".join(f"{len(examples.examples):,} {examples.name}" for examples in sets)
    log(
        f"{sizes}; {skipped} rows could not be used{' (listed in skipped-SPLIT.jsonl)' if skipped and run else ''}"
    )
    left_out = sum((Counter(examples.left_out) for examples in sets), Counter())
    if left_out:
        log(f"Left out, as no part of the set: {', '.join(f'{n:,} {why}' for why, n in left_out.items())}")
    return sets


def predict_distributed(classifier: Classifier, evaluation: Evaluation, name: str = "") -> list[JudgedRow]:
    """Judge an evaluation's questions, shared out over the processes; every process gets all rows, in order.

    Every process has to call it. With a `name`, the first one shows a progress bar.
    """
    state = PartialState()
    with state.split_between_processes(list(evaluation.questions)) as mine:
        if name:
            with progress_bar(f"judging {name}", len(mine)) as progress:
                judged = predict_questions(classifier, mine, progress=progress)
        else:
            judged = predict_questions(classifier, mine)
    return gather_object(judged) if state.num_processes > 1 else judged


def judge_targets_distributed(
    judge: Classifier, examples: Sequence[Example], taxonomy: Taxonomy, *, batch_size: int
) -> Targets:
    """A judge's probabilities as targets, shared out over the processes; every process has to call it and gets all."""
    state = PartialState()
    with (
        state.split_between_processes(list(examples)) as mine,
        progress_bar("asking the judge", len(mine)) as progress,
    ):
        found = judge_targets(judge, mine, taxonomy, batch_size=batch_size, progress=progress)
    if state.num_processes == 1:
        return found
    parts = gather_object([(found.unsafe, found.categories)])
    unsafe, categories = (torch.cat(column) for column in zip(*parts, strict=True))
    return Targets(unsafe, categories)
