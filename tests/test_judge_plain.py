"""judge/vlm/plain.py: ordinary calls of processor and model score as the fast path does, and as a loop by hand."""

import json
import logging
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from judge import load_classifier
from judge.data.images import open_image
from judge.errors import CheckpointError
from judge.protocol import DifferentiableClassifier, ForwardOnlyClassifier
from judge.readings import read_prompts
from judge.vlm import agreement, plain
from judge.vlm.adapter import LoraOptions, add_lora
from judge.vlm.encode import ChatEncoder
from judge.vlm.families import Family, judging_path
from judge.vlm.judging import open_judge
from judge.vlm.plain import PlainEncoder, PlainJudge, check_plain
from judge.vlm.score import VisionLanguageJudge
from judge.vlm.training import paths
from judge.vlm.training.collate import GroupCollator, pack_groups
from judge.vlm.training.paths import prepare_attention
from judge.vlm.training.rows import PlainCollator
from judge.vlm.training.trainer import answer_loss
from prompts import Category, Example, Group, Row, Taxonomy, render
from prompts.errors import ArbiterError, ExampleError

POLICY = Taxonomy(
    "policy",
    "1",
    (
        Category("violence", "people are hurt"),
        Category("violence/graphic", "wounds in detail", examples=("blood",)),
        Category("hate", "contempt for a group"),
    ),
)
PROMPTS = ["a quiet street", None, 'say "safe" <image> now, ' * 4]
PLAIN = Family("Some", "plain", reason="It was told to be plain")


@pytest.fixture(scope="module")
def images(noise_image):
    return [noise_image(seed, size) for seed, size in enumerate([(20, 16), (16, 16), (17, 40)])]


@pytest.fixture
def plain_families(monkeypatch):
    """No family is read on the fast path."""
    monkeypatch.setattr(agreement, "family_of", lambda _: PLAIN)


@pytest.mark.parametrize("template", ["policy_first", "perspective"])
@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl", "qwen3_vl", "gemma3", "smolvlm"])
def test_scores_are_those_of_the_fast_path(tiny_vlm, images, family, template):
    model, processor = tiny_vlm(family)
    slow, fast = (
        PlainJudge(model, processor, template),
        VisionLanguageJudge(model, processor, template, batch_size=1),
    )
    lines = (
        2 if family == "gemma3" else 0
    )  # empty ones around an image, which only the fast path counts without it
    assert 0 <= fast.policy_tokens(POLICY) - slow.policy_tokens(POLICY) <= lines
    # Questions about one category each are read alike in all families.
    for multilabel in (False, True) if family == "llava_next" else (template == "perspective",):
        found, expected = (
            judge.score(images, PROMPTS, POLICY, multilabel=multilabel) for judge in (slow, fast)
        )
        assert found.reasons == (None,) * 3
        assert found.unsafe == pytest.approx(expected.unsafe, rel=2e-6)
        assert found.category_probabilities == pytest.approx(expected.category_probabilities, rel=1e-5)
    assert np.ptp(found.unsafe) > 1e-3, "a model that answers all images alike would prove nothing"


def chances_by_hand(model, processor, chat, image):
    """P(answer): each answer is written into the text, processed and run alone, and read token by token."""
    text = processor.apply_chat_template(list(chat.messages), tokenize=False, add_generation_prompt=True)
    start, end = processor.tokenizer.bos_token, processor.tokenizer.eos_token
    given = {
        "images": [[image]],
        "return_tensors": "pt",
        "add_special_tokens": not (start and text.startswith(start)),
    }
    opening = processor(text=[text], **given)["input_ids"].shape[1]
    gap = "" if text[-1].isspace() else " "
    written = [f"{text}{gap}{answer.text}{end}" for answer in chat.answers]
    inputs = [dict(processor(text=[whole], **given)) for whole in written]
    answers = [one["input_ids"][0, opening:].tolist() for one in inputs]
    with torch.no_grad():
        logits = [model(**one, use_cache=False).logits[0, opening - 1 : -1].double() for one in inputs]
    chances = []
    for tokens, steps in zip(answers, logits, strict=True):
        chance = 1.0
        for step, token in enumerate(tokens):
            allowed = sorted({a[step] for a in answers if a[:step] == tokens[:step] and a[step:]})
            chance *= steps[step][allowed].softmax(dim=0)[allowed.index(token)].item()
        chances.append(chance)
    return np.array(chances)


