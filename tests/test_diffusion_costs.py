"""Costs of a cascade around a generator: counted up to where a picture ends, mixed, and held against drawing all."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import expit

from eval.diffusion.costs import DESIGNS, FINISHED, compare_costs, cost_table, run_design
from eval.diffusion.stage_scores import (
    Questions,
    StageScores,
    ask,
    drawn_policies,
    score_store,
    split_prompts,
)
from judge.cascade.generation_work import Prices
from judge.encoders.dual import DualEncoder
from judge.errors import ConfigError
from judge.protocol import Scores
from prompts import load_taxonomy

PRICES = Prices(prompt=0.001, step=0.01, look=0.0005, decode=0.004, student=0.006)
AT, STEPS = (4, 9), 20


def questions(rows=900, seed=0, strength=6.0):
    """Prompts that tell a little, looks that tell more, and a student that is right."""
    rng = np.random.default_rng(seed)
    unsafe = rng.random(rows) < 0.4

    def column(factor):
        return expit(factor * (unsafe - 0.5) + rng.normal(0, 1, rows))

    return Questions(
        similarity=0.3 + 0.1 * column(2.0),
        looks=np.stack([column(strength), column(1.5 * strength)], axis=1),
        student=np.where(unsafe, 0.6, 0.1) + 0.3 * rng.random(rows),
        unsafe=unsafe,
        prompts=np.array([f"prompt {row // 3}" for row in range(rows)]),
    )


@pytest.fixture(scope="module")
def parts():
    return split_prompts(questions(), (1, 1, 1))


@pytest.fixture(scope="module")
def found(parts):
    return compare_costs(parts, PRICES, AT, STEPS, promises=(0.05,), false_alarms=0.05, draws=60)


def test_no_prompt_is_in_two_parts(parts):
    names = [set(part.prompts) for part in parts]
    assert len(names[0] | names[1] | names[2]) == sum(map(len, names)) == 300
    assert sum(map(len, parts)) == 900


def test_drawing_all_and_reading_all_costs_what_it_says(found):
    first = found["designs"]["0.05"][FINISHED]
    assert first["seconds"] == pytest.approx(20 * 0.01 + 0.004 + 0.006)
    assert first["steps"] == pytest.approx(21.0)
    assert (first["saving"], first["spared"], first["looking"], first["early"]) == (0, 0, 0, 0)
    assert first["intervals"]["saving"] == (0, 0)


def test_a_design_is_counted_as_a_plain_loop_counts_it(parts, found):
    name = "prompt filter, detector, student"
    outcome = run_design(DESIGNS[name], parts, 0.05, PRICES, AT, STEPS, false_alarms=0.05)
    test, cutoffs = parts[2], outcome.cutoffs
    sums = {True: [], False: []}
    for row in range(len(test)):
        cost, at = 0.001 * (cutoffs.prompt <= 1), STEPS
        if outcome.work.step[row] == 0:
            at = 0
        else:
            for place, cutoff in enumerate(cutoffs.looks):
                cost += 0.0005 * (cutoff <= 1)
                if test.looks[row, place] >= cutoff:
                    at = AT[place]
                    break
        cost += 0.01 * at + (0.01 if at == STEPS else 0.0)
        sums[bool(test.unsafe[row])].append(cost)
    expected = 0.3 * np.mean(sums[True]) + 0.7 * np.mean(sums[False])
    one = found["designs"]["0.05"][name]
    assert one["seconds"] == pytest.approx(expected)
    assert one["saving"] == pytest.approx(1 - expected / 0.21)


def test_stopping_saves_and_the_last_filter_keeps_the_misses(found):
    designs = found["designs"]["0.05"]
    assert designs["detector, student"]["saving"] > 0.05
    for one in designs.values():
        assert one["missed"] < 0.12
        low, high = one["intervals"]["saving"]
        assert low <= one["saving"] <= high
    # The budget is for what is stopped early; a student that is right adds nothing.
    assert designs["detector, student"]["false_alarms"] < 0.1
    dropped = designs["detector, nothing behind it"]
    assert dropped["saving"] > designs["detector, student"]["saving"]
    assert dropped["false_alarms"] > 0


def test_the_shares_of_what_is_asked_for_count_and_not_those_of_the_data(parts):
    def saving(share):
        designs = {name: DESIGNS[name] for name in (FINISHED, "detector, student")}
        found = compare_costs(
            parts, PRICES, AT, STEPS, promises=(0.05,), designs=designs, unsafe_share=share, draws=5
        )
        return found["designs"]["0.05"]["detector, student"]["saving"]

    assert saving(0.05) < saving(0.3) < saving(0.9)


def test_what_a_look_could_not_judge_is_no_miss_and_no_saving(parts):
    blind = [replace(part, looks=np.full_like(part.looks, np.nan)) for part in parts[2:]]
    designs = {name: DESIGNS[name] for name in (FINISHED, "detector, student")}
    found = compare_costs([*parts[:2], *blind], PRICES, AT, STEPS, promises=(0.05,), designs=designs, draws=5)
    one = found["designs"]["0.05"]["detector, student"]
    assert one["missed"] == 0
    assert one["saving"] < 0
    assert one["false_alarms"] == 1


def test_the_table_says_what_was_measured(found):
    lines = cost_table(found)
    assert lines[0].startswith("30% of what is asked for")
    assert sum(line.startswith(tuple(DESIGNS)) for line in lines) == len(DESIGNS)


class Detector:
    name, layers, log_snrs = "fake", (), (-8.0, 8.0)

    def score(self, look, taxonomy):
        categories = np.full((look.rows, len(taxonomy)), look.step / 100)
        return Scores(categories.max(axis=1), categories, (None,) * look.rows)


def test_a_store_is_scored_by_every_stage():
    encoder = DualEncoder.load("tiny-clip")
    digits = load_taxonomy("digits")
    labels = np.zeros((6, 10), np.float32)
    labels[0, 3], labels[1, 7], labels[2, 7] = 0.9, 0.8, np.nan
    store = SimpleNamespace(
        taxonomy=digits,
        at=(4, 9),
        pairs=[SimpleNamespace(prompt=prompt) for prompt in ("a three", "a seven", "a digit") * 2],
        labels=labels,
        look=lambda rows, step: SimpleNamespace(rows=len(rows), step=step),
    )
    scores = score_store(store, [0, 1, 2, 3], Detector(), encoder)
    assert scores.looks.shape == (4, 2, 10)
    assert scores.looks[:, :, 0].tolist() == [[0.04, 0.09]] * 4
    assert scores.cosines[0].argmax() == scores.cosines[3].argmax() == 3
    asked = ask(scores, [np.array([3]), np.array([3, 7])])
    # Under the second policy nothing is known of the third picture.
    assert len(asked) == 7
    assert asked.unsafe.tolist() == [True, False, False, False, True, True, False]
    assert asked.student == pytest.approx(np.array([0.9, 0, 0, 0, 0.9, 0.8, 0]))


def test_each_category_stands_in_one_policy():
    policies = drawn_policies(10, 3)
    assert sorted(np.concatenate(policies).tolist()) == list(range(10))
    assert {len(policy) for policy in policies} <= {3, 4}
    with pytest.raises(ConfigError, match="A policy of 4 of 3"):
        drawn_policies(3, 4)


def test_a_picture_that_is_known_to_violate_is_unsafe_whatever_else_is_unknown():
    scores = StageScores(
        load_taxonomy("digits").select(["one", "two"]),
        ("a", "b", "c"),
        np.zeros((3, 2)),
        np.zeros((3, 1, 2)),
        np.zeros((3, 2)),
        np.array([[0.9, np.nan], [0.1, np.nan], [0.1, 0.2]]),
    )
    asked = ask(scores, [np.array([0, 1])])
    assert asked.unsafe.tolist() == [True, False]
    assert asked.prompts.tolist() == ["a", "c"]
