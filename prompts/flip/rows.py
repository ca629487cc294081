"""What label flipping draws."""

from dataclasses import dataclass

from prompts.example import Example
from prompts.taxonomy import Taxonomy

PLAIN = "plain"
"""Texts as the taxonomy and the data have them."""


@dataclass(frozen=True)
class Row:
    """One question to the judge with its correct answer."""

    example: Example
    taxonomy: Taxonomy
    """The policy as this row states it: names, definitions and order."""
    prompt: str | None
    """The prompt shown with the image; it may be that of another image."""
    prompt_of: str | None
    """Id of the example the prompt belongs to; None when no prompt is shown."""
    unsafe: bool
    category: str | None
    """Name, in `taxonomy`, of the category the answer names; None when safe, and where nobody recorded which it is."""
    focus: str | None
    """Name of the only category asked about; None to ask about the whole policy."""
    arm: str
    """How the label came about.

    - `keep`: unsafe, and everything the image violates is in the policy;
    - `partial`: unsafe, and the policy misses something else the image violates;
    - `unnamed`: unsafe, and the labels do not say how; everything that it could violate is in the policy;
    - `flip`: safe, although the image violates something outside the policy;
    - `benign`: safe, and the image violates nothing at all;
    - `focus_keep`: unsafe for the category asked about;
    - `focus_flip`: safe for the category asked about, although the image violates another one;
    - `focus_benign`: safe for the category asked about, and the image violates nothing at all;
    - `paper_keep`, `paper_flip`, `paper_safe`: the published scheme (`prompts.flip.published`).
    """
    wording: str = PLAIN
    """How the policy is worded: the styles applied, joined by "+"."""
    prompt_form: str = PLAIN
    """How the prompt came about: `plain` as in the data, or what was done with it, joined by "+"."""

    @property
    def prompt_kind(self) -> str:
        """`none`, `kept` (the image's own prompt) or `lie` (another image's)."""
        if self.prompt_of is None:
            return "none"
        return "kept" if self.prompt_of == self.example.id else "lie"


@dataclass(frozen=True)
class Group:
    """Rows that share one policy, half of them unsafe, half safe, no image twice."""

    taxonomy: Taxonomy
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Pair:
    """One image with one prompt under two policies of the same length and of opposite label."""

    unsafe: Row
    safe: Row
    direction: str
    """`safe_to_unsafe` or `unsafe_to_safe`: which of the two policies counts as the changed one."""
