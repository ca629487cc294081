"""Figures about why classifiers fail, from the record of `eval.causes.explain.explain_failures`.

One small SVG for each statistic or classifier. Sources differ in marker, hatch and line style and not in colour alone,
so they stay apart in print and for everyone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .figures import BLUE, GREEN, GREY, RED, new_axes, new_panels, plain_label, svg_bytes

COLOURS = (GREY, BLUE, RED, GREEN, "#8a5fb0", "#c98a1b")
LINES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
MARKERS = "o^sDvP"
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "----")
"""Of the sources, in their order: at most six (`eval.causes.outcomes.MOST_SOURCES`)."""
KINDS = {
    "false_negatives": "unsafe, judged safe",
    "false_positives": "safe, judged unsafe",
    "unjudged": "not judged",
}
"""Kind of failure -> what figures and tables call it."""
_EDGES = {"confidence": (0.49, 1.01)}
"""Ends of the axis, the same for every classifier."""
_OTHERS = "#c4cad0"
_WIDTH, _HEIGHT = 2.9, 2.3
"""Of a plot, in inches."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class CauseFigure:
    """One plot."""

    label: str
    """The classifier or the statistic."""
    caption: str
    svg: bytes


def draw_causes(record: Record) -> dict[str, tuple[str, list[CauseFigure]]]:
    """Heading -> what its plots show, and the plots; headings without any are left out."""
    found = {
        "Shift between sources": (
            "Share of images by what was measured on their grey levels, all brought to one size.",
            draw_shift(record["shift"]) if record["shift"] else [],
        ),
        "Map of images": (
            "Each point is an image; what an encoder finds alike lies close together. A map may show groups where "
            "there are none: the AUC is the number to trust.",
            draw_map(record["map"], record["separation"]) if record["map"] else [],
        ),
        "Style and layout": (
            "Share judged right of unsafe images, painted in rising strengths and tiled, with 95 % intervals; the "
            "other classifiers in grey.",
            draw_case_study(record["case_study"]) if record["case_study"] else [],
        ),
        "Confidence": (
            "Probability of the verdict's class: median, quartiles, and whiskers from 5 to 95 %.",
            draw_confidence(record["confidence"], "confidence") if record["confidence"] else [],
        ),
        "Loss": (
            "Cross-entropy: median, quartiles, and whiskers from 5 to 95 %.",
            draw_confidence(record["confidence"], "loss") if record["confidence"] else [],
        ),
        "Loss under attack": (
            "Rise of the cross-entropy of images that were judged right before: median, quartiles, 5 to 95 %.",
            draw_attack_loss(record["attack_loss"]) if record["attack_loss"] else [],
        ),
    }
    return {heading: (about, plots) for heading, (about, plots) in found.items() if plots}


def draw_shift(shift: Record) -> list[CauseFigure]:
    """One histogram a statistic."""
    figures = []
    for one in shift["statistics"].values():
        if not one["sources"]:
            continue
        figure, axes = new_axes(one["label"], "share of images", width=_WIDTH, height=_HEIGHT)
        for number, (source, found) in enumerate(one["sources"].items()):
            axes.stairs(
                np.array(found["counts"]) / found["rows"], one["edges"], label=plain_label(source), fill=number == 0,
                color=COLOURS[number], linestyle=LINES[number], linewidth=1.5, alpha=0.55 if number == 0 else 1,
            )  # fmt: skip
        axes.legend(frameon=False, fontsize=7)
        axes.tick_params(labelsize=7)
        effects = [
            f"{source}: Cliff's delta {effect['cliffs_delta']:+.2f}"
            for source, effect in one["against_reference"].items()
        ]
        figures.append(CauseFigure(one["label"], "; ".join(effects) or "one source", svg_bytes(figure)))
    return figures


def draw_map(drawn: Record, separation: Record) -> list[CauseFigure]:
    """One scatter plot of all sources."""
    points = drawn["points"]
    if not points["x"]:
        return []
    figure, panels = new_panels(1, 1, width=4.4, height=4.0)
    axes, of = panels[0, 0], np.array(points["source"])
    places = np.column_stack([points["x"], points["y"]])
    for number, source in enumerate(dict.fromkeys([str(separation["reference"]), *sorted(set(of))])):
        mine = places[of == source]
        if len(mine):
            axes.scatter(
                *mine.T, s=9, marker=MARKERS[number], label=plain_label(source), linewidths=0.6,
                facecolors=COLOURS[number] if number == 0 else "none", edgecolors=COLOURS[number],
            )  # fmt: skip
    axes.set(xticks=[], yticks=[])
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.01), ncols=3)
    caption = "; ".join(
        f"{source}: AUC {one['auc']:.2f} ({one['interval'][0]:.2f} – {one['interval'][1]:.2f})"
        for source, one in separation["sources"].items()
        if one["auc"] is not None
    )
    return [CauseFigure(str(drawn["encoder"]), caption or "one source", svg_bytes(figure))]


