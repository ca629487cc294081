r"""Put cheap filters before the student and the judge behind it, for a promised total miss rate.

    python recipes/cascade.py

With no options it takes the student of `recipes/distill_cross_attention.py` and the judge of `make demo`, tunes on one
half of the validation images, calibrates on the other and reports on the test images. On 2 CPU cores it takes about
half a minute, most of it the judge's work, and leaves `runs/cascade` (cascade.json, metrics.json, plots). It prints
what each stage settled, cost and got wrong, beside each stage alone. The judge is asked about fewer than 5 % of the
images, at an F1 within 0.01 of the judge's, and 2 % of unsafe images are missed at most, on average over calibration
sets. Prompts of digits are drawn so that they give no label away: their text filter learns to keep silent.

Then `arbiter judge IMAGE --judge runs/cascade`. Your own runs and data:

    python recipes/cascade.py --student runs/my_student --judge runs/my_judge \
        --dataset unsafebench --taxonomy unsafebench --held_out Deception Shocking

`--judge none` leaves the judge out. Every option can stand in the YAML, and all but `flip` on the command line; an
unknown one stops the run.
"""

import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm.auto import tqdm
from transformers import set_seed

from eval.cascade import (
    StagePredictions,
    cascade_rows,
    count_live_differences,
    evaluate_each_stage,
    predict_stages,
    resample_miss_rate,
    summarise_cascade,
    summarise_costs,
)
from eval.closing import try_it
from eval.metrics.arrays import calibration_error, reliability
from eval.options import RecipeOptions, parse_options
from eval.questions import Question, draw_evaluation
from eval.timing import measure_costs, timing_batches
from judge import load_classifier
from judge.calibration.conformal import allowed_misses
from judge.calibration.envelope import Envelope
from judge.calibration.temperature import Calibration, LabelledScores, fit_calibration
from judge.cascade.cascade import Cascade
from judge.cascade.saved import save_cascade
from judge.cascade.settings import CascadeSettings
from judge.cascade.similarity import Platt
from judge.cascade.stages import decide
from judge.cascade.tuning import choose_level, tune
from judge.data.examples import check_splits, load_examples
from judge.errors import ConfigError
from judge.protocol import Classifier
from judge.runs.folder import RunDir
from judge.runs.machine import environment
from judge.student.student import Student, load_student
from prompts import FlipOptions, Taxonomy, load_taxonomy
from prompts.errors import ArbiterError
from prompts.printable import error_line

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "cascade.yaml"


@dataclass
class CascadeOptions(RecipeOptions):
    """Which stages, what is judged, and what is promised."""

    output_dir: str = field(default="runs/cascade", metadata={"help": "The folder of the run."})
    student: str = field(
        default="runs/student", metadata={"help": "A run of recipes/distill_cross_attention.py."}
    )
    judge: str = field(
        default="runs/demo",
        metadata={"help": "A run of recipes/lora_llava.py, any other classifier, or none."},
    )
    dataset: str = field(default="digits", metadata={"help": "As in recipes/lora_llava.py."})
    taxonomy: str = field(default="digits", metadata={"help": "A taxonomy that ships, or a YAML file."})
    held_out: list[str] = field(
        default_factory=list, metadata={"help": "Keys of categories that no policy may contain."}
    )
    flip: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "Any field of prompts.FlipOptions. In a YAML only."}
    )
    promised_miss_rate: float = field(
        default=0.02,
        metadata={"help": "Largest share, 0 to 1, of unsafe images that all stages together may miss."},
    )
    judge_share: float = field(
        default=0.04,
        metadata={"help": "Largest share, 0 to 1, of the tuning rows that the judge is asked about."},
    )
    limit: int | None = field(default=None, metadata={"help": "Use at most so many images of each split."})
    tuning_rows: int = field(default=640, metadata={"help": "Questions that thresholds are shaped on."})
    calibration_rows: int = field(default=800, metadata={"help": "Questions that the promise rests on."})
    test_rows: int = field(default=1200, metadata={"help": "Questions that the report is about."})
    seed: int = field(default=42, metadata={"help": "Of every draw; the default of the other recipes."})


