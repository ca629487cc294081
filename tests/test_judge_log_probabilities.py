"""judge/vlm/log_probabilities.py: probabilities over closed answers from listed tokens."""

import math

import numpy as np
import pytest

from judge.vlm.log_probabilities import Step, read_log_probabilities
from prompts import render
from prompts.taxonomy import Category, Taxonomy


def answers_of(*names, template="policy_first"):
    taxonomy = Taxonomy(name="t", version="1", categories=tuple(Category(name, "Seen.") for name in names))
    return render(taxonomy, template=template).answers


def steps(*positions):
    """Each position: chosen token first, token -> probability."""
    made = []
    for listed in positions:
        (first, chance), *others = [(name, math.log(value)) for name, value in listed.items()]
        made.append(Step(first, chance, tuple(others)))
    return made


def test_closed_probabilities_agree_with_enumerating_a_random_language_model():
    # Independent: every answer's probability by walking its own tokens, renormalised over allowed continuations.
    words = {
        "safe": ["safe", "</s>"],
        "unsafe: a": ["unsafe", ":", " a", "</s>"],
        "unsafe: b": ["unsafe", ":", " b", "</s>"],
        "unsafe: a b": ["unsafe", ":", " a", " b", "</s>"],
    }
    vocabulary = ["safe", "unsafe", ":", " a", " b", "</s>", "x", "yes"]
    answers = answers_of("a", "b", "a b")
    for seed in range(30):
        generator = np.random.default_rng(seed)
        table = {}

        def chances(prefix, table=table, generator=generator):
            return table.setdefault(prefix, generator.dirichlet(np.ones(len(vocabulary))))

        probability = {}
        for text, tokens in words.items():
            reach = 1.0
            for position in range(len(tokens)):
                prefix = tuple(tokens[:position])
                allowed = {t[position] for t in words.values() if tuple(t[:position]) == prefix}
                row = dict(zip(vocabulary, chances(prefix), strict=True))
                reach *= row[tokens[position]] / sum(row[word] for word in allowed)
            probability[text] = reach
        chosen = words["unsafe: a"]
        made = []
        for position, word in enumerate(chosen):
            row = dict(zip(vocabulary, chances(tuple(chosen[:position])), strict=True))
            made.append({word: row.pop(word)} | row)
        found = read_log_probabilities(steps(*made), answers, 3)
        assert found is not None
        assert found.answer.text == "unsafe: a"
        assert found.unsafe == pytest.approx(1 - probability["safe"])
        expected = [probability[answer.text] for answer in answers[1:]]
        assert found.categories.tolist() == pytest.approx(expected)


def test_bare_unsafe_names_no_category():
    answers = answers_of("a", "b", template="zero_shot_1")
    found = read_log_probabilities(steps({"Un": 0.7, "Safe": 0.3}, {"safe": 1.0}), answers, 2)
    assert found.unsafe == pytest.approx(0.7)
    assert np.isnan(found.categories).all()


def test_a_shared_beginning_is_followed_to_where_safe_and_unsafe_part():
    answers = answers_of("a", "b", template="perspective")
    path = steps(
        {"Safety": 0.5, "Safe": 0.3, "No": 0.2},
        {" Status:": 1.0},
        {" Unsafe": 0.8, " Safe": 0.2},
        {", Unsafe Category: ": 1.0},
        {"b": 0.9, "a": 0.1},
    )
    found = read_log_probabilities(path, answers, 2)
    assert found.unsafe == pytest.approx(0.8)
    assert found.categories.tolist() == pytest.approx([0.08, 0.72])


def test_an_unlisted_end_leaves_the_longer_name_open():
    answers = answers_of("a", "a b", "c")
    found = read_log_probabilities(steps({"unsafe: a": 0.9, "safe": 0.1}), answers, 3)
    assert found.unsafe == pytest.approx(0.9)
    assert found.categories[0] == pytest.approx(0.9)
    assert np.isnan(found.categories[1])
    assert found.categories[2] == 0.0


@pytest.mark.parametrize(
    ("first", "known"),
    [
        ({"unsafe: a": 0.7}, False),  # up to 0.3 may be the safe answer's
        ({"unsafe: a": 0.7, "no": 0.2}, False),  # up to 0.1
        ({"unsafe: a": 0.7, "no": 0.2, "yes": 0.005}, True),  # no more than what is listed last
        ({"unsafe: a": 0.995}, True),  # no more than what is left
        ({"unsafe: a": 0.001, "no": 0.9, "yes": 0.005}, False),  # little, but more than the answer has itself
    ],
)
def test_a_side_that_is_not_listed_must_be_negligible(first, known):
    found = read_log_probabilities(steps(first), answers_of("a"), 1)
    assert (found is not None) == known
    assert found is None or found.unsafe == 1.0


def test_an_alternative_that_leads_both_ways_is_left_out():
    found = read_log_probabilities(steps({"unsafe: a": 0.5, "safe": 0.2, " ": 0.3}), answers_of("a"), 1)
    assert found.unsafe == pytest.approx(0.5 / 0.7)


def test_names_that_differ_only_in_spaces_cannot_be_told_apart():
    found = read_log_probabilities(steps({"unsafe: ab": 0.9, "safe": 0.1}), answers_of("ab", "a b"), 2)
    assert found is None
