r"""Benchmark any image safety classifiers on labelled images, in the layout of UnsafeBench.

    python recipes/unsafebench.py

With no options: 300 pictures of digits, five of which play unsafe categories, and what ships or `make demo` and `make
student` left under runs/; what is missing is named and skipped. On 2 CPU cores it takes about 2 minutes and leaves
`runs/unsafebench`: report.html, report.md, metrics.json, and what each classifier said of each image in
predictions/LABEL.parquet. Some lines:

                               F1           95 %  mean F1   pair score
    student                 0.997  0.991 – 1.000    0.983        1.000
    judge                   0.995  0.986 – 1.000    0.932        0.958
    judge before LoRA       0.680  0.628 – 0.736    0.394        0.125

Your own images, labels and classifiers, ours and other people's (`eval/classifiers.py` lists them):

    arbiter bench runs/my_judge nudenet q16,weights=q16.safetensors mine.py:make_classifier \
        --dataset folder:my_images --taxonomy my_taxonomy.yaml --output_dir runs/my_benchmark

UnsafeBench by the paper's own rules (uncertain answers of zero-shot models are drawn at random; classifiers with fixed
categories see train and test), from a local copy of the gated data set: `--config
recipes/configs/unsafebench_paper.yaml --dataset unsafebench:PATH`.

A classifier is a name, a run or model folder, `hf:ORGANISATION/MODEL`, `URL#MODEL` of a server, a function of your own
(`FILE.py:FUNCTION`) or a file of predictions made elsewhere (`predictions:gpt4.csv`). Options follow, each behind
a comma, `label` and `price_per_1000` among them, or stand in a mapping in a YAML of --config. Each classifier is asked
about the categories that it claims to find and no others. What it could not judge counts as an error.

A run that was stopped goes on with `arbiter bench --output_dir RUN --resume true`; nothing is asked twice, apart from
what a service did not answer. On a finished run this writes the report anew.
"""

import gc
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

from eval.benchmark.asking import Benchmark, machine_name, merge_splits, without_prompts
from eval.benchmark.choices import Choice, parse_choices
from eval.benchmark.compare import compare_published, published_tables
from eval.benchmark.effectiveness import measure
from eval.benchmark.elsewhere import read_elsewhere
from eval.benchmark.overlap import compare_with_training, overlap_table
from eval.benchmark.policies import PolicyTests
from eval.benchmark.policy_asking import AskedPolicies
from eval.benchmark.policy_questions import PolicyOptions
from eval.benchmark.policy_tables import policy_set_table, policy_tables
from eval.benchmark.predict import ClassifierFailedError
from eval.benchmark.predictions import Predictions, Protocol
from eval.benchmark.report.page import write_benchmark_report
from eval.benchmark.sets import load_policy_set
from eval.benchmark.stages import Stages
from eval.benchmark.tables import by_category, failures, leaders
from eval.benchmark.union import parse_unions, unite_all
from eval.causes.explain import CauseOptions, explain_failures
from eval.causes.review import review_hash
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
from judge.data.examples import load_examples
from judge.data.images import open_image
from judge.encoders.dual import DualEncoder
from judge.errors import CheckpointError, ConfigError, MissingExtraError
from judge.protocol import Classifier
from judge.runs.folder import RunDir
from judge.serve.exit_codes import run_to_exit_code
from prompts import Taxonomy, load_taxonomy
from prompts.errors import ArbiterError
from prompts.unrelated import unrelated_categories

CONFIG = Path(__file__).parent / "configs" / "unsafebench.yaml"
MAY_DIFFER = (
    *("resume", "classifiers", "unite", "skip_missing", "batch_size", "blur", "overlap"),
    *("policies", "policy_rows", "policy_sets", "unrelated"),
    *("causes", "encoder", "style_model", "review", "attack_run"),
)
"""Options that may change when a run goes on: they change no prediction that is there already."""


