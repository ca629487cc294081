r"""Put cheap filters before the student and the judge behind it, for a promised total miss rate.

    python recipes/cascade.py

With no options it takes the student of `recipes/distill_cross_attention.py` and the judge of `make demo`, tunes on one
half of the validation images, calibrates on the other and reports on the test images. On 2 CPU cores it takes about
half a minute, most of it the judge's work, and leaves `runs/cascade` (cascade.json, metrics.json, report.html). It
prints what each stage decided, cost and got wrong, beside each stage alone. The judge is asked about fewer than 5 % of
the images, at an F1 within 0.01 of the judge's, and 2 % of unsafe images are missed at most, on average over
calibration sets. Prompts of digits are drawn so that they give no label away, so their text filter decides nothing.

Then `arbiter judge IMAGE --judge runs/cascade`. Your own runs and data:

    python recipes/cascade.py --student runs/my_student --judge runs/my_judge \
        --dataset unsafebench --taxonomy unsafebench --held_out Deception Shocking

`--judge none` leaves the judge out. Every option can stand in the YAML, and all but `flip` on the command line; an
unknown one stops the run.
"""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
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
from eval.costs import measure_costs, timing_batches
from eval.questions import Question, draw_evaluation
from eval.recipe import (
    DataOptions,
    create_run,
    load_splits,
    parse_options,
    progress_bar,
    run_recipe,
    try_it,
    write_metrics,
)
from eval.reliability import compare_calibration, draw_reliability
from eval.reports.run_report import write_run_report
from judge import load_classifier
from judge.calibration.conformal import allowed_misses
from judge.calibration.envelope import Envelope
from judge.cascade.cascade import Cascade
from judge.cascade.saved import save_cascade
from judge.cascade.settings import CascadeSettings
from judge.cascade.similarity import Platt
from judge.cascade.stages import decide
from judge.cascade.tuning import CutoffFamily, choose_level, tune
from judge.runs.folder import RunDir
from judge.student.student import load_student
from prompts import Taxonomy, load_taxonomy

CONFIG = Path(__file__).parent / "configs" / "cascade.yaml"


@dataclass
class CascadeOptions(DataOptions):
    """Which stages, on which data, and which miss rate is promised."""

    output_dir: str = field(default="runs/cascade", metadata={"help": "The folder of the run."})
    student: str = field(
        default="runs/student", metadata={"help": "A run of recipes/distill_cross_attention.py."}
    )
    judge: str = field(
        default="runs/demo",
        metadata={"help": "A run of recipes/lora_llava.py, any other classifier, or none."},
    )
    promised_miss_rate: float = field(
        default=0.02,
        metadata={"help": "Largest share, 0 to 1, of unsafe images that all stages together may miss."},
    )
    judge_share: float = field(
        default=0.04,
        metadata={"help": "Largest share, 0 to 1, of the tuning rows that the judge is asked about."},
    )
    tuning_rows: int = field(default=640, metadata={"help": "Questions that the thresholds are tuned on."})
    calibration_rows: int = field(default=800, metadata={"help": "Questions that the promise rests on."})
    test_rows: int = field(default=1200, metadata={"help": "Questions that the report is about."})
    seed: int = field(default=42, metadata={"help": "Of every draw; the default of the other recipes."})


OPTIONS = (CascadeOptions,)


