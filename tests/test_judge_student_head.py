"""The cross-attention head: equivariance, any number of categories, and that text matters."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from judge.encoders.dual import DualEncoder
from judge.encoders.phrases import CONDITION, KINDS, phrases
from judge.errors import ConfigError
from judge.lessons.envelope import LessonsEnvelope
from judge.student.head import PADDED_LOGIT, CrossAttentionHead, HeadConfig, Queries
from judge.student.student import Student
from prompts import Category, Taxonomy

WIDTH = 24


def make_head(seed=0, **options):
    """A head whose zero-initialised parts matter too."""
    torch.manual_seed(seed)
    head = CrossAttentionHead(HeadConfig(WIDTH, **{"inner": 32, "heads": 4, "rank": 4} | options)).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        head.calibration.copy_(torch.tensor([[1.3, -0.2], [0.8, 0.4]]))
    return head


def draw(seed=0, groups=1, rows=3, tokens=5, words=4, categories=4, longest=3):
    """Random image tokens, prompt tokens with mask, phrases with kinds (every category has one about the image)."""
    rng = torch.Generator().manual_seed(seed)
    mask = torch.rand(groups, rows, words, generator=rng) < 0.7
    mask[..., 0] = True
    kinds = torch.randint(0, len(KINDS), (groups, categories, longest), generator=rng)
    kinds[..., 0] %= CONDITION
    kinds[..., 1:][torch.rand(groups, categories, longest - 1, generator=rng) < 0.4] = -1
    return (
        torch.randn(groups, rows, tokens, WIDTH, generator=rng),
        torch.randn(groups, rows, words, WIDTH, generator=rng),
        mask,
        torch.randn(groups, categories, longest, WIDTH, generator=rng),
        kinds,
    )


def run(head, image, prompt, mask, texts, kinds):
    with torch.no_grad():
        return head(image, prompt, mask, head.queries(texts, kinds))


@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(0, 2))
def test_permuting_the_taxonomy_permutes_the_scores_and_nothing_else(seed, categories, depth):
    head = make_head(depth=depth).double()
    *rest, texts, kinds = draw(seed, categories=categories)
    image, prompt, mask = rest[0].double(), rest[1].double(), rest[2]
    order = torch.randperm(categories, generator=torch.Generator().manual_seed(seed))
    whole, category = run(head, image, prompt, mask, texts.double(), kinds)
    whole2, category2 = run(head, image, prompt, mask, texts.double()[:, order], kinds[:, order])
    torch.testing.assert_close(category[..., order], category2, rtol=0, atol=1e-12)
    torch.testing.assert_close(whole, whole2, rtol=0, atol=1e-12)


def test_the_whole_does_not_depend_on_the_order_even_in_rounding():
    head = make_head()
    category = torch.randn(64, 11) * 3
    assert torch.equal(head.unsafe_logit(category), head.unsafe_logit(category[:, torch.randperm(11)]))


@given(st.integers(0, 10_000))
def test_a_category_scores_the_same_whatever_stands_beside_it(seed):
    head = make_head().double()
    image, prompt, mask, texts, kinds = draw(seed, categories=5)
    image, prompt, texts = image.double(), prompt.double(), texts.double()
    _, together = run(head, image, prompt, mask, texts, kinds)
    for k in range(5):
        _, alone = run(head, image, prompt, mask, texts[:, k : k + 1], kinds[:, k : k + 1])
        torch.testing.assert_close(together[..., k : k + 1], alone, rtol=0, atol=1e-10)


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
def test_padding_changes_nothing(seed, more_categories, more_phrases, more_words):
    head = make_head()
    image, prompt, mask, texts, kinds = draw(seed)
    whole, category = run(head, image, prompt, mask, texts, kinds)
    pad = torch.nn.functional.pad
    padded_texts = pad(texts, (0, 0, 0, more_phrases, 0, more_categories), value=0.5)
    padded_kinds = pad(kinds, (0, more_phrases, 0, more_categories), value=-1)
    padded = run(
        head,
        image,
        pad(prompt, (0, 0, 0, more_words), value=9.0),
        pad(mask, (0, more_words)),
        padded_texts,
        padded_kinds,
    )
    torch.testing.assert_close(padded[0], whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(padded[1][..., : kinds.shape[1]], category, rtol=1e-4, atol=1e-5)
    assert (padded[1][..., kinds.shape[1] :] < PADDED_LOGIT / 2).all()


def test_groups_are_scored_as_if_each_came_alone():
    head = make_head()
    parts = draw(3, groups=3)
    whole, category = run(head, *parts)
    for g in range(3):
        one = run(head, *(part[g : g + 1] for part in parts))
        torch.testing.assert_close(whole[g : g + 1], one[0])
        torch.testing.assert_close(category[g : g + 1], one[1])


def effect(change, output):
    """Largest change of the output between two inputs, and largest gradient at the first."""
    first, second = change
    first = first.clone().requires_grad_(True)
    before = output(first)
    (gradient,) = torch.autograd.grad(before.sum(), first)
    return (before - output(second)).abs().max().item(), gradient.abs().max().item()


def test_prompt_and_definition_both_have_an_effect():
    """The published classifier fails this: tests/test_judge_pooled_attention.py."""
    head = make_head()
    image, prompt, mask, texts, kinds = draw(0)
    _, other_prompt, _, other_texts, _ = draw(1)
    by_prompt = effect((prompt, other_prompt), lambda p: head(image, p, mask, head.queries(texts, kinds))[0])
    by_text = effect((texts, other_texts), lambda t: head(image, prompt, mask, head.queries(t, kinds))[0])
    assert min(*by_prompt, *by_text) > 1e-3


def test_every_prompt_token_and_every_patch_is_read():
    head = make_head()
    image, prompt, mask, texts, kinds = draw(0)
    mask[:] = True
    image.requires_grad_(True)
    prompt.requires_grad_(True)
    whole, _ = head(image, prompt, mask, head.queries(texts, kinds))
    grads = torch.autograd.grad(whole.sum(), [image, prompt])
    assert all((grad.abs().sum(-1) > 0).all() for grad in grads)


@given(st.integers(0, 10_000), st.integers(0, 2), st.booleans())
def test_what_inference_leaves_out_changes_nothing(seed, depth, prompts):
    """Training computes both halves, with prompts or without, and all images at once."""
    head = make_head(seed, depth=depth)
    image, prompt, mask, texts, kinds = draw(seed, rows=4)
    mask &= torch.tensor(prompts)
    plain = run(head.train(), image, prompt, mask, texts, kinds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("judge.student.head._CACHED", 300)  # one or two images at a time
        found = run(head.eval(), image, prompt, mask, texts, kinds)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)


def test_a_missing_prompt_is_not_an_empty_vector():
    head = make_head()
    image, prompt, mask, texts, kinds = draw(0)
    nothing = torch.zeros_like(mask)
    one = run(head, image, prompt, nothing, texts, kinds)
    other = run(head, image, torch.randn_like(prompt) * 7, nothing, texts, kinds)
    torch.testing.assert_close(one[0], other[0])
    assert not torch.allclose(one[0], run(head, image, prompt, mask, texts, kinds)[0])
    assert torch.isfinite(one[0]).all()


def test_attention_equals_a_plain_loop():
    head = make_head(depth=1)
    image, prompt, mask, texts, kinds = draw(5, rows=2, categories=2, longest=2)
    with torch.no_grad():
        queries = head.queries(texts, kinds)
        logits = head.phrase_logits(image, prompt, mask, queries)
        unit = torch.nn.functional.normalize
        images, prompts = unit(image, dim=-1), unit(prompt, dim=-1)
        image_keys, prompt_keys, allowed, _ = head.fuse(images, prompts, mask)
        size = head.config.inner // head.config.heads
        for n in range(2):
            for k in range(2):
                for m in range(2):
                    if kinds[0, k, m] < 0:
                        assert logits[0, n, k, m] == PADDED_LOGIT
                        continue
                    found = []
                    for tokens, keys, there in (
                        (head.image_correction(images)[0, n], image_keys[0, n], None),
                        (head.text_correction(prompts)[0, n], prompt_keys[0, n], allowed[0, n]),
                    ):
                        similar = tokens @ queries.phrases[0, k, m]
                        for h in range(head.config.heads):
                            place = (
                                keys[:, h * size : (h + 1) * size] @ queries.attention[0, k, m, h] / size**0.5
                            )
                            place = place + head.sharpness[h].exp() * similar
                            if there is not None:
                                place = place[there]
                            found.append(
                                (place.softmax(0) * (similar if there is None else similar[there])).sum()
                            )
                        if there is None:
                            found.append(similar[0])
                    features = torch.stack(found)
                    want = head.plain(features) + head.weigh(features) + head.kind_bias[kinds[0, k, m]]
                    torch.testing.assert_close(logits[0, n, k, m], want[0], rtol=1e-4, atol=1e-5)


def test_the_start_is_the_alignment_path():
    """Untrained, a head ranks by similarity: what a phrase's own direction shows scores above what it does not."""
    torch.manual_seed(0)
    head = CrossAttentionHead(HeadConfig(WIDTH, inner=32)).eval()
    texts = torch.randn(1, 6, 1, WIDTH)
    image = torch.randn(1, 6, 5, WIDTH) * 0.3
    for row in range(6):
        image[0, row, 1 + row % 4] = 5 * texts[0, row, 0]
    nothing = torch.zeros(1, 6, 1, dtype=torch.bool)
    _, category = run(
        head, image, torch.zeros(1, 6, 1, WIDTH), nothing, texts, torch.zeros(1, 6, 1, dtype=torch.long)
    )
    assert category[0].argmax(-1).tolist() == list(range(6))


