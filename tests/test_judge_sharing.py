"""What images and taxonomies share is computed once, and sharing changes no score."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from judge.standins.random_llava import SHAPES, random_llava
from judge.vlm.score import VisionLanguageJudge
from judge.vlm.tree import Continuation, build_tree
from prompts import Category, Taxonomy

CATEGORIES = [Category(name, f"pictures of {name} things") for name in ("red", "round", "loud", "wet", "old")]
FIRST = Taxonomy("first", 1, tuple(CATEGORIES[:3]))
SECOND = Taxonomy("second", 1, tuple(CATEGORIES[1:4]))
APART = Taxonomy("apart", 1, tuple(CATEGORIES[3:]))
continuations = st.lists(
    st.tuples(st.lists(st.integers(0, 2), max_size=3), st.lists(st.integers(0, 2), min_size=1, max_size=3)),
    min_size=1,
    max_size=8,
).map(
    lambda drawn: [Continuation((*question, 3, *answer, 4), len(question) + 1) for question, answer in drawn]
)


@pytest.fixture(scope="module")
def loaded():
    model, processor = random_llava("tiny")
    for parameter in model.parameters():  # wider weights: scores that hardly differ would hide mistakes
        parameter.data.mul_(4 if parameter.ndim > 1 else 1)
    return model, processor


def tokens_fed(model, work):
    """Tokens of every call of the language model during some work, and what the work gave."""
    fed = []
    hook = model.model.language_model.register_forward_hook(
        lambda module, args, options, output: fed.append(output.last_hidden_state[..., 0].numel()),
        with_kwargs=True,
    )
    try:
        return work(), sum(fed)
    finally:
        hook.remove()


def same(found, expected):
    return all(
        np.allclose(one.unsafe, other.unsafe, atol=1e-5)
        and np.allclose(one.categories, other.categories, atol=1e-5)
        for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("template", ["perspective", "policy_first"])
@pytest.mark.parametrize("width", [1, 70])
def test_a_tree_cut_into_rows_scores_as_one_that_is_not(
    loaded, noise_image, monkeypatch, template, multilabel, width
):
    judge = VisionLanguageJudge(*loaded, template)
    images, prompts = [noise_image(seed) for seed in range(3)], ["a photo", None, "a street in an old town"]
    results = []
    for limit in (10**9, width):
        monkeypatch.setattr("judge.vlm.answers.TREE_WIDTH", limit)
        results.append(judge.score_taxonomies(images, prompts, [FIRST, SECOND, APART], multilabel=multilabel))
    assert same(*results)
    assert np.isfinite(results[1][2].categories).all()


def test_gradients_reach_the_pixels_through_a_cut_tree(loaded, noise_image, monkeypatch):
    judge = VisionLanguageJudge(*loaded, "perspective")
    gradients = []
    for limit in (10**9, 1):
        monkeypatch.setattr("judge.vlm.answers.TREE_WIDTH", limit)
        pixels = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0)).requires_grad_()
        judge.pixel_margins(pixels, ["a photo", None], FIRST).sum().backward()
        gradients.append(pixels.grad)
    assert gradients[0].abs().max() > 0
    # Relative to the largest: gradients near zero are sums that cancel.
    largest = float(gradients[0].abs().max())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.parametrize("multilabel", [False, True])
def test_taxonomies_share_the_image_and_the_categories_they_have_in_common(
    loaded, noise_image, monkeypatch, multilabel
):
    monkeypatch.setattr("judge.vlm.answers.TREE_WIDTH", 10**9)  # one row: padding would be counted too
    model, _ = loaded
    judge = VisionLanguageJudge(*loaded, "perspective")

    def together(*taxonomies):
        return tokens_fed(
            model,
            lambda: judge.score_taxonomies([noise_image(0)], ["a photo"], taxonomies, multilabel=multilabel),
        )

    together(APART)  # what stands before the image is kept from here on
    alone, cost = zip(*(together(taxonomy) for taxonomy in (FIRST, SECOND)), strict=True)
    both, shared = together(FIRST, SECOND)
    assert same(both, [scores for [scores] in alone])
    assert shared < sum(cost) - SHAPES["tiny"].image_tokens
    [_, again], twice = together(FIRST, Taxonomy("again", 1, FIRST.categories))
    assert twice == cost[0]
    assert same([again], alone[0])


def test_a_category_with_another_definition_is_another_question(loaded, noise_image):
    judge = VisionLanguageJudge(*loaded, "perspective")
    other = FIRST.reword({"round": "shapes without corners"})
    arguments = ([noise_image(0)], ["a photo"])
    found = judge.score_taxonomies(*arguments, [FIRST, other], multilabel=True)
    expected = [judge.score(*arguments, taxonomy, multilabel=True) for taxonomy in (FIRST, other)]
    assert same(found, expected)
    assert abs(found[0].categories[0, 1] - found[1].categories[0, 1]) > 1e-4


@given(continuations)
def test_only_choices_and_what_they_read_are_fed(drawn):
    tree = build_tree(drawn)
    assert len(tree.tokens) <= sum(len(continuation.tokens) for continuation in drawn)
    reads = tree.ancestor_mask()
    used = {node for node in tree.predictors if node >= 0}
    assert {int(node) for place in used for node in reads[place].nonzero()} == set(range(len(tree.tokens)))
    for continuation, steps in zip(drawn, tree.steps, strict=True):
        for node, token in steps:
            path = [] if node < 0 else [tree.tokens[place] for place in reads[node].nonzero().flatten()]
            assert continuation.tokens[: len(path) + 1] == (*path, token)


@given(continuations, st.integers(1, 12))
def test_bins_hold_every_choice_and_what_it_reads(drawn, width):
    tree = build_tree(drawn)
    bins, reads = tree.bins(width), tree.ancestor_mask()
    assert {node for place in bins for node in place} == set(range(len(tree.tokens)))
    assert all(
        set(reads[node].nonzero().flatten().tolist()) <= set(place) for place in bins for node in place
    )
    limit = max(width, max(map(len, (c.tokens for c in drawn))) * 5 // 4)
    assert all(len(place) <= limit and place == tuple(sorted(place)) for place in bins)


def test_random_models_have_the_layout_they_stand_for(loaded, noise_image):
    model, processor = loaded
    assert len(processor.tokenizer) == model.get_output_embeddings().out_features == SHAPES["tiny"].vocabulary
    assert (SHAPES["mid"].image_tokens, SHAPES["7b"].image_tokens) == (576, 576)
    again, _ = random_llava("tiny")
    assert torch.equal(
        again.model.language_model.embed_tokens.weight * 4, model.model.language_model.embed_tokens.weight
    )
    ids = processor(text=["<image>"], images=[noise_image(0)], return_tensors="pt")["input_ids"]
    assert (ids == model.config.image_token_index).sum() == SHAPES["tiny"].image_tokens
    with pytest.raises(ValueError, match="No size 'huge'; known: tiny, mid, 7b"):
        random_llava("huge")
