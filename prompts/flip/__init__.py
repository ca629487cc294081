"""Label flipping: from a pool of images to rows, groups and pairs in which the policy decides the label."""

from .draw import draw_groups, draw_pairs
from .feasible import fit_group_size, names_no_category, no_pairs
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
    "fit_group_size",
    "format_report",
    "names_no_category",
    "no_pairs",
    "paper_rows",
    "report",
]
