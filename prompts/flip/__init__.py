"""Label flipping: from a pool of images to rows, groups and pairs in which the policy decides the label."""

from .draw import draw_groups, draw_pairs
from .options import FlipOptions
from .published import paper_rows
from .rows import Group, Pair, Row
from .summary import format_report, report

__all__ = [
    "FlipOptions",
    "Group",
    "Pair",
    "Row",
    "draw_groups",
    "draw_pairs",
    "format_report",
    "paper_rows",
    "report",
]
