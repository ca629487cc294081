"""`report.html` of a robustness run: tables, curves and the sheet of pictures, in one file without a network."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from judge.rundir import RunDir

from .attacked import Attacked
from .report import show
from .robustness_plots import Exhibit, draw_epsilons, draw_margins, draw_sheet, draw_steps

HEADLINE_KEYS = (
    "huge_epsilon_success",
    "filters_asr",
    "cascade_asr",
    "cascade_f1_loss",
    "undefended_robust_accuracy",
    "defended_robust_accuracy",
    "clean_f1_loss",
)
"""The numbers that stand for the rest."""
SHEET = "Clean, attacked, difference"
Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """One table: a line for each name."""

    title: str
    heads: Sequence[str]
    lines: Sequence[tuple[str, Sequence[Any]]]
    note: str = field(default="", compare=False)

    def to_text(self) -> str:
        """The table for a terminal."""
        rows = [["", *self.heads], *([name, *map(show, cells)] for name, cells in self.lines)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            )
            for row in rows
        ]
        return "\n".join([self.title, *(line.rstrip() for line in lines)])


def tables(metrics: Metrics) -> list[Table]:
    """Every table that the metrics of `recipes/attack.py` have data for, in the order of the report."""
    pixels = metrics["pixels"]
    found = [
        by_budget(pixels),
        by_attack_table(pixels),
        *(
            split_table(pixels, key, title)
            for key, title in (
                ("by_direction", "truth"),
                ("by_source", "source"),
                ("by_category", "category"),
            )
        ),
    ]
    if metrics.get("comparison"):
        found.append(comparison(metrics["comparison"]))
    if metrics.get("deployments"):
        found += [deployments(metrics["deployments"]), static(metrics["deployments"])]
    if metrics.get("texts"):
        found.append(texts(metrics["texts"]))
    if metrics.get("edits"):
        found.append(edits(metrics["edits"]))
    if metrics.get("transfer"):
        found.append(transfer(metrics["transfer"]))
    found.append(honesty(metrics["honesty"]))
    return [table for table in found if table.lines]


def by_budget(pixels: Metrics) -> Table:
    """Robust accuracy of each victim against epsilon."""
    budgets = list(next(iter(pixels.values()))["by_epsilon"])
    lines = [
        (
            name,
            [
                summary["clean_f1"],
                summary["misjudged"] + summary["unjudged"],
                *(summary["by_epsilon"][budget]["robust_accuracy"] for budget in budgets),
                summary["interval"],
            ],
        )
        for name, summary in pixels.items()
    ]
    note = (
        "Share of all rows that are judged right and stay right under the worst attack of the ensemble, found again on "
        "the stored picture by the real path. Below one grey level nothing can be stored."
    )
    return Table(
        "Robust accuracy by budget", ["F1 here", "wrong clean", *budgets, "at the headline"], lines, note
    )


def by_attack_table(pixels: Metrics) -> Table:
    """Robust accuracy against each attack alone, at the headline."""
    names = list(dict.fromkeys(name for summary in pixels.values() for name in summary["by_attack"]))
    lines = [
        (
            name,
            [
                *(summary["by_attack"].get(attack, {}).get("robust_accuracy") for attack in names),
                summary["robust_accuracy"],
            ],
        )
        for name, summary in pixels.items()
    ]
    return Table("Robust accuracy by attack, headline budget", [*names, "worst of all"], lines)


def split_table(pixels: Metrics, key: str, title: str) -> Table:
    """Robust accuracy of parts of the rows."""
    parts = list(dict.fromkeys(part for summary in pixels.values() for part in summary[key]))
    lines = [
        (name, [summary[key].get(part, {}).get("robust_accuracy") for part in parts])
        for name, summary in pixels.items()
    ]
    return Table(f"Robust accuracy by {title}, headline budget", parts, lines)


def comparison(found: Metrics) -> Table:
    """Undefended against defended."""
    lines = [
        (
            f"{name}: {entry['epsilon']}",
            [
                entry["undefended"], entry["defended"], entry["lead"], entry["interval"], entry["p_value"],
                entry["clean_f1_loss"],
            ],
        )
        for name, entries in found.items()
        for entry in entries
    ]  # fmt: skip
    heads = ["undefended", "defended", "lead", "95 % (paired bootstrap)", "McNemar p", "clean F1 lost"]
    return Table("What the defence buys, and its price", heads, lines)


def deployments(found: Metrics) -> Table:
    """Attack success against filters and cascades."""
    lines = [
        (
            f"{name}, {arm}, {budget}",
            [
                rates["asr_1"]["rate"],
                rates["asr_n"]["rate"],
                (rates["asr_n"]["low"], rates["asr_n"]["high"]),
                rates["attempts"],
                rates["passed_n"]["rate"],
                rates["false_alarms_clean"]["rate"],
                rates["false_alarms"]["rate"],
            ],
        )
        for name, deployment in found.items()
        for budget, arms in deployment["adaptive"].items()
        for arm, rates in arms.items()
    ]
    heads = ["ASR-1", "ASR-N", "95 %", "N", "all unsafe passed", "false alarms", "under attack texts"]
    note = (
        "Unsafe by truth. ASR: of the rows flagged when clean, those that pass all stages by the real path. "
        "False alarms on benign rows under the same policies, with their texts treated alike."
    )
    return Table("Attack success against filters and cascades, adaptive", heads, lines, note)


def static(found: Metrics) -> Table:
    """Attack success by transfer from the filters."""
    lines = [
        (f"{name}, {budget}", [entry["rate"], entry["successes"], entry["rows"]])
        for name, deployment in found.items()
        for budget, entry in deployment["static"].items()
    ]
    note = "Made against the undefended filters, in image and text, and shown unchanged: what papers mostly report."
    return Table("The same by static transfer", ["ASR", "passed", "flagged clean"], lines, note)


def texts(found: Metrics) -> Table:
    """Attack success through text alone."""
    names = list(dict.fromkeys(name for entry in found.values() for name in entry["families"]))
    lines = [
        (
            victim,
            [
                *(entry["families"].get(name, {}).get("asr_n") for name in names),
                entry["any"]["rate"],
                entry["definitions"]["rate"],
            ],
        )
        for victim, entry in found.items()
    ]
    note = "Share of rows judged right when clean that some text of the family turns, in either direction."
    return Table("Text alone: ASR-N by family", [*names, "any", "through definitions"], lines, note)


def edits(found: Metrics) -> Table:
    """What edits, corruptions and writing leave."""
    lines = [
        (
            f"{name}: {victim}",
            [
                sum(entry[name]["held"].values()) / len(entry[name]["held"]),
                min(entry[name]["held"], key=entry[name]["held"].get),
                min(entry[name]["held"].values()),
                entry[name]["worst"],
            ],
        )
        for name in ("edits", "corruptions", "writing")
        for victim, entry in found.items()
        if name in entry
    ]
    heads = ["held, mean", "hardest", "held under it", "held under all"]
    return Table("Edits without a budget (severities 1, 3, 5)", heads, lines)


def transfer(found: Metrics) -> Table:
    """The transfer matrix."""
    names = list(dict.fromkeys(name for row in found["matrix"].values() for name in row))
    lines = [
        (f"made on {maker}", [row.get(name, {}).get("success") for name in names])
        for maker, row in found["matrix"].items()
    ]
    note = f"Attack success at {found['epsilon']} of pictures made on one victim and shown to another."
    return Table("Transfer", names, lines, note)


def honesty(found: Mapping[str, Iterable[Metrics]]) -> Table:
    """Every check of every victim."""
    lines = [
        (
            f"{victim}: {check['name']}",
            ["passed" if check["passed"] else "FAILED", check["limit"], check["message"]],
        )
        for victim, checks in found.items()
        for check in checks
    ]
    return Table("Honesty checks", ["", "limit", "what was seen"], lines)


def write_robustness_report(
    run: RunDir,
    metrics: Metrics,
    attacked: Mapping[str, Attacked],
    exhibits: Sequence[Exhibit],
    epsilon: float,
) -> Path:
    """Draw everything into `plots/` and write `report.html`; gives its path.

    Args:
        run: where to.
        metrics: what `recipes/attack.py` found.
        attacked: each victim's rows and trials.
        exhibits: pictures for the sheet.
        epsilon: the headline budget, in pixels of [0, 1].
    """
    plots, pixels = run.plots, metrics["pixels"]
    figures = {
        "Robust accuracy against epsilon": draw_epsilons(pixels, plots / "epsilon.png"),
        "Robust accuracy against steps": draw_steps(pixels, plots / "steps.png"),
        "Margins, clean and attacked": draw_margins(attacked, epsilon, plots / "margins.png"),
    }
    if exhibits:
        figures[SHEET] = draw_sheet(exhibits, plots / "pictures.png")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eval", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("robustness.html").render(
        title=run.path.name,
        about=metrics["suite"]["about"],
        failed=failed(metrics["honesty"]),
        tables=tables(metrics),
        figures={name: _inline(path) for name, path in figures.items()},
        sheet=SHEET,
        show=show,
    )
    return run.write_text("report.html", page)


def headline(
    metrics: Metrics, pair: tuple[str, str] | None, small: str, large: str
) -> dict[str, float | None]:
    """The numbers of `HEADLINE_KEYS`; None where nothing was attacked that could give one.

    Args:
        metrics: what was found; deployments in the order filters, cascade, defended cascade.
        pair: an undefended victim and its defended version.
        small: the headline budget, as a key of the tables; cascades are held to it.
        large: the largest budget; the filters alone are shown to fall at it.
    """
    deployments, clean = metrics["deployments"], metrics["clean"]
    first, second = (name if name in metrics["pixels"] else None for name in pair or (None, None))
    names = list(deployments)

    def success(name: str, budget: str) -> float:
        return float(deployments[name]["adaptive"][budget]["both"]["asr_n"]["rate"])

    return {
        "huge_epsilon_success": min(
            check["measured"]
            for checks in metrics["honesty"].values()
            for check in checks
            if check["name"] == "huge_epsilon"
        ),
        "filters_asr": success(names[0], large) if names else None,
        "cascade_asr": success(names[2], small) if len(names) > 2 else None,
        "cascade_f1_loss": deployments[names[1]]["clean_f1"] - deployments[names[2]]["clean_f1"]
        if len(names) > 2
        else None,
        "undefended_robust_accuracy": metrics["pixels"][first]["robust_accuracy"] if first else None,
        "defended_robust_accuracy": metrics["pixels"][second]["robust_accuracy"] if second else None,
        "clean_f1_loss": clean[first] - clean[second] if first and second else None,
    }


def failed(found: Mapping[str, Iterable[Metrics]]) -> list[str]:
    """The failed checks, a line each."""
    return [
        f"{victim}: {check['name']}: {check['message']}"
        for victim, checks in found.items()
        for check in checks
        if not check["passed"]
    ]


def _inline(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
