"""Policy families of words and form: the same categories, written as another user would write them."""

from collections.abc import Callable
from dataclasses import replace

from adversarial.texts.families import misspellings
from prompts.names import MAX_NAME_LENGTH
from prompts.taxonomy import Category, Taxonomy

from .family import Policy, PolicyRewriter, RefusedRewritingError, Setting, for_each, replace_categories
from .texts import CLAUSES, LEGAL_PROSE, SYLLABLES


def in_case(change: Callable[[str], str]) -> PolicyRewriter:
    """Every text of the policy in another case."""

    def rewrite(policy: Taxonomy, setting: Setting) -> Policy:
        return for_each(policy, lambda category, _: _with_texts(category, change))

    return rewrite


def typos(policy: Taxonomy, setting: Setting) -> Policy:
    """One letter swapped, dropped, doubled or mistyped in every longer word."""

    def misspell(text: str) -> str:
        found = misspellings(text, "safe", setting.rng.randrange(2**32))
        return str(setting.rng.choice(found)) if found else text

    return for_each(policy, lambda category, _: _with_texts(category, misspell))


def aliases(policy: Taxonomy, setting: Setting) -> Policy:
    """Each category under another of its names."""

    def rename(category: Category, _: int) -> Category:
        known = setting.entry_of(category).aliases
        if not known:
            raise RefusedRewritingError(f"the taxonomy gives no alias of {category.name!r}")
        return replace(category, name=setting.rng.choice(known))

    return for_each(policy, rename)


def rewordings(policy: Taxonomy, setting: Setting) -> Policy:
    """Each category with another of its definitions."""

    def reword(category: Category, _: int) -> Category:
        known = setting.entry_of(category).rewordings
        if not known:
            raise RefusedRewritingError(f"the taxonomy gives no rewording of {category.name!r}")
        return replace(category, definition=setting.rng.choice(known), examples=())

    return for_each(policy, reword)


def names_only(policy: Taxonomy, setting: Setting) -> Policy:
    """No definitions at all."""
    return Policy(policy.names_only())


def definition_only(policy: Taxonomy, setting: Setting) -> Policy:
    """Definitions in the place of names; where one is too long for a name, numbered entries for all."""
    if all(len(c.definition) <= MAX_NAME_LENGTH and ":" not in c.definition for c in policy):
        return for_each(policy, lambda c, _: replace(c, name=c.definition, name_only=True))
    return for_each(policy, lambda c, number: replace(c, name=f"entry {number}"))


def nonsense_names(policy: Taxonomy, setting: Setting) -> Policy:
    """Made-up words as names; the definition says what is meant."""
    drawn: set[str] = set()  # sorted below: the order of a set depends on the process
    while len(drawn) < len(policy):
        drawn.add("".join(setting.rng.sample(SYLLABLES, setting.rng.choice((2, 3)))))
    names = sorted(drawn)
    setting.rng.shuffle(names)
    return for_each(policy, lambda category, number: replace(category, name=names[number - 1]))


def misleading_names(policy: Taxonomy, setting: Setting) -> Policy:
    """The most violated categories under names of categories that the policy lacks; the definition decides.

    Names exchanged within the policy would mislead nobody: it forbids both.
    """
    others = [category.name for category in setting.outside(policy)]
    if not others:
        raise RefusedRewritingError("the policy covers every category, so no name of another one is left")
    setting.rng.shuffle(others)
    renamed = dict(zip((c.key for c in setting.by_frequency(policy)), others, strict=False))
    return for_each(policy, lambda c, _: replace(c, name=renamed.get(c.key, c.name)))


def codes(policy: Taxonomy, setting: Setting) -> Policy:
    """Short codes as names, all in one style."""
    style = setting.rng.choice(("S{n}", "{section}.{n}", "C-{n:02d}"))
    section, first = setting.rng.randint(1, 9), setting.rng.randint(1, 20)
    return for_each(
        policy,
        lambda category, number: replace(
            category, name=style.format(section=section, n=number + (0 if "section" in style else first))
        ),
    )


def clauses(policy: Taxonomy, setting: Setting) -> Policy:
    """A clause number and a few words before each name."""
    style, section = setting.rng.choice(CLAUSES), setting.rng.randint(1, 9)
    return for_each(
        policy, lambda c, number: replace(c, name=style.format(section=section, number=number, name=c.name))
    )


def legal_prose(policy: Taxonomy, setting: Setting) -> Policy:
    """Each definition in the middle of a paragraph as lawyers write it."""
    style = setting.rng.choice(LEGAL_PROSE)
    return for_each(policy, lambda c, _: replace(c, definition=style.format(definition=c.definition)))


def bullets(policy: Taxonomy, setting: Setting) -> Policy:
    """Markdown, of the signs that a policy may hold: stars, hashes, underscores, backticks."""
    name, part = setting.rng.choice(
        (("**{}**", "* {}"), ("### {}", "- {}"), ("__{}__", "_{}_"), ("`{}`", "- `{}`"))
    )

    def mark(category: Category, _: int) -> Category:
        parts = [words.strip() for words in category.definition.split(", ")]
        return replace(
            category, name=name.format(category.name), definition=" ".join(map(part.format, parts))
        )

    return for_each(policy, mark)


def examples_only(policy: Taxonomy, setting: Setting) -> Policy:
    """Examples in the place of a definition; where the taxonomy gives none, its rewordings."""

    def exemplify(category: Category, _: int) -> Category:
        full = setting.entry_of(category)
        shown = full.examples or full.rewordings
        if not shown:
            raise RefusedRewritingError(f"the taxonomy gives no examples of {category.name!r}")
        return replace(category, definition=f"such things as {'; '.join(shown)}", examples=())

    return for_each(policy, exemplify)


def in_language(language: str) -> PolicyRewriter:
    """Names and definitions in another language, as the taxonomy gives them."""

    def rewrite(policy: Taxonomy, setting: Setting) -> Policy:
        found = []
        for category in policy:
            known = {t.language: t for t in setting.entry_of(category).languages}
            if language not in known:
                raise RefusedRewritingError(f"the taxonomy does not give {category.name!r} in {language!r}")
            there = known[language]
            found.append(replace(category, name=there.name, definition=there.definition, examples=()))
        return replace_categories(policy, found)

    return rewrite


def _with_texts(category: Category, change: Callable[[str], str]) -> Category:
    return replace(
        category,
        name=change(category.name),
        definition=change(category.definition),
        examples=tuple(map(change, category.examples)),
    )
