"""Families of rewritings: valid taxonomies, and truth against an oracle that reads the rewritten text."""

import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adversarial.texts import characters
from adversarial.texts.harmless import STYLES
from eval.obedience.family import (
    Condition,
    Policy,
    PolicyFamily,
    RefusedRewritingError,
    Setting,
    replace_categories,
)
from eval.obedience.prompt_variants import LENGTHS
from eval.obedience.shipped import (
    FAMILIES,
    POLICY_FAMILIES,
    PROMPT_FAMILIES,
    choose_families,
    language_families,
)
from eval.obedience.suite import _check_truth
from judge.errors import ConfigError
from judge.standins.digits import DIGIT_NAMES
from prompts import Category, Example, Taxonomy, TaxonomyError, load_taxonomy
from prompts.flip import Row
from prompts.unrelated import unrelated_categories

DIGITS = load_taxonomy("digits")
UNRELATED = unrelated_categories(
    [load_taxonomy("unsafebench"), load_taxonomy("openai-moderation")], DIGITS, []
)
BY_NAME = {family.name: family for family in FAMILIES}


def example(digits, name="image", **fields):
    return Example(name, None, violates=frozenset(DIGIT_NAMES[digit] for digit in digits), **fields)


def as_drawn(names):
    """A policy of these digits as `prompts.flip` draws it: without spare names and texts."""
    chosen = DIGITS.select(names)
    return Taxonomy("digits", "1", tuple(Category(c.name, c.definition, key=c.key) for c in chosen))


def numerals(text):
    return {int(found) for found in re.findall(r"(?<![a-zA-Z0-9.-])\d(?![a-zA-Z0-9])", text)}


def named(text):
    return {DIGIT_NAMES.index(word) for word in re.findall(r"[a-z]+", text) if word in DIGIT_NAMES}


def oracle(family, category, digits):
    """Whether a picture with these digits falls under a category, as a person reads what it says."""
    text = category.name if category.name_only and category.name not in DIGIT_NAMES else category.definition
    meant = named(category.name) if category.name_only and category.name in DIGIT_NAMES else numerals(text)
    if family == "negation":
        return not meant & digits
    if family == "all_but_one":
        listed, _, allowed = category.definition.partition(";")
        assert not named(listed) & named(allowed)
        return bool(named(listed) & digits)
    if family == "conjunction":
        return meant <= digits
    if family == "exception":
        forbidden, _, excepted = category.definition.partition("; but allowed")
        return bool(numerals(forbidden) & digits) and not numerals(excepted) & digits
    return bool(meant & digits)


digit_sets = st.frozensets(st.integers(0, 9), max_size=3)
policies = st.permutations(DIGIT_NAMES).flatmap(
    lambda names: st.integers(1, 10).map(lambda count: as_drawn(names[:count]))
)


@settings(max_examples=12)
@given(policy=policies, images=st.lists(digit_sets, min_size=1, max_size=8), seed=st.integers(0, 99))
def test_rewritten_policies_are_valid_and_their_truth_is_what_they_say(policy, images, seed):
    examples = tuple(example(digits, str(number)) for number, digits in enumerate(images))
    refused = set()
    for family in (*POLICY_FAMILIES, *language_families(DIGITS)):
        try:
            rewritten = family.rewrite(policy, Setting(DIGITS, examples, UNRELATED, Random(seed)))
        except (RefusedRewritingError, TaxonomyError) as error:
            refused.add((family.name, str(error)))
            continue
        assert family.rewrite(policy, Setting(DIGITS, examples, UNRELATED, Random(seed))) == rewritten
        assert Taxonomy.from_dict(rewritten.taxonomy.to_dict()).hash == rewritten.taxonomy.hash
        _check_truth(family, policy, rewritten, DIGITS, examples)
        for image, digits in zip(examples, images, strict=True):
            labelled = rewritten.labelled(image)
            truths = [oracle(family.name, category, digits) for category in rewritten.taxonomy]
            assert [category.label(labelled) for category in rewritten.taxonomy] == truths, family.name
            assert rewritten.truth(image) is any(truths)
    assert {name for name, _ in refused} <= {"misleading_names", "typos"}, (
        refused
    )  # no name left; nine to none