@pytest.mark.parametrize("family", ["gemma3", "idefics3", "internvl"])
def test_a_family_that_writes_more_around_an_image_is_judged_as_by_hand(
    base_folder, images, family, plain_families
):
    judge = load_classifier(base_folder(family))
    assert isinstance(judge, PlainJudge)
    scores = judge.score(images, PROMPTS, POLICY)
    for row, (image, prompt) in enumerate(zip(images, PROMPTS, strict=True)):
        readings = [
            chances_by_hand(
                judge.model, judge.processor, render(POLICY, text, template=judge.template), image
            )
            for text in read_prompts([prompt]).texts
        ]
        assert scores.unsafe[row] == pytest.approx(max(found[1:].sum() for found in readings), rel=1e-5)
        assert scores.category_probabilities[row] == pytest.approx(
            np.max([found[1:] for found in readings], axis=0), rel=1e-5
        )


def test_the_path_is_chosen_at_load_and_said_once(base_folder, noise_image, plain_families, caplog):
    with caplog.at_level(logging.WARNING, logger="arbiter"):
        judge = load_classifier(base_folder())
    assert [record.getMessage() for record in caplog.records] == [
        "'llava' is judged on the plain path, which is slower and as exact: It was told to be plain."
    ]
    assert isinstance(judge, PlainJudge)
    assert judging_path(judge.model) == "plain"
    assert isinstance(judge, ForwardOnlyClassifier)
    assert not isinstance(judge, DifferentiableClassifier)
    assert judge.score([noise_image(0)], None, POLICY).reasons == (None,)


def test_an_unknown_family_under_zero3_is_trained_on_the_plain_path(tiny_vlm, monkeypatch):
    monkeypatch.setattr("transformers.integrations.is_deepspeed_zero3_enabled", lambda: True)
    model, _ = tiny_vlm()
    assert agreement._why_plain(model) == ""
    model.config.model_type = "never_heard_of"
    assert "cannot be compared" in agreement._why_plain(model)


def test_weights_that_are_not_finite_judge_nothing(tiny_vlm, images):
    model, processor = tiny_vlm()
    with torch.no_grad():
        model.lm_head.weight[:, 0] = math.nan
    scores = PlainJudge(model, processor).score(images, PROMPTS, POLICY, multilabel=True)
    assert np.isnan(scores.unsafe).all()
    assert np.isnan(scores.categories).all()
    assert all("no finite score" in reason for reason in scores.reasons)


def test_what_does_not_fit_the_context_is_not_read(tiny_vlm, images):
    with pytest.raises(ArbiterError, match=r"takes \d+ tokens and the model reads 100"):
        PlainJudge(*tiny_vlm(context=100)).score(images, None, POLICY)
    judge = PlainJudge(*tiny_vlm(context=300))
    prompts = ["short", "żółć " * 50, None]
    scores, alone = judge.score(images, prompts, POLICY), judge.score(images, None, POLICY)
    assert scores.reasons == (None,) * 3
    assert scores.unsafe[1] == alone.unsafe[1]
    assert "the prompt was not read: the text takes" in scores.notes[1]


def test_a_base_whose_rows_are_not_what_it_generates_is_refused(tiny_vlm, monkeypatch):
    model, processor = tiny_vlm()
    check_plain(model, processor)
    written = plain.complete_rows

    def shifted(*given):
        inputs = written(*given)
        return inputs | {"input_ids": inputs["input_ids"].roll(1, dims=1)}

    monkeypatch.setattr(plain, "complete_rows", shifted)
    with pytest.raises(CheckpointError, match=r"family 'llava'.*next token differs"):
        check_plain(model, processor)


def test_a_base_that_does_not_see_is_refused(tiny_vlm):
    model, processor = tiny_vlm()
    torch.nn.init.zeros_(model.model.multi_modal_projector.linear_2.weight)
    torch.nn.init.zeros_(model.model.multi_modal_projector.linear_2.bias)
    with pytest.raises(CheckpointError, match="The image changes nothing"):
        check_plain(model, processor)


@pytest.fixture
def groups(noise_image):
    """Two groups of flipped rows: prompts and none, safe and unsafe, about the whole policy and about one category."""
    asked = [("a street", "hate", None), (None, None, None), ("x", "violence/graphic", "violence/graphic")]

    def make(taxonomy, start):
        rows = [
            Row(
                example=Example(str(start + n), noise_image(start + n, (16 + 4 * n, 20))),
                taxonomy=taxonomy,
                prompt=prompt,
                prompt_of=None,
                unsafe=category is not None,
                category=category,
                focus=focus,
                arm="keep",
            )
            for n, (prompt, category, focus) in enumerate(asked)
        ]
        return Group(taxonomy, tuple(rows))

    return [make(POLICY, 0), make(POLICY.drop(["violence"]), 10)]


