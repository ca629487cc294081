"""`report.html` and `report.md` of a run on detectors inside the diffusion loop."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from eval.reports.charts import chart
from eval.reports.page import Verdict, render
from eval.reports.table import Table
from judge.runs.folder import RunDir

from .comparison import behind
from .figures import draw_areas, draw_promises
from .tables import tables


def write_diffusion_report(
    run: RunDir,
    metrics: Mapping[str, Any],
    *,
    facts: Sequence[str] = (),
    more: Sequence[Table] = (),
    figures: Mapping[str, Figure] | None = None,
) -> Path:
    """Write `report.html`, `report.md` and the figures in `plots/`; returns the path of the page.

    Args:
        run: the run folder.
        metrics: with the keys of `comparison.compare`, `log_snr` and `category_names`; whatever else there is of
            `held_out`, `promises`, `overheads` and `corpus` has a table too.
        facts: sentences about the run, for the top of the page.
        more: further tables, such as those of costs and attacks.
        figures: further figures by title.
    """
    drawn = {"How early it is known": draw_areas(metrics), **(figures or {})}
    promises = draw_promises(metrics)
    if promises is not None:
        drawn["Promised and measured miss rates"] = promises
    charts = [chart(figure, title, file=_file(run, title)) for title, figure in drawn.items()]
    listed = [*tables(metrics), *(table for table in more if table.lines)]
    not_ahead = behind(metrics)
    about = [Table("About", [""], [(line, [""]) for line in facts])] if facts else []
    lead = [Table("Where the detector is not surely ahead", [""], [(line, [""]) for line in not_ahead])]
    markdown = [*about, *(table for table in lead if table.lines), *listed]
    run.write_text("report.md", "\n".join(table.to_markdown() for table in markdown))
    said = (
        f"The detector is not surely ahead of its baselines in {len(not_ahead)} comparisons, listed below."
        if not_ahead
        else "The detector is surely ahead of text alone and of the decoded picture, at every step and kind of prompt."
    )
    return render(
        "diffusion.html",
        run,
        verdict=Verdict(said, good=None if not_ahead else True),
        facts=list(facts),
        behind=not_ahead,
        charts=charts,
        tables=listed,
    )


def _file(run: RunDir, title: str) -> Path:
    return run.plots / f"{title.lower().replace(' ', '_')}.svg"
