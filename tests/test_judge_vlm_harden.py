"""judge/vlm/training/harden.py, tower.py: what is widened stays what it was, features hold, attacked rows keep their budget."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from judge.encoders.perturb import perturb
from judge.errors import CheckpointError, ConfigError
from judge.standins.digits import digits_examples
from judge.vlm.adapter import LoraOptions, add_lora, load_adapter
from judge.vlm.encode import ChatEncoder
from judge.vlm.score import VisionLanguageJudge
from judge.vlm.training.attention import register
from judge.vlm.training.harden import HardeningOptions, RobustCollator, RobustTrainer
from judge.vlm.training.tower import (
    TOWER_TARGETS,
    MatchingOptions,
    TowerFeatures,
    extend_adapter,
    match_features,
)
from prompts import FlipOptions, draw_groups, load_taxonomy

POLICY = load_taxonomy("digits").select(["one", "two", "three"])


@pytest.fixture
def adapter(tiny_vlm, base_folder, tmp_path):
    """The folder of a trained adapter on the language model, and its judge."""
    model, processor = tiny_vlm()
    model, _ = add_lora(model, LoraOptions(lora_r=4, lora_alpha=8), base=str(base_folder()))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", VisionLanguageJudge(model.eval(), processor)


@pytest.fixture
def widened(adapter, tiny_vlm, base_folder):
    model, processor = tiny_vlm()
    model.set_attn_implementation({"text_config": register()})
    features = TowerFeatures(model, processor)
    model, counts = extend_adapter(model, adapter[0], TOWER_TARGETS, base=str(base_folder()), rank=8)
    return model, processor, counts, features


@pytest.fixture
def groups():
    options = FlipOptions(group_size=4, max_categories=3, custom=0.0, focus=0.5).plain
    return draw_groups(
        digits_examples("train", count=200), load_taxonomy("digits"), options, seed=3, epoch=0, groups=3
    )


@pytest.fixture
def trainer(widened, tmp_path):
    def make(accumulate=1, **hardening):
        model, processor, _, features = widened
        args = TrainingArguments(
            str(tmp_path / "out"),
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            gradient_accumulation_steps=accumulate,
        )
        return RobustTrainer(
            judge=VisionLanguageJudge(model, processor),
            features=features,
            hardening=HardeningOptions(**hardening),
            model=model,
            args=args,
            processing_class=processor,
        )

    return make


def batch_of(widened, groups):
    model, processor, *_ = widened
    return RobustCollator(ChatEncoder(processor), 2048, model)(groups)


def test_a_widened_judge_answers_as_before(adapter, widened, noise_image):
    model, processor, counts, _ = widened
    images, prompts = [noise_image(seed) for seed in range(3)], ["a photo", None, "two"]
    expected = adapter[1].score(images, prompts, POLICY)
    found = VisionLanguageJudge(model.eval(), processor).score(images, prompts, POLICY)
    assert found.unsafe == pytest.approx(expected.unsafe, abs=1e-5)
    plain = VisionLanguageJudge(model.unload(), processor).score(images, prompts, POLICY)
    assert np.abs(plain.unsafe - expected.unsafe).max() > 1e-3, (
        "the adapter changed nothing, so this shows nothing"
    )
    assert counts["modules"] == 14 + 2 * 6 + 1, "language model, tower layers, patches"


def test_one_folder_with_one_adapter_on_the_same_base_is_enough(widened, tiny_vlm, noise_image, tmp_path):
    model, processor, *_ = widened
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "wide")
    again = load_adapter(tiny_vlm()[0], tmp_path / "wide")
    images = [noise_image(seed) for seed in range(2)]
    expected = VisionLanguageJudge(model.eval(), processor).score(images, None, POLICY).unsafe
    assert VisionLanguageJudge(again, processor).score(images, None, POLICY).unsafe == pytest.approx(
        expected, abs=1e-5
    )
    assert any("vision_tower" in name for name in load_file(tmp_path / "wide" / "adapter_model.safetensors"))


def test_a_projector_that_was_trained_whole_goes_on_so(tiny_vlm, base_folder, noise_image, tmp_path):
    model, processor = tiny_vlm()
    model, _ = add_lora(model, LoraOptions(lora_r=4, train_projector=True), base=str(base_folder()))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(tmp_path)
    expected = VisionLanguageJudge(model.eval(), processor).score([noise_image(0)], None, POLICY).unsafe
    wide, counts = extend_adapter(tiny_vlm()[0], tmp_path, TOWER_TARGETS, base=str(base_folder()))
    found = VisionLanguageJudge(wide.eval(), processor).score([noise_image(0)], None, POLICY).unsafe
    assert found == pytest.approx(expected, abs=1e-5)
    assert counts["modules"] == 14 + 2 * 6 + 1


def test_batches_say_what_an_attack_asks(widened, groups):
    batch = batch_of(widened, groups)
    rows = [row for group in groups for row in group.rows]
    assert batch["unsafe"].tolist() == [row.unsafe for row in rows]
    assert len(batch["questions"]) == len(rows) == len(batch["pixel_values"])
    assert {len(question.continuations) for question in batch["questions"]} == {2}
    assert {row.focus is None for row in rows} == {True, False}, "rows about one category are among them"


def test_attacked_rows_keep_their_budget_and_come_nearer_to_the_other_verdict(widened, groups, trainer):
    batch, epsilon = batch_of(widened, groups), 6 / 255
    hardened = trainer(epsilon=epsilon, steps=4, share=1.0)
    clean = batch["pixel_values"]
    attacked = hardened.attack_batch(clean, batch["questions"], batch["unsafe"])
    change = ((attacked - clean) * hardened.tower.deviation).abs()
    assert change.max().item() == pytest.approx(epsilon, abs=1e-5)
    pixels = attacked * hardened.tower.deviation + hardened.tower.mean
    assert pixels.min() > -1e-5
    assert pixels.max() < 1 + 1e-5

    def gaps(visual):
        sign = torch.where(batch["unsafe"], 1.0, -1.0)
        with torch.no_grad():
            found = [
                hardened.judge.margins({"pixel_values": visual[row : row + 1]}, [question])
                for row, question in enumerate(batch["questions"])
            ]
        return torch.cat(found) * sign

    lowered = gaps(clean) - gaps(attacked)
    assert lowered.mean() > 0.1
    assert (lowered > 0).float().mean() > 0.7, "a random model is too rough for every row"


def test_only_a_share_is_attacked_and_the_model_goes_on_training(widened, groups, trainer):
    batch = batch_of(widened, groups)
    hardened = trainer(share=0.5)
    hardened.judge.model.train()
    torch.manual_seed(1)
    attacked = hardened.attack_batch(batch["pixel_values"], batch["questions"], batch["unsafe"])
    moved = (attacked != batch["pixel_values"]).flatten(1).any(1)
    assert 0 < moved.sum() < len(moved)
    assert hardened.judge.model.training
    assert all(parameter.grad is None for parameter in hardened.judge.model.parameters())


def test_the_loss_is_that_of_the_attacked_pixels_and_reaches_tower_and_policy(
    widened, groups, trainer, monkeypatch
):
    hardened = trainer(feature_weight=0.0)
    model, batch = hardened.model, batch_of(widened, groups)
    other = torch.randn_like(batch["pixel_values"])
    monkeypatch.setattr(hardened, "attack_batch", lambda *given: other)

    def loss(training, pixels):
        model.train(training)
        return hardened.compute_loss(model, batch | {"pixel_values": pixels})

    clean = batch["pixel_values"]
    learnt = loss(True, clean)
    assert learnt.item() == pytest.approx(loss(False, other).item(), rel=3e-5)
    assert learnt.item() != pytest.approx(loss(False, clean).item(), abs=1e-3)
    learnt.backward()
    reached = {
        name.split(".layers")[0]
        for name, p in model.named_parameters()
        if p.grad is not None and p.grad.any()
    }
    assert any("vision_tower" in name for name in reached)
    assert any("language_model" in name for name in reached)


def stirred(model, scale=0.1):
    """New adapters begin at nothing; these do not."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "vision_tower" in name and "lora_B" in name:
                parameter.add_(torch.randn_like(parameter) * scale)


