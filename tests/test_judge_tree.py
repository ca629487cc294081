"""Answers cut to one against the others: fewer nodes, the same probability."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from judge.vlm.tree import Continuation, answer_log_probabilities, build_tree, one_against_others

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
    cut = build_tree(one_against_others(continuations, place))
    expected = answer_log_probabilities(whole, logits_at(whole, seed))[0]
    found = answer_log_probabilities(cut, logits_at(cut, seed))[0]
    assert found[0].item() == pytest.approx(expected[place].item(), abs=1e-5)
    assert found.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    assert set(cut.tokens) <= set(whole.tokens)
    assert len(cut.tokens) <= len(whole.tokens)


def test_a_verdict_needs_no_category():
    safe, *unsafe = (Continuation(tokens, 0) for tokens in ((1, 9), (2, 3, 9), (2, 4, 5, 9), (2, 4, 6, 9)))
    assert one_against_others([safe, *unsafe]) == (safe, Continuation((2,), 0))
    assert build_tree(one_against_others([safe, *unsafe])).tokens == ()
    last = one_against_others([safe, *unsafe], 3)
    assert [c.tokens for c in last] == [(2, 4, 6, 9), (1,), (2, 3), (2, 4, 5)]
