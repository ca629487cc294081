"""Category by classifier: F1 as a number on a ground that is darker, the higher it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl

from eval.benchmark.aligned import ALL
from eval.reports.page import format_value

_DARKEST, _LIGHTEST = 0.94, 0.06
"""Of the colour map: neither white, which a cell without a value has, nor so dark that grids vanish."""


@dataclass(frozen=True)
class HeatCell:
    """One cell; without a value it is hatched (not covered) or empty (no F1: nothing unsafe in it, or none at all)."""

    text: str
    kind: Literal["value", "not_covered", "undefined"]
    ground: str = ""
    """As `#rrggbb`."""
    ink: str = ""


def heat_map(metrics: Mapping[str, Any], labels: Sequence[str]) -> list[tuple[str, list[HeatCell]]]:
    """Each category's name, and the cell of every label, over all sources."""
    lines = []
    for category in metrics["categories"]:
        cells = []
        for label in labels:
            one = metrics["classifiers"][label]
            cell = (one["cells"].get(category["key"]) or {}).get(ALL) or {}
            cells.append(_cell(cell.get("f1"), category["key"] in one["covers"]))
        lines.append((category["name"], cells))
    return lines


def heat_colour(value: float) -> tuple[str, str]:
    """Ground and ink of a cell as `#rrggbb`, for a value in [0, 1].

    The higher, the darker, so the order survives a grey printer. The ink is black or white, whichever stands out more:
    at least 4.58 : 1, above the 4.5 that WCAG 2 asks for.
    """
    share = _LIGHTEST + (_DARKEST - _LIGHTEST) * min(max(value, 0.0), 1.0)
    channels = mpl.colormaps["Blues"](share)[:3]
    ground = "#" + "".join(f"{round(255 * channel):02x}" for channel in channels)
    light = luminance(ground) + 0.05
    return ground, "#000000" if light / 0.05 > 1.05 / light else "#ffffff"


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb` in [0, 1], as WCAG 2 defines it."""
    channels = (int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5))
    light = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return float(sum(weight * one for weight, one in zip((0.2126, 0.7152, 0.0722), light, strict=True)))


def _cell(value: float | None, covered: bool) -> HeatCell:
    if not covered:
        return HeatCell("–", "not_covered")
    if value is None:
        return HeatCell("n/a", "undefined")
    return HeatCell(format_value(float(value)), "value", *heat_colour(value))