def test_features_are_what_the_projector_gets_from_base_and_from_adapters(widened):
    model, _, _, features = widened
    stirred(model)
    core, visual, got = model.get_base_model().model, torch.randn(2, 3, 16, 16), []
    core.multi_modal_projector.register_forward_pre_hook(lambda module, given: got.append(given[0]))
    with torch.no_grad():
        core.get_image_features(pixel_values=visual)
        found = torch.func.functional_call(features, features.merged_weights(model), (visual,))
        plain = features(visual)
    with model.disable_adapter(), torch.no_grad():
        core.get_image_features(pixel_values=visual)
    for ours, own in zip((found, plain), got, strict=True):
        difference, size = (ours - own.reshape(ours.shape)).abs().max(), own.abs().max()
        assert difference < 3e-5 * size, "values reach 150, and processors add them in different orders"
    assert (found - plain).abs().max() > 1e-3 * plain.abs().max()


def worst_distance(model, features, images, epsilon):
    """From the clean features, at the end of ten steps that look for the largest."""
    torch.manual_seed(5)
    with torch.no_grad():
        weights, clean = features.merged_weights(model), images.float() / 255

    def away(pixels):
        return features.distance(weights, (pixels - features.mean) / features.deviation, wanted)

    with torch.no_grad():
        wanted = features((clean - features.mean) / features.deviation)
    return away(perturb(away, clean, epsilon, 10)).item()


