"""`report.html` of a robustness run: tables, curves and the sheet of pictures, in one file without a network."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.robustness.trials import VictimResults
from judge.runs.folder import RunDir

from .page import inline, page_template, show
from .robustness_figures import ImagePair, draw_epsilons, draw_margins, draw_sheet, draw_steps
from .robustness_tables import Metrics, failed_checks, tables

SHEET = "Clean, attacked, difference"


def write_robustness_report(
    run: RunDir,
    metrics: Metrics,
    results: Mapping[str, VictimResults],
    exhibits: Sequence[ImagePair],
    epsilon: float,
) -> Path:
    """Draw everything into `plots/` and write `report.html`; gives its path.

    Args:
        run: where to.
        metrics: what `recipes/attack.py` found.
        results: each victim's rows and trials.
        exhibits: pictures for the sheet.
        epsilon: the headline budget, in pixels of [0, 1].
    """
    plots, pixels = run.plots, metrics["pixels"]
    figures = {
        "Robust accuracy against epsilon": draw_epsilons(pixels, plots / "epsilon.png"),
        "Robust accuracy against steps": draw_steps(pixels, plots / "steps.png"),
        "Margins, clean and attacked": draw_margins(results, epsilon, plots / "margins.png"),
    }
    if exhibits:
        figures[SHEET] = draw_sheet(exhibits, plots / "pictures.png")
    page = page_template("robustness.html").render(
        title=run.path.name,
        about=metrics["suite"]["about"],
        failed_checks=failed_checks(metrics["honesty"]),
        tables=tables(metrics),
        figures={name: inline(path.read_bytes()) for name, path in figures.items()},
        sheet=SHEET,
        show=show,
    )
    return run.write_text("report.html", page)