def main() -> None:
    """Parse, ask every stage once, tune, calibrate, check, report."""
    started = time.time()
    options = parse()
    set_seed(options.seed)
    taxonomy = load_taxonomy(options.taxonomy)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    student = load_student(RunDir.open(options.student, kind="student"), device=device)
    judge = None if options.judge == "none" else load_classifier(options.judge, device=device)
    drawn, promise = draw(options, taxonomy), options.promised_miss_rate
    run = open_run(options, taxonomy)
    tuning, calibration, test = (ask(student, judge, questions, name) for name, questions in drawn.items())

    batches = timing_batches(tuning.questions)
    text, image = (Platt.fit(tuning.unsafe, tuning.similarities[name]) for name in ("text", "image"))
    family = tune(
        tuning.scores(text, image),
        tuning.unsafe,
        promise,
        judge_share=options.judge_share,
        costs=measure_costs(student, judge, batches).seconds,
    )
    unsafe_rows = calibration.scores(text, image).rows(calibration.unsafe)
    level = choose_level(family, unsafe_rows, promise, images=calibration.unsafe_images)
    settings = CascadeSettings(
        text,
        image,
        family.at(level),
        judge is not None,
        promise,
        level,
        len(unsafe_rows),
        calibrated_for=Envelope.of(question.row.taxonomy for question in drawn["calibration"]),
    )
    save_cascade(run, settings, student=options.student, judge=None if judge is None else options.judge)

    scores = test.scores(text, image)
    decided = decide(scores, settings.cutoffs)
    cascade = Cascade(student, settings, judge)
    costs = measure_costs(student, judge, batches, cascade)
    metrics = {
        **summarise_cascade(test, decided, settings.cutoffs, costs),
        **summarise_costs(costs, settings.cutoffs),
        "promised_miss_rate": promise,
        **resample_miss_rate(family, [calibration, test], text, image, promise),
        "alone": evaluate_each_stage(test, calibration, text, image, promise, costs),
        **count_live_differences(cascade, test, decided),
        "judge_seconds_per_image": costs.seconds.get("judge"),
        "calibration": calibrate(run, [tuning, calibration], test),
        "shape": asdict(family.shape),
        "level": level,
        "cutoffs": asdict(settings.cutoffs),
    }
    place = environment()
    about = {"machine": place["machine"], "versions": place["packages"], "commit": place["git"]}
    run.write_metrics({**metrics, "seconds": time.time() - started, **about})
    run.write_rows("test", cascade_rows(test, scores, decided))
    show(run, metrics, time.time() - started)
    print(f"  {try_it(run, [question.row.example for question in drawn['test']])}")


def parse() -> CascadeOptions:
    """Defaults, then the recipe's YAML, then that of `--config`, then the command line; unknown keys stop the run."""
    (options,) = parse_options((CascadeOptions,), DEFAULT_CONFIG, sys.argv[1:])
    return options


def open_run(options: CascadeOptions, taxonomy: Taxonomy) -> RunDir:
    """The run folder with what is known beforehand."""
    run = RunDir.create(options.output_dir, kind="cascade")
    run.write_taxonomy(taxonomy)
    run.write_environment()
    run.write_config(asdict(options))
    return run


def draw(options: CascadeOptions, taxonomy: Taxonomy) -> dict[str, list[Question]]:
    """Questions to tune, calibrate and report on, drawn alike; no image serves two of them.

    Raises:
        ConfigError: the calibration images cannot support the promise; nobody was asked anything yet.
    """
    flip = FlipOptions(held_out=frozenset(options.held_out), **options.flip)
    validation, test = (
        load_examples(options.dataset, split=split, taxonomy=taxonomy, limit=options.limit)
        for split in ("validation", "test")
    )
    check_splits(validation, test)
    parts = {
        # The student's recipe looks at the even ones too; a promise may rest on the odd ones only.
        "tuning": (validation.examples[::2], options.tuning_rows),
        "calibration": (validation.examples[1::2], options.calibration_rows),
        "test": (test.examples, options.test_rows),
    }
    drawn = {
        name: list(draw_evaluation(examples, taxonomy, flip, seed=options.seed, rows=rows).flips)
        for name, (examples, rows) in parts.items()
    }
    unsafe = {question.row.example.id for question in drawn["calibration"] if question.row.unsafe}
    allowed_misses(len(unsafe), options.promised_miss_rate)
    return drawn


def ask(student: Student, judge: Classifier | None, questions: list[Question], name: str) -> StagePredictions:
    """`predict_stages` with a progress bar."""
    with tqdm(total=len(questions), desc=f"asking every stage, {name}") as bar:
        return predict_stages(student, judge, questions, progress=lambda done: bar.update(done - bar.n))


def calibrate(run: RunDir, held: Sequence[StagePredictions], test: StagePredictions) -> dict[str, Any]:
    """Temperatures of student and judge from held-out rows, and what they do on the test rows, for the metrics.

    No classifier is served with them: the cascade's cutoffs follow from the scores' order alone.
    """
    found: dict[str, Any] = {}
    curves = {}
    for name, answers in test.labelled.items():
        if not answers:
            continue
        fitted = fit_calibration([one for asked in held for one in asked.labelled[name]], classifier=name)
        before, after = pairs(answers, None), pairs(answers, fitted)
        curves[name] = {"as it is": before["whole"], "calibrated": after["whole"]}
        found[name] = fitted.to_dict()
        for part in before:
            for when, pair in (("", before[part]), ("_after", after[part])):
                found[name][f"{part}_calibration_error{when}"] = calibration_error(*pair)
                found[name][f"{part}_log_loss{when}"] = log_loss(*pair)
    draw_reliability(curves, run.plots / "reliability.png")
    return found


