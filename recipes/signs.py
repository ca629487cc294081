r"""Measure what only signs can show: real words, in policies that no lesson held, with small-clip and its student.

    python recipes/signs.py

With no options it asks the runs of `make signs`: the student, the linear probe and the published defense, and beside
them the plainest use of the encoder, a cosine with one fitted threshold. Each is asked about groups of the lessons,
groups held out of all lessons, sixty words that no lesson, taxonomy or training text holds ("booze", "livestock"), and
conditions on the prompt ("alcohol, if the prompt speaks of driving"); on pictures drawn as in training and in styles
never trained. The encoder alone is measured by AUC. On one CPU core it takes about 2 minutes and leaves `runs/signs`
(metrics.json, every judged row).

A judge (of `make signs-judge`) by itself, which takes some minutes, or beside the others:

    python recipes/signs.py --config recipes/configs/signs/judge.yaml
    python recipes/signs.py --judge runs/signs_judge --output_dir runs/signs_with_judge

`student` and `judge` may be any classifiers. Every option can stand in a YAML of `--config`.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.metrics.judged import JudgedRow, summarise
from eval.predict import predict_questions
from eval.questions import Question, draw_evaluation
from eval.recipe import (
    DataOptions,
    create_run,
    load_splits,
    log,
    parse_options,
    progress_bar,
    run_recipe,
    write_metrics,
)
from eval.signs.conjunctions import draw_conjunctions
from eval.signs.cosine import Cosine
from eval.signs.encoder import Scenes, measure_encoder
from eval.signs.new_words import draw_new_words
from judge import load_classifier
from judge.encoders.dual import DualEncoder
from judge.errors import ConfigError
from judge.protocol import Classifier, PromisesMissRate
from judge.runs.folder import RunDir
from prompts import Example, Taxonomy, load_taxonomy

CONFIG = Path(__file__).parent / "configs" / "signs" / "signs.yaml"
SPLITS = {"test": "", "new_styles": "_new_styles"}
"""Split -> the end of its metrics' names."""
SETS = {
    "f1": "trained groups",
    "heldout_f1": "held-out groups",
    "new_words_f1": "new words",
    "conjunctions_f1": "conjunctions",
}
"""Metric of a classifier -> what was asked."""


