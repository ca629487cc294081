"""judge/vlm/memory.py and architecture.py: counts are those of real models, formulas those of hand-counted cases."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from judge.errors import ConfigError
from judge.serve.cli import main
from judge.standins.random_llava import random_llava
from judge.vlm.adapter import LoraOptions, add_lora
from judge.vlm.architecture import find_architecture, known_models, measure_config, policy_tokens
from judge.vlm.encode import ChatEncoder
from judge.vlm.families import family_of
from judge.vlm.memory import (
    FEATURE_BYTES,
    NF4_BYTES,
    OVERHEAD,
    Batch,
    Estimate,
    estimate,
    judging_bytes,
    key_value_bytes,
    training_bytes,
)
from judge.vlm.model_table import estimates, markdown_table, part_rows
from judge.vlm.training import trainer
from judge.vlm.training.attention import register
from judge.vlm.training.collate import GroupCollator
from judge.vlm.training.trainer import answer_loss
from prompts import Category, Example, Group, Row, Taxonomy, load_taxonomy, render

ROOT = Path(__file__).parents[1]
LLAVA_7B = "llava-hf/llava-1.5-7b-hf"


@pytest.fixture(scope="module")
def llava_7b():
    return find_architecture(LLAVA_7B)


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3", "internvl", "smolvlm"])
def test_counts_are_those_of_a_model_that_was_built(tiny_vlm, base_folder, family):
    found = find_architecture(str(base_folder(family)))
    model, processor = tiny_vlm(family)
    assert found.family == model.config.model_type
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    inside = [
        name for name, _ in model.named_parameters() if re.search(r"(language|text)_model\.layers", name)
    ]
    linear = [name for name in inside if name.endswith("proj.weight")]
    assert found.in_layers == sum(dict(model.named_parameters())[name].numel() for name in linear)
    _, counts = add_lora(model, LoraOptions(lora_r=4), base="some")
    assert 4 * found.adapted == counts["trainable"]
    from PIL import Image

    tokens, _ = ChatEncoder(processor).encode_image(Image.new("RGB", (1024, 1024)))
    assert found.image_tokens == len(tokens)


def test_known_models_have_their_published_totals():
    for known in known_models().values():
        total = find_architecture(known.id).parameters
        if known.exact:
            assert total == known.published, known.id
        else:
            assert total == pytest.approx(known.published, rel=5e-3), known.id
        assert known.licence


def test_known_models_name_the_recipes_that_are_for_them():
    configs = {
        path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "recipes/configs").glob("*lora*.yaml")
    }
    named = {name: known.id for known in known_models().values() for name in known.recipes}
    bases = {name: config["model_name_or_path"] for name, config in configs.items()}
    assert named == {name: base for name, base in bases.items() if "/" in base}
    for name in named:
        text = (ROOT / "recipes/configs" / f"{name}.yaml").read_text()
        promised = int(re.search(r"One (?:GPU of )?(\d+) GB|one GPU of (\d+) GB", text).group(0).split()[-2])
        base, config = find_architecture(named[name]), configs[name]
        found = estimate(
            base,
            "qlora" if config.get("load_in_4bit") else "lora",
            Batch(config["flip"]["policy_characters"] // 4, config["flip"]["group_size"]),
            lora_r=config["lora_r"],
            optimizer="adamw_8bit" if "8bit" in config.get("optim", "") else "adamw",
        )
        judging = judging_bytes(base, Batch(images=config.get("judge_batch_size", 8)))
        assert found.total - found.activations + max(found.activations, judging) <= promised * 1e9
        assert base.image_tokens + config["flip"]["policy_characters"] // 4 + 100 <= config["max_length"]


def test_the_parts_of_llava_7b_by_hand(llava_7b):
    assert estimate(llava_7b, "inference").weights == 2 * 7_063_427_072
    # Seven layers of 32 blocks: q, k, v, o of 4096 x 4096; gate and up of 4096 x 11008, down the other way.
    assert llava_7b.adapted == 32 * (4 * 8192 + 3 * (4096 + 11008))
    assert llava_7b.in_layers == 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    lora = estimate(llava_7b, "lora", lora_r=128)
    trained = 319_815_680
    assert (lora.adapters, lora.gradients, lora.optimizer) == (4 * trained, 4 * trained, 8 * trained)
    eight = estimate(llava_7b, "lora", lora_r=128, optimizer="adamw_8bit")
    assert eight.optimizer == trained * (2 + 8 / 256)
    qlora = estimate(llava_7b, "qlora")
    assert qlora.weights == pytest.approx(
        2 * (7_063_427_072 - llava_7b.in_layers) + 0.516 * llava_7b.in_layers, rel=1e-3
    )
    assert pytest.approx(4.127, abs=1e-3) == NF4_BYTES * 8
    assert key_value_bytes(llava_7b) == 2 * 32 * 4096 * 2
    kept = estimate(llava_7b, "inference", Batch(policy_tokens=500, policies=3)).policies
    assert kept == 3 * 500 * 524_288
    assert (lora.features, estimate(llava_7b, "lora", Batch(kept_images=10)).features) == (
        FEATURE_BYTES,
        10 * 576 * 4096 * 2,
    )
    assert FEATURE_BYTES == trainer.FEATURE_BYTES
    assert lora.total == pytest.approx(
        sum(
            (
                lora.weights,
                lora.adapters,
                lora.gradients,
                lora.optimizer,
                lora.activations,
                lora.features,
                OVERHEAD,
            )
        )
    )


def test_zero_divides_what_it_shards(llava_7b):
    alone = estimate(llava_7b, "lora")
    two, three = (estimate(llava_7b, "lora", zero=stage, gpus=4) for stage in (2, 3))
    assert (two.weights, two.adapters) == (alone.weights, alone.adapters)
    assert (two.gradients, two.optimizer) == (alone.gradients / 4, alone.optimizer / 4)
    assert (three.weights, three.adapters, three.gradients) == (
        alone.weights / 4,
        alone.adapters / 4,
        alone.gradients / 4,
    )
    assert three.gathered == 1e9 * 2 * 3 / 4
    assert two.features == three.features == 0
    assert estimate(llava_7b, "lora", zero=3).gathered == 0
    assert estimate(llava_7b, "lora", gpus=4) == alone


def test_the_smallest_card_with_room_is_named():
    sizes = {24: 22.4e9, 40: 24.1e9, 80: 79e9, None: 81e9}
    assert {fits: Estimate("lora", weights, overhead=0).fits for fits, weights in sizes.items()} == {
        fits: fits for fits in sizes
    }


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"task": "sft"}, "No task 'sft'; choose inference, lora or qlora"),
        ({"optimizer": "sgd"}, "No optimizer 'sgd'; choose adamw or adamw_8bit"),
        ({"zero": 4}, "ZeRO-4 on 1 GPUs"),
        ({"gpus": 0}, "one GPU or more"),
    ],
)
def test_what_cannot_be_estimated_is_said(llava_7b, options, says):
    with pytest.raises(ConfigError, match=says):
        estimate(llava_7b, **({"task": "lora"} | options))


def test_the_cache_of_a_policy_has_the_computed_size(tiny_vlm):
    for family in ("llava", "qwen3_vl"):
        model, _ = tiny_vlm(family)
        cache = model(input_ids=torch.ones(1, 10, dtype=torch.long), use_cache=True).past_key_values
        real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert real == 10 * key_value_bytes(measure_config(family, model.config, 1, 1), 4)


def random_group(noise_image):
    definition = ", ".join(["pictures in which people are hurt or threatened"] * 4)
    policy = Taxonomy("some", "1", tuple(Category(f"name {n}", definition) for n in range(4)))
    rows = [
        Row(
            Example(str(n), noise_image(n, (56, 56))),
            policy,
            "a photo of a street",
            None,
            True,
            f"name {n}",
            None,
            "keep",
        )
        for n in range(4)
    ]
    return Group(policy, tuple(rows))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_a_training_step_keeps_is_about_what_is_estimated(noise_image, checkpointing):
    model, processor = random_llava("tiny")
    base = measure_config("tiny", model.config, 16, 16)
    group = random_group(noise_image)
    encoder = ChatEncoder(processor)
    policy = len(encoder.split(encoder.text(render(group.taxonomy)))[0])
    model.set_attn_implementation({"text_config": register()})
    model, _ = add_lora(model, LoraOptions(lora_r=8), base="some")
    if checkpointing:
        model.enable_input_require_grads()
        model.activation_checkpointing_enable({"use_reentrant": False})
    batch = GroupCollator(encoder, 4096, model)([group])
    labels = batch.pop("labels")
    batch = {key: value for key, value in batch.items() if not key.startswith("image_")}
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        answer_loss(model.train()(**batch, use_cache=False), labels)
    real = sum(size for size, _ in kept.values())
    asked = Batch(policy, 4, checkpointing=checkpointing)
    if not checkpointing:  # what passes on the way back is not kept
        tokens = policy + 4 * (base.image_tokens + 64)
        found = training_bytes(base, asked, 8, 4) - 2 * tokens * base.inner * 4
        assert real / 1.3 < found < real * 1.3
    else:
        # Of the blocks only the inputs stay; the block that is computed again comes and goes.
        whole = training_bytes(base, replace(asked, checkpointing=False), 8, 4)
        assert real < training_bytes(base, asked, 8, 4) < whole


def test_a_policys_tokens_are_counted_or_guessed():
    taxonomy = load_taxonomy("unsafebench")
    counted, by_tokenizer = policy_tokens("tiny-llava", taxonomy)
    guessed, by_length = policy_tokens(LLAVA_7B, taxonomy)
    assert (by_tokenizer, by_length) == (True, False)
    assert guessed / 2 < counted < guessed * 2


def test_doctor_says_what_a_base_takes(capsys):
    assert (
        main(
            ["doctor", "--model", "LLaVA-1.5 7B", "--policy", "unsafebench", "--gpus", "2", "--lora_r", "64"]
        )
        == 0
    )
    shown = capsys.readouterr()
    assert "path fast): 7,063,427,072 parameters" in shown.err
    assert "unsafebench: about" in shown.err
    lines = shown.out.splitlines()
    assert re.split(r" {2,}", lines[0])[-1] == "LoRA, ZeRO-3"
    assert lines[1].startswith("weights")
    assert lines[-1].startswith("fits on")
    assert (
        main(["doctor", "--model", "tiny-llava", "--policy", "digits", "--image-tokens", "25", "--json"]) == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["base"]["parameters"] == 1_925_888
    lora = told["memory"]["LoRA"]
    assert lora["total"] == pytest.approx(
        sum(v for k, v in lora.items() if k not in ("task", "total", "fits_gb")), abs=9
    )
    assert lora["fits_gb"] == 24


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["no-such-base"], "'no-such-base' is no folder here and no known model.*Qwen3-VL-8B-Instruct"),
        (["Qwen3-VL-8B-Instrukt"], "did you mean"),
        (["Llama-3.2-11B-Vision-Instruct"], "cross-attention.*Use Qwen2.5-VL"),
        (["LLaVA-1.5 7B", "--optimizer", "sgd"], "choose adamw or adamw_8bit"),
        (["tests"], "config.json of 'tests' could not be read"),
    ],
)
def test_doctor_refuses_on_one_line(words, says, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main(["doctor", "--model", *words]) == 2
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(says, shown), shown


def test_a_policy_that_does_not_fit_is_said(capsys, llava_7b):
    assert main(["doctor", "--model", LLAVA_7B, "--image-tokens", "5000"]) == 0
    assert "more than the 4096 tokens that it reads" in capsys.readouterr().err
    rows = part_rows(estimates(llava_7b, Batch(), lora_r=16))
    assert [row[0] for row in rows][-3:] == ["overhead", "total", "fits on"]


def test_the_page_of_models_shows_the_table_that_is_printed():
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    shown = page.partition("<!-- arbiter doctor --models -->\n")[2].partition("<!-- end -->")[0].strip()
    assert shown == markdown_table().strip(), "print it again: arbiter doctor --models"
    for known in known_models().values():
        if family_of(known.family).path == "refused":
            assert f"| `{known.id}` | {known.published / 1e9:.2f} B | {known.licence} | refused |" in shown