def rewrite(name, policy=DIGITS, images=((4,), (4, 7), ()), taxonomy=DIGITS, unrelated=UNRELATED, seed=0):
    examples = tuple(example(digits, str(number)) for number, digits in enumerate(images))
    return BY_NAME[name].rewrite(policy, Setting(taxonomy, examples, unrelated, Random(seed)))


def test_languages_are_families_where_the_taxonomy_gives_them():
    families = language_families(DIGITS)
    assert [family.name for family in families] == ["language_de", "language_es"]
    assert not any(family.in_lessons for family in families)
    assert language_families(load_taxonomy("unsafebench")) == ()
    spoken = families[0].rewrite(as_drawn(["four"]), Setting(DIGITS, (), (), Random(0)))
    assert spoken.taxonomy.names == ("vier",)
    assert spoken.taxonomy.keys == ("four",)
    partly = DIGITS.select(["four"]).extend({"ten": "the number 10"})
    with pytest.raises(RefusedRewritingError, match="does not give 'ten' in 'de'"):
        families[0].rewrite(partly, Setting(partly, (), (), Random(0)))


def test_what_some_families_say():
    policy = as_drawn(["four", "seven"])
    assert rewrite("upper_case", policy).taxonomy.names == ("FOUR", "SEVEN")
    assert rewrite("merged", policy).taxonomy.names == ("four or seven",)
    assert rewrite("split", policy).taxonomy.names == (
        "four, large",
        "four, small",
        "seven, large",
        "seven, small",
    )
    assert rewrite("negation", policy).taxonomy.names == ("no four",)  # what most images show
    assert rewrite("conjunction", policy).taxonomy.names[0] in ("four with seven", "seven with four")
    assert rewrite("reversed_order", policy).taxonomy.names == ("seven", "four")
    assert len(rewrite("duplicates", policy).taxonomy) == 4
    for count in (1, 5, 20, 40, 100):
        assert len(rewrite(f"categories_{count}", policy).taxonomy) == count
    misled = rewrite("misleading_names", policy).taxonomy
    assert not {"four", "seven"} & set(misled.names)
    assert [c.definition for c in misled] == [c.definition for c in policy]


def test_unknown_labels_stay_unknown():
    four, seven = DIGITS.select(["four", "seven"])
    both, one = Condition(all_of=(four, seven)), Condition(all_of=(four,), none_of=(seven,))
    unsure = example([4], unknown=frozenset({"seven"}))
    assert both.label(unsure) is None
    assert one.label(unsure) is None
    assert both.label(example([], unknown=frozenset({"seven"}))) is False  # no four, so not both
    assert one.label(example([4])) is True
    policy = replace_categories(DIGITS, [Category("both", "both", key="both")], conditions={"both": both})
    assert policy.truth(unsure) is None
    assert policy.labelled(unsure).unknown == {"seven", "both"}


@pytest.mark.parametrize(
    ("rewritten", "says"),
    [
        (Policy(DIGITS.drop(["four"])), "would change the truth of image 'image' without saying so"),
        (Policy(DIGITS.extend({"snakes": "any snake"})), "nobody labelled 'snakes', so the truth"),
        (
            Policy(DIGITS.extend([Category("more", "more", key="more", members=("seven", "cats"))])),
            "nobody labelled 'cats'",
        ),
        (
            Policy(DIGITS.extend({"flag": "a flag"}), absent=frozenset({"flag"})),
            "'flag' is taken for absent and is among the labels",
        ),
    ],
)
def test_a_rewriting_that_would_change_the_truth_silently_is_refused(rewritten, says):
    family = PolicyFamily("own", "a user's", lambda policy, setting: rewritten)
    image = Example("image", None, violates=frozenset({"four"}), unknown=frozenset({"flag"}))
    with pytest.raises(RefusedRewritingError, match=re.escape(says)):
        _check_truth(family, DIGITS, rewritten, DIGITS, [image])


def test_categories_that_images_may_violate_are_not_taken_for_unrelated():
    digits_of_others = Taxonomy("others", "1", (Category("Numeral four", "any 4"),))
    with pytest.raises(
        TaxonomyError, match="'others' is not unrelated to 'digits': both speak of 'Numeral four'"
    ):
        unrelated_categories([digits_of_others], DIGITS, [])
    snakes = Taxonomy("others", "1", (Category("Snakes", "any snake"),))
    with pytest.raises(TaxonomyError, match="both speak of 'Snakes'"):
        unrelated_categories([snakes], DIGITS, [Example("a", None, unknown=frozenset({"snakes"}))])
    assert unrelated_categories([snakes], DIGITS, [])[0].key == "others/Snakes"
    with pytest.raises(RefusedRewritingError, match="needs more unrelated categories than the 0 known"):
        rewrite("categories_20", DIGITS.select(["four"]), unrelated=())


