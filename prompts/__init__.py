"""The policy language: taxonomies, chat templates, verdicts and label flipping. Light: no torch, no numpy.

Label flipping is imported on first use: the command line needs it in few commands.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import ArbiterError, ExampleError, TaxonomyError, TemplateError
from .example import Example
from .quoting import quote, unquote
from .taxonomy import Category, Taxonomy
from .taxonomy_file import load_taxonomy, shipped_taxonomies
from .template import TEMPLATES, Answer, Chat, render
from .verdict import Verdict, parse_answer, verdict_from_scores

if TYPE_CHECKING:
    from .flip import (
        FlipOptions,
        Group,
        Pair,
        Row,
        draw_groups,
        draw_pairs,
        format_report,
        paper_rows,
        report,
    )

__all__ = [
    "TEMPLATES",
    "Answer",
    "ArbiterError",
    "Category",
    "Chat",
    "Example",
    "ExampleError",
    "FlipOptions",
    "Group",
    "Pair",
    "Row",
    "Taxonomy",
    "TaxonomyError",
    "TemplateError",
    "Verdict",
    "draw_groups",
    "draw_pairs",
    "format_report",
    "load_taxonomy",
    "paper_rows",
    "parse_answer",
    "quote",
    "render",
    "report",
    "shipped_taxonomies",
    "unquote",
    "verdict_from_scores",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'prompts' has no attribute {name!r}")
    return getattr(import_module(".flip", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
