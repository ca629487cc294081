"""Plain words for the names that records and code use."""

from collections.abc import Mapping
from typing import Any

ROW_KINDS = {
    "keep": "unsafe: all it violates is in the policy",
    "partial": "unsafe: some of what it violates is in the policy",
    "flip": "safe: what it violates is not in the policy",
    "benign": "safe: it violates nothing",
    "focus_keep": "one category asked about: unsafe",
    "focus_flip": "one category asked about: safe, violates another",
    "focus_benign": "one category asked about: safe, violates nothing",
    "paper_keep": "published scheme: unsafe",
    "paper_flip": "published scheme: safe, as its category was left out",
    "paper_safe": "published scheme: safe",
}
"""`JudgedRow.arm` -> how the label of a question came about."""
COUNTS = {
    "totals": "In all",
    "uses": "How often an image is used",
    "arm": "How the label came about",
    "category": "Category that is violated",
    "called": "Name of that category",
    "focus": "Questions about one category",
    "policy length": "Categories in the policy",
    "prompt": "Prompt beside the image",
    "wording": "Wording of the policy",
    "prompt form": "How the prompt came about",
}
"""Table of `prompts.flip.report` -> its heading."""
VALUES: Mapping[str, Mapping[str, str]] = {
    "arm": ROW_KINDS,
    "called": {"own": "as in the taxonomy", "renamed": "another name", "custom": "several in one"},
    "prompt": {"kept": "the image's own", "lie": "that of an image of opposite label"},
    "uses": {"min": "least", "max": "most"},
    "totals": {"rows": "questions"},
}
"""Table of `prompts.flip.report` -> value -> what it is."""
METRICS = {
    "heldout_rows": "questions about held-out categories",
    "heldout_f1": "F1 on held-out categories",
    "heldout_auc": "AUC on held-out categories",
    "heldout_category_accuracy": "category accuracy on held-out categories",
    "lying_prompt_rows": "questions beside a prompt of another image",
    "lying_prompt_f1": "F1 beside a prompt of another image",
}
"""Keys of `summarise_evaluation` -> what they are."""


def plain(name: object, known: Mapping[str, str] = METRICS) -> str:
    """What a name means; one that is not known, with spaces."""
    text = str(name)
    return known.get(text) or text.replace("_", " ")


def count_tables(report: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The tables of `prompts.flip.report` in words: heading -> value -> number."""
    return {
        COUNTS.get(heading) or heading.capitalize(): {
            plain(value, VALUES.get(heading, {})): number for value, number in values.items()
        }
        for heading, values in report.items()
    }
