"""Near prompts form clusters, and no cluster is in two splits."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from judge.corpus.clusters import cluster_prompts, split_clusters
from judge.errors import ConfigError

NOUNS = "ostrich pistol rifle flower house ship bottle syringe kitchen soldier".split()
FORMS = ("a picture of a {}", "an oil painting of a {}, highly detailed", "a {} in the rain at night")


def joined(prompts: list[str], *rest: list[object], **options: object) -> list[list[int]]:
    """Places of the prompts of each cluster, in order."""
    names = cluster_prompts(prompts, *rest, **options)  # type: ignore[arg-type]
    return sorted([place for place, name in enumerate(names) if name == one] for one in set(names))


def test_equal_but_for_case_punctuation_and_hidden_characters() -> None:
    prompts = ["A red house.", "a  red\u200b house", "ａ ｒｅｄ house!", "a red ship"]
    assert joined(prompts) == [[0, 1, 2], [3]]


def test_a_word_more_is_near_and_another_subject_is_not() -> None:
    long = "an old man in a kitchen holds a rifle, cinematic light"
    prompts = [long, f"{long}, 35mm", "two children play chess under a tree", "a rifle"]
    assert joined(prompts) == [[0, 1], [2], [3]]


def test_fillings_of_one_template_stay_apart_and_one_filling_of_all_templates_is_joined() -> None:
    prompts = [form.format(noun) for noun in NOUNS for form in FORMS]
    sources = [(noun,) for noun in NOUNS for _ in FORMS]
    assert joined(prompts, sources) == [[start, start + 1, start + 2] for start in range(0, 30, 3)]


def test_a_source_joins_what_has_no_word_in_common() -> None:
    prompts = ["alpha", "beta", "gamma", "delta"]
    assert joined(prompts, [{"x"}, {"x", "y"}, {"y"}, ()]) == [[0, 1, 2], [3]]
    assert joined(prompts, [{"x"}, {"x"}, (), ()]) == [[0, 1], [2], [3]]


def test_chains_are_joined() -> None:
    """The ends are not near; what stands between them is near to both."""
    words = [f"word{number}" for number in range(14)]
    prompts = [" ".join(words[start : start + 10]) for start in (0, 2, 4)]
    others = [" ".join(f"other{number * 10 + place}" for place in range(10)) for number in range(30)]
    assert joined(prompts + others)[0] == [0, 1, 2]
    assert joined([prompts[0], prompts[2], *others])[0] == [0]


def test_scripts_without_spaces_and_prompts_without_words() -> None:
    prompts = [
        "厨房里有一个老人拿着步枪",
        "厨房里有一个老人拿着步枪呢",
        "两个孩子在树下下棋",
        "!!!",
        "???",
        "",
        "\ud800",
    ]
    assert joined(prompts) == [[0, 1], [2], [3], [4], [5], [6]]


def test_close_embeddings_are_joined() -> None:
    prompts = ["a gun", "a firearm", "a tulip"]
    embeddings = np.array([[1.0, 0.05], [3.0, 0.0], [0.0, 1.0]])
    assert joined(prompts) == [[0], [1], [2]]
    assert joined(prompts, embeddings=embeddings) == [[0, 1], [2]]


def near_by_hand(prompts: list[str], limit: float) -> set[tuple[int, int]]:
    """All pairs of at least this weighted Jaccard index, by a plain loop."""
    sets = [set(prompt.split()) for prompt in prompts]
    seen = Counter(word for words in sets for word in words)
    weight = {word: max(math.log((1 + len(prompts)) / (1 + count)), 0.01) for word, count in seen.items()}
    found = set()
    for one in range(len(sets)):
        for other in range(one):
            common = sum(weight[word] for word in sets[one] & sets[other])
            if common >= limit * sum(weight[word] for word in sets[one] | sets[other]):
                found.add((other, one))
    return found


def test_agrees_with_comparing_every_two() -> None:
    draw = random.Random(0)
    base = [" ".join(draw.sample([f"w{number}" for number in range(400)], 10)) for _ in range(150)]
    changed = [
        " ".join([*prompt.split()[draw.randrange(1, 6) :], f"w{draw.randrange(400)}"]) for prompt in base
    ]
    prompts = list(dict.fromkeys(base + changed))
    names = cluster_prompts(prompts)
    pairs = near_by_hand(prompts, 0.6)
    assert len(pairs) > 50
    missed = [pair for pair in pairs if names[pair[0]] != names[pair[1]]]
    assert len(missed) <= 0.03 * len(pairs)
    # And nothing is joined that no chain of near pairs joins.
    parent = list(range(len(prompts)))

    def root(place: int) -> int:
        while parent[place] != place:
            place = parent[place]
        return place

    for one, other in pairs:
        parent[root(one)] = root(other)
    assert all(
        root(one) == root(other)
        for one in range(len(prompts))
        for other in range(one)
        if names[one] == names[other]
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([form.format(noun) for noun in NOUNS[:5] for form in FORMS]), max_size=20),
    st.randoms(),
)
def test_the_order_of_prompts_changes_nothing(prompts: list[str], draw: random.Random) -> None:
    names = dict(zip(prompts, cluster_prompts(prompts), strict=True))
    draw.shuffle(prompts)
    assert dict(zip(prompts, cluster_prompts(prompts), strict=True)) == names


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(0, 5))
def test_no_cluster_is_in_two_splits_and_shares_are_met(numbers: int, seed: int) -> None:
    draw = random.Random(numbers)
    clusters = [int(60 * draw.random() ** 2) for _ in range(draw.randrange(300, 400))]
    shares = {"train": 0.7, "validation": 0.0, "test": 0.3}
    splits = split_clusters(clusters, shares, seed=seed)
    assert len(set(zip(clusters, splits, strict=True))) == len(set(clusters))
    largest = max(Counter(clusters).values())
    for name, share in shares.items():
        assert abs(splits.count(name) - share * len(clusters)) <= largest
    backwards = split_clusters(clusters[::-1], shares, seed=seed)
    assert backwards == splits[::-1]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_no_split_stays_empty_where_there_are_clusters_enough(clusters: list[int]) -> None:
    shares = {"train": 0.98, "validation": 0.01, "test": 0.01}
    if len(set(clusters)) < 3:
        with pytest.raises(ConfigError, match="cannot be put into 3 splits"):
            split_clusters(clusters, shares)
        return
    splits = split_clusters(clusters, shares)
    assert set(splits) == {"train", "validation", "test"}
    assert len(set(zip(clusters, splits, strict=True))) == len(set(clusters))


def test_another_seed_gives_another_split() -> None:
    clusters = list(range(50))
    shares = {"train": 0.5, "test": 0.5}
    assert split_clusters(clusters, shares) == split_clusters(clusters, shares, seed=0)
    assert split_clusters(clusters, shares) != split_clusters(clusters, shares, seed=1)


def test_too_few_clusters_and_bad_options() -> None:
    with pytest.raises(
        ConfigError, match=r"5 rows form 1 clusters of near prompts.*2 splits \(train, test\)"
    ):
        split_clusters([1] * 5, {"train": 0.5, "test": 0.5})
    with pytest.raises(ConfigError, match="add up to 1"):
        split_clusters([1], {"train": 0.5})
    with pytest.raises(ConfigError, match="2 prompts with 1 sources"):
        cluster_prompts(["a", "b"], [{"x"}])
    with pytest.raises(ConfigError, match="similarity is 0"):
        cluster_prompts(["a"], similarity=0)
    with pytest.raises(ConfigError, match="NaN"):
        cluster_prompts(["a"], embeddings=np.array([[math.nan]]))
    assert cluster_prompts([]) == []
    assert split_clusters([], {"train": 1.0}) == []
