"""The text-only check: silent on rows drawn properly, loud on every way a text can give its label away."""

import copy
import json
import random
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from eval.metrics.arrays import MetricError
from eval.shortcut.check import check_rows, shortcut_auc
from eval.shortcut.image_facts import image_facts_auc
from prompts import Example, load_taxonomy
from prompts.flip import FlipOptions, draw_groups, draw_pairs
from prompts.flip.published import paper_rows

TAXONOMY = load_taxonomy("digits")


@pytest.fixture(scope="module")
def examples():
    """Images whose prompts tell the truth, each in words of its own, sometimes by number."""
    rng = random.Random(0)
    made = []
    for number in range(2500):
        shown = rng.sample(TAXONOMY.names, rng.choice((0, 1, 1, 1, 2, 2)))
        words = [name if rng.random() < 0.7 else str(TAXONOMY.index(name)) for name in shown]
        prompt = f"a photo of {' and '.join(words) or 'paper'}, take {number}"
        made.append(Example(f"e{number}", None, prompt, frozenset(shown)))
    return made


@pytest.fixture(scope="module")
def drawn(examples):
    options = FlipOptions(held_out=frozenset({"three", "eight"}), distractors=("everyday",))
    groups = draw_groups(examples, TAXONOMY, options, seed=0, epoch=0, groups=700)
    return [row for group in groups for row in group.rows]


@pytest.fixture
def few_trees(monkeypatch):
    """Six trees and not sixty, which take most of the time, where another classifier sees what there is to see.

    The best classifier counts: what is seen with few trees is seen with many. Where nothing may be seen, all are asked.
    """
    from eval.shortcut import check

    boosted = check.HistGradientBoostingClassifier
    monkeypatch.setattr(
        check, "HistGradientBoostingClassifier", lambda **given: boosted(**given | {"max_iter": 6})
    )


def test_properly_drawn_rows_say_nothing(drawn):
    result = check_rows(drawn)
    assert 3500 < result.rows <= 4000
    assert abs(result.auc - 0.5) <= 0.03
    assert result.clean
    assert result.interval[0] < 0.51
    assert result.image_auc == image_facts_auc(drawn)
    assert set(result.by_model) == {"logistic_regression", "character_ngrams", "boosted_trees"}


def test_facts_of_images_say_little_in_balanced_rows_and_much_in_others(examples, drawn):
    assert 0.5 < image_facts_auc(drawn) < 0.65
    groups = draw_groups(examples, TAXONOMY, FlipOptions().plain, seed=0, epoch=0, groups=300)
    plain = [row for group in groups for row in group.rows]
    assert image_facts_auc(plain) > 0.7
    # Whatever an image shows, as in a world in which labels were drawn by a coin.
    coins = random.Random(0)
    assert abs(image_facts_auc([replace(row, unsafe=coins.random() < 0.5) for row in plain]) - 0.5) < 0.05


def test_facts_of_images_do_not_depend_on_where_policies_lie_in_memory(drawn):
    taxonomies = {id(row.taxonomy): row.taxonomy for row in drawn}
    copies = [copy.copy(taxonomy) for taxonomy in taxonomies.values()]
    # As many new objects, given to the policies against the order of their addresses.
    moved = dict(zip(taxonomies, sorted(copies, key=id, reverse=True), strict=True))
    again = [replace(row, taxonomy=moved[id(row.taxonomy)]) for row in drawn]
    assert image_facts_auc(again) == image_facts_auc(drawn)


@pytest.mark.usefixtures("few_trees")
def test_wordings_that_tell_are_caught(drawn):
    """A style that safe rows have more often: seen in what was done, and in how it is spelled."""
    shouting = [
        replace(row, prompt=(row.prompt or "x").upper()) if not row.unsafe and number % 3 == 0 else row
        for number, row in enumerate(drawn[:1600])
    ]
    assert check_rows(shouting).auc > 0.55
    told = [replace(row, prompt_form="plain" if row.unsafe else "odd") for row in drawn[:400]]
    assert check_rows(told).features["prompt_odd"] < 0.01


@pytest.mark.usefixtures("few_trees")
def test_published_negatives_without_definitions_are_caught(examples):
    result = check_rows(paper_rows(examples[:600], TAXONOMY, seed=0))
    assert result.auc > 0.9
    assert not result.clean
    assert {"share_defined", "share_of_lines_with_colon", "characters"} & set(list(result.features)[:4])


def test_truthful_prompts_are_caught(drawn):
    telling = [replace(row, prompt=row.example.prompt, prompt_of=row.example.id) for row in drawn[:1600]]
    assert check_rows(telling).auc > 0.9