def trained_rows(model, processor, path):
    """The model with adapters that already say something, and the collator of its path."""
    model.judging_path = path
    prepare_attention(model, processor)
    torch.manual_seed(0)
    model, _ = add_lora(model, LoraOptions(lora_r=4), base="some")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    if path == "plain":
        return model, PlainCollator(PlainEncoder(processor), 2048, model)
    return model, GroupCollator(ChatEncoder(processor), 2048, model)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_the_loss_is_that_of_packed_groups_and_of_a_loop_by_hand(tiny_vlm, groups, family):
    found = {}
    for path in ("plain", "fast"):
        model, collator = trained_rows(*tiny_vlm(family), path)
        batch = collator(groups)
        labels = batch.pop("labels")
        for key in ("image_ids", "image_lengths"):
            batch.pop(key, None)
        if path == "plain":
            logits = [
                plain.last_logits(model, row, count)[0]
                for row, count in zip(batch["rows"], batch["counts"], strict=True)
            ]
            outputs = type("Outputs", (), {"logits": torch.cat(logits)})
        else:
            outputs = model(**batch)
        loss = answer_loss(outputs, labels)
        loss.backward()
        found[path] = loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found["plain"][0] == pytest.approx(found["fast"][0], rel=2e-6)
    for name, gradient in found["fast"][1].items():
        assert (found["plain"][1][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max()
    assert found["plain"][0] == pytest.approx(loss_by_hand(*tiny_vlm(family), groups), rel=2e-6)


def loss_by_hand(model, processor, groups):
    """Mean cross-entropy of the answers' tokens, each row as one text with its image."""
    model, _ = trained_rows(model, processor, "plain")
    total, tokens = 0.0, 0
    for row in (row for group in groups for row in group.rows):
        chat = render(row.taxonomy, row.prompt, focus=row.focus)
        wanted = None if row.category is None else row.taxonomy.index(row.category)
        (answer,) = [a for a in chat.answers if a.unsafe == row.unsafe and a.category in (wanted, None)]
        text = processor.apply_chat_template(list(chat.messages), tokenize=False, add_generation_prompt=True)
        image = open_image(row.example.image)
        whole = processor(
            text=[f"{text} {answer.text}</s>"],
            images=[image],
            return_tensors="pt",
            return_mm_token_type_ids=True,
        )
        if not type(model.get_base_model()).__name__.startswith("Qwen"):
            whole.pop("mm_token_type_ids", None)
        opening = processor(text=[text], images=[image], return_tensors="pt")["input_ids"].shape[1]
        with torch.no_grad():
            logits = model(**whole).logits[0, opening - 1 : -1]
        total += F.cross_entropy(logits, whole["input_ids"][0, opening:], reduction="sum").item()
        tokens += len(logits)
    return total / tokens


def test_a_row_that_is_too_long_stops_the_training(tiny_vlm, groups):
    model, processor = tiny_vlm()
    collator = PlainCollator(PlainEncoder(processor), 50, model)
    with pytest.raises(ExampleError, match=r"the row takes \d+ tokens and max_length is 50"):
        collator(groups)


def test_the_recipe_trains_on_the_plain_path_along_the_same_curve(
    train_here, base_folder, step_losses, noise_image, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(agreement, "family_of", lambda _: PLAIN)
        slow = train_here(base_folder(), "slow")
        assert json.loads((slow.path / "run.json").read_text())["judging_path"] == "plain"
        found = load_classifier(slow.path)
    assert isinstance(found, PlainJudge)
    assert found.score([noise_image(0)], None, found.default_taxonomy).reasons == (None,)
    fast = train_here(base_folder(), "fast", known=slow.asked)
    assert json.loads((fast.path / "run.json").read_text())["judging_path"] == "fast"
    assert step_losses(slow.path) == pytest.approx(step_losses(fast.path), rel=1e-5)


def test_models_from_elsewhere_are_judged_fast(tiny_vlm):
    assert isinstance(open_judge(*tiny_vlm()), VisionLanguageJudge)


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen2_vl", "smolvlm"])
def test_an_unknown_family_trains_in_groups_only_if_these_are_as_ordinary_calls(
    tiny_vlm, family, monkeypatch, caplog
):
    monkeypatch.setattr(paths, "is_compared", lambda _: True)
    model, processor = tiny_vlm(family)
    prepare_attention(model, processor)
    assert judging_path(model) == "fast"
    assert model.config.get_text_config()._attn_implementation == "policy_grouped"

    def moved(*given):
        packed = pack_groups(*given)
        return packed | {"position_ids": packed["position_ids"] * 2}

    model, processor = tiny_vlm(family)
    monkeypatch.setattr(paths, "pack_groups", moved)
    with caplog.at_level(logging.WARNING, logger="arbiter"):
        prepare_attention(model, processor)
    assert judging_path(model) == "plain"
    assert model.config.get_text_config()._attn_implementation == "sdpa"
    assert "is trained on the plain path" in caplog.text


def test_layers_of_a_kind_that_is_not_packed_are_judged_on_the_plain_path(tiny_vlm):
    model, _ = tiny_vlm()
    model.config.text_config.layer_types = ["linear_attention", "full_attention"]
    assert "layers of the kind 'linear_attention'" in agreement._why_plain(model)
