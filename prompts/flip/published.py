"""The training rows of UnsafeBench's published scheme, to show that the shortcut check detects its shortcut."""

from collections.abc import Sequence
from random import Random

from prompts.errors import ExampleError
from prompts.example import Example
from prompts.taxonomy import Taxonomy

from .rows import Row

_MOST_OTHERS = 10


def paper_rows(
    examples: Sequence[Example], taxonomy: Taxonomy, *, seed: int, definitions_in_negatives: bool = False
) -> list[Row]:
    """Rows as UnsafeBench (CCS 2025, section 5.2, and its public code) builds them; not for training.

    An unsafe image gives a positive (a category it violates and 1 to 10 others, shuffled) and a negative
    (1 to 10 categories that it does not violate). A safe image gives a row about 2 to 11 random categories.
    Positives are drawn again until both labels are equally many. The published code renders negatives without
    definitions, so the policy's form reveals the label; with `definitions_in_negatives` only its length does, a
    little.

    Raises:
        ExampleError: a taxonomy with fewer than two categories, or no unsafe image in the data.
    """
    if len(taxonomy) < 2:
        raise ExampleError("The published scheme needs at least two categories; select more.")
    rng = Random(f"paper/{seed}")
    # The published scheme counts what was not labelled as safe; such images are left out here.
    known = [example for example in examples if None not in taxonomy.label(example)]
    unsafe = [example for example in known if any(taxonomy.label(example))]
    if not unsafe:
        raise ExampleError(
            "No image violates a category of the taxonomy; the published scheme needs such images."
        )
    positives = [_positive(example, taxonomy, rng) for example in unsafe]
    negatives = [_negative(example, taxonomy, rng, definitions_in_negatives) for example in unsafe]
    plain = [_plain(example, taxonomy, rng) for example in known if not any(taxonomy.label(example))]
    safe = [row for row in (*negatives, *plain) if row is not None]
    while len(positives) < len(safe):
        positives.append(_positive(rng.choice(unsafe), taxonomy, rng))
    rows = [*positives, *safe]
    rng.shuffle(rows)
    return rows


def _positive(example: Example, taxonomy: Taxonomy, rng: Random) -> Row:
    own = rng.choice(_names(example, taxonomy, violated=True))
    others = [name for name in taxonomy.names if name != own]
    policy = taxonomy.select([own, *_some(others, rng)]).shuffled(rng)
    return Row(example, policy, None, None, True, own, None, "paper_keep")


def _negative(example: Example, taxonomy: Taxonomy, rng: Random, definitions: bool) -> Row | None:
    others = _names(example, taxonomy, violated=False)
    if not others:
        return None
    policy = taxonomy.select(_some(others, rng))
    shown = policy if definitions else policy.names_only()
    return Row(example, shown, None, None, False, None, None, "paper_flip")


def _plain(example: Example, taxonomy: Taxonomy, rng: Random) -> Row:
    own, *others = rng.sample(taxonomy.names, len(taxonomy))
    policy = taxonomy.select([own, *_some(others, rng)]).shuffled(rng)
    return Row(example, policy, None, None, False, None, None, "paper_safe")


def _names(example: Example, taxonomy: Taxonomy, *, violated: bool) -> list[str]:
    return [c.name for c in taxonomy if c.label(example) is violated]


def _some(names: Sequence[str], rng: Random) -> list[str]:
    return rng.sample(list(names), rng.randint(1, min(_MOST_OTHERS, len(names))))
