"""judge/encoders/soft_text.py: reading from embedded tokens is reading, and has the right gradient."""

import pytest
import torch

from judge.encoders.dual import DualEncoder
from judge.encoders.soft_text import SoftText, text_similarity
from judge.errors import ConfigError
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.student import Student, student_margin
from prompts import Category, Taxonomy

TEXTS = ["two", "a photo of two", "seven on a wall"]
SHORT = Taxonomy("short", "1", (Category("one", "a 1"), Category("two", "a 2"), Category("six", "a 6; or 9")))
FAMILIES = ("clip", "siglip", "mean", "tiny-clip")
CLOSE = 5e-5
"""1e-5 of the values, which reach 5 and, in float32, differ so between processors."""


@pytest.fixture(scope="module")
def softs(tiny_encoder_folder):
    names = {family: tiny_encoder_folder(family) for family in FAMILIES[:-1]} | {"tiny-clip": "tiny-clip"}
    return {family: SoftText(DualEncoder.load(name)) for family, name in names.items()}


@pytest.fixture(params=FAMILIES)
def soft(softs, request):
    return softs[request.param]


def make_student(encoder):
    torch.manual_seed(3)
    head = CrossAttentionHead(HeadConfig(encoder.width, inner=16, heads=2, rank=4))
    with torch.no_grad():  # far from the start, where a prompt counts for nothing
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return Student(encoder, head)


def pooled(soft, embedded):
    return soft.encode_embedded(embedded)[0][:, 0]


@pytest.mark.parametrize("text", TEXTS)
def test_reading_from_embeddings_is_reading(soft, text):
    ids = soft.encode(text)[: soft.max_tokens][None]
    expected, expected_mask = soft.encoder.encode_texts([soft.decode(ids[0])])
    tokens, mask = soft.encode_embedded(soft.embed(ids))
    assert torch.equal(mask, expected_mask)
    assert torch.allclose(tokens, expected, atol=CLOSE)


def test_a_batch_is_read_row_by_row(soft):
    ids = soft.allowed[torch.randint(len(soft.allowed), (4, 5))]
    together = pooled(soft, soft.embed(ids))
    alone = torch.cat([pooled(soft, soft.embed(row[None])) for row in ids])
    assert torch.allclose(together, alone, atol=CLOSE)
    assert not torch.allclose(together[0], together[1], atol=1e-3)


def test_nothing_is_left_behind(soft):
    before = soft.encoder.encode_texts(["a photo of two"])[0]
    soft.encode_embedded(torch.randn(2, 4, soft.table.shape[1]))
    with pytest.raises(RuntimeError):
        soft.encode_embedded(torch.randn(1, 4, soft.table.shape[1] + 1))
    assert torch.equal(soft.encoder.encode_texts(["a photo of two"])[0], before)
    assert not soft.encoder.model.text_model.get_input_embeddings()._forward_hooks


def test_the_gradient_is_that_of_finite_differences(soft):
    soft.encoder.model.double()
    try:
        embedded = soft.embed(soft.allowed[10:14][None]).double().requires_grad_(True)
        weights = torch.randn(soft.encoder.width)
        pooled(soft, embedded).mul(weights).sum().backward()
        step = torch.randn_like(embedded)
        step = step / step.norm() * 1e-2
        with torch.no_grad():
            ends = [pooled(soft, embedded + sign * step).mul(weights).sum() for sign in (1, -1)]
        found, expected = float((embedded.grad * step).sum()), float(ends[0] - ends[1]) / 2
        assert abs(expected) > 1e-5
        assert found == pytest.approx(expected, rel=0.02, abs=1e-5)
    finally:
        soft.encoder.model.float()


def test_allowed_tokens_are_text(soft):
    assert not set(soft.allowed.tolist()) & set(soft.encoder.tokenizer.all_special_ids)
    for token in soft.allowed[:: max(len(soft.allowed) // 50, 1)]:
        text = soft.decode(token[None])
        assert text.strip()
        assert text.isascii()
        assert text.isprintable()


def test_lone_surrogates_are_read(soft):
    assert len(soft.encode("two \ud800 seven"))


def test_too_many_tokens_and_none(soft):
    width = soft.table.shape[1]
    for length in (0, soft.max_tokens + 1):
        with pytest.raises(ConfigError, match=f"Got {length} tokens"):
            soft.encode_embedded(torch.zeros(1, length, width))


def test_the_students_margin(soft):
    student, taxonomy = make_student(soft.encoder), SHORT
    student.prompt_mode = "use"
    pixels = torch.rand(1, 3, 20, 16)
    margin = student_margin(student, soft, pixels, taxonomy)
    found = []
    for text in TEXTS:
        ids = soft.encode(text)[: soft.max_tokens][None]
        embedded = soft.embed(ids).requires_grad_(True)
        value = margin(embedded)
        expected = student.pixel_margins(pixels, [soft.decode(ids[0])], taxonomy)
        assert torch.allclose(value, expected, atol=1e-4)
        value.sum().backward()
        assert float(embedded.grad.abs().sum()) > 0
        found.append(float(value.detach()))
    assert len(set(found)) == len(TEXTS)
    batch = margin(soft.embed(soft.allowed[:12].view(3, 4)))
    assert batch.shape == (3,)
    alone = student.pixel_margins(pixels, None, taxonomy)
    student.prompt_mode = "max"
    highest = student_margin(student, soft, pixels, taxonomy)
    assert torch.equal(highest(soft.embed(soft.allowed[:12].view(3, 4))), batch.maximum(alone))
    student.prompt_mode = "ignore"
    embedded = soft.embed(soft.allowed[:4][None]).requires_grad_(True)
    ignoring = student_margin(student, soft, pixels, taxonomy)(embedded)
    assert torch.equal(ignoring, alone)
    assert not torch.autograd.grad(ignoring.sum(), embedded)[0].any()


def test_similarity_of_texts(softs):
    similarity = text_similarity(softs["tiny-clip"].encoder)
    assert similarity("a photo of two", "a photo of two") == pytest.approx(1, abs=1e-5)
    assert similarity("a photo of two", "a photo of seven") < 0.9999
    assert similarity("two", "seven") == pytest.approx(similarity("seven", "two"), abs=1e-6)