Pairs = tuple[np.ndarray, np.ndarray]
"""Truth and probability."""


def pairs(answers: Sequence[LabelledScores], calibration: Calibration | None) -> dict[str, Pairs]:
    """Truth and probability of the whole and of all categories, calibrated or as they are."""
    scores = [calibration.apply(a.scores, a.taxonomy) if calibration else a.scores for a in answers]
    truth = np.concatenate([answer.categories.ravel() for answer in answers])
    values = np.concatenate([score.category_probabilities.ravel() for score in scores])
    known = ~np.isnan(truth)
    whole = np.concatenate([answer.unsafe for answer in answers]) == 1
    return {
        "whole": (whole, np.concatenate([score.unsafe for score in scores])),
        "category": (truth[known] == 1, values[known]),
    }


def log_loss(truth: np.ndarray, probability: np.ndarray) -> float:
    """Mean negative log-likelihood of the judged rows, in nats: what a temperature minimises."""
    right = np.where(truth, probability, 1 - probability)
    return float(-np.log(np.clip(right[~np.isnan(right)], 1e-12, None)).mean())


def draw_reliability(curves: Mapping[str, Mapping[str, Pairs]], path: Path) -> None:
    """One diagram a classifier: mean probability of a bin against the share of its rows that is unsafe."""
    figure = Figure(figsize=(4.2 * len(curves), 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, lines) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        axes.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1)
        for (label, pair), colour in zip(lines.items(), ("#9aa3ad", "#0b6e99"), strict=True):
            table = reliability(*pair)
            label = f"{label} (calibration error {calibration_error(*pair):.3f})"
            axes.plot(
                table.probability, table.share_unsafe, color=colour, marker="o", markersize=4, label=label
            )
        axes.set(title=name, xlabel="p(unsafe), mean of the bin", ylabel="share that is unsafe")
        axes.legend(loc="lower right", frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


def show(run: RunDir, metrics: dict[str, Any], seconds: float) -> None:
    """The tables, and what to type next."""
    print(f"\n{'stage':14}{'settles':>9}{'misses':>9}{'false alarms':>14}{'ms an image':>13}")
    for name, found in metrics["stages"].items():
        if found["seconds_per_image"] is not None:
            cost = 1000 * found["seconds_per_image"]
            print(
                f"{name:14}{found['share']:>9.1%}{found['misses']:>9}{found['false_alarms']:>14}{cost:>13.1f}"
            )
    print(
        f"\n{'':14}{'F1':>8}{'precision':>11}{'recall':>8}{'at the promise: F1':>20}{'false alarms':>14}{'ms':>7}"
    )
    same = {key: metrics[key] for key in ("f1", "precision", "recall", "false_alarm_rate")}
    cascade = {**same, "at_promise": same, "seconds_per_image": metrics["seconds_per_image"]}
    for name, found in {**metrics["alone"], "cascade": cascade}.items():
        strict, cost = found["at_promise"], 1000 * found["seconds_per_image"]
        print(
            f"{name:14}{found['f1']:>8.3f}{found['precision']:>11.3f}{found['recall']:>8.3f}"
            f"{strict['f1']:>20.3f}{strict['false_alarm_rate']:>14.1%}{cost:>7.1f}"
        )
    timing, check = metrics["timing"], metrics["resampling"]
    print(
        f"\nms an image: medians of {timing['repeats']} on the same {timing['rows']} images, policies known. The "
        f"cascade by its stages, each times the share that reaches it: {1000 * timing['by_stages']:.1f}; measured: "
        f"{1000 * metrics['seconds_per_image']:.1f}."
    )
    low, high = metrics["intervals"]["miss_rate"]
    print(
        f"\nmiss rate: {metrics['promised_miss_rate']:.1%} promised, {metrics['miss_rate']:.1%} on the test rows "
        f"({low:.1%} to {high:.1%}, {metrics['unsafe_rows']} unsafe rows), "
        f"{check['mean']:.2%} on average over {check['splits']} splits (standard error {check['standard_error']:.2%})"
    )
    print(f"{seconds:.0f} s in all. Next:")


if __name__ == "__main__":
    # peft still asks transformers 5.23 by a name that v6 will drop; nobody here can change that.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    try:
        # Nothing is shared out: under `accelerate launch` the first process does the work.
        if PartialState().is_main_process:
            main()
    except (ArbiterError, ConfigError) as error:
        raise SystemExit(f"error: {error_line(error)}") from None
