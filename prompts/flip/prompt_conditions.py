"""Lessons with a condition on the prompt: "alcohol, if the prompt speaks of driving".

Elsewhere a prompt changes no label, and prompts are kept or exchanged within pairs so that none can hint at one. Here
the prompt decides, so these groups are drawn in their own way. Of four rows, with X the category that has the
condition, Y what the prompt has to speak of and Z another category of the policy:

    image shows         X        nothing   X        Z
    prompt speaks of    Y        Y         other    other
    the row is          unsafe   safe      safe     unsafe

Half of the rows with either kind of prompt are unsafe, so still no text gives a label away; and half of those with X.
Prompts are made for these rows, since nobody labelled what the data's own ones speak of. Y and the others come from
`FlipOptions.topics`, or are names of categories.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from prompts.example import Example
from prompts.names import MAX_NAME_LENGTH, MAX_TEXT_LENGTH
from prompts.taxonomy import Category, Taxonomy

from .conditions import Condition, Conditional
from .options import FlipOptions
from .policy_texts import PROMPT_CONDITION_NAMES, PROMPT_CONDITIONS
from .pool import Bucket, Pool
from .prompt_texts import describe
from .prompt_words import SHOWN
from .rows import PLAIN, Group, Row
from .wording import inside

WORDING = "prompt_condition"


@dataclass(frozen=True)
class Topic:
    """What a prompt may speak of."""

    name: str
    ways: tuple[str, ...]
    """What to add to a prompt so that it does."""


def conditional_group(
    taxonomy: Taxonomy,
    entries: Sequence[Category],
    categories: Sequence[Category],
    pool: Pool,
    options: FlipOptions,
    rng: Random,
) -> Group | None:
    """A group whose policy has a condition on one of its entries; None where the images or texts do not suffice.

    Args:
        taxonomy: names the policy.
        entries: of the policy, two or more.
        categories: what may be a topic beside `FlipOptions.topics`.
        pool: the images.
        options: for the size, the topics and the share of rows without a prompt.
        rng: source of every choice.
    """
    subject, *others = entries
    topics = _topics(subject, categories, options, rng)
    if len(topics) < 2 or not others:
        return None
    topic, *elsewhere = topics
    kinds = _kinds(pool.buckets, subject, others)
    found: list[tuple[Example, str | None, bool]] = []
    for number in range(options.group_size // 2):
        first, second = (("subject", "nothing"), ("other", "subject"))[number % 2]
        meets = number % 2 == 0
        for kind, unsafe in ((first, True), (second, False)):
            image = pool.take(kinds[kind])
            if image is None:
                return None
            prompt = _prompt(image, subject, topic if meets else rng.choice(elsewhere), rng)
            unsaid = not meets and rng.random() < options.no_prompt
            found.append((image, None if unsaid else prompt, unsafe))
    met = frozenset(prompt for number, (_, prompt, _) in enumerate(found) if number % 4 < 2 and prompt)
    category = _category(subject, topic, met, rng)
    if category is None:
        return None
    placed = [category, *others]
    rng.shuffle(placed)
    policy = Taxonomy(taxonomy.name, taxonomy.version, tuple(placed))
    rows = [_row(*each, policy, category) for each in found]
    rng.shuffle(rows)
    return Group(policy, tuple(rows))


def _topics(
    subject: Category, categories: Sequence[Category], options: FlipOptions, rng: Random
) -> list[Topic]:
    """Topics in random order, the first of which is that of the condition: all of `topics`, or all categories."""
    if options.topics and rng.random() < 0.5:
        found = [Topic(name, ways) for name, ways in options.topics.items()]
    else:
        found = [
            Topic(rng.choice((category.name, *category.aliases)), _ways(category))
            for category in categories
            if set(category.members).isdisjoint(subject.members)
        ]
    rng.shuffle(found)
    return found


def _ways(category: Category) -> tuple[str, ...]:
    """Descriptions of a picture of the category, in any of its words."""
    words = (category.name, *category.aliases, category.definition, *category.rewordings)
    return tuple(pattern.format(shown=inside(word)) for pattern in SHOWN for word in words)


def _kinds(
    buckets: Sequence[Bucket], subject: Category, others: Sequence[Category]
) -> dict[str, list[Bucket]]:
    """Images that show the subject alone of a policy, another entry, and nothing of it."""
    found: dict[str, list[Bucket]] = {"subject": [], "other": [], "nothing": []}
    for bucket in buckets:
        mine, theirs = subject.label(bucket.example), [other.label(bucket.example) for other in others]
        if True in theirs:
            found["other"].append(bucket)
        elif mine is not None and None not in theirs:
            found["subject" if mine else "nothing"].append(bucket)
    return found


def _prompt(image: Example, subject: Category, topic: Topic, rng: Random) -> str:
    """A text about the topic, and mostly about the subject too: whether or not the image shows it."""
    way = rng.choice(topic.ways)
    if rng.random() < 0.25:
        return way
    described = image if rng.random() < 0.5 else replace(image, violates=frozenset(subject.members))
    return f"{describe(described, (subject,), rng)} {way}"


def _category(subject: Category, topic: Topic, met: frozenset[str], rng: Random) -> Conditional | None:
    """The subject under the condition; None where its definition has parts, or a text would be too long."""
    known = {"name": subject.name, "definition": inside(subject.definition), "topic": inside(topic.name)}
    name, definition = (
        rng.choice(texts).format(**known) for texts in (PROMPT_CONDITION_NAMES, PROMPT_CONDITIONS)
    )
    if ";" in definition or len(name) > MAX_NAME_LENGTH or len(definition) > MAX_TEXT_LENGTH:
        return None
    condition = Condition(all_of=(subject,), spoken_in=met)
    return Conditional(
        name, definition, key=f"if {subject.key}", members=subject.members, condition=condition
    )


def _row(image: Example, prompt: str | None, unsafe: bool, policy: Taxonomy, conditional: Conditional) -> Row:
    """A row whose example has the prompt that is shown, as that decides its labels."""
    example = replace(image, prompt=prompt)
    violated = [category.name for category in policy if category.label(example)]
    arm = "keep" if unsafe else "flip" if image.violates else "benign"
    return Row(
        example,
        policy,
        prompt,
        None if prompt is None else image.id,
        unsafe,
        violated[0] if violated else None,
        None,
        arm,
        wording=WORDING,
        prompt_form=PLAIN if prompt is None else WORDING,
    )