def main() -> None:
    """Score every question with every stage once, tune, calibrate, test, report."""
    if not PartialState().is_main_process:
        return  # nothing is shared out: under `accelerate launch` the first process does the work
    started = time.time()
    (options,) = parse_options(OPTIONS, CONFIG)
    set_seed(options.seed)
    taxonomy, promise = load_taxonomy(options.taxonomy), options.promised_miss_rate
    device = "cuda" if torch.cuda.is_available() else "cpu"
    student = load_student(RunDir.open(options.student, kind="student"), device=device)
    judge = None if options.judge == "none" else load_classifier(options.judge, device=device)
    drawn = draw(options, taxonomy)
    run = create_run(options.output_dir, "cascade", taxonomy, (options,))
    answers = {}
    for name, questions in drawn.items():
        with progress_bar(f"scoring with every stage, {name}", len(questions)) as progress:
            answers[name] = predict_stages(student, judge, questions, progress=progress)
    tuning, calibration, test = answers.values()

    batches = timing_batches(tuning.questions)
    family, settings = tune_and_calibrate(
        tuning,
        calibration,
        options,
        measure_costs(student, judge, batches).seconds,
        has_judge=judge is not None,
    )
    save_cascade(run, settings, student=options.student, judge=None if judge is None else options.judge)

    text, image = settings.text, settings.image
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
        "shape": asdict(family.shape),
        "level": settings.level,
        "cutoffs": asdict(settings.cutoffs),
    }
    # For the report only: the cutoffs follow from the order of the scores, which a temperature does not change.
    metrics["calibration"], curves = {}, {}
    for name, labelled in test.labelled.items():
        if labelled:
            held_out = tuning.labelled[name] + calibration.labelled[name]
            metrics["calibration"][name], curves[name] = compare_calibration(name, held_out, labelled)
    draw_reliability(curves, run.plots / "reliability.svg")
    metrics["seconds"] = time.time() - started
    write_metrics(run, metrics)
    run.write_rows("test", cascade_rows(test, scores, decided))
    write_run_report(run, [question.row.example for question in test.questions])
    print_tables(metrics)
    print(f"{time.time() - started:.0f} s in all. Next:")
    print(f"  {try_it(run, [question.row.example for question in drawn['test']])}")


def draw(options: CascadeOptions, taxonomy: Taxonomy) -> dict[str, list[Question]]:
    """Questions to tune, calibrate and test on, drawn alike; no image serves two of them.

    Raises:
        ConfigError: the calibration images cannot support the promise; nothing was scored yet.
    """
    validation, test = load_splits(options, taxonomy, ("validation", "test"))
    parts = {
        # The student's recipe uses the even ones too; a promise may rest on unseen images only.
        "tuning": (validation.examples[::2], options.tuning_rows),
        "calibration": (validation.examples[1::2], options.calibration_rows),
        "test": (test.examples, options.test_rows),
    }
    drawn = {
        name: list(draw_evaluation(examples, taxonomy, options.flips, seed=options.seed, rows=rows).flips)
        for name, (examples, rows) in parts.items()
    }
    unsafe = {question.row.example.id for question in drawn["calibration"] if question.row.unsafe}
    allowed_misses(len(unsafe), options.promised_miss_rate)
    return drawn


def tune_and_calibrate(
    tuning: StagePredictions,
    calibration: StagePredictions,
    options: CascadeOptions,
    costs: dict[str, float],
    *,
    has_judge: bool,
) -> tuple[CutoffFamily, CascadeSettings]:
    """Tune a family of thresholds, then choose the level at which it keeps the promise on the calibration rows."""
    promise = options.promised_miss_rate
    text, image = (Platt.fit(tuning.unsafe, tuning.similarities[name]) for name in ("text", "image"))
    family = tune(
        tuning.scores(text, image), tuning.unsafe, promise, judge_share=options.judge_share, costs=costs
    )
    unsafe_rows = calibration.scores(text, image).rows(calibration.unsafe)
    level = choose_level(family, unsafe_rows, promise, images=calibration.unsafe_images)
    settings = CascadeSettings(
        text,
        image,
        family.at(level),
        has_judge,
        promise,
        level,
        len(unsafe_rows),
        calibrated_for=Envelope.from_policies(question.row.taxonomy for question in calibration.questions),
    )
    return family, settings


def print_tables(metrics: dict[str, Any]) -> None:
    """What each stage decides, costs and gets wrong; each stage alone; and the promise."""
    print(f"\n{'stage':14}{'decides':>9}{'misses':>9}{'false alarms':>14}{'ms per image':>13}")
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
        f"\nms per image: medians of {timing['repeats']} on the same {timing['rows']} images, with cached policies. "
        f"The sum over stages, weighted by the share that reaches each: {1000 * timing['by_stages']:.1f}; measured: "
        f"{1000 * metrics['seconds_per_image']:.1f}."
    )
    low, high = metrics["intervals"]["miss_rate"]
    print(
        f"\nmiss rate: {metrics['promised_miss_rate']:.1%} promised, {metrics['miss_rate']:.1%} on the test rows "
        f"({low:.1%} to {high:.1%}, {metrics['unsafe_rows']} unsafe rows), "
        f"{check['mean']:.2%} on average over {check['splits']} splits (standard error {check['standard_error']:.2%})"
    )


if __name__ == "__main__":
    run_recipe(main)