def test_gradients_are_finite_with_padding():
    head = make_head()
    image, prompt, mask, texts, kinds = draw(0)
    kinds[:, -1] = -1
    mask[:, 0] = False
    whole, category = head(image, prompt, mask, head.queries(texts, kinds))
    (whole.sum() + category[..., :-1].sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters() if p.grad is not None)


def test_similarity_is_the_best_cosine():
    head = make_head()
    image, _, _, texts, kinds = draw(0)
    queries = head.queries(texts, kinds)
    with torch.no_grad():
        tokens = head.image_correction(torch.nn.functional.normalize(image, dim=-1))
        found = head.similarity(image, queries)
        for n in range(3):
            for k in range(4):
                there = (kinds[0, k] >= 0) & (kinds[0, k] != CONDITION)
                best = (queries.phrases[0, k][there] @ tokens[0, n].T).max()
                torch.testing.assert_close(found[0, n, k], best)


def test_the_default_head_for_512_wide_encoders_is_small():
    count = sum(p.numel() for p in CrossAttentionHead(HeadConfig(512)).parameters())
    assert 500_000 < count < 5_000_000


@pytest.mark.parametrize("sizes", [{"inner": 30}, {"heads": 0}, {"rank": 0}, {"depth": -1}])
def test_impossible_sizes(sizes):
    with pytest.raises(ConfigError, match="A head cannot have"):
        HeadConfig(WIDTH, **sizes) if "heads" in sizes else HeadConfig(WIDTH, heads=4, **sizes)