def test_matching_holds_features_under_attack_and_teaches_the_tower_alone(widened):
    model, _, _, features = widened
    images = torch.stack(
        [
            torch.from_numpy(np.array(example.image.resize((16, 16)))).permute(2, 0, 1)
            for example in digits_examples("train", count=32)
        ]
    )
    options = MatchingOptions(
        epsilon=16 / 255, steps=2, epochs=12, learning_rate=4e-3, batch_size=8, clean_weight=0.1
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    worst, distances = worst_distance(model, features, images, 16 / 255), []
    history = match_features(
        model, features, images, options, progress=lambda step, loss: distances.append((step, loss))
    )
    assert [step for step, _ in distances] == list(range(1, 12 * 4 + 1))
    assert [row["matching_epoch"] for row in history] == list(range(1, 13))
    assert worst_distance(model, features, images, 16 / 255) < 0.8 * worst
    assert history[-1]["matching_loss"] < 0.8 * history[0]["matching_loss"]
    assert distances[0][1] > 0.5 * worst, "what is lowered are attacked pictures' distances, not random ones'"
    assert history[0]["matching_loss"] == pytest.approx(np.mean([loss for _, loss in distances[:4]]))
    changed = {
        name for name, parameter in model.named_parameters() if (parameter.detach() != before[name]).any()
    }
    assert changed
    assert all("vision_tower" in name and "lora_" in name for name in changed)


def test_matching_goes_on_after_its_last_epoch(widened, tmp_path):
    model, _, _, features = widened
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    options = MatchingOptions(epochs=2, batch_size=4)
    straight = match_features(model, features, images, options)
    wanted = [parameter.detach().clone() for parameter in model.parameters()]
    model.load_state_dict(before)

    def stop(step, _):
        if step == 3:  # in the second epoch
            raise KeyboardInterrupt

    path = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        match_features(model, features, images, options, checkpoint=path, progress=stop)
    model.load_state_dict(before)
    assert match_features(model, features, images, options, checkpoint=path) == straight
    torch.testing.assert_close([*model.parameters()], wanted)


def test_no_passes_change_nothing(widened):
    model, _, _, features = widened
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    assert match_features(model, features, images, MatchingOptions(epochs=0)) == []
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_features_distance_stands_beside_the_answers_loss(
    widened, groups, trainer, monkeypatch, accumulate
):
    model, features, batch = widened[0], widened[3], batch_of(widened, groups)
    stirred(model)
    clean = batch["pixel_values"]
    other = clean + 0.1 * torch.randn_like(clean)
    losses = []
    for weight in (0.0, 2.0):
        hardened = trainer(accumulate, feature_weight=weight)
        monkeypatch.setattr(hardened, "attack_batch", lambda *given: other)
        model.train()
        losses.append(hardened.compute_loss(model, dict(batch)).item())
    with torch.no_grad():
        distance = features.distance(features.merged_weights(model), other, features(clean)).item()
    assert distance > 1e-3
    assert losses[1] - losses[0] == pytest.approx(2.0 * distance / accumulate, rel=1e-3, abs=1e-5)


def test_a_question_asked_at_every_step_is_tokenised_once(tiny_vlm, monkeypatch):
    judge = VisionLanguageJudge(*tiny_vlm())
    encoded, encode_row = [], judge.encoder.encode_row
    monkeypatch.setattr(
        judge.encoder, "encode_row", lambda *given: encoded.append(given) or encode_row(*given)
    )
    pixels = torch.rand(2, 3, 16, 16)
    first = judge.pixel_margins(pixels, ["one", "two"], POLICY)
    assert torch.equal(judge.pixel_margins(pixels, ["one", "two"], POLICY), first)
    assert len(encoded) == 2
    judge.pixel_margins(pixels, ["one", None], POLICY)
    judge.pixel_margins(pixels, ["one", "two"], POLICY, focus="one")
    judge.pixel_margins(pixels, ["one", "two"], POLICY.select(["one", "two"]))
    assert len(encoded) == 2 + 1 + 2 + 2


@pytest.mark.parametrize(
    "bad",
    [
        {"epsilon": 8},
        {"epsilon": 0.0},
        {"steps": 0},
        {"share": 0.0},
        {"share": 1.5},
        {"feature_weight": -1.0},
    ],
)
def test_numbers_out_of_range_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad)) if "steps" not in bad else "steps"):
        HardeningOptions(**bad)


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"epochs": -1}, {"batch_size": 0}, {"learning_rate": 0.0}, {"clean_weight": -0.1}]
)
def test_numbers_of_feature_matching_out_of_range_are_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        MatchingOptions(**bad)