def draw_case_study(case: Record) -> list[CauseFigure]:
    """One plot a classifier: strengths on the left, grids on the right, each from the original on."""
    tables = {label: one for label, one in case["classifiers"].items() if one["images"]}
    figures = []
    for label, one in tables.items():
        figure, axes = new_axes("", "judged right", width=_WIDTH, height=_HEIGHT)
        for other, table in tables.items():
            if other != label:
                for places, cells in _case_lines(table):
                    axes.plot(places, [cell["share"] for cell in cells], color=_OTHERS, linewidth=0.7)
        lines = _case_lines(one)
        for (places, cells), marker, style in zip(lines, "os", ("-", "--"), strict=True):
            shares = np.array([cell["share"] for cell in cells])
            low, high = np.array([cell["interval"] for cell in cells]).T
            # Rounding may put a bound a hair on the wrong side.
            lengths = np.maximum(0, [shares - low, high - shares])
            axes.errorbar(
                places, shares, lengths, color=BLUE, marker=marker, markersize=4, linestyle=style, linewidth=1.5,
                elinewidth=0.7,
            )  # fmt: skip
        _case_ticks(axes, lines)
        figures.append(CauseFigure(label, f"{one['images']} images", svg_bytes(figure)))
    return figures


def _case_lines(table: Record) -> list[tuple[list[float], list[Record]]]:
    """Places and cells of the strengths and of the grids, both behind the original."""
    strengths, grids = table["style"], table["grid"]
    start = len(strengths) + 2
    return [
        (list(range(len(strengths) + 1)), [table["original"], *strengths]),
        (list(range(start, start + len(grids) + 1)), [table["original"], *grids]),
    ]


def _case_ticks(axes: Axes, lines: Sequence[tuple[list[float], list[Record]]]) -> None:
    (left, strengths), (right, grids) = lines
    names = ["0", *(f"{cell['level']:g}".removeprefix("0") for cell in strengths[1:])]
    names += ["1²", *(f"{cell['level']:g}²" for cell in grids[1:])]
    axes.set_xticks([*left, *right], names, fontsize=7)
    axes.set(ylim=(-0.04, 1.06))
    axes.set_xlabel("strength of the style (●); copies (■)", fontsize=8)
    axes.tick_params(labelsize=7)


def draw_confidence(found: Record, what: str) -> list[CauseFigure]:
    """One plot of boxes a classifier; `what` is `confidence` or `loss`."""
    figures = []
    for label, one in found["classifiers"].items():
        boxes = {
            f"{source}, {side}": (one["sources"][source][side][what], number)
            for number, source in enumerate(one["sources"])
            for side in ("right", "wrong")
        }
        svg = _boxes(boxes, {"confidence": "confidence", "loss": "loss (nats)"}[what], edges=_EDGES.get(what))
        if svg:
            unjudged = sum(one["unjudged"].values())
            caption = f"{unjudged} not judged, and in no box" if unjudged else "all judged"
            figures.append(CauseFigure(label, caption, svg))
    return figures


def draw_attack_loss(found: Record) -> list[CauseFigure]:
    """One plot of boxes for each victim and attack; FGSM alone, as the paper, where it ran."""
    figures = []
    for victim, attacks in found["victims"].items():
        for attack in ["fgsm"] if "fgsm" in attacks else list(attacks):
            boxes = {
                source: (parts["increase"], number)
                for number, (source, parts) in enumerate(attacks[attack]["sources"].items())
            }
            svg = _boxes(boxes, "rise of the loss (nats)")
            if svg:
                figures.append(CauseFigure(victim, f"{attack} at {found['epsilon']}", svg))
    return figures


def _boxes(
    boxes: Mapping[str, tuple[Record, int]], x_label: str, *, edges: tuple[float, float] | None = None
) -> bytes | None:
    """Lying boxes: name -> (distribution, number of its source); None where all are empty."""
    filled = {name: one for name, one in boxes.items() if one[0]["rows"]}
    if not filled:
        return None
    figure, axes = new_axes(x_label, "", width=_WIDTH, height=0.8 + 0.42 * len(filled))
    keys = ("whislo", "q1", "med", "q3", "whishi")
    stats = [
        {**dict(zip(keys, found["quantiles"], strict=True)), "label": _box_label(name, found)}
        for name, (found, _) in filled.items()
    ]
    drawn = axes.bxp(
        stats, orientation="horizontal", showfliers=False, patch_artist=True, widths=0.6,
        medianprops={"color": "#1d252c", "linewidth": 1.6},
    )  # fmt: skip
    for box, (name, (_, number)) in zip(drawn["boxes"], filled.items(), strict=True):
        box.set(facecolor="white", edgecolor=COLOURS[number], hatch=HATCHES[number], linewidth=1.2)
        if name.endswith("wrong"):
            box.set_linestyle("--")
    axes.invert_yaxis()
    if edges:
        axes.set(xlim=edges)
    axes.tick_params(labelsize=7)
    return svg_bytes(figure)


def _box_label(name: str, found: Record) -> str:
    return f"{plain_label(name)} ({found['rows']:,})\nmedian {found['quantiles'][2]:.3g}"
