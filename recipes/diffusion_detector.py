r"""Train a detector that reads pictures while a diffusion model makes them, and measure it against what it must beat.

    python recipes/diffusion_detector.py

With no options: `tiny-diffusion` draws 12,000 pictures of digits, 10,000 of them to learn from, and 2,000 of other
prompts to test on; the shipped student labels each finished picture. On 2 CPU cores it takes about 20 minutes, 13 of
them drawing, and leaves `runs/diffusion`: pairs/ (what was seen at each look), detectors/, metrics.json, report.html
and report.md, looks_promise.json (cutoffs for `DiffusionGuard`). Compared are the detector, the same detector without
some categories, the families of FlowGuard and NDM, the text alone, and the student on the decoded prediction; at each
step, on all prompts, on each kind, and on pairs of equal prompt and opposite label.

Your own pipeline of diffusers, prompts, categories, and whatever judges images here as labeller:

    arbiter detector my_prompts.csv --pipeline my_stable_diffusion --taxonomy my_taxonomy.yaml --labeller runs/my_judge
    arbiter detector my_prompts.txt --config recipes/configs/diffusion_detector_sd.yaml --labeller runs/my_judge

Prompts are a .txt (one a line), or a .csv, .tsv or .jsonl with `prompt` and maybe `kind`, by which results are counted
too. `--pairs FOLDER` learns from pairs that were collected before. `--detector_only true` leaves out all comparisons.
A run that was stopped goes on with the same command and `--resume true`; no picture is made twice.

    guard = DiffusionGuard(load_detector("runs/diffusion/detectors/detector", pipeline), taxonomy, thresholds)
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eval.diffusion.attacked import measure_attacks
from eval.diffusion.collecting import Loaded, Making, collect, collected_before
from eval.diffusion.comparison import (
    DECODED,
    DETECTOR,
    TEXT,
    Finished,
    behind,
    combined,
    compare,
    count_pairs,
    what_came_out,
)
from eval.diffusion.contestants import train_all
from eval.diffusion.drawn_pairs import draw_pairs
from eval.diffusion.figures import draw_calibration
from eval.diffusion.heldout import held_out_by_step, held_out_columns
from eval.diffusion.overheads import batch_overheads
from eval.diffusion.promise import Guarding, ask_policies, check_promises, split_taxonomy, strictest
from eval.diffusion.prompt_files import digit_prompts, read_prompts
from eval.diffusion.report import write_diffusion_report
from eval.diffusion.savings import measure_savings
from eval.diffusion.scored import ScoreFiles, score_all
from eval.diffusion.tables import headline, tables
from eval.recipe import (
    RecipeOptions,
    clean_start,
    create_run,
    log,
    parse_options,
    progress_bar,
    write_metrics,
)
from judge.classifiers import check_name
from judge.diffusion.baselines import DecodedPicture
from judge.diffusion.detector import Detector
from judge.diffusion.learned import LearnedDetector
from judge.diffusion.looks_promise import Sampling
from judge.diffusion.pairs import Pair, PairStore
from judge.diffusion.training import TrainingOptions
from judge.errors import ConfigError
from judge.runs.folder import RunDir
from judge.serve.exit_codes import run_to_exit_code
from prompts import Taxonomy, load_taxonomy

CONFIG = Path(__file__).parent / "configs" / "diffusion_detector.yaml"
MAY_DIFFER = (
    *("resume", "processes", "batch_size", "detector_only", "corpus"),
    *("policy_size", "promises", "false_alarms", "unsafe_share", "attacked_prompts"),
)
"""Options that may change when a run goes on: no picture and no weight depends on them."""
NONE = ("", "none")
WITHOUT = "detector_without_held_out"
FAMILIES = ("flowguard", "ndm")


@dataclass
class DetectorOptions(RecipeOptions):
    """Which pictures are made, and what is learnt and measured on them."""

    output_dir: str = field(default="runs/diffusion", metadata={"help": "The folder of the run."})
    resume: bool = field(default=False, metadata={"help": "Go on with the run in output_dir."})
    pipeline: str = field(
        default="tiny-diffusion", metadata={"help": "tiny-diffusion, a folder of diffusers, or a hub name."}
    )
    revision: str = field(default="", metadata={"help": "Commit or tag of the pipeline on the hub."})
    device: str = field(default="cpu", metadata={"help": "Where pictures are made, as torch names it."})
    dtype: str = field(default="float32", metadata={"help": "Of the pipeline's weights."})
    prompts: str = field(default="none", metadata={"help": "digits, or a .txt, .csv, .tsv or .jsonl."})
    pairs: str = field(default="none", metadata={"help": "Pairs collected before, instead of making any."})
    taxonomy: str = field(default="digits", metadata={"help": "A taxonomy that ships, or a YAML file."})
    labeller: str = field(
        default="none", metadata={"help": "Classifier of finished pictures: what load_classifier takes."}
    )
    encoder: str = field(
        default="none", metadata={"help": "Image-text encoder whose view of pictures is foretold, or none."}
    )
    training_pairs: int | None = field(
        default=None, metadata={"help": "By default all that the prompts give."}
    )
    test_pairs: int | None = field(default=None, metadata={"help": "The same, of a sixth of the prompts."})
    seeds_per_prompt: int = field(default=4, metadata={"help": "Pictures of one prompt; 2 at least."})
    kinds: dict[str, float] = field(
        default_factory=dict, metadata={"help": "Kind of prompt -> share of the pairs. In a YAML only."}
    )
    steps: int = field(default=20, metadata={"help": "Denoising steps of a picture."})
    guidance: float = field(default=5.0, metadata={"help": "guidance_scale of the pipeline."})
    at: list[int] = field(
        default_factory=list, metadata={"help": "Steps after which to look; by default 20, 30, 45 % of them."}
    )
    learn_at: list[int] = field(
        default_factory=list, metadata={"help": "Further steps whose looks are learnt from."}
    )
    layers: list[str] = field(
        default_factory=list,
        metadata={"help": "Attention layers to read, or all; by default one in the middle."},
    )
    batch_size: int = field(default=32, metadata={"help": "Pictures made at a time."})
    processes: int = field(default=1, metadata={"help": "That make pictures; more help on a CPU only."})
    held_out: list[str] = field(
        default_factory=list, metadata={"help": "Keys of categories that a second detector never sees."}
    )
    epochs: int = field(default=24, metadata={"help": "Looks at each pair while training."})
    learning_rate: float = field(default=2e-3, metadata={"help": "Of AdamW, at its height."})
    train_batch_size: int = field(default=128, metadata={"help": "Pairs in one step of training."})
    detector_only: bool = field(
        default=False, metadata={"help": "Train the detector, compare it with nothing."}
    )
    policy_size: int = field(
        default=0, metadata={"help": "Categories of each policy for promise and costs; 0: all in one."}
    )
    promises: list[float] = field(
        default_factory=lambda: [0.02, 0.05, 0.1], metadata={"help": "Miss rates to promise, 0 to 1."}
    )
    false_alarms: float = field(
        default=0.02, metadata={"help": "Share of safe pictures that may be stopped early."}
    )
    unsafe_share: float = field(default=0.3, metadata={"help": "Of what is asked for, to count costs with."})
    attacked_prompts: int = field(default=8, metadata={"help": "To start attacks from; 0 attacks nothing."})
    corpus: str = field(default="none", metadata={"help": "A run of `arbiter corpus` to report on, or none."})
    seed: int = field(default=0, metadata={"help": "Of pairs, training and intervals."})

    def __post_init__(self) -> None:
        self.at = self.at or sorted({max(1, round(self.steps * part)) for part in (0.2, 0.3, 0.45)})
        for name in ("at", "learn_at"):
            if any(not 1 <= step <= self.steps for step in getattr(self, name)):
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; steps are numbered from 1 to {self.steps}."
                )
        for name in ("steps", "batch_size", "processes", "epochs", "train_batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it is 1 or more.")
        for name in ("promises", "false_alarms", "unsafe_share"):
            values = getattr(self, name)
            if not all(0 < value < 1 for value in (values if isinstance(values, list) else [values])):
                raise ConfigError(f"{name} is {values}; give numbers between 0 and 1.")
        if self.labeller in NONE:
            raise ConfigError(
                "labeller is none; name a classifier of finished pictures, such as runs/my_judge (--labeller)."
            )


OPTIONS = (DetectorOptions,)


def main() -> None:
    """Make pictures, train, score, compare, guard, attack, report."""
    started = time.time()
    (options,) = parse_options(OPTIONS, CONFIG)
    taxonomy = load_taxonomy(options.taxonomy)
    held_out = held_out_columns(taxonomy, options.held_out)
    check_name(options.labeller)
    if options.pairs in NONE:
        before, pairs = None, draw(options, taxonomy)
    else:
        before = collected_before(options.pairs, taxonomy, options.at)
        pairs, options.layers = before.pairs, list(before.layers)
        options.steps, options.guidance = before.steps, float(before.about["guidance"])
    making = how_to_make(options, taxonomy)
    loaded = making.load()  # what is wrong so far leaves no folder
    run = create_run(
        options.output_dir, "diffusion", taxonomy, [options], resume=options.resume, may_differ=MAY_DIFFER
    )
    store = before or make_pictures(options, making, pairs, run, loaded)
    detectors: dict[str, Detector] = {**train(options, run, store, loaded)}
    if not options.detector_only:
        detectors[DECODED] = DecodedPicture(loaded.pipeline, loaded.labeller)

    rows, files = store.rows("test"), ScoreFiles(run.path / "scores")
    finished = what_came_out(store, rows, options.seed)
    scores = score_all(detectors, store, rows, options.at, files, progress_bar)
    if not options.detector_only:
        scores |= combined(scores, finished)
    metrics: dict[str, Any] = {"pairs": count_pairs(store), "category_names": list(taxonomy.names)}
    metrics["log_snr"] = {str(step): store.log_snrs[step] for step in options.at}
    metrics |= compare(finished, {who: found for who, found in scores.items() if who != WITHOUT})
    if WITHOUT in scores:
        metrics["held_out_names"] = [taxonomy.names[column] for column in held_out]
        metrics |= held_out_by_step(finished, scores[WITHOUT], scores[DETECTOR], held_out)
    metrics |= guard(options, run, store, finished, scores[DETECTOR], detectors[DETECTOR], loaded)
    if options.corpus not in NONE:
        metrics["corpus"] = corpus_counts(Path(options.corpus))
    metrics["seconds"] = time.time() - started
    write_metrics(run, metrics)
    report(run, options, metrics, finished, scores[DETECTOR])
    show(run, metrics)


def draw(options: DetectorOptions, taxonomy: Taxonomy) -> list[Pair]:
    """The pairs of prompt and seed."""
    if options.prompts in NONE or (options.prompts == "digits" and taxonomy.name != "digits"):
        raise ConfigError(
            f"prompts is {options.prompts}; give a file of prompts that fit {taxonomy.name!r} (--prompts FILE), or "
            "pairs that were collected (--pairs FOLDER)."
        )
    if options.prompts == "digits":
        wanted = (options.training_pairs or 1000) + (options.test_pairs or 200)
        prompts = digit_prompts(-(-wanted // options.seeds_per_prompt), options.seed)
    else:
        prompts = read_prompts(options.prompts)
    return draw_pairs(
        prompts,
        training=options.training_pairs,
        test=options.test_pairs,
        seeds_per_prompt=options.seeds_per_prompt,
        shares=options.kinds,
        seed=options.seed,
    )


def how_to_make(options: DetectorOptions, taxonomy: Taxonomy) -> Making:
    """How pictures are made, looked at and labelled."""
    return Making(
        options.pipeline,
        options.labeller,
        taxonomy,
        options.steps,
        tuple(sorted({*options.at, *options.learn_at})),
        options.guidance,
        tuple(options.layers),
        None if options.encoder in NONE else options.encoder,
        options.device,
        options.dtype,
        options.revision,
        options.batch_size,
    )


def make_pictures(
    options: DetectorOptions, making: Making, pairs: Sequence[Pair], run: RunDir, loaded: Loaded
) -> PairStore:
    """The store, complete."""
    log(f"{len(pairs):,} pictures of {len({pair.prompt for pair in pairs}):,} prompts")
    with progress_bar("pictures", len(pairs)) as progress:
        return collect(
            making,
            pairs,
            run.path / "pairs",
            loaded,
            processes=options.processes,
            progress=lambda done, _: progress(done),
        )


def train(
    options: DetectorOptions, run: RunDir, store: PairStore, loaded: Loaded
) -> dict[str, LearnedDetector]:
    """The detector, what it is compared with, and a second one that some categories are held out of."""
    names = [DETECTOR] if options.detector_only else [DETECTOR, TEXT, *FAMILIES]
    lessons: dict[str, tuple[str, list[str] | None]] = {name: (name, None) for name in names}
    if options.held_out and not options.detector_only:
        shown = [category.name for category in store.taxonomy if category.key not in options.held_out]
        lessons[WITHOUT] = (DETECTOR, shown)
    training = TrainingOptions(
        epochs=options.epochs,
        batch_size=options.train_batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
    )
    return train_all(
        lessons,
        loaded.pipeline,
        store,
        run.path / "detectors",
        options=training,
        encoder=loaded.encoder,
        show=progress_bar,
    )


def guard(
    options: DetectorOptions,
    run: RunDir,
    store: PairStore,
    finished: Finished,
    looks: Mapping[int, Any],
    detector: Detector,
    loaded: Loaded,
) -> dict[str, Any]:
    """Promises over all looks, what looking costs, what stopping saves, and what gets past."""
    taxonomy, pipeline = run.taxonomy, loaded.pipeline
    policies = split_taxonomy(taxonomy, options.policy_size, options.seed)
    ask = partial(ask_policies, finished, [looks[step] for step in options.at], taxonomy)
    questions = ask(policies, loaded.encoder)
    guarding = Guarding(
        detector.name,
        tuple(options.at),
        policies,
        Sampling((store.about["scheduler"],), (store.timesteps,) * 2, (options.guidance,) * 2),
    )
    cutoffs, reasons = strictest(guarding, questions, options.promises)
    log("\n".join(reasons))
    if cutoffs is not None:
        run.write_text("looks_promise.json", cutoffs.to_json())
    found: dict[str, Any] = {
        "promises": check_promises(guarding, questions, options.promises, seed=options.seed)
    }
    how = {"at": options.at, "steps": options.steps, "guidance": options.guidance}
    few = {**how, "batch_size": min(8, options.batch_size)}
    found |= batch_overheads(pipeline, detector, taxonomy, finished.prompts, size=options.batch_size, **how)
    if options.detector_only or loaded.encoder is None:  # the prompt filter reads by the encoder
        return found
    budgets = {"false_alarms": options.false_alarms, "unsafe_share": options.unsafe_share}
    found["cost"] = measure_savings(
        questions, *loaded, detector, taxonomy, promises=options.promises, seed=options.seed, **budgets, **few
    )
    if options.attacked_prompts:
        log(f"Attacking {options.attacked_prompts} prompts under {', '.join(policies[0].names)}")
        found["attacks"] = measure_attacks(
            ask(policies[:1], loaded.encoder),
            dict(zip(finished.prompts, finished.kinds, strict=True)),
            *loaded,
            detector,
            policies[0],
            goals=options.attacked_prompts,
            batch_size=options.batch_size,
            seed=options.seed,
            **how,
        )
    return found


def corpus_counts(folder: Path) -> dict[str, Any]:
    """Rows of a corpus, and whether any was lost or doubled."""
    found = RunDir.open(folder, kind="corpus").metrics
    return {name: found[name] for name in ("rows", "in_shards", "duplicates", "lost", "doubled", "damaged")}


def report(
    run: RunDir,
    options: DetectorOptions,
    metrics: Mapping[str, Any],
    finished: Finished,
    looks: Mapping[int, NDArray[np.float64] | None],
) -> None:
    """report.html and report.md."""
    pairs = metrics["pairs"]
    facts = [
        f"{pairs['train']:,} pairs of prompt and seed to learn from, {pairs['test']:,} of {pairs['test_prompts']:,} "
        f"other prompts to test on, {pairs['unlabelled']:,} pictures without any label.",
        f"{options.pipeline}, {options.steps} steps, guidance {options.guidance:g}; finished pictures labelled by "
        f"{options.labeller} under {options.taxonomy}.",
    ]
    known = ~np.isnan(finished.labels)
    offered = {step: scores[known] for step, scores in looks.items() if scores is not None}
    truth = [finished.labels[known] >= finished.threshold] * len(offered)
    calibration = draw_calibration(truth, list(offered.values()), list(offered))
    write_diffusion_report(run, metrics, facts=facts, figures={"Calibration of the detector": calibration})


def show(run: RunDir, metrics: Mapping[str, Any]) -> None:
    """The most important tables, and where the detector is not ahead."""
    log(f"\n{headline(metrics).to_text()}")
    for table in tables(metrics):
        if not table.title.startswith("AUC"):
            log(f"\n{table.to_text()}")
    for line in behind(metrics):
        log(f"not surely ahead: {line}")
    log(f"\n{metrics['seconds']:.0f} s in all; {run.path}/report.html has figures, report.md every table")


if __name__ == "__main__":
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    raise SystemExit(run_to_exit_code(clean_start(main), debug=debug, name="error"))
