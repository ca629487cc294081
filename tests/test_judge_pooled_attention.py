"""The published defense: its text input has no effect, and the helper that would see one does."""

import numpy as np
import pytest
import torch
from torch import nn

from judge.baselines.fit import FitOptions, fit
from judge.baselines.pooled_attention import (
    PooledAttention,
    PooledAttentionHead,
    load_pooled_attention,
    save_pooled_attention,
)
from judge.encoders.dual import DualEncoder
from judge.errors import CheckpointError, ConfigError
from judge.runs.folder import RunDir
from prompts import load_taxonomy

DIGITS = load_taxonomy("digits")
WIDTH = 128


def text_effect(score_fn, texts, others):
    """How much a text input matters: the largest change of the output, and the largest gradient.

    `score_fn` maps a tensor of texts (embeddings of prompts, or of category definitions) to scores; `others` are
    texts of the same shape. (0.0, 0.0) means that the texts might as well not be there.
    """
    texts = texts.detach().clone().requires_grad_(True)
    scores = score_fn(texts)
    (gradient,) = torch.autograd.grad(scores.sum(), texts, allow_unused=True)
    change = (scores - score_fn(others)).abs().max().item()
    return change, 0.0 if gradient is None else gradient.abs().max().item()


class ManyKeys(nn.Module):
    """The same attention with a key for each image token: what the published code leaves out."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, tokens, texts):
        head = self.head
        attended, _ = head.attention(head.text(texts)[:, None], head.image(tokens), head.image(tokens))
        return head.mlp(torch.cat([head.image(tokens[:, 0]), attended[:, 0]], dim=-1))


def trained_head(seed=0):
    """A head that learnt a task whose answer lies in the text as much as in the image."""
    torch.manual_seed(seed)
    head = PooledAttentionHead(WIDTH)
    images, texts = torch.randn(256, WIDTH), torch.randn(256, WIDTH)
    unsafe = (images[:, :1] + texts[:, :1] > 0).float()
    fit(head, [images, texts], unsafe, FitOptions(epochs=3, learning_rate=1e-3, train_batch_size=64))
    return head


@pytest.mark.parametrize("state", ["fresh", "trained", "training mode"])
def test_the_published_text_input_has_no_effect(state):
    head = trained_head() if state == "trained" else PooledAttentionHead(WIDTH).eval()
    if state == "training mode":  # with batch norm's batch statistics, dropout aside
        head.train()
        for module in head.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
    images = torch.randn(8, WIDTH)
    effect = text_effect(lambda texts: head(images, texts), torch.randn(8, WIDTH), torch.randn(8, WIDTH))
    assert effect == (0.0, 0.0)
    assert text_effect(lambda pixels: head(pixels, images), images, torch.randn(8, WIDTH)) > (0.01, 0.001)


def test_with_more_than_one_key_the_text_would_matter():
    head = ManyKeys(PooledAttentionHead(WIDTH)).eval()
    tokens = 3 * torch.randn(8, 5, WIDTH)
    texts, others = 3 * torch.randn(8, WIDTH), 3 * torch.randn(8, WIDTH)
    change, gradient = text_effect(lambda texts: head(tokens, texts), texts, others)
    assert change > 1e-4
    assert gradient > 1e-6
    alone = text_effect(lambda texts: head(tokens[:, :1], texts), texts, others)
    assert alone == (0.0, 0.0)


def test_text_weights_never_learn():
    head = PooledAttentionHead(WIDTH)
    before = head.text.weight.detach().clone()
    images, texts = torch.randn(64, WIDTH), torch.randn(64, WIDTH)
    fit(head, [images, texts], torch.randint(0, 2, (64, 1)).float(), FitOptions(epochs=2, learning_rate=0.01))
    assert torch.equal(head.text.weight, before)
    assert not torch.equal(head.image.weight, PooledAttentionHead(WIDTH).image.weight)


def test_it_is_an_mlp_over_the_image_alone():
    head = trained_head()
    images = torch.randn(5, WIDTH)
    attention = head.attention
    with torch.no_grad():
        image = images @ head.image.weight.T + head.image.bias
        value = (
            image @ attention.in_proj_weight[2 * WIDTH :].T + attention.in_proj_bias[2 * WIDTH :]
        )  # queries and keys come first
        joined = torch.cat([image, value @ attention.out_proj.weight.T + attention.out_proj.bias], -1)
        torch.testing.assert_close(head(images, torch.randn(5, WIDTH))[:, 0], head.mlp(joined))
    layers = [type(layer).__name__ for layer in head.mlp]
    block = ["Linear", "BatchNorm1d", "Dropout", "GELU"]
    assert layers == [*block, *block, "Dropout", "Linear"]
    assert [layer.p for layer in head.mlp if isinstance(layer, nn.Dropout)] == [0.5, 0.5, 0.2]
    assert [layer.approximate for layer in head.mlp if isinstance(layer, nn.GELU)] == ["tanh", "tanh"]
    assert attention.num_heads == 4


@pytest.fixture(scope="module")
def encoder():
    return DualEncoder.load("tiny-clip", device="cpu")


@pytest.fixture(scope="module")
def defense(encoder):
    return PooledAttention(encoder, trained_head(), DIGITS.drop(["four", "eight"]))


def test_it_ignores_taxonomy_and_prompt_and_names_no_category(defense, noise_image):
    images = [noise_image(seed) for seed in range(5)]
    scores = [
        defense.score(images, prompts, taxonomy)
        for taxonomy in (DIGITS, DIGITS.select(["four"]))
        for prompts in (None, ["nine", None, "a three", "", "handwritten 4"])
    ]
    for found in scores:
        np.testing.assert_array_equal(found.unsafe, scores[0].unsafe)
        assert found.reasons == (None,) * 5
        assert np.isnan(found.categories).all()
    assert scores[0].categories.shape == (5, 10)
    assert scores[2].categories.shape == (5, 1)
    assert np.unique(scores[0].unsafe).size == 5
    pooled = defense.encoder.encode_images(images)[:, 0]
    alone = defense.score_embeddings(pooled, None, DIGITS)
    np.testing.assert_allclose(alone.unsafe, scores[0].unsafe, atol=1e-6)


def test_a_score_that_is_not_finite_is_unjudged(defense):
    images = torch.randn(2, WIDTH)
    images[0, 3] = torch.nan
    scores = defense.score_embeddings(images, torch.randn(2, WIDTH), DIGITS)
    assert np.isnan(scores.unsafe).tolist() == [True, False]
    assert scores.reasons == ("pooled_attention gave no finite score", None)


def test_a_saved_defense_scores_the_same(defense, encoder, tmp_path, noise_image):
    run = RunDir.create(tmp_path / "run", kind="pooled_attention")
    save_pooled_attention(run, defense)
    loaded = load_pooled_attention(run, device="cpu")
    images = [noise_image(seed) for seed in range(3)]
    np.testing.assert_array_equal(
        loaded.score(images, None, DIGITS).unsafe, defense.score(images, None, DIGITS).unsafe
    )
    run.update_manifest(encoder_fingerprint="f" * 64)
    with pytest.raises(CheckpointError, match=f"{'f' * 16}.*{encoder.fingerprint[:16]}"):
        load_pooled_attention(run, encoder=encoder)


def test_a_width_that_the_heads_cannot_share_is_refused():
    with pytest.raises(ConfigError, match="width 30 does not divide among 4 heads"):
        PooledAttentionHead(30)
