"""The policy language: taxonomies, chat templates, verdicts and label flipping. Light: no torch, no numpy."""

from .errors import ArbiterError, ExampleError, TaxonomyError, TemplateError
from .example import Example
from .flip import FlipOptions, Group, Pair, Row, draw_groups, draw_pairs, format_report, paper_rows, report
from .quoting import quote, unquote
from .taxonomy import Category, Taxonomy
from .taxonomy_file import load_taxonomy, shipped_taxonomies
from .template import TEMPLATES, Answer, Chat, render
from .verdict import Verdict, parse_answer, verdict_from_scores

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
