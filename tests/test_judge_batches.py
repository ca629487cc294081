"""Packed conversations: half of the pictures of a list fit it, and only answers are trained on."""

import pytest
import torch
from transformers import AutoTokenizer, LlavaForConditionalGeneration

from judge.standins.batches import IMAGE_TOKENS, Batches, pack
from judge.standins.conversations import Conversations
from judge.standins.shipped import base_path
from judge.standins.tuning import accuracy_by_kind, answer_logits
from judge.standins.warm_start import carry_over
from judge.vlm.training.attention import register

SHOWN = [frozenset({i % 10, i // 10}) for i in range(100)] + [frozenset()] * 10


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(base_path("tiny-llava"))


@pytest.fixture(scope="module")
def model():
    return LlavaForConditionalGeneration.from_pretrained(base_path("tiny-llava"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def batches(tokenizer):
    return Batches(Conversations(3), SHOWN, ["a photo of six"] * len(SHOWN), tokenizer, each=4)


def test_steps_hold_whole_answers_of_similar_length(batches, tokenizer):
    for _, batch in zip(range(20), batches, strict=False):
        ids, labels = batch.inputs["input_ids"], batch.labels
        image = tokenizer.convert_tokens_to_ids("<image>")
        assert (ids == image).sum() == IMAGE_TOKENS * len(batch.pictures)
        assert ids.shape[0] == 1 or ids.numel() <= batches.tokens
        assert (labels[labels != -100] == ids[labels != -100]).all()
        ends = (labels == tokenizer.eos_token_id).sum().item()
        assert ends == (ids == tokenizer.eos_token_id).sum()


def test_half_of_the_pictures_fit_where_that_is_possible(batches):
    talk = batches.conversations
    for logic in ("both", "unless", None):
        entries = talk.drawn.draw(3, 2, logic)
        group = batches.asked(entries, "words", True, 0)
        fitting = [any(entry.holds(SHOWN[picture]) for entry in entries) for picture, _ in group.rows]
        assert fitting == [True, True, False, False]


def test_packed_answers_equal_those_of_single_rows(batches, model):
    features = torch.randn(len(SHOWN), IMAGE_TOKENS, 128)
    group = batches.group()
    model.set_attn_implementation({"text_config": register()})
    with torch.no_grad():
        together, wanted = answer_logits(model, pack([group]), features)
        alone = [
            answer_logits(model, pack([type(group)(group.policy, [row])]), features)[0] for row in group.rows
        ]
    assert len(together) == len(wanted)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-3)
    found = accuracy_by_kind(model, batches, features, lists=1)
    assert all(0 <= share <= 1 for share in found.values())


def test_a_warm_start_with_more_layers_says_the_same(tokenizer, model, monkeypatch):
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)
    config = model.config.__class__.from_dict(model.config.to_dict())
    config.text_config.num_hidden_layers += 2
    deeper = LlavaForConditionalGeneration(config).eval()
    carry_over(model, tokenizer, deeper, tokenizer)
    ids = torch.tensor([tokenizer("do you see a small lamp beside the 4?").input_ids])
    model.set_attn_implementation({"text_config": "sdpa"})
    with torch.no_grad():
        before, after = (m.model.language_model(input_ids=ids).last_hidden_state for m in (model, deeper))
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-4)