def test_what_the_taxonomy_does_not_give_is_refused():
    bare = Taxonomy("bare", "1", (Category("cat", "any cat"), Category("dog", "any dog")))
    for name in ("aliases", "rewordings", "examples_only"):
        with pytest.raises(RefusedRewritingError, match="the taxonomy gives no"):
            rewrite(name, bare, taxonomy=bare)
    for name in ("all_but_one", "conjunction", "exception"):
        with pytest.raises(RefusedRewritingError, match=r"one category only|no other category"):
            rewrite(name, bare.select(["cat"]), taxonomy=bare.select(["cat"]))
    with pytest.raises(RefusedRewritingError, match="no name of another one is left"):
        rewrite("misleading_names", bare, taxonomy=bare)


def row(digits, prompt=None):
    image = example(digits, prompt=prompt)
    policy = as_drawn(["four", "seven"])
    unsafe = any(policy.label(image))
    return Row(image, policy, None, None, unsafe, None, None, "keep")


def shown(name, asked, seed=0):
    return BY_NAME[name].rewrite(asked, Setting(DIGITS, (asked.example,), UNRELATED, Random(seed)))


@given(seed=st.integers(0, 10**6), digits=digit_sets)
def test_prompts_have_their_length_and_say_nothing_of_digits(seed, digits):
    for style in STYLES:
        for length in LENGTHS:
            text = shown(f"{style}_{length}", row(digits), seed)
            assert len(text) == length
            assert text == text.strip()
            assert (" " in text) == (style != "one_word" and length > 10) or length == 10
    for family in PROMPT_FAMILIES:
        if family.harmless:
            text = shown(family.name, row(digits), seed)
            assert not named(text.lower())
            assert not re.search(r"\d", text)


def test_odd_characters_are_there():
    for name, expected in (
        ("zero_width", characters.ZERO_WIDTH),
        ("control", characters.CONTROL),
        ("emoji", characters.EMOJI),
        ("bidi", characters.BIDI),
    ):
        assert set(shown(name, row([4]))) & set(expected), name
    assert re.fullmatch(r"[\uff01-\uff5e ]+", shown("full_width", row([4])))


@given(seed=st.integers(0, 99), digits=digit_sets)
def test_true_and_lying_prompts_are(seed, digits):
    asked = row(digits)
    assert numerals(shown("true_prompt", asked, seed)) == digits
    if asked.unsafe:
        assert not numerals(shown("lying_prompt", asked, seed)) & (digits | {4, 7})
    else:
        assert numerals(shown("lying_prompt", asked, seed)) <= {4, 7}


def test_the_images_own_prompt():
    assert shown("own_prompt", row([4], prompt="a mill")) == "a mill"
    for nothing in (None, "", "  "):
        with pytest.raises(RefusedRewritingError, match="no prompt of its own"):
            shown("own_prompt", row([4], prompt=nothing))


def test_enough_families_of_every_kind_stay_out_of_lessons():
    unseen = {family.name for family in FAMILIES if not family.in_lessons}
    for some in (
        {"typos", "bullets"},
        {"misleading_names", "definition_only", "examples_only"},
        {"duplicates", "categories_40", "categories_100"},
        {"all_but_one"},
        {"talking_category_safe", "talking_category_unsafe"},
        {"forged_safe", "forged_unsafe", "bidi", "full_width", "prose_4000", "caption_4000"},
    ):
        assert some <= unseen
    assert sum(family.kind == "policy" for family in FAMILIES if family.name in unseen) >= 8
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_families_are_chosen_by_name():
    assert [family.name for family in choose_families(["typos", "emoji"])] == ["typos", "emoji"]
    assert choose_families([]) == FAMILIES
    with pytest.raises(ConfigError, match=r"No family of rewritings is called 'typo' .did you mean 'typos'"):
        choose_families(["typo"])
