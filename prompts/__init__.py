"""The policy language: taxonomies, chat templates, verdicts and label flipping. Light: no torch, no numpy."""

from .errors import ArbiterError, ExampleError, TaxonomyError, TemplateError
from .example import Example
from .taxonomy import Category, Taxonomy
from .taxonomy_file import load_taxonomy, shipped_taxonomies
from .template import TEMPLATES, Answer, Chat, quote, render, unquote

__all__ = [
    "TEMPLATES",
    "Answer",
    "ArbiterError",
    "Category",
    "Chat",
    "Example",
    "ExampleError",
    "Taxonomy",
    "TaxonomyError",
    "TemplateError",
    "load_taxonomy",
    "quote",
    "render",
    "shipped_taxonomies",
    "unquote",
]
