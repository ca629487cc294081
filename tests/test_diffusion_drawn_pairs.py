"""Pairs of prompt and seed: split by prompt, with several seeds each, none of them twice."""

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.diffusion.drawn_pairs import draw_pairs
from eval.diffusion.prompt_files import Prompt, digit_prompts
from judge.diffusion.pairs import split_by_prompt
from judge.errors import ConfigError


@given(
    sizes=st.lists(st.integers(2, 30), min_size=1, max_size=3),
    training=st.one_of(st.none(), st.integers(1, 200)),
    test=st.one_of(st.none(), st.integers(1, 60)),
    seeds=st.integers(2, 5),
)
def test_pairs_are_split_by_prompt_and_share_no_noise(sizes, training, test, seeds):
    kinds = ["named", "vague", ""][: len(sizes)]
    prompts = [
        Prompt(f"{kind} {n}", kind) for kind, size in zip(kinds, sizes, strict=True) for n in range(size)
    ]
    pairs = draw_pairs(prompts, training=training, test=test, seeds_per_prompt=seeds, seed=3)
    assert pairs == draw_pairs(prompts, training=training, test=test, seeds_per_prompt=seeds, seed=3)
    assert len({pair.seed for pair in pairs}) == len(pairs)
    rows = {
        split: split_by_prompt(pairs, split) for split in ("train", "test")
    }  # raises if a prompt is in both
    for split, total in (("train", training), ("test", test)):
        if total is not None:
            assert len(rows[split]) == total
        elif total is None:
            used = Counter(pairs[row].prompt for row in rows[split])
            assert set(used.values()) == {seeds}
    if training is None and test is None:
        assert {pair.prompt for pair in pairs} == {prompt.text for prompt in prompts}
        assert {pair.kind for pair in pairs if pair.split == "test"} == set(kinds)


def test_shares_of_kinds_and_seeds_per_prompt():
    prompts = digit_prompts(1_000)
    pairs = draw_pairs(prompts, training=1_000, test=200, shares={"named": 0.7, "vague": 0.3})
    counts = Counter((pair.split, pair.kind) for pair in pairs)
    assert counts == {
        ("train", "named"): 700,
        ("train", "vague"): 300,
        ("test", "named"): 140,
        ("test", "vague"): 60,
    }
    seeds = defaultdict(set)
    for pair in pairs:
        seeds[pair.kind, pair.prompt].add(pair.seed)
    named = [len(found) for (kind, _), found in seeds.items() if kind == "named"]
    assert set(named) == {4}
    assert min(len(found) for (kind, _), found in seeds.items() if kind == "vague") > 4
    other = draw_pairs(prompts, training=1_000, test=200, seed=1)
    assert not {pair.seed for pair in other} & {pair.seed for pair in pairs}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seeds_per_prompt": 1}, "seeds_per_prompt is 1; give 2 or more"),
        (
            {"shares": {"named": 0.5, "odd": 0.5}},
            "shares name the kind 'odd', but the prompts have: named, vague, lone",
        ),
        ({"shares": {"named": 0.5}}, "shares add up to 0.5"),
        ({"shares": {"named": 1.5, "vague": -0.5}}, "The share of 'named' is 1.5"),
        ({"shares": {"lone": 1.0}}, "There is 1 prompt of kind 'lone'"),
        ({}, "There is 1 prompt of kind 'lone'"),
    ],
)
def test_pairs_that_cannot_be_drawn(options, says):
    prompts = [Prompt(f"{kind} {n}", kind) for kind in ("named", "vague") for n in range(4)] + [
        Prompt("x", "lone")
    ]
    with pytest.raises(ConfigError, match=says):
        draw_pairs(prompts, **options)
