"""`report.html` of a robustness run: the verdict, attacked images, numbers, curves, and last the details."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adversarial.threat import format_epsilon
from eval.robustness.run import AdversarialExample
from eval.robustness.trials import VictimResults
from judge.runs.folder import RunDir

from .attack_words import KNOWLEDGE
from .attacked_pictures import GAIN, attacked_pictures
from .page import Verdict, render
from .robustness_figures import draw_robustness
from .robustness_tables import Metrics, failed_checks, tables
from .stored import is_harmless
from .table import Table

FEW = 100
"""Questions below which a robust accuracy says little."""


def write_robustness_report(
    run: RunDir,
    metrics: Metrics,
    results: Mapping[str, VictimResults],
    broken: Mapping[str, Mapping[str, AdversarialExample]],
    epsilon: float,
) -> Path:
    """Write `report.html`, and its figures to `plots/`; returns the path of the report.

    Args:
        run: the run folder.
        metrics: those of `recipes/attack.py`.
        results: each victim's rows and trials.
        broken: victim -> question -> its first adversarial example.
        epsilon: the main size of the change, of pixels in [0, 1].
    """
    size = format_epsilon(epsilon)
    return render(
        "robustness.html",
        run,
        verdict=describe_robustness(metrics, size),
        about=metrics["suite"]["about"],
        failed_checks=failed_checks(metrics["honesty"]),
        pictures=attacked_pictures(results, broken),
        gain=GAIN,
        harmless=is_harmless(run),
        numbers=numbers(metrics["pixels"], size),
        charts=draw_robustness(metrics, results, epsilon, run.plots),
        details=tables(metrics),
    )


def describe_robustness(metrics: Metrics, size: str) -> Verdict:
    """What is left of every victim's accuracy, in a sentence; and how far that can be believed."""
    pixels, failed = metrics["pixels"], failed_checks(metrics["honesty"])
    parts = []
    for name, found in pixels.items():
        low, high = found["interval"]
        largest = list(found["by_epsilon"])[-1]
        more = (
            f", {found['by_epsilon'][largest]['robust_accuracy']:.1%} at {largest}" if largest != size else ""
        )
        parts.append(
            f"{found['robust_accuracy']:.1%} of {name}'s verdicts ({low:.1%} to {high:.1%}; "
            f"{found['clean_accuracy']:.1%} before it{more})"
        )
    what = {"linf": "colour values", "l2": "images, in L2 length,"}[metrics["suite"]["threat"]["norm"]]
    sentence = f"Still right under an attack that changes {what} by at most {size}: {', '.join(parts)}."
    if failed:
        checks = "A check" if len(failed) == 1 else f"{len(failed)} checks"
        sentence += f" {checks} of the attacks failed, so the truth may be worse."
    good = False if failed or min(map(_kept, pixels.values())) < 0.5 else None
    # Good news needs enough questions: the lower end of the interval counts.
    if good is None and min(_kept(found, found["interval"][0]) for found in pixels.values()) > 0.8:
        good = True
    return Verdict(sentence, good, limits=_limits(pixels))


def _kept(found: Mapping[str, Any], robust: float | None = None) -> float:
    """The share of a victim's clean accuracy that an attack leaves."""
    left = found["robust_accuracy"] if robust is None else robust
    return float(left / found["clean_accuracy"]) if found["clean_accuracy"] else 0.0


def _limits(pixels: Mapping[str, Any]) -> list[str]:
    found = ["A robust accuracy is an upper bound: an attack that nobody has tried may break more."]
    found += [
        f"{name} was attacked by queries only, as it gives no gradients ({each['no_gradients']}); whoever has its "
        "weights may do better."
        for name, each in pixels.items()
        if each.get("no_gradients")
    ]
    weak = dict.fromkeys(
        each["weak"] for each in pixels.values() if each["weak"] and not each.get("no_gradients")
    )
    found += [f"Weak attacks: {reason}." for reason in weak]
    rows = min(each["rows"] for each in pixels.values())
    if rows < FEW:
        found.append(f"Only {rows} questions were attacked; take more with --rows.")
    return found


def numbers(pixels: Mapping[str, Any], size: str) -> Table:
    """A line for each victim."""
    lines = [
        (
            name,
            [
                KNOWLEDGE[found.get("knowledge", "white_box")],
                found["rows"],
                f"{found['clean_accuracy']:.1%}",
                f"{found['robust_accuracy']:.1%}",
                f"{found['interval'][0]:.1%} – {found['interval'][1]:.1%}",
            ],
        )
        for name, found in pixels.items()
    ]
    heads = ["attacked by", "questions", "right, clean", f"right after {size}", "95 %"]
    return Table("Numbers", heads, lines)
