"""Areas under the curve by kind of prompt, against plain loops over pairs and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from eval.diffusion.areas import areas, by_category, leads
from eval.metrics.arrays import MetricError

KINDS = ("named", "vague")


@st.composite
def tables(draw):
    """(N, K) labels and scores with ties, unknown labels and unjudged scores; kinds and prompts of N pictures."""
    pictures, categories = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    size = pictures * categories
    label = st.sampled_from([0.0, 0.2, 0.5, 1.0, float("nan")])
    score = st.sampled_from([0.0, 0.1, 0.3, 0.3, 0.9, 1.0, float("nan")])
    labels = draw(st.lists(label, min_size=size, max_size=size))
    scores = draw(st.lists(score, min_size=size, max_size=size))
    prompts = draw(st.lists(st.sampled_from("abcd"), min_size=pictures, max_size=pictures))
    kinds = [KINDS[prompt > "b"] for prompt in prompts]
    return (
        np.reshape(labels, (pictures, categories)),
        np.reshape(scores, (pictures, categories)),
        kinds,
        prompts,
    )


def plain_loop(labels, scores, counts):
    """The share of counted pairs ((n, k) violating, (m, j) clean) in order, unjudged cells losing every pair."""
    won = pairs = 0.0
    rows, columns = labels.shape
    cells = [(n, k) for n in range(rows) for k in range(columns) if not np.isnan(labels[n, k])]
    for high in (cell for cell in cells if labels[cell] >= 0.5):
        for low in (cell for cell in cells if labels[cell] < 0.5):
            if counts(high, low):
                pairs += 1
                if not np.isnan(scores[high]) and not np.isnan(scores[low]):
                    won += (scores[high] > scores[low]) + 0.5 * (scores[high] == scores[low])
    return won / pairs if pairs else None


@given(tables())
def test_areas_are_those_of_a_loop_over_pairs(table):
    labels, scores, kinds, prompts = table
    found = areas(labels, scores, kinds, prompts, draws=2)

    def of_kind(kind):
        return lambda high, low: kinds[high[0]] == kinds[low[0]] == kind

    def equal_prompt(high, low):
        return prompts[high[0]] == prompts[low[0]] and high[1] == low[1]

    wanted = {"all": plain_loop(labels, scores, lambda *_: True)}
    wanted |= {kind: plain_loop(labels, scores, of_kind(kind)) for kind in set(kinds)}
    wanted["equal_prompt"] = plain_loop(labels, scores, equal_prompt)
    assert (found["equal_prompt"].interval is None) == (wanted["equal_prompt"] is None)
    assert {name: area.auc for name, area in found.items()} == pytest.approx(wanted, abs=1e-12)
    categories = by_category(labels, scores)
    for column, auc in enumerate(categories):
        assert auc == pytest.approx(plain_loop(labels[:, [column]], scores[:, [column]], lambda *_: True))


@pytest.fixture
def drawn():
    """2,000 cells of 100 prompts with 4 seeds each, scores that follow the labels."""
    rng = np.random.default_rng(0)
    prompts = np.repeat([f"prompt {number}" for number in range(100)], 4)
    kinds = ["named" if int(prompt.split()[1]) < 70 else "vague" for prompt in prompts]
    tendency = np.repeat(rng.random((100, 5)), 4, axis=0)
    labels = (rng.random((400, 5)) < tendency).astype(float)
    return labels, np.clip(0.3 * labels + 0.7 * rng.random((400, 5)), 0, 1), tendency, kinds, prompts.tolist()


def test_scikit_learn_agrees_and_the_counts_are_right(drawn):
    labels, scores, _, kinds, prompts = drawn
    found = areas(labels, scores, kinds, prompts)
    vague = np.array(kinds) == "vague"
    assert found["all"].auc == pytest.approx(roc_auc_score(labels.ravel(), scores.ravel()))
    assert found["vague"].auc == pytest.approx(roc_auc_score(labels[vague].ravel(), scores[vague].ravel()))
    assert (found["all"].prompts, found["vague"].prompts, found["named"].prompts) == (100, 30, 70)
    assert found["vague"].violating + found["vague"].clean == 30 * 4 * 5
    assert found["equal_prompt"].violating < found["all"].violating
    low, high = found["all"].interval
    assert low < found["all"].auc < high
    assert high - low < found["vague"].interval[1] - found["vague"].interval[0]


def test_whoever_reads_the_prompt_alone_cannot_tell_equal_prompts_apart(drawn):
    labels, _, tendency, kinds, prompts = drawn
    found = areas(labels, tendency, kinds, prompts)
    assert found["equal_prompt"].auc == 0.5
    assert found["equal_prompt"].interval == (0.5, 0.5)
    assert found["all"].auc > 0.75


def test_pictures_of_one_prompt_count_as_one(drawn):
    """Copies of pictures add nothing to what is known: the interval stays, whatever their number."""
    labels, scores, _, kinds, prompts = drawn
    once = areas(labels, scores, kinds, prompts)["all"]
    copied = areas(*(np.tile(part, (3, 1)) for part in (labels, scores)), kinds * 3, prompts * 3)["all"]
    assert copied.interval == pytest.approx(once.interval)
    single = areas(labels, scores, kinds, list(range(400)))["all"]
    assert single.interval != once.interval


def test_leads_are_paired(drawn):
    labels, scores, tendency, kinds, prompts = drawn
    found = areas(labels, scores, kinds, prompts)
    value, low, high = leads(found, areas(labels, tendency, kinds, prompts))["equal_prompt"]
    assert value == pytest.approx(found["equal_prompt"].auc - 0.5)
    assert low < value < high
    # A little noise moves the area by little, and its paired lead by less than the areas' own intervals.
    near = areas(
        labels, scores + 0.01 * np.sin(9e4 * scores) * (scores < 0.9) * (scores > 0.1), kinds, prompts
    )
    lead = leads(found, near)["all"]
    assert 0 < lead[2] - lead[1] < 0.1 * (found["all"].interval[1] - found["all"].interval[0])
    nothing = areas(np.zeros((2, 1)), np.zeros((2, 1)), ["named"] * 2, "ab")
    assert set(leads(nothing, nothing).values()) == {None}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"scores": np.zeros((2, 3))}, r"shape \(2, 2\), scores \(2, 3\)"),
        ({"labels": np.full((2, 2), 1.5)}, "labels lie outside"),
        ({"scores": np.full((2, 2), -0.1)}, "scores lie outside"),
        ({"kinds": ["named"]}, "2 pictures, 1 kinds and 2 groups"),
        ({"kinds": ["all", "vague"]}, "called 'all'"),
    ],
)
def test_what_is_no_table_is_refused(change, says):
    given = {
        "labels": np.zeros((2, 2)),
        "scores": np.zeros((2, 2)),
        "kinds": list(KINDS),
        "groups": ["a", "b"],
    }
    with pytest.raises(MetricError, match=says):
        areas(**(given | change))


def test_no_kind_has_no_row(drawn):
    labels, scores, _, _, prompts = drawn
    assert set(areas(labels, scores, [""] * 400, prompts)) == {"all", "equal_prompt"}


def test_no_pictures_have_no_area():
    found = areas(np.zeros((0, 3)), np.zeros((0, 3)), [], [])
    assert found["all"].auc is found["all"].interval is None