def test_queries_are_a_tuple_of_three():
    assert Queries._fields == ("phrases", "attention", "kinds")


@pytest.mark.parametrize(
    ("category", "expected"),
    [
        (Category("three", "the digit 3"), [("three", "name"), ("the digit 3", "definition")]),
        (
            Category("ours", "the digit 3, two curves; or the digit 5."),
            [
                ("ours", "name"),
                ("the digit 3, two curves; or the digit 5.", "definition"),
                ("the digit 3, two curves", "alternative"),
                ("the digit 5", "alternative"),
            ],
        ),
        (
            Category("Guns", "weapons", examples=("a rifle", "weapons")),
            [("Guns", "name"), ("weapons", "definition"), ("a rifle", "example")],
        ),
        (Category("three", "the digit 3; or 4", name_only=True), [("three", "name")]),
        (Category("x", "; ;"), [("x", "name"), ("; ;", "definition")]),
    ],
)
def test_phrases(category, expected):
    assert [(phrase.text, phrase.kind) for phrase in phrases(category)] == expected


def one_by_one(head, image, prompt, mask, texts, kinds):
    """Logits of N images under one category, phrase by phrase."""
    whole, _ = run(head, image, prompt, mask, texts, kinds)
    parts = {"subject": [], "condition": []}
    for m, kind in enumerate(kinds[0, 0].tolist()):
        if kind >= 0:
            queries = head.queries(texts[:, :, m : m + 1], kinds[:, :, m : m + 1])
            with torch.no_grad():
                logit = head.phrase_logits(image, prompt, mask, queries)[0, :, 0, 0]
            parts["condition" if kind == CONDITION else "subject"].append(logit)
    return whole, {name: torch.stack(found).logsumexp(0) for name, found in parts.items() if found}