def test_what_does_not_fit_is_refused(adapter, tiny_vlm, base_folder, tmp_path):
    base = str(base_folder())
    with pytest.raises(CheckpointError, match="adapter_model"):
        extend_adapter(tiny_vlm()[0], tmp_path, TOWER_TARGETS, base=base)
    with pytest.raises(ConfigError, match="no further module"):
        extend_adapter(tiny_vlm()[0], adapter[0], "nothing_like_it", base=base)
    settings = adapter[0] / "adapter_config.json"
    plain = settings.read_text()
    settings.write_text(plain.replace('"use_dora": false', '"use_dora": true'))
    with pytest.raises(ConfigError, match="DoRA"):
        extend_adapter(tiny_vlm()[0], adapter[0], TOWER_TARGETS, base=base)
    settings.write_text(plain)
    with pytest.raises(CheckpointError, match="fit"):
        extend_adapter(tiny_vlm(width=48)[0], adapter[0], TOWER_TARGETS, base=base)


@pytest.mark.parametrize("family", ["llava_next", "qwen3_vl", "gemma3", "internvl", "smolvlm"])
def test_families_whose_tower_cannot_be_hardened_are_named(tiny_vlm, family):
    with pytest.raises(ConfigError, match=r"ForConditionalGeneration with a \w+Pil cannot be hardened"):
        TowerFeatures(*tiny_vlm(family))
