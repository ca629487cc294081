"""Run folders with made-up answers, and their reports."""

import json

from PIL import Image

NAMES = (
    "Weapons and everything that is made to hurt", "Alcohol", "Gambling", "Self-harm", "Hate", "Shocking", "Deception",
    "Unverkehrssicherheitsbescheinigung", "Spam",
)  # fmt: skip
EVIL = "<img src=x onerror=alert(1)>"


def taxonomy():
    """Nine categories, one of a very long word."""
    from prompts.taxonomy import Category, Taxonomy

    return Taxonomy("own", "1", tuple(Category(name, f"pictures of {name.lower()}") for name in NAMES))


def answers(shift=0.0):
    """360 judged rows: pairs under policies of two and three categories, most of them right."""
    from eval.metrics.judged import JudgedRow

    rows = []
    for number in range(180):
        first, second, third = (NAMES[(number + step) % len(NAMES)] for step in (0, 1, 4))
        for unsafe in (True, False):
            policy = (first, third) if unsafe else (second, third)
            sure = ((37 * number + 11 * unsafe) % 100) / 100
            right = sure > 0.12 + shift
            score = 0.5 + 0.49 * sure if unsafe is right else 0.5 - 0.49 * sure - 0.001
            rows.append(
                JudgedRow(
                    f"pair-{number}-{'unsafe' if unsafe else 'safe'}", unsafe, score, policy[0],
                    frozenset([first] if unsafe else []), policy, ("real", "generated")[number % 2], f"pair-{number}",
                    ("safe_to_unsafe", "unsafe_to_safe")[number % 2], "keep" if unsafe else "flip",
                    (None, f"a photo {EVIL}")[number % 2], image=f"image-{number}",
                )
            )  # fmt: skip
    return rows


def images(row):
    """A picture of one colour for each row."""
    return Image.new("RGB", (40, 30), (int(row.image.rpartition("-")[2]), 90, 160))


def new_run(folder, kind, recipe):
    """A run folder as a recipe leaves it, without numbers."""
    from judge.runs.folder import RunDir

    run = RunDir.create(folder, kind=kind, base="tiny-llava")
    run.write_taxonomy(taxonomy())
    run.write_config({"seed": 7, "dataset": "folder:mine"})
    place = {"command": [f"recipes/{recipe}.py", "--seed", "7"], "git": {"commit": "c" * 40, "dirty": True}}
    (run.path / "environment.json").write_text(
        json.dumps(place | {"machine": {"cpu": "a processor", "gpus": []}})
    )
    return run


def judge_run(folder):
    """The report of a judge: every part, with wrong verdicts of every category."""
    from eval.reports.judge_page import write_report
    from eval.reports.page import Verdict

    history = [{"step": step, "loss": 2 / step} for step in range(1, 40)]
    verdict = Verdict("Learned: F1 .9.", True, limits=("No category was held out.",))
    return write_report(
        new_run(folder, "vlm", "lora_llava"), answers(0.3), answers(), history, images=images, verdict=verdict,
        drawn={"rows": 400, "arm": {"keep": 200, "flip": 200}}, extra={"Held out": {"heldout_f1": 0.9}},
    )  # fmt: skip


def cascade_run(folder):
    """The report of a cascade, from numbers as its recipe writes them."""
    from eval.reports.cascade_page import write_cascade_report

    run = new_run(folder, "cascade", "cascade")
    rows = answers()
    stages = ("filter", "filter", "student", "judge")
    run.write_rows(
        "test",
        (
            row.to_dict()
            | {"decided_by": stages[number % 4], "text_filter": None, "image_filter": abs(row.unsafe - 0.1)}
            | {"student": row.unsafe, "judge": row.unsafe if number % 4 == 3 else None}
            for number, row in enumerate(rows)
        ),
    )
    numbers = {"f1": 0.9, "precision": 0.91, "recall": 0.89, "miss_rate": 0.02, "false_alarm_rate": 0.1}
    alone = {"at_promise": numbers, **numbers}
    stage = {"share": 0.5, "reached": 1.0, "rows": 180, "misses": 3, "false_alarms": 4, "unjudged": 0}
    run.write_metrics(
        {
            **numbers, "rows": 360, "unsafe_rows": 180, "promised_miss_rate": 0.05, "judge_share": 0.25,
            "seconds_per_image": 0.002, "judge_seconds_per_image": 0.05,
            "intervals": {"miss_rate": [0.01, 0.06], "false_alarm_rate": [0.05, 0.15], "f1": [0.85, 0.95]},
            "stages": {
                name: {**stage, "seconds_per_image": cost}
                for name, cost in (("filter", 0.001), ("student", 0.002), ("judge", 0.05))
            },
            "alone": {
                name: {**alone, "seconds_per_image": cost}
                for name, cost in (("image_filter", 0.001), ("student", 0.003), ("judge", 0.05))
            },
            "resampling": {"splits": 200, "mean": 0.03, "quantiles": {"5%": 0.01, "50%": 0.03, "95%": 0.055}},
            "calibration": {
                "student": {"whole": 1.2, "whole_calibration_error": 0.02, "whole_calibration_error_after": 0.01}
            },
            "cutoffs": {"text_unsafe": 2.0, "judge": 0.9}, "timing": {"rows": 64, "repeats": 5},
        }
    )  # fmt: skip
    return write_cascade_report(run, images)