@given(st.integers(0, 10_000))
def test_a_category_with_a_condition_is_the_soft_minimum_of_its_halves(seed):
    head = make_head(seed).double()
    head.calibration.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    image, prompt, mask, texts, _ = draw(seed, categories=1)
    image, prompt, texts = image.double(), prompt.double(), texts.double()
    kinds = torch.tensor([[[1, 2, CONDITION]]])
    _, category = run(head, image, prompt, mask, texts, kinds)
    _, halves = one_by_one(head, image, prompt, mask, texts, kinds)
    p, q = halves["subject"].sigmoid(), halves["condition"].sigmoid()
    odds = 1 / ((1 - p) / p + (1 - q) / q)  # the odds against add up
    torch.testing.assert_close(category[0, :, 0], odds.log(), rtol=1e-9, atol=1e-9)
    assert (category[0, :, 0] <= torch.minimum(halves["subject"], halves["condition"])).all()


def test_a_condition_reads_the_prompt_and_nothing_but_the_prompt():
    head = make_head()
    image, prompt, mask, texts, _ = draw(0, categories=1)
    other_image, other_prompt = draw(1)[:2]
    queries = head.queries(texts, torch.full((1, 1, 3), CONDITION))

    def logits(*inputs):
        with torch.no_grad():
            return head.phrase_logits(*inputs, queries)

    first = logits(image, prompt, mask)
    torch.testing.assert_close(logits(other_image, prompt, mask), first)
    assert (logits(image, other_prompt, mask) - first).abs().min() > 1e-3
    nothing = torch.zeros_like(mask)
    assert (logits(image, prompt, nothing) == PADDED_LOGIT).all()


def test_without_a_prompt_no_condition_is_met_and_the_other_categories_are_as_without_it():
    head = make_head()
    image, prompt, mask, texts, _ = draw(2, categories=2)
    kinds = torch.tensor([[[0, 1, CONDITION], [0, 1, -1]]])
    plain = torch.tensor([[[0, 1, -1], [0, 1, -1]]])
    for seen in (mask, torch.zeros_like(mask)):
        _, found = run(head, image, prompt, seen, texts, kinds)
        _, without = run(head, image, prompt, seen, texts, plain)
        assert torch.equal(found[..., 1], without[..., 1])
        assert bool((found[..., 0] < PADDED_LOGIT / 2).all()) == (not seen.any())


def test_similarity_leaves_conditions_out():
    head = make_head()
    image, _, _, texts, _ = draw(3, categories=1)
    one, two = (head.queries(texts, torch.tensor([[[1, 2, last]]])) for last in (CONDITION, -1))
    torch.testing.assert_close(head.similarity(image, one), head.similarity(image, two))


def test_a_condition_is_not_judged_without_lessons_about_one_or_without_its_prompt(
    tiny_clip_folder, noise_image
):
    """Else an unread prompt, or a head that never saw a condition, would make any image safe."""
    encoder = DualEncoder.load(tiny_clip_folder, device="cpu")
    student = Student(encoder, CrossAttentionHead(HeadConfig(encoder.width, inner=16, heads=2, rank=4)))
    plain = Taxonomy("plain", "1", (Category("beer", "a mug of beer or ale, drawn by hand on some paper"),))
    asked = Taxonomy("asked", "1", (Category("beer", "a beer, if the prompt mentions cars"),))
    image = noise_image(0, (16, 16))
    assert np.isfinite(student.score([image], ["cars"], asked).unsafe).all()
    unread = student.score([image, image], ["cars", "x " * 100_000], asked)
    assert np.isnan(unread.unsafe).tolist() == [False, True]
    assert "condition on the prompt" in unread.reasons[1]
    student.prompt_mode = "ignore"
    assert np.isnan(student.score([image], ["cars"], asked).unsafe).all()
    assert np.isfinite(student.score([image], ["cars"], plain).unsafe).all()
    student.prompt_mode = "max"
    for policies, judged in (([plain], False), ([plain, asked], True)):
        student.envelope = LessonsEnvelope.of(policies, ["cars"])
        scores = student.score([image], ["cars"], asked)
        assert np.isfinite(scores.unsafe).all() == judged, scores.reasons
        assert LessonsEnvelope.from_dict(student.envelope.to_dict(), "x") == student.envelope
