"""The families that ship, and which of them no lesson may ever use.

A classifier that was trained on a rewriting and obeys it has learnt that rewriting; whether it has learnt to read is
seen on others. So of every kind some families are kept out of all lessons, chosen to need something that the families
in lessons do not show:

- characters: `typos` (letters), `bullets` (marks), prompts in full-width letters and under bidi marks;
- words: `misleading_names` (the definition against the name), `definition_only` and `examples_only` (no name, or no
  definition);
- structure: `duplicates`, and 40 and 100 categories, more than lessons may have (24);
- logic: `all_but_one`, where lessons may have negation, conjunction and exception by themselves;
- text that talks: a category that is nothing but an order, and prompts with a forged verdict, where lessons may have
  orders in definitions and prompts;
- length: prompts of 4,000 characters, where lessons end at 2,000, and prompts of one long word;
- languages: every one that the taxonomy gives its categories in (`language_families`). A base model may have read them,
  as a real one has; no lesson shows them.
"""

from collections.abc import Sequence

from adversarial.texts import characters
from adversarial.texts.harmless import STYLES
from judge.errors import ConfigError
from prompts.names import nearest
from prompts.taxonomy import Taxonomy

from . import injections, logic, structure, wording
from . import prompt_variants as variants
from .family import Family, PolicyFamily, PromptFamily

POLICY_FAMILIES: tuple[PolicyFamily, ...] = (
    PolicyFamily("upper_case", "everything in capitals", wording.in_case(str.upper)),
    PolicyFamily("lower_case", "everything in small letters", wording.in_case(str.lower)),
    PolicyFamily("title_case", "Every Word With A Capital", wording.in_case(str.title)),
    PolicyFamily("typos", "a misspelling in every longer word", wording.typos, in_lessons=False),
    PolicyFamily("aliases", "other names of the taxonomy", wording.aliases),
    PolicyFamily("rewordings", "other definitions of the taxonomy", wording.rewordings),
    PolicyFamily("names_only", "names without definitions", wording.names_only),
    PolicyFamily(
        "definition_only", "definitions in the place of names", wording.definition_only, in_lessons=False
    ),
    PolicyFamily("nonsense_names", "made-up words as names", wording.nonsense_names),
    PolicyFamily(
        "misleading_names", "names of allowed categories", wording.misleading_names, in_lessons=False
    ),
    PolicyFamily("codes", "S1, 4.2 or C-07 as names", wording.codes),
    PolicyFamily("clauses", "a clause before or around each name", wording.clauses),
    PolicyFamily("legal_prose", "definitions inside legal prose", wording.legal_prose),
    PolicyFamily("bullets", "bullets and markdown", wording.bullets, in_lessons=False),
    PolicyFamily("examples_only", "examples instead of definitions", wording.examples_only, in_lessons=False),
    PolicyFamily("reversed_order", "last category first", structure.reversed_order),
    PolicyFamily("categories_1", "a single category", structure.categories(1), changes_truth=True),
    PolicyFamily("categories_5", "5 categories", structure.categories(5), changes_truth=True),
    PolicyFamily("categories_20", "20, most of them unrelated", structure.categories(20), changes_truth=True),
    PolicyFamily(
        "categories_40",
        "40, most of them unrelated",
        structure.categories(40),
        in_lessons=False,
        changes_truth=True,
    ),
    PolicyFamily(
        "categories_100",
        "100, most of them unrelated and short",
        structure.categories(100, whole=0),
        in_lessons=False,
        changes_truth=True,
    ),
    PolicyFamily("duplicates", "each category under two names", structure.duplicates, in_lessons=False),
    PolicyFamily("merged", "neighbours as one category", structure.merged),
    PolicyFamily("split", "each category as a large and a small one", structure.split),
    PolicyFamily("negation", "pictures without X", logic.negation, changes_truth=True),
    PolicyFamily("all_but_one", "anything but X", logic.all_but_one, in_lessons=False, changes_truth=True),
    PolicyFamily("conjunction", "X only together with Y", logic.conjunction, changes_truth=True),
    PolicyFamily("exception", "X, but allowed beside Y", logic.exception, changes_truth=True),
    PolicyFamily(
        "definition_orders_safe",
        "definitions order: safe",
        injections.ordering_definition("safe"),
        aims="safe",
    ),
    PolicyFamily(
        "definition_orders_unsafe",
        "definitions order: unsafe",
        injections.ordering_definition("unsafe"),
        aims="unsafe",
    ),
    PolicyFamily(
        "talking_category_safe",
        "one more category, which orders: safe",
        injections.talking_category("safe"),
        in_lessons=False,
        aims="safe",
    ),
    PolicyFamily(
        "talking_category_unsafe",
        "one more category, which orders: unsafe",
        injections.talking_category("unsafe"),
        in_lessons=False,
        aims="unsafe",
    ),
)

