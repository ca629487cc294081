"""Label flipping: examples and a taxonomy -> rows in which the policy decides the label.

UnsafeBench (CCS 2025, section 5.2) asks about an unsafe image under a list without its category and flips the target to
safe. Its published code renders those negatives without definitions, so a model can recognise them by their form. Here
no text can reveal a label, by construction:

- a policy is drawn first, from a distribution that does not depend on any image (`prompts.flip.policies`);
- a group asks about several images under that one policy, half of them unsafe, half safe;
- rows come in pairs of opposite label, and the prompts of a pair are kept or exchanged with equal probability, or left
  out for both. An exchanged prompt describes another image;
- policies and prompts are reworded (`prompts.flip.lessons`) before anything is known of a label;
- mostly the two images of a pair violate equally many keys, so that not even that hints at a label.

Beyond the paper: partial drops, other names and wordings, custom and held-out categories, questions about a
single category, and a fresh draw every epoch. A draw depends on its seed and epoch alone, not on the number
of processes or on hash seeds.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from random import Random
from typing import TypeVar

from prompts.errors import ExampleError
from prompts.example import UNSPECIFIED, Example
from prompts.taxonomy import Category, Taxonomy

from .conditions import Conditional
from .feasible import names_no_category, no_pairs
from .lessons import Lessons, plan_lessons
from .options import FlipOptions
from .policies import draw_entries
from .pool import Bucket, Pool
from .prompt_conditions import conditional_group
from .rows import PLAIN, Group, Pair, Row

Drawn = TypeVar("Drawn")
Labels = list[tuple[Bucket, tuple[bool | None, ...]]]
Prompt = tuple[str | None, str | None]
"""A prompt and the id of the image it belongs to, or neither."""

_TRIES = 50
"""Policies of one length to try before a shorter one is tried."""


def draw_groups(
    examples: Sequence[Example],
    taxonomy: Taxonomy,
    options: FlipOptions,
    *,
    seed: int,
    epoch: int,
    groups: int | None = None,
) -> list[Group]:
    """Draw the training rows of one epoch.

    Args:
        examples: the images of one split; those that violate a held-out key are left out.
        taxonomy: where policies come from; every key not held out needs images that violate it.
        options: shape of policies and rows.
        seed: of the run.
        epoch: another epoch is another draw.
        groups: how many groups; by default as many as use each image about twice.

    Raises:
        ExampleError: there are too few unsafe or safe images; the message names the category and what to add.
        TaxonomyError: a held-out key that does not exist.
    """
    # `Random` hashes a text seed by SHA-512, so a draw is the same in every process, whatever PYTHONHASHSEED is.
    draw = _start(examples, taxonomy, options, f"groups/{seed}/{epoch}")
    if groups is None:
        groups = ceil(2 * len(draw.pool.examples) / options.group_size)
    shares = Random(f"conditions/{seed}/{epoch}")
    kinds = [shares.random() < options.prompt_condition and not draw.whole for _ in range(groups)]
    return [
        draw.retry_until_filled(draw.conditional_group if conditional else draw.group, draw.max_keys)
        for conditional in kinds
    ]


def draw_pairs(
    examples: Sequence[Example], taxonomy: Taxonomy, options: FlipOptions, *, seed: int, pairs: int
) -> list[Pair]:
    """Draw images that are unsafe under one policy and safe under another, for the pair score.

    Two policies differ in one category, in half of the draws at the same place, else with the others in a new order.
    `options.group_size` images share such two policies: half of them are unsafe under the first policy only, half under
    the second only, so that again neither policy reveals a label. Both rows of a pair show the same prompt. Directions
    alternate.

    Raises:
        ExampleError: no two policies of opposite label can be drawn from these images.
        TaxonomyError: a held-out key that does not exist.
    """
    # Pairs are for measuring, so they are in the words of taxonomy and data, whatever lessons do.
    draw = _start(examples, taxonomy, options.plain, f"pairs/{seed}")
    if reason := no_pairs(draw.pool.examples, draw.keys):
        raise ExampleError(f"There are no pairs: {reason}.")
    drawn: list[Pair] = []
    while len(drawn) < pairs:
        rows = draw.retry_until_filled(draw.policy_pair, len(draw.keys) - 1)
        for unsafe, safe in rows[: pairs - len(drawn)]:
            # Which policy counts as the changed one is a convention; alternating gives both directions equal weight.
            direction = ("safe_to_unsafe", "unsafe_to_safe")[len(drawn) % 2]
            drawn.append(Pair(unsafe, safe, direction))
    return drawn


def _start(examples: Sequence[Example], taxonomy: Taxonomy, options: FlipOptions, seed: str) -> "_Draw":
    """Check that the data has unsafe and safe images for every category."""
    rng = Random(seed)
    keys = options.training_keys(taxonomy)
    pool = Pool(examples, options.held_out, rng)
    whole = names_no_category(pool.examples)
    if whole and options.held_out:
        raise ExampleError(
            f"No unsafe image names its category, so each may violate {', '.join(sorted(options.held_out))}: nothing "
            "can be held out. Name categories in the table, or hold none out."
        )
    # Checked once for all policies, rather than found out in the middle of an epoch.
    missing = [key for key in keys if not pool.violating(key)]
    if missing and not whole:
        raise ExampleError(
            f"No image violates {', '.join(missing)}: there can be no unsafe row for it. Add such images, "
            "hold the category out, or select the others from the taxonomy."
        )
    # Images that are safe even under the longest policy; without enough of them it must leave a category out.
    harmless = pool.count(lambda example: not (example.violates | example.unknown).intersection(keys))
    max_keys = len(keys) if harmless >= options.group_size // 2 else len(keys) - 1
    if whole and max_keys < len(keys):
        raise ExampleError(
            f"No unsafe image names its category, so policies hold all {len(keys)}; {harmless} images are safe under "
            f"them and a group needs {options.group_size // 2}. Add safe images, or lower group_size."
        )
    if max_keys < options.min_categories:
        raise ExampleError(
            f"A policy of {options.min_categories} of the {len(keys)} categories leaves {harmless} safe "
            f"images and a group needs {options.group_size // 2}: add images known to violate none of them, "
            "or lower min_categories or group_size."
        )
    lessons = plan_lessons(pool, taxonomy, keys, options, Random(f"lessons/{seed}"))
    return _Draw(pool, taxonomy, keys, max_keys, whole, options, rng, lessons)


@dataclass(frozen=True)
class _Draw:
    """The state of one draw: the data, the options and the random generator."""

    pool: Pool
    taxonomy: Taxonomy
    keys: list[str]
    """Keys that policies may use."""
    max_keys: int
    """Most keys that a policy may cover so that safe images are left."""
    whole: bool
    """Whether no unsafe image names its category, so that a policy needs all keys for any unsafe row."""
    options: FlipOptions
    rng: Random
    lessons: Lessons
    drawn: Counter[str] = field(default_factory=Counter)
    """Safe rows, and those of them with a benign image."""

    def retry_until_filled(self, attempt: Callable[[int], Drawn | None], longest: int) -> Drawn:
        """Try policies of a random length until the data can fill one; after `_TRIES` of a length, shorter ones."""
        longest = longest if self.whole else min(self.options.max_categories, longest)
        # A policy may be no longer than the data allow, even if the options ask for more.
        shortest = longest if self.whole else min(self.options.min_categories, longest)
        for count in range(self.rng.randint(shortest, longest), shortest - 1, -1):
            for _ in range(_TRIES):
                result = attempt(count)
                self.pool.put_back(used=result is not None)
                if result is not None:
                    return result
        raise ExampleError(self._scarcity())

    def group(self, count: int) -> Group | None:
        """One policy of `count` categories and its rows, or None where the images do not suffice."""
        drawn = draw_entries(self.taxonomy, self.keys, count, self.max_keys, self.options, self.rng)
        entries, wording = self.lessons.policy(drawn)
        policy = self._policy(entries)
        # One label a bucket and not one an image: all images of a bucket have the same.
        labels = [(bucket, policy.label(bucket.example)) for bucket in self.pool.buckets]
        parts = self.lessons.prompt_parts()
        rows: list[Row] = []
        for _ in range(self.options.group_size // 2):
            opposites = self._opposites(policy, labels, parts)
            if opposites is None:
                return None
            rows.extend(replace(row, wording=wording) for row in opposites)
        self.drawn["safe"] += len(rows) // 2
        self.drawn["benign"] += sum(not row.unsafe and not row.example.violates for row in rows)
        self.rng.shuffle(rows)
        return Group(policy, tuple(rows))

    def conditional_group(self, count: int) -> Group | None:
        """A group with a condition on the prompt, of at least two entries; None where the images do not suffice."""
        if self.max_keys < 2:
            return None
        entries = draw_entries(self.taxonomy, self.keys, max(count, 2), self.max_keys, self.options, self.rng)
        categories = self.lessons.categories
        return conditional_group(self.taxonomy, entries, categories, self.pool, self.options, self.rng)

    def policy_pair(self, count: int) -> list[tuple[Row, Row]] | None:
        """Unsafe and safe row of each image under two policies of `count` categories that differ in one."""
        covered = len(self.keys)
        *kept, first, second = draw_entries(
            self.taxonomy, self.keys, count + 1, covered, self.options, self.rng
        )
        place = self.rng.randrange(count)
        # `first` is in one policy only and `second` in the other; the remaining categories are in both.
        one = self._policy([*kept[:place], first, *kept[place:]])
        if self.rng.random() < 0.5:
            self.rng.shuffle(kept)
            place = self.rng.randrange(count)
        two = self._policy([*kept[:place], second, *kept[place:]])
        under_one, under_two = self._unsafe_only_for(first, two), self._unsafe_only_for(second, one)
        rows: list[tuple[Row, Row]] = []
        for _ in range(self.options.group_size // 2):
            images = self.pool.take(under_one), self.pool.take(under_two)
            if images[0] is None or images[1] is None:
                return None
            prompts = self._prompts(images[0], images[1])
            rows.append(_both_rows(images[0], prompts[0], one, two, first))
            rows.append(_both_rows(images[1], prompts[1], two, one, second))
        return rows

    def _opposites(self, policy: Taxonomy, labels: Labels, parts: Sequence[str]) -> tuple[Row, Row] | None:
        """An unsafe and a safe row with the same question; None where the images do not suffice."""
        focused = self.rng.random() < self.options.focus and not self.whole
        images = self._images(policy, labels, focused)
        if images is None:
            return None
        position, unsafe, safe = images
        name = None if position is None else policy.names[position]
        focus = name if focused else None
        # The arm records how the label came about, for reports; training does not use it.
        arms = _unsafe_arm(unsafe, policy), "flip" if safe.violates else "benign"
        if focused:
            arms = "focus_keep", f"focus_{arms[1]}"
        prompts = self._prompts(unsafe, safe, parts)
        form = "+".join(parts) if parts and (prompts[0][0] or prompts[1][0]) else PLAIN
        return (
            Row(unsafe, policy, *prompts[0], True, name, focus, arms[0], prompt_form=form),
            Row(safe, policy, *prompts[1], False, None, focus, arms[1], prompt_form=form),
        )

    def _images(
        self, policy: Taxonomy, labels: Labels, focused: bool
    ) -> tuple[int | None, Example, Example] | None:
        """The place of a category, an image that violates it and a safe one; None where there are none.

        The place is None where the image is unsafe under the whole policy and nobody recorded how.
        """
        # A share of benign images, as negatives that violate something else alone would teach nothing about safe ones.
        benign = self.rng.random() < self._benign_share()
        balanced = not benign and self.rng.random() < self.options.balance
        # Categories in random order, so that none is preferred where an image violates several.
        positions: list[int | None] = [*self.rng.sample(range(len(policy)), len(policy))]
        unnamed = (
            [] if focused else [b for b, label in labels if True not in label and policy.unsafe(b.example)]
        )
        if unnamed:
            positions.insert(self.rng.randrange(len(positions) + 1), None)
        # Where no two images violate equally many keys, any two will do.
        for matched in (True, False) if balanced else (False,):
            for position in positions:
                wanted = self._safe_buckets(policy, labels, position if focused else None, benign)
                counts = {_violations(bucket) for bucket in wanted[-1] if bucket.heap}
                suited = unnamed if position is None else [b for b, label in labels if label[position]]
                unsafe = self.pool.take(b for b in suited if not matched or _violations(b) in counts)
                if unsafe is None:
                    continue
                for buckets in wanted:
                    same = (b for b in buckets if not matched or _violations(b) == len(unsafe.violates))
                    safe = self.pool.take(same)
                    if safe is not None:
                        return position, unsafe, safe
                return None
        return None

    def _benign_share(self) -> float:
        """How likely a benign image is wanted; where rows are balanced, those that had to be benign count as well."""
        if not self.options.balance or self.drawn["benign"] < self.options.benign * self.drawn["safe"]:
            return self.options.benign
        return 0.0

    def _safe_buckets(
        self, policy: Taxonomy, labels: Labels, focus: int | None, benign: bool
    ) -> list[list[Bucket]]:
        """Images known to be safe under the policy, or for the category in focus: the best ones first, at last all."""
        if focus is None:
            safe = [bucket for bucket, label in labels if all(known is False for known in label)]
            hard = [bucket for bucket in safe if bucket.example.violates]
        else:
            safe = [bucket for bucket, label in labels if label[focus] is False]
            hard = [bucket for bucket, label in labels if label[focus] is False and any(label)]
        harmless = [bucket for bucket in safe if not bucket.example.violates]
        # Of a category with a condition, images that fulfil half of it are the lesson.
        parts = {key for category in policy if isinstance(category, Conditional) for key in category.members}
        near = [bucket for bucket in hard if bucket.example.violates & parts]
        return [harmless, near, hard, safe] if benign else [near, hard, harmless, safe]

    def _unsafe_only_for(self, category: Category, other: Taxonomy) -> list[Bucket]:
        """Images that violate this category and nothing of the other policy."""
        return [
            bucket
            for bucket in self.pool.buckets
            if category.label(bucket.example) and all(known is False for known in other.label(bucket.example))
        ]

    def _prompts(self, one: Example, two: Example, parts: Sequence[str] = ()) -> tuple[Prompt, Prompt]:
        """Prompts to show with two images of opposite label: kept, exchanged, or none at all.

        Keeping and exchanging are equally likely whatever the data, so no prompt can hint at a label.
        """
        if self.rng.random() < self.options.no_prompt:
            return (None, None), (None, None)
        # Exchanged within the pair, so that every prompt is seen as often with a safe as with an unsafe label.
        own = (
            _prompt_of(self.lessons.prompt(one, parts), one),
            _prompt_of(self.lessons.prompt(two, parts), two),
        )
        return own if self.rng.random() < 0.5 else (own[1], own[0])

    def _policy(self, entries: Sequence[Category]) -> Taxonomy:
        return Taxonomy(self.taxonomy.name, self.taxonomy.version, tuple(entries))

    def _scarcity(self) -> str:
        """Why no policy could be filled: how many images each category has, the rarest first."""
        counts = {key: self.pool.violating(key) for key in self.keys}
        rarest = sorted(self.keys, key=counts.__getitem__)
        known = self.pool.count(lambda example: not example.unknown.intersection(self.keys))
        half = self.options.group_size // 2
        return (
            f"Could not fill a policy with {half} different unsafe and {half} different safe images. Images "
            f"that violate a category: {', '.join(f'{key} {counts[key]}' for key in rarest)}; images whose "
            f"label is known for every category: {known} of {len(self.pool.examples)}. Add images of "
            f"{rarest[0]!r} and images known to violate nothing, or lower group_size."
        )


def _both_rows(
    image: Example, prompt: Prompt, unsafe_under: Taxonomy, safe_under: Taxonomy, category: Category
) -> tuple[Row, Row]:
    arm = _unsafe_arm(image, unsafe_under)
    return (
        Row(image, unsafe_under, *prompt, True, category.name, None, arm),
        Row(image, safe_under, *prompt, False, None, None, "flip"),
    )


def _prompt_of(text: str | None, image: Example) -> Prompt:
    return (None, None) if text is None else (text, image.id)


def _violations(bucket: Bucket) -> int:
    return len(bucket.example.violates)


def _unsafe_arm(image: Example, policy: Taxonomy) -> str:
    if UNSPECIFIED in image.violates:
        return "unnamed"
    covered = {member for category in policy for member in category.members}
    return "keep" if image.violates <= covered else "partial"
