"""Lessons: drawn policies and prompts, worded and put together as other users would.

All choices come from a generator of their own, so a draw of images is the same with lessons and without.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from prompts.errors import TaxonomyError
from prompts.example import Example
from prompts.taxonomy import Category, Taxonomy
from prompts.taxonomy_file import load_taxonomy
from prompts.unrelated import unrelated_categories

from .logic import LOGIC, Couples
from .options import FlipOptions
from .pool import Pool
from .prompt_texts import draw_parts, rewrite_prompt
from .rows import PLAIN
from .wording import draw_style, restyle


@dataclass(frozen=True)
class Lessons:
    """What rewrites the policies and prompts of one draw."""

    categories: tuple[Category, ...]
    """Those that policies and prompts may name, with aliases and rewordings."""
    distractors: tuple[Category, ...]
    couples: Couples
    options: FlipOptions
    rng: Random

    def policy(self, entries: Sequence[Category]) -> tuple[list[Category], str]:
        """Entries of a policy in other words, and what was done to them; unchanged for a share of policies."""
        rng, options = self.rng, self.options
        if rng.random() >= options.restyle:
            return list(entries), PLAIN
        changed, done = list(entries), list[str]()
        wanted = [part for part in LOGIC if rng.random() < getattr(options, part)]
        for part in wanted[:1]:  # one at a time: the truth of nested ones would be hard to read
            changed = LOGIC[part](changed, self.categories, self.couples, rng)
            done.append(part)
        if self.distractors and rng.random() < options.distract:
            changed = self._distracted(changed)
            done.append("distract")
        style = draw_style(options, rng)
        mixed = rng.random() < options.mixed
        styles = [draw_style(options, rng) if mixed else style for _ in changed]
        changed = self._shortened(restyle(changed, styles, rng, meaningless=options.names))
        done += ["mixed"] if mixed else style.parts
        names = {category.name.casefold() for category in changed}
        # Two made-up words alike, or two cases of one name; or legal prose around many entries.
        if len(names) < len(changed) or sum(map(_characters, changed)) > options.policy_characters:
            return list(entries), PLAIN
        return changed, "+".join(done) or PLAIN

    def prompt_parts(self) -> tuple[str, ...]:
        """What to do with the prompts of one group: one thing for all, as rows of similar length take least room."""
        return draw_parts(self.options, self.rng)

    def prompt(self, image: Example, parts: Sequence[str]) -> str | None:
        """The image's prompt with these parts done to it; None where it has none."""
        if parts:
            return rewrite_prompt(image, parts, self.categories, self.rng)
        return image.prompt if image.prompt and image.prompt.strip() else None

    def _distracted(self, entries: Sequence[Category]) -> list[Category]:
        """The entries among unrelated ones, whose names they do not share."""
        taken = {entry.name.casefold() for entry in entries}
        free = [category for category in self.distractors if category.name.casefold() not in taken]
        room = min(len(free), self.options.longest - len(entries))
        mixed = [*entries, *self.rng.sample(free, self.rng.randint(1, room))] if room > 0 else [*entries]
        self.rng.shuffle(mixed)
        return mixed

    def _shortened(self, entries: Sequence[Category]) -> list[Category]:
        """The entries without those distractors, from the end, that make a policy too long to train on."""
        unrelated = {category.key for category in self.distractors}
        over = sum(_characters(entry) for entry in entries) - self.options.policy_characters
        kept: list[Category] = []
        for entry in reversed(entries):
            if over > 0 and entry.key in unrelated:
                over -= _characters(entry)
            else:
                kept.append(entry)
        return kept[::-1]


def plan_lessons(
    pool: Pool, taxonomy: Taxonomy, keys: Sequence[str], options: FlipOptions, rng: Random
) -> Lessons:
    """What lessons on these images may draw on.

    Args:
        pool: the images.
        taxonomy: where categories come from.
        keys: of the categories that may be named.
        options: shares of changes, and the taxonomies of distractors.
        rng: source of every choice.

    Raises:
        TaxonomyError: a taxonomy of distractors cannot be read, or shares a name with the taxonomy or the labels.
    """
    distractors: tuple[Category, ...] = ()
    if options.restyle and options.distract and options.distractors:
        found = [load_taxonomy(name) for name in options.distractors]
        labelled = [bucket.example for bucket in pool.buckets]
        distractors = unrelated_categories(found, taxonomy, labelled)
        if not distractors:
            raise TaxonomyError(f"No distractors in {', '.join(options.distractors)}.")
    violated = [bucket.example.violates.intersection(keys) for bucket in pool.buckets]
    couples = {frozenset((a, b)) for each in violated for a in each for b in each if a != b}
    categories = tuple(
        category for category, key in zip(taxonomy, taxonomy.keys, strict=True) if key in set(keys)
    )
    return Lessons(categories, distractors, couples, options, rng)


def _characters(category: Category) -> int:
    return len(category.name) + (0 if category.name_only else len(category.definition))
