r"""Measure whether a classifier obeys your list of categories in any wording, whatever the prompt says.

    python recipes/obedience.py

With no options: the judge of `make demo` on digits. The same 120 questions are asked under 34 families of rewritings of
the policy (capitals, typos, nonsense names, legal prose, German, 40 categories, negations, orders in definitions, ...)
and beside 31 families of prompts (prose of 10 to 4,000 characters, invisible characters, lies, forged verdicts, ...).
Each is compared with the plain wording, or with no prompt, on the same images. Families that no lesson may use are
reported apart. On one CPU core it takes 6 minutes and leaves `runs/obedience`: metrics.json, every judged row,
report.html with a bar a family and the wrong verdicts of the worst. Some lines:

                                                       F1   drop            95 %
    as the taxonomy words it                        0.983      –               –
    definition_only, never used in lessons          0.956  0.027  -0.008 – 0.071
    upper_case                                      0.983  0.000   0.000 – 0.000
    legal_prose                                     0.965  0.018  -0.015 – 0.057
    categories_20                                   0.957  0.026   0.000 – 0.060
    bullets, never used in lessons                  0.822  0.161   0.106 – 0.227
    negation                                        0.024  0.952   0.893 – 1.000
    prompts of 300 and of 4,000 characters          0.983  0.000   0.000 – 0.000

Your own judge, images and categories, and the base it was trained from beside it:

    arbiter obedience runs/my_judge --before hf:llava-hf/llava-1.5-7b-hf --rows 300 --dataset folder:my_images \
        --taxonomy my_taxonomy.yaml --held_out gambling --unrelated plants.yaml

`--unrelated` names taxonomies of which no image violates anything: policies are filled up to 20, 40 and 100 categories
with theirs. Only you know that of your images, so by default there are none, and those families are left out.
`--families my_families.yaml` adds rewritings of your own (`eval/obedience/user_families.py` shows the format); `--only
typos legal_prose` asks about these families alone. Every option can stand in a YAML of `--config`.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eval.obedience.added_category import measure_added_category
from eval.obedience.family import Family
from eval.obedience.lessons import keep_measured, left_unjudged, unjudged_table
from eval.obedience.measure import measure_all, measure_promise
from eval.obedience.report import write_obedience_report
from eval.obedience.shipped import FAMILIES, choose_families, language_families
from eval.obedience.suite import PLAIN, Answers, Rewritten, ask_all, plain_wording, rewrite_all
from eval.obedience.tables import headline, refusals, tables
from eval.obedience.user_families import load_families
from eval.questions import draw_evaluation
from eval.recipe import (
    DataOptions,
    clean_start,
    create_run,
    load_splits,
    log,
    parse_options,
    progress_bar,
    write_metrics,
)
from judge import load_classifier
from judge.data.examples import ExampleSet
from judge.errors import ConfigError
from judge.protocol import Classifier
from judge.runs.folder import RunDir
from judge.serve.exit_codes import run_to_exit_code
from prompts import Category, Taxonomy, load_taxonomy
from prompts.unrelated import unrelated_categories

CONFIG = Path(__file__).parent / "configs" / "obedience.yaml"


@dataclass
class ObedienceOptions(DataOptions):
    """Who is asked, and under which rewritings."""

    output_dir: str = field(default="runs/obedience", metadata={"help": "The folder of the run."})
    judge: str = field(
        default="runs/demo", metadata={"help": "The classifier: a run folder, or what load_classifier takes."}
    )
    before: str = field(
        default="none",
        metadata={"help": "Another one to show beside it, such as the untrained base; or none."},
    )
    unrelated: list[str] = field(
        default_factory=list,
        metadata={"help": "Taxonomies of which no image violates anything, to fill policies up with."},
    )
    families: list[str] = field(
        default_factory=list, metadata={"help": "YAML files with families of your own."}
    )
    only: list[str] = field(
        default_factory=list, metadata={"help": "Ask about these families alone; by default about all."}
    )
    rows: int = field(
        default=240, metadata={"help": "Questions of each family; half as many on held-out categories."}
    )
    threshold: float = field(default=0.5, metadata={"help": "P(unsafe) from which an image is flagged."})
    batch_size: int = field(default=8, metadata={"help": "Images in one forward pass."})
    seed: int = field(default=7, metadata={"help": "Of the questions and the rewritings."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows < 1:
            raise ConfigError(f"rows is {self.rows}; ask one question of each family at least.")
        if not 0 < self.threshold < 1:
            raise ConfigError(f"threshold is {self.threshold}; it lies between 0 and 1.")


OPTIONS = (ObedienceOptions,)


def main() -> None:
    """Draw, rewrite, ask, measure, report."""
    started = time.time()
    (options,) = parse_options(OPTIONS, CONFIG)
    taxonomy = load_taxonomy(options.taxonomy)
    families = all_families(options, taxonomy)
    judge = load_classifier(options.judge, batch_size=options.batch_size)  # a wrong name leaves no folder
    run = create_run(options.output_dir, "obedience", taxonomy, [options])
    [test] = load_splits(options, taxonomy, ("test",), run=run)
    unrelated = unrelated_categories(
        [load_taxonomy(name) for name in options.unrelated], taxonomy, test.examples
    )
    rewritten = rewrite(test, taxonomy, families, unrelated, options)

    answers = ask(judge, rewritten, options.judge)
    metrics = measure_all(families, answers, rewritten, options.threshold)
    metrics["promise"] = measure_promise(judge, rewritten, answers, options.threshold)
    metrics["added_category"] = measure_added_category(
        judge, rewritten[PLAIN].questions, unrelated, threshold=options.threshold, seed=options.seed
    )
    keep_rows(run, "judge", answers, rewritten)
    kept = keep_measured(
        options.judge, judge, taxonomy, rewritten, answers, metrics["families"], options.threshold
    )
    metrics |= {"kept_in_run": kept, "left_unjudged": left_unjudged(judge, rewritten)}
    before = None
    if options.before != "none":
        base = load_classifier(options.before, batch_size=options.batch_size)
        earlier = ask(base, rewritten, options.before)
        before = measure_all(families, earlier, rewritten, options.threshold)
        keep_rows(run, "before", earlier, rewritten)

    about = {"judge": options.judge, "dataset": options.dataset, "taxonomy_hash": taxonomy.hash}
    write_metrics(run, {**metrics, **about, "before": before, "seconds": time.time() - started})
    write_obedience_report(run, metrics, before, rewritten, answers, options.threshold)
    show(run, {**metrics, **about}, before, time.time() - started)


def all_families(options: ObedienceOptions, taxonomy: Taxonomy) -> tuple[Family, ...]:
    """The families that ship, the taxonomy's languages and the user's own, or those of them that `only` names."""
    known = [*FAMILIES, *language_families(taxonomy)]
    for path in options.families:
        known += load_families(path, taxonomy, [family.name for family in known])
    return choose_families(options.only, known)


def rewrite(
    test: ExampleSet,
    taxonomy: Taxonomy,
    families: Sequence[Family],
    unrelated: Sequence[Category],
    options: ObedienceOptions,
) -> dict[str, Rewritten]:
    """Draw the questions and put them in every wording."""
    flips = plain_wording(options.flips)
    evaluation = draw_evaluation(test.examples, taxonomy, flips, seed=options.seed, rows=options.rows)
    return rewrite_all(
        evaluation,
        families,
        taxonomy,
        held_out=frozenset(options.held_out),
        unrelated=unrelated,
        seed=options.seed,
    )


def ask(classifier: Classifier, rewritten: dict[str, Rewritten], name: str) -> dict[str, Answers]:
    """All questions, with a progress bar."""
    total = sum(len(one.questions) + len(one.held_out) for one in rewritten.values())
    log(f"{total:,} questions for {name}, under {len(rewritten)} wordings")
    with progress_bar("judging", total) as progress:
        return ask_all(classifier, rewritten, progress=lambda done, _: progress(done))


def keep_rows(
    run: RunDir, name: str, answers: Mapping[str, Answers], rewritten: Mapping[str, Rewritten]
) -> None:
    """Every judged row with its family; the policies, which many rows share, in a file of their own."""
    policies: dict[str, dict[str, Any]] = {}

    def records() -> Iterator[dict[str, Any]]:
        for family, found in answers.items():
            asked = rewritten[family]
            for part, questions, rows in (
                ("flips", asked.questions, found.rows),
                ("held_out", asked.held_out, found.held_out),
            ):
                for question, row in zip(questions, rows, strict=True):
                    policy = question.row.taxonomy
                    policies.setdefault(policy.short_hash, policy.to_dict())
                    fields = row.to_dict()
                    del fields["policy"], fields["keys"]  # up to 100 names each
                    yield {"family": family, "set": part, "policy": policy.short_hash, **fields}

    run.write_rows(name, records())
    run.write_rows("policies", ({"hash": key, "taxonomy": policy} for key, policy in policies.items()))


def show(run: RunDir, metrics: Mapping[str, Any], before: Mapping[str, Any] | None, seconds: float) -> None:
    """Every table, the folder, and where the measurements went."""
    left = unjudged_table(metrics["left_unjudged"])
    for table in (*tables(metrics, before), refusals(metrics), left, headline(metrics, before)):
        if table.lines:
            log(f"\n{table.to_text()}")
    if metrics["kept_in_run"]:
        log(
            f"\nWhat it obeyed is kept in measured.json of {metrics['judge']}: its verdicts name it as evidence."
        )
    log(f"\n{seconds:.0f} s in all; {run.path}/report.html shows the wrong verdicts of the worst families")


if __name__ == "__main__":
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    raise SystemExit(run_to_exit_code(clean_start(main), debug=debug, name="error"))