@pytest.mark.usefixtures("few_trees")
def test_a_small_leak_is_seen(drawn):
    """One row in five always shows its own, truthful prompt; the others keep or exchange theirs."""
    leaking = [
        replace(row, prompt=row.example.prompt, prompt_of=row.example.id) if number % 5 == 0 else row
        for number, row in enumerate(drawn)
    ]
    result = check_rows(leaking)
    assert result.auc > 0.53
    assert not result.clean


@pytest.mark.usefixtures("few_trees")
def test_missing_prompts_that_tell_are_caught(drawn):
    telling = [
        replace(row, prompt=None) if not row.unsafe and number % 3 == 0 else row
        for number, row in enumerate(drawn[:1600])
    ]
    assert check_rows(telling).auc > 0.55


def test_pairs_say_nothing_when_couples_stay_together(examples):
    pairs = draw_pairs(examples, TAXONOMY, FlipOptions(), seed=0, pairs=2000)
    rows = [row for pair in pairs for row in (pair.unsafe, pair.safe)]
    # Pairs that share a policy on either side are one group. The two policies of a couple differ in one line, and all
    # labels of one are reversed in the other: split into different folds, they would give labels away.
    policies = [row.taxonomy.hash for row in rows]
    number = {name: place for place, name in enumerate(dict.fromkeys(policies))}
    ends = np.array([number[name] for name in policies]).reshape(-1, 2).T
    edges = csr_matrix((np.ones(len(pairs)), ends), shape=(len(number), len(number)))
    _, component = connected_components(edges, directed=False)
    result = check_rows(rows, groups=[str(component[number[name]]) for name in policies])
    assert result.groups > 100
    assert abs(result.auc - 0.5) <= 0.03


@pytest.mark.usefixtures("few_trees")
def test_exact_balance_across_groups_does_not_push_the_auc_below_chance():
    """Each prompt once safe, once unsafe, in two policies: remembered prompts predict the wrong label."""
    rng = np.random.default_rng(0)
    prompts = [f"word{number} again{number}" for number in range(1500)] * 2
    labels = np.repeat([True, False], 1500) ^ np.tile(rng.random(1500) < 0.5, 2)
    groups = [f"policy {number}" for number in rng.integers(0, 300, 3000)]
    texts = [f"{group}\n{prompt}" for group, prompt in zip(groups, prompts, strict=True)]
    naive = shortcut_auc(texts, labels, groups)
    honest = shortcut_auc(texts, labels, groups, prompts=prompts)
    assert naive.by_model["logistic_regression"] < 0.4
    assert abs(honest.by_model["logistic_regression"] - 0.5) <= 0.03


@pytest.mark.usefixtures("few_trees")
def test_policies_dealt_by_row_would_hide_a_shortcut():
    """Within a policy half is unsafe; dealt by row, a remembered policy predicts the wrong label."""
    rng = np.random.default_rng(1)
    groups = np.repeat([f"policy{number} name{number}" for number in range(1000)], 2)
    labels = np.tile([True, False], 1000)
    texts = [f"{group}\nquestion" for group in groups]
    by_row = shortcut_auc(texts, labels, [str(number) for number in rng.permutation(2000)])
    by_group = shortcut_auc(texts, labels, list(groups))
    assert by_row.by_model["logistic_regression"] < 0.2
    assert abs(by_group.by_model["logistic_regression"] - 0.5) <= 0.03


def test_one_fixed_policy_is_dealt_by_row():
    rng = np.random.default_rng(2)
    labels = rng.random(1000) < 0.5
    texts = [f"the only policy\n{'cat' if label else 'dog'}" for label in labels]
    assert shortcut_auc(texts, labels, ["fixed"] * 1000).auc == 1.0


@pytest.mark.usefixtures("few_trees")
def test_result_is_repeatable_json(drawn):
    rows = drawn[:400]
    first, again = check_rows(rows, seed=3), check_rows(rows, seed=3)
    assert first == again
    assert json.loads(json.dumps(first.to_dict()))["clean"] is first.clean


def test_columns_and_row_counts_are_checked():
    with pytest.raises(MetricError, match="3 labels, but columns of"):
        shortcut_auc(["a", "b"], [True, False, True], ["g"] * 3)
    with pytest.raises(MetricError, match="2 unsafe and 1 safe rows; the shortcut check needs 90 of each"):
        shortcut_auc(["a"] * 3, [True, False, True], ["g"] * 3)