@dataclass
class SignsOptions(DataOptions):
    """Who is asked, and how much."""

    output_dir: str = field(default="runs/signs", metadata={"help": "The folder of the run."})
    student: str = field(
        default="runs/signs_student", metadata={"help": "A run folder or any other classifier, or none."}
    )
    judge: str = field(
        default="none", metadata={"help": "A slower classifier, asked `judge_rows` questions, or none."}
    )
    baselines: list[str] = field(
        default_factory=list,
        metadata={"help": "Runs to ask the same; the last one is the published defense."},
    )
    encoder: str = field(
        default="small-clip", metadata={"help": "The encoder to measure alone, and by cosines; or none."}
    )
    cascade: str = field(
        default="runs/signs_cascade", metadata={"help": "A run of recipes/cascade.py to report on, or none."}
    )
    cache: str = field(default="runs/features", metadata={"help": "Folder for the encoder's features."})
    rows: int = field(default=480, metadata={"help": "Questions of each set and split, about."})
    judge_rows: int = field(default=96, metadata={"help": "The same for the judge."})
    seed: int = field(default=42, metadata={"help": "Of every draw."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.dataset.startswith("signs"):
            raise ConfigError(
                f"dataset is {self.dataset!r}; these questions are about signs, or signs:COUNT."
            )
        for name in ("rows", "judge_rows"):
            if getattr(self, name) < 16:
                raise ConfigError(f"{name} is {getattr(self, name)}; ask at least 16 questions of each set.")
        if (self.student, self.judge) == ("none", "none"):
            raise ConfigError("student and judge are both none; name a run of at least one.")


OPTIONS = (SignsOptions,)


def main() -> None:
    """Draw, measure the encoder, ask everybody, report."""
    started = time.time()
    (options,) = parse_options(OPTIONS, CONFIG)
    taxonomy = load_taxonomy(options.taxonomy)
    # Loaded first, so that a wrong name leaves no folder.
    named = {"student": options.student, "judge": options.judge}
    deployed = {role: load_classifier(name) for role, name in named.items() if name != "none"}
    baselines = {Path(name).name: load_classifier(name) for name in options.baselines}
    run = create_run(options.output_dir, "signs", taxonomy, [options])
    loaded = load_splits(options, taxonomy, ("validation", *SPLITS))
    splits = {name: found.examples for name, found in zip(("validation", *SPLITS), loaded, strict=True)}
    metrics: dict[str, Any] = {}
    if options.encoder != "none":
        encoder = DualEncoder.load(options.encoder)
        cache = Path(options.cache)
        scenes = {name: Scenes.encode(encoder, examples, cache) for name, examples in splits.items()}
        metrics["encoder"] = measure_encoder(encoder, taxonomy, scenes)
        del scenes
        fitting = draw_evaluation(
            splits["validation"], taxonomy, options.flips, seed=options.seed, rows=options.rows
        )
        cosines = {"cosine": Cosine(encoder), "cosine_pooled": Cosine(encoder, pooled=True)}
        for cosine in cosines.values():
            cosine.fit(fitting.flips)
        baselines = {**cosines, **baselines}

    for role, classifier in deployed.items():
        rows = options.judge_rows if role == "judge" else options.rows
        metrics[role] = ask(classifier, role, draw_all(splits, taxonomy, options, rows), run)
    asked = draw_all(splits, taxonomy, options, options.rows)
    metrics["baselines"] = {name: ask(one, name, asked, run) for name, one in baselines.items()}
    everybody = {role: metrics[role] for role in deployed} | metrics["baselines"]
    metrics["conjunctions"] = {name: found["conjunctions_f1"] for name, found in everybody.items()}
    if options.cascade != "none":
        metrics["cascade"] = cascade_on_held_out(options, splits["test"], taxonomy)
    write_metrics(run, {**metrics, "seconds": time.time() - started})
    show(metrics)
    log(f"\n{time.time() - started:.0f} s in all; {run.path / 'metrics.json'}")


def draw_all(
    splits: Mapping[str, Sequence[Example]], taxonomy: Taxonomy, options: SignsOptions, rows: int
) -> dict[str, Sequence[Question]]:
    """The four sets of questions on every split, by the names of their metrics."""
    return {
        (metric + suffix): questions
        for split, suffix in SPLITS.items()
        for metric, questions in draw_sets(splits[split], taxonomy, options, rows)
    }


def draw_sets(
    examples: Sequence[Example], taxonomy: Taxonomy, options: SignsOptions, rows: int
) -> Iterator[tuple[str, Sequence[Question]]]:
    """The four sets of questions on one split, of about so many rows each."""
    # The new styles have no pictograms of some groups.
    shown = frozenset().union(*(example.violates for example in examples))
    taxonomy = taxonomy.select(category.name for category in taxonomy if category.key in shown)
    drawn = draw_evaluation(examples, taxonomy, options.flips, seed=options.seed, rows=rows)
    yield "f1", drawn.flips
    yield "heldout_f1", drawn.held_out
    yield "new_words_f1", draw_new_words(examples, seed=options.seed, rows=rows)
    trained = options.flips.training_keys(taxonomy)
    yield (
        "conjunctions_f1",
        draw_conjunctions(examples, taxonomy, trained, seed=options.seed, rows=rows),
    )


def ask(
    classifier: Classifier, name: str, asked: Mapping[str, Sequence[Question]], run: RunDir
) -> dict[str, Any]:
    """F1 of every set at the threshold 0.5, and of conjunctions also by whether lessons held the topic."""
    metrics: dict[str, Any] = {}
    answers: dict[str, list[JudgedRow]] = {}
    with progress_bar(f"asking {name}", sum(map(len, asked.values()))) as progress:
        before = 0
        for metric, questions in asked.items():
            done = lambda count, before=before: progress(before + count)  # noqa: E731
            answers[metric] = predict_questions(classifier, questions, progress=done)
            before += len(questions)
    for metric, rows in answers.items():
        metrics[metric] = summarise(rows)["f1"]
        if metric.startswith("conjunctions"):
            for kind in ("known", "new"):
                part = [row for row in rows if row.id.startswith(kind)]
                metrics[f"{metric}_{kind}_topics"] = summarise(part)["f1"]
    run.write_rows(
        name, ({"set": metric, **row.to_dict()} for metric, rows in answers.items() for row in rows)
    )
    return metrics


def cascade_on_held_out(
    options: SignsOptions, examples: Sequence[Example], taxonomy: Taxonomy
) -> dict[str, Any]:
    """Numbers of the cascade's own run, and what it promises and does on held-out groups.

    `heldout_promise` is the promise or why it is withdrawn; `heldout_miss_rate` the share of unsafe rows called safe.
    """
    own = RunDir.open(options.cascade, kind="cascade").metrics
    cascade = load_classifier(options.cascade)
    held_out = taxonomy.select(c.name for c in taxonomy if c.key in options.held_out)
    drawn = draw_evaluation(examples, taxonomy, options.flips, seed=options.seed, rows=options.rows)
    rows = [row for row in predict_questions(cascade, drawn.held_out) if row.truth]
    promise = cascade.promise(held_out) if isinstance(cascade, PromisesMissRate) else None
    return {
        "mean_miss_rate": own["resampling"]["mean"],
        "promised_miss_rate": own["promised_miss_rate"],
        "splits": own["resampling"]["splits"],
        "f1": own["f1"],
        "heldout_miss_rate": sum(row.unsafe < 0.5 for row in rows) / max(len(rows), 1),
        "heldout_promise": promise,
    }


def show(metrics: Mapping[str, Any]) -> None:
    """A line for each number of the encoder, and one for each classifier."""
    encoder = metrics.get("encoder", {})
    for name in ("f1", "auc_listed", "auc_names", "auc_new_words"):
        if name in encoder:
            log(f"encoder {name:16}{encoder[name]:.3f}   new styles {encoder[f'{name}_new_styles']:.3f}")
    log(f"\n{'F1':28}" + "".join(f"{words:>18}" for words in SETS.values()))
    roles = {role: metrics[role] for role in ("student", "judge") if role in metrics}
    for name, found in (roles | metrics["baselines"]).items():
        for split, suffix in SPLITS.items():
            label = f"{name}, new styles" if split == "new_styles" else name
            log(f"{label:28}" + "".join(f"{found[key + suffix]:>18.3f}" for key in SETS))
    if "cascade" in metrics:
        found = metrics["cascade"]
        log(
            f"\ncascade: {found['mean_miss_rate']:.2%} missed on average over {found['splits']} splits, "
            f"{found['promised_miss_rate']:.0%} promised; on held-out groups {found['heldout_miss_rate']:.1%}, "
            f"promise {found['heldout_promise']}"
        )


if __name__ == "__main__":
    run_recipe(main)
