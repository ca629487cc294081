"""Trees of answers, counted by hand; answers cut to one against the others: fewer nodes, the same probability."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from judge.vlm.tree import (
    EMPTY_TREE,
    Continuation,
    TokenTree,
    answer_log_probabilities,
    build_tree,
    one_vs_rest,
)

TOKENS = 6


@st.composite
def answers(draw):
    """Closed answers of which none begins another, as the end token guarantees."""
    texts = draw(
        st.lists(st.lists(st.integers(0, 3), min_size=0, max_size=3), min_size=2, max_size=6, unique_by=tuple)
    )
    return [Continuation((5, *text, 4), 1) for text in texts]


def logits_at(tree, seed):
    """Logits that depend on what was read, whatever the tree it stands in."""
    paths = {-1: ()}
    for node, (token, parent) in enumerate(zip(tree.tokens, tree.parents, strict=True)):
        paths[node] = (*paths[parent], token)
    rows = []
    for node in tree.predictors:
        generator = torch.Generator().manual_seed(hash((seed, paths[node])) % 2**31)
        rows.append(torch.randn(TOKENS, generator=generator) * 2)
    return torch.stack(rows)[None]


@given(answers(), st.integers(0, 9), st.data())
def test_what_one_answer_gets_does_not_depend_on_how_the_others_go_on(continuations, seed, data):
    place = data.draw(st.integers(0, len(continuations) - 1))
    whole = build_tree(continuations)
    cut = build_tree(one_vs_rest(continuations, place))
    expected = answer_log_probabilities(whole, logits_at(whole, seed))[0]
    found = answer_log_probabilities(cut, logits_at(cut, seed))[0]
    assert found[0].item() == pytest.approx(expected[place].item(), abs=1e-5)
    assert found.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    assert set(cut.tokens) <= set(whole.tokens)
    assert len(cut.tokens) <= len(whole.tokens)


def test_a_verdict_needs_no_category():
    safe, *unsafe = (Continuation(tokens, 0) for tokens in ((1, 9), (2, 3, 9), (2, 4, 5, 9), (2, 4, 6, 9)))
    assert one_vs_rest([safe, *unsafe]) == (safe, Continuation((2,), 0))
    assert build_tree(one_vs_rest([safe, *unsafe])).tokens == ()
    assert one_vs_rest([safe, safe, *unsafe]) == (safe, Continuation((2,), 0))  # the same answer again
    last = one_vs_rest([safe, *unsafe], 3)
    assert [c.tokens for c in last] == [(2, 4, 6, 9), (1,), (2, 3), (2, 4, 5)]


# Two questions (5, 6) with two answers each, one of which goes on.
BY_HAND = [Continuation(tokens, 1) for tokens in ((5, 1, 7), (5, 1, 8), (6, 2, 7), (6, 3, 9, 9))]


def test_a_tree_counted_by_hand():
    """Fed are 5 and 1 behind it, where 7 or 8 follows, and 6, where 2 or 3 does; the rest is certain."""
    tree = build_tree(BY_HAND)
    assert tree.tokens == (5, 1, 6)
    assert tree.parents == (-1, 0, -1)
    assert tree.depths == (0, 1, 0)
    assert tree.steps == (((1, 7),), ((1, 8),), ((2, 2),), ((2, 3),))
    assert tree.predictors == (1, 2)
    assert tree.ancestor_mask().tolist() == [[True, False, False], [True, True, False], [False, False, True]]


def test_answers_at_the_very_end_of_the_text_are_predicted_by_it():
    tree = build_tree([Continuation((1,), 0), Continuation((2, 3), 0), Continuation((2, 4), 0)])
    assert tree.predictors == (-1, 0)
    assert tree.tokens == (2,)
    assert tree.steps == (((-1, 1),), ((-1, 2), (0, 3)), ((-1, 2), (0, 4)))
    logits = torch.zeros(2, 2, 9)
    logits[:, 0, 1] = torch.tensor([0.0, 1.0])  # at the end of the text: 1 against 2
    logits[:, 1, 4] = math.log(3)  # behind 2: 3 against 4
    logits[:, :, 8] = 99.0  # what no answer begins with does not count
    found = answer_log_probabilities(tree, logits.bfloat16().float()).exp()
    safe = 1 / (1 + math.exp(-1))
    expected = torch.tensor([[0.5, 0.125, 0.375], [safe, (1 - safe) / 4, (1 - safe) * 3 / 4]])
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_one_answer_alone_is_certain():
    tree = build_tree([Continuation((5, 1, 7), 2)])
    assert (tree.tokens, tree.steps, tree.predictors) == ((), ((),), (-1,))
    for kind in (torch.float32, torch.bfloat16):
        found = answer_log_probabilities(tree, torch.randn(3, 1, 9).to(kind))
        assert found.tolist() == [[0.0]] * 3
        assert found.dtype == torch.float32
    assert tree.ancestor_mask().shape == (0, 0)
    assert tree.bins(5) == EMPTY_TREE.bins(5) == ()
    assert TokenTree((), (), (), ()) == EMPTY_TREE


@pytest.mark.parametrize(
    "wrong", [[], [Continuation((1, 2), 2)], [Continuation((1,), 0), Continuation((), 0)]]
)
def test_an_empty_answer_makes_no_tree(wrong):
    with pytest.raises(
        ValueError, match=r"at least one continuation, each with an answer of one token or more"
    ):
        build_tree(wrong)


def chosen_at(parents, *nodes):
    """A tree in which each continuation has choices at some nodes."""
    steps = tuple(tuple((node, 0) for node in some) for some in nodes)
    return TokenTree((1,) * len(parents), parents, (0,) * len(parents), steps)


def test_bins_by_hand():
    # 0 - 1 - 2 - 3 and, from the end of the text too, 4 - 5; 6 hangs on 0.
    parents = (-1, 0, 1, 2, -1, 4, 0)
    long, other, twig = (3,), (5,), (6,)
    tree = chosen_at(parents, long, other, twig)
    assert tree.bins(1) == ((0, 1, 2, 3), (0, 4, 5, 6))  # 4 nodes and a quarter more are 5; each has 4
    assert tree.bins(6) == ((0, 1, 2, 3, 4, 5), (0, 6))
    assert tree.bins(7) == ((0, 1, 2, 3, 4, 5, 6),)
    assert chosen_at(parents, long, twig).bins(1) == ((0, 1, 2, 3, 6),)
    # What stands in an earlier bin already is not fed again, be it the whole bin or a part of it.
    assert chosen_at(parents, long, other, long, (1,)).bins(1) == ((0, 1, 2, 3), (0, 1, 4, 5))
    # A choice at the end of the text needs no node; those of one continuation stand together.
    assert chosen_at(parents, (-1,), (-1, 0), (1, 5)).bins(1) == ((0, 1, 4, 5),)
    assert chosen_at((-1,), (0,)).bins(1) == ((0,),)
