"""`report.html` of a robustness run: tables, curves and attacked images, in one file without network."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.robustness.trials import VictimResults
from judge.runs.folder import RunDir

from .page import page_template, png_data_uri
from .robustness_figures import ImagePair, draw_epsilons, draw_images, draw_margins, draw_steps
from .robustness_tables import Metrics, failed_checks, tables

SHEET = "Clean, attacked, difference"


def write_robustness_report(
    run: RunDir,
    metrics: Metrics,
    results: Mapping[str, VictimResults],
    pairs: Sequence[ImagePair],
    epsilon: float,
) -> Path:
    """Write `report.html`, and its figures to `plots/`; returns the path of the report.

    Args:
        run: the run folder.
        metrics: those of `recipes/attack.py`.
        results: each victim's rows and trials.
        pairs: images to show, clean and attacked.
        epsilon: the headline budget, L-inf, of pixels in [0, 1].
    """
    plots, pixels = run.plots, metrics["pixels"]
    figures = {
        "Robust accuracy against epsilon": draw_epsilons(pixels, plots / "epsilon.png"),
        "Robust accuracy against steps": draw_steps(pixels, plots / "steps.png"),
        "Margins, clean and attacked": draw_margins(results, epsilon, plots / "margins.png"),
    }
    # There are none if no attack succeeded.
    if pairs:
        figures[SHEET] = draw_images(pairs, plots / "pictures.png")
    page = page_template("robustness.html").render(
        title=run.path.name,
        about=metrics["suite"]["about"],
        failed_checks=failed_checks(metrics["honesty"]),
        tables=tables(metrics),
        figures={name: png_data_uri(path.read_bytes()) for name, path in figures.items()},
        sheet=SHEET,
    )
    return run.write_text("report.html", page)