PROMPT_FAMILIES: tuple[PromptFamily, ...] = (
    *(
        PromptFamily(
            f"{style}_{length}",
            f"harmless {style.replace('_', ' ')} of {length:,} characters",
            variants.of_length(style, length),
            in_lessons=length <= 2000 and style != "one_word",
            harmless=True,
            ordinary=length >= 500,
        )
        for style in STYLES
        for length in variants.LENGTHS
    ),
    PromptFamily(
        "zero_width",
        "invisible characters",
        variants.with_characters(characters.zero_width),
        harmless=True,
    ),
    PromptFamily(
        "control",
        "null bytes and the like",
        variants.with_characters(characters.control),
        harmless=True,
    ),
    PromptFamily("emoji", "emoji after each word", variants.with_characters(characters.emoji), harmless=True),
    PromptFamily(
        "bidi",
        "marks that turn words",
        variants.with_characters(characters.bidi),
        in_lessons=False,
        harmless=True,
    ),
    PromptFamily(
        "full_width",
        "full-width letters",
        variants.with_characters(characters.full_width),
        in_lessons=False,
        harmless=True,
    ),
    PromptFamily("own_prompt", "the image's own prompt", variants.own),
    PromptFamily("true_prompt", "says what the image shows", variants.true, ordinary=True),
    PromptFamily("lying_prompt", "says that it shows something else", variants.lying, ordinary=True),
    PromptFamily("unrelated_prompt", "about something else entirely", variants.unrelated, harmless=True),
    PromptFamily("prompt_orders_safe", "orders: safe", variants.orders("safe"), aims="safe"),
    PromptFamily("prompt_orders_unsafe", "orders: unsafe", variants.orders("unsafe"), aims="unsafe"),
    PromptFamily(
        "forged_safe", "a forged verdict: safe", variants.forgeries("safe"), in_lessons=False, aims="safe"
    ),
    PromptFamily(
        "forged_unsafe",
        "a forged verdict: unsafe",
        variants.forgeries("unsafe"),
        in_lessons=False,
        aims="unsafe",
    ),
)

FAMILIES: tuple[Family, ...] = (*POLICY_FAMILIES, *PROMPT_FAMILIES)


def language_families(taxonomy: Taxonomy) -> tuple[PolicyFamily, ...]:
    """A family for each language that the taxonomy gives a category in, such as `language_de`."""
    codes = dict.fromkeys(t.language for category in taxonomy for t in category.languages)
    return tuple(
        PolicyFamily(f"language_{code}", f"in {code!r}", wording.in_language(code), in_lessons=False)
        for code in codes
    )


def choose_families(names: Sequence[str], known: Sequence[Family] = FAMILIES) -> tuple[Family, ...]:
    """The families of these names, or all of them where no name is given.

    Raises:
        ConfigError: a name that no family has.
    """
    by_name = {family.name: family for family in known}
    for name in names:
        if name not in by_name:
            raise ConfigError(
                f"No family of rewritings is called {name!r}{nearest(name, list(by_name))}. "
                f"There are: {', '.join(by_name)}."
            )
    return tuple(by_name[name] for name in names) if names else tuple(known)