@dataclass
class BenchmarkOptions(DataOptions):
    """Who is asked what, and by which rules."""

    output_dir: str = field(default="runs/unsafebench", metadata={"help": "The folder of the run."})
    classifiers: list[Any] = field(
        default_factory=lambda: ["small-student"],
        metadata={"help": "Each NAME, or NAME,option=value; in a YAML also {name: NAME, option: value}."},
    )
    unite: list[str] = field(
        default_factory=list, metadata={"help": "Unions to measure too, as 'q16 or nudenet', by label."}
    )
    categories: list[str] = field(
        default_factory=list, metadata={"help": "Ask about these categories of the taxonomy; by default all."}
    )
    skip_missing: bool = field(default=False, metadata={"help": "Leave out, and name, what is not here."})
    protocol: str = field(default="default", metadata={"help": "default, or paper: UnsafeBench's own rules."})
    split: str = field(default="test", metadata={"help": "The split that is asked about."})
    with_prompts: bool = field(
        default=True, metadata={"help": "Show images' prompts to who reads them; the paper does not."}
    )
    threshold: float = field(default=0.5, metadata={"help": "Score from which an image is flagged."})
    policies: bool = field(default=False, metadata={"help": "Ask under opposite and reworded policies too."})
    policy_rows: int = field(default=48, metadata={"help": "Images under opposite policies; rows a wording."})
    policy_sets: list[str] = field(
        default_factory=list, metadata={"help": "Other people's questions, as policyshiftbench:PATH."}
    )
    unrelated: list[str] = field(
        default_factory=list, metadata={"help": "Taxonomies that no image violates, to lengthen policies."}
    )
    overlap: bool = field(default=True, metadata={"help": "Look for tested images in runs' training data."})
    causes: bool = field(default=False, metadata={"help": "Look for what the wrong verdicts share."})
    encoder: str = field(default="none", metadata={"help": "Image-text encoder for maps of causes, or none."})
    style_model: str = field(default="none", metadata={"help": "Stable Diffusion for styles, or none."})
    review: str = field(default="none", metadata={"help": "Folder to check restyled pictures in, or none."})
    attack_run: str = field(default="none", metadata={"help": "A run of recipes/attack.py to learn from."})
    blur: bool = field(default=True, metadata={"help": "Blur the images in the report."})
    batch_size: int = field(default=32, metadata={"help": "Images in one call."})
    seed: int = field(default=7, metadata={"help": "Of intervals, policy tests and causes."})
    resume: bool = field(default=False, metadata={"help": "Go on with the run in output_dir."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.protocol not in get_args(Protocol):
            raise ConfigError(f"protocol is {self.protocol!r}; use one of {', '.join(get_args(Protocol))}.")
        if not 0 < self.threshold < 1:
            raise ConfigError(f"threshold is {self.threshold}; it lies between 0 and 1.")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; it is 1 or more.")


OPTIONS = (BenchmarkOptions,)


def main() -> None:
    """Ask, count, compare, look for causes, report."""
    started = time.time()
    (options,) = parse_options(OPTIONS, own_config)
    known = load_taxonomy(options.taxonomy)
    taxonomy = known.select(options.categories) if options.categories else known
    choices, skipped = look_up(options, taxonomy)  # a wrong name leaves no folder
    unions = parse_unions(options.unite, [*(choice.label for choice in choices), *skipped])
    run = open_folder(options, taxonomy)
    benchmark = load_images(options, known, taxonomy, choices, run)
    policies = policy_tests(options, benchmark)
    found, failed = ask_all(benchmark, choices, policies, skipped, options)
    if not found:
        raise ConfigError(f"No classifier could be measured. {several(skipped | failed)}")

    united, not_united = unite_all(found, unions, options.threshold)
    stages = Stages(run.path / "stages")
    metrics = count(found, united, benchmark, stages, options)
    metrics |= {"policies": policies.measured, "policy_sets": policies.measured_sets}
    metrics |= {"skipped": skipped | failed | not_united, "failed": failed}
    metrics["published"] = compare_published(metrics)
    if options.overlap:
        metrics["overlap"] = compare_with_training(
            found, benchmark.examples, benchmark.dataset, stages, options.threshold
        )
    if options.causes:
        metrics["causes"] = look_for_causes(found, choices, benchmark, stages, options)
    metrics["seconds"] = time.time() - started
    report(run, metrics, [*found, *united], benchmark, options.blur)
    show(run, metrics)
    if failed:
        raise ClassifierFailedError(
            f"{len(failed)} of {len(choices)} classifiers could not be measured. {several(failed)}"
        )


def own_config(given: Mapping[str, Any]) -> Path:
    """The options of the run to go on with, else the recipe's own."""
    folder = Path(given.get("output_dir", BenchmarkOptions.output_dir))
    if str(given.get("resume")).lower() != "true":
        return CONFIG
    if not (folder / "config.yaml").is_file():
        raise ConfigError(f"{folder} holds no run to go on with; check the name, or leave out --resume.")
    return folder / "config.yaml"


def look_up(options: BenchmarkOptions, taxonomy: Taxonomy) -> tuple[list[Choice], dict[str, str]]:
    """The classifiers that are here, and why the others are not: a mistyped one is said before anything is loaded."""
    choices, missing = parse_choices(options.classifiers), {}
    for choice in choices:
        try:
            if choice.file is not None:
                read_elsewhere(choice.file, taxonomy)
            else:
                choice.find(options.protocol)
        except CheckpointError as error:
            if not options.skip_missing:
                raise
            missing[choice.label] = str(error)
            log(f"{choice.label} is left out: {error}")
    return [choice for choice in choices if choice.label not in missing], missing


def open_folder(options: BenchmarkOptions, taxonomy: Taxonomy) -> RunDir:
    """The run folder, or that of the run to go on with."""
    folder = Path(options.output_dir)
    if options.resume:
        options.changed = {**RunDir.open(folder, kind="benchmark").config["changed"], **options.changed}
    return create_run(folder, "benchmark", taxonomy, [options], resume=options.resume, may_differ=MAY_DIFFER)


def load_images(
    options: BenchmarkOptions, known: Taxonomy, taxonomy: Taxonomy, choices: Sequence[Choice], run: RunDir
) -> Benchmark:
    """The split that is asked about, labelled in `known`; under the paper's rules also all splits together."""
    paper = options.protocol == "paper"
    [tested] = load_splits(options, known, (options.split,), run=run)
    examples, merged = tested.examples, None
    if paper and any(choice.group == "conventional" for choice in choices):
        ledger, most = run.path / "skipped-all.jsonl", options.max_failures
        every = load_examples(options.dataset, split="all", taxonomy=known, max_failures=most, ledger=ledger)
        merged = merge_splits(every.examples, options.limit)
        log(f"{len(merged):,} of all splits for classifiers with fixed categories")
    if paper or not options.with_prompts:
        examples, merged = without_prompts(examples), merged and without_prompts(merged)
    return Benchmark(
        run.path / "predictions",
        options.dataset,
        taxonomy,
        options.protocol,
        examples,
        merged,
        options.batch_size,
        machine_name(),
    )


def policy_tests(options: BenchmarkOptions, benchmark: Benchmark) -> AskedPolicies:
    """What is asked under other policies; drawn when the first classifier is asked."""
    tests = None
    if options.policies:
        flips = replace(PolicyOptions().flips, held_out=frozenset(options.held_out), **options.flip)
        rows = options.policy_rows
        asked = PolicyOptions(pairs=rows, rows=rows, flips=flips, seed=options.seed)
        others = [load_taxonomy(name) for name in options.unrelated]
        unrelated = unrelated_categories(others, benchmark.taxonomy, benchmark.examples)
        tests = PolicyTests(benchmark.examples, benchmark.taxonomy, asked, unrelated, options.threshold)
    sets = [load_policy_set(name, max_failures=options.max_failures) for name in options.policy_sets]
    return AskedPolicies(benchmark.folder.parent / "policies", tests, sets, options.threshold)


def ask_all(
    benchmark: Benchmark,
    choices: Sequence[Choice],
    policies: AskedPolicies,
    skipped: dict[str, str],
    options: BenchmarkOptions,
) -> tuple[list[Predictions], dict[str, str]]:
    """What each classifier says, and why some could not be measured; `skipped` grows."""
    there = {choice.label: benchmark.finished(choice) for choice in choices}  # refused before anyone is asked
    found: list[Predictions] = []
    failed: dict[str, str] = {}
    for choice in choices:
        load = cache(partial(choice.load, options.protocol))
        try:
            kept = there.pop(choice.label)
            if kept is not None:
                log(f"{choice.label}: {len(kept.rows):,} images were judged before")
            answers = kept or ask(benchmark, choice, load)
            if answers is None:
                skipped[choice.label] = f"it covers no category of {benchmark.taxonomy.name!r}"
                log(f"{choice.label} is left out: {skipped[choice.label]}")
                continue
            found.append(answers)
            if choice.file is None:
                about = answers.about
                with progress_bar(f"{choice.label}, policies", policies.count(about)) as progress:
                    policies.ask(about, load, lambda done, _, progress=progress: progress(done))
        except ArbiterError as error:  # whatever it is, the others go on
            missing = options.skip_missing and isinstance(error, CheckpointError | MissingExtraError)
            (skipped if missing else failed)[choice.label] = str(error)
            log(f"{choice.label} {'is left out' if missing else 'failed'}: {error}", stderr=True)
        except KeyboardInterrupt:
            go_on = f"arbiter bench --output_dir {options.output_dir} --resume true"
            log(f"Stopped; go on with: {go_on}", stderr=True)
            raise
        finally:
            load.cache_clear()
            gc.collect()  # a large model leaves before the next one comes
    return found, failed


def ask(benchmark: Benchmark, choice: Choice, load: Callable[[], Classifier]) -> Predictions | None:
    """What one classifier says of every image; None where it covers no category."""
    with progress_bar(choice.label, len(benchmark.examples_for(choice))) as progress:
        found = benchmark.ask(choice, load, progress)
    if found is not None:
        unjudged = sum(math.isnan(row.unsafe) for row in found.rows)
        log(f"{choice.label}: {len(found.rows):,} images, {unjudged} could not be judged")
        if left := benchmark.unanswered(found):
            log(
                f"{choice.label}: a service left {left} images unanswered; --resume true asks about them again"
            )
    return found


def count(
    found: Sequence[Predictions],
    united: Sequence[Predictions],
    benchmark: Benchmark,
    stages: Stages,
    options: BenchmarkOptions,
) -> dict[str, Any]:
    """All numbers of the predictions."""
    files = {one.about.label: benchmark.file_hash(one.about.label) for one in found}
    unions = [one.about.label for one in united]
    return stages.once(
        "numbers",
        [files, unions, options.threshold, options.held_out, options.seed],
        lambda: measure([*found, *united], options.threshold, held_out=options.held_out, seed=options.seed),
    )


def look_for_causes(
    found: Sequence[Predictions],
    choices: Sequence[Choice],
    benchmark: Benchmark,
    stages: Stages,
    options: BenchmarkOptions,
) -> dict[str, Any]:
    """What the wrong verdicts share."""
    files = {one.about.label: benchmark.file_hash(one.about.label) for one in found}
    by_label = {choice.label: choice for choice in choices if choice.file is None}
    named = (options.style_model, options.review, options.attack_run)
    style, review, attack_run = (None if name == "none" else Path(name) for name in named)
    asked = CauseOptions(threshold=options.threshold, style_model=style, review=review, seed=options.seed)
    return stages.once(
        "causes",
        [files, options.threshold, options.seed, options.encoder, *named, review_hash(review)],
        lambda: explain_failures(
            benchmark.examples,
            found,
            benchmark.folder.parent / "causes",
            encoder=None if options.encoder == "none" else DualEncoder.load(options.encoder),
            load=lambda label: by_label[label].load(options.protocol),
            options=asked,
            attack_run=attack_run,
            progress=log,
        ),
    )


def report(
    run: RunDir, metrics: dict[str, Any], found: Sequence[Predictions], benchmark: Benchmark, blur: bool
) -> None:
    """metrics.json, report.html and report.md."""
    write_metrics(run, metrics)
    by_id = {example.id: example for example in (*(benchmark.merged or ()), *benchmark.examples)}
    write_benchmark_report(
        run.path, metrics, found, images=lambda name: open_image(by_id[name].image), blur=blur
    )


def show(run: RunDir, metrics: Mapping[str, Any]) -> None:
    """The most important tables, and who is not in them."""
    shown = [leaders(metrics), by_category(metrics), failures(metrics)]
    if metrics["policies"]:
        shown += policy_tables(metrics["policies"])
    shown += [policy_set_table(records) for records in metrics["policy_sets"].values()]
    shown += published_tables(metrics["published"])
    if "overlap" in metrics:
        scores = {label: record["scores"] for label, record in metrics["overlap"].items()}
        shown.append(overlap_table(metrics["overlap"], scores))
    for table in shown:
        if table.lines:
            log(f"\n{table.to_text()}")
    for label, why in metrics["skipped"].items():
        log(f"\nnot measured: {label}: {why}")
    log(
        f"\n{metrics['seconds']:.0f} s in all; {run.path}/report.html has curves and images, report.md every table"
    )


def several(reasons: Mapping[str, str]) -> str:
    """Labels and reasons, on one line."""
    return "; ".join(f"{label}: {why}" for label, why in reasons.items())


if __name__ == "__main__":
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    raise SystemExit(run_to_exit_code(clean_start(main), debug=debug, name="error"))
