"""judge/encoders/text_pooling.py and towers.py: declared pooling, the towers of a vision-text dual encoder, refusals."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from judge.encoders.dual import DualEncoder
from judge.encoders.fare import copy_encoder, save_encoder, unfreeze_image_tower
from judge.errors import CheckpointError

TEXTS = ["two", "a photo of two and three", ""]
CENTRE = [0.3 - 0.02 * place for place in range(24)]
CLOSE = 5e-5
"""1e-5 of the values, which reach 5 and, in float32, differ so between processors."""
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
IMAGES = SIZES | {"image_size": 16, "patch_size": 8}


@pytest.fixture
def declare(tiny_encoder_folder, tmp_path):
    """`declare(pooling, tokenizer={})` -> a copy of the tiny dual encoder with these settings."""

    def make(pooling, **tokenizer):
        folder = shutil.copytree(tiny_encoder_folder("dual"), tmp_path / "declared", dirs_exist_ok=True)
        for name, changes in (("config", {"text_pooling": pooling}), ("tokenizer_config", tokenizer)):
            file = folder / f"{name}.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return folder

    return make


@pytest.fixture
def towers(tiny_encoder_folder, tmp_path):
    """`towers(vision, text)` -> a folder with a dual encoder of these configs, random far from the start."""

    def make(vision=None, text=None):
        torch.manual_seed(1)
        source = tiny_encoder_folder("dual")
        size = len(transformers.AutoTokenizer.from_pretrained(source))
        words = {"vocab_size": size, "max_position_embeddings": 40}
        vision = vision or transformers.CLIPVisionConfig(**IMAGES)
        text = text or transformers.BertConfig(**SIZES, **words)
        text.vocab_size = size
        config = transformers.VisionTextDualEncoderConfig(
            vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=24
        )
        model = transformers.VisionTextDualEncoderModel(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        folder = tmp_path / "towers"
        model.save_pretrained(folder)
        for file in source.glob("*.json"):
            if file.name != "config.json":
                shutil.copy(file, folder)
        return folder

    return make


@pytest.mark.parametrize("mode", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("centre", [None, CENTRE])
def test_pooling_equals_that_by_hand(declare, mode, normalize, centre):
    folder = declare({"mode": mode, "normalize": normalize, "centre": centre})
    encoder = DualEncoder.load(folder)
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    tokens, mask = encoder.encode_texts(TEXTS)  # of different lengths: padding must not count

    def finish(states):
        found = reference.text_projection(states)
        found = found / found.norm(dim=-1, keepdim=True) if normalize else found
        return found if centre is None else found - torch.tensor(centre)

    for text, row, seen in zip(TEXTS, tokens, mask, strict=True):
        ids = torch.tensor([encoder.tokenizer(text).input_ids])
        with torch.no_grad():
            [states] = reference.text_model(ids).last_hidden_state
            whole = states.sum(0) / len(states) if mode == "mean" else states[0]
            expected = torch.cat([finish(whole)[None], finish(states[1:-1])])
        torch.testing.assert_close(row[seen], expected, rtol=1e-5, atol=CLOSE)


def test_pooling_is_part_of_the_identity_and_survives_saving(declare, tmp_path):
    mean = {"mode": "mean", "normalize": True, "centre": CENTRE}
    changes = [{}, {"mode": "cls"}, {"normalize": False}, {"centre": None}, {"centre": [*CENTRE[:-1], 0.5]}]
    found = [DualEncoder.load(declare(mean | change)) for change in changes]
    shorter = DualEncoder.load(declare(mean, model_max_length=9))
    assert len({one.fingerprint for one in (*found, shorter)}) == len(changes) + 1
    assert (found[0].context, shorter.context) == (12, 9)
    saved = save_encoder(found[0], tmp_path / "saved")
    assert (saved.pooling, saved.fingerprint) == (found[0].pooling, found[0].fingerprint)


def test_windows_of_a_declared_length_are_averaged(declare):
    encoder = DualEncoder.load(declare({"mode": "mean", "normalize": True}, model_max_length=5))
    text = "a photo of two and three"
    own = encoder.tokenizer(text, add_special_tokens=False).input_ids
    before, after = encoder.tokenizer("").input_ids
    rows = [torch.tensor([[before, *own[i : i + 3], after]]) for i in range(0, len(own), 3)]
    assert len(rows) > 1
    with torch.no_grad():
        pooled = torch.cat([encoder.encode_token_ids(row, torch.ones_like(row))[0] for row in rows])
    tokens, _ = encoder.encode_texts([text])
    assert tokens.shape[1] == 1 + len(own)
    torch.testing.assert_close(tokens[0, 0], pooled.mean(0), rtol=1e-5, atol=CLOSE)


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        ({"mode": "max"}, r"mode 'max' .* one of pooler, mean, cls"),
        ({"mode": "mean", "normalize": 1}, r"normalize 1; .* true or false"),
        ({"mode": "mean", "centre": [0.1] * 23}, r"a centre of 23 numbers; its joint space has 24"),
        ({"mode": "mean", "centre": [0.1] * 23 + ["x"]}, r"not a list of 24 finite numbers"),
        ({"mode": "mean", "centre": [0.1] * 23 + [float("nan")]}, r"not a list of 24 finite numbers"),
        ({"mode": "mean", "centre": 0.1}, r"not a list of 24 finite numbers"),
        ({"mode": "mean", "center": [0.1] * 24}, r"\['center', 'mode'\]; its entries are mode, normalize"),
        ("mean", r"text_pooling with mean; its entries are"),
    ],
)
def test_pooling_that_cannot_be_is_refused(declare, pooling, message):
    with pytest.raises(CheckpointError, match=message):
        DualEncoder.load(declare(pooling))


@pytest.mark.parametrize(
    ("vision", "head"),
    [
        (transformers.SiglipVisionConfig(**IMAGES), lambda tower: tower.head),
        (transformers.ViTConfig(**IMAGES), lambda tower: tower.pooler),
    ],
)
def test_other_image_towers_are_read_as_transformers_does(towers, noise_image, vision, head):
    folder = towers(vision=vision)
    encoder = DualEncoder.load(folder)
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    pixels = encoder.pixel_values([noise_image(seed) for seed in range(2)])
    tokens = encoder.encode_pixel_values(pixels)
    with torch.no_grad():
        expected = reference.get_image_features(pixels).pooler_output
        states = reference.vision_model(pixels).last_hidden_state[:, -4:]  # without a ViT's CLS
        patches = [head(reference.vision_model)(states[:, [place]]) for place in range(4)]
        expected = torch.stack([expected, *map(reference.visual_projection, patches)], dim=1)
    torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=CLOSE)
    # The tower alone can be made robust, in place.
    trained = unfreeze_image_tower(copy_encoder(encoder), 1)
    assert 0 < len(trained) < len(list(encoder.model.vision_model.parameters()))
    everything = sum(
        len(list(part.parameters())) for part in (reference.vision_model, reference.visual_projection)
    )
    assert len(unfreeze_image_tower(copy_encoder(encoder))) == everything


def test_a_roberta_is_read_as_transformers_does(towers):
    text = transformers.RobertaConfig(**SIZES, max_position_embeddings=40, pad_token_id=0)
    encoder = DualEncoder.load(towers(text=text))
    assert encoder.context == 39  # positions start behind the padding's
    tokens, _ = encoder.encode_texts(TEXTS)
    for text, row in zip(TEXTS, tokens, strict=True):
        ids = torch.tensor([encoder.tokenizer(text).input_ids])
        with torch.no_grad():
            expected = encoder.model.get_text_features(ids).pooler_output[0]
        torch.testing.assert_close(row[0], expected, rtol=1e-5, atol=CLOSE)
    encoder.encode_texts(["two " * 100])  # as long as the positions reach


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        (
            {"vision": transformers.Dinov2Config(**SIZES, image_size=16, patch_size=8)},
            r"a 'dinov2' as image tower; supported are clip_vision_model, siglip_vision_model, vit",
        ),
        (
            {"vision": transformers.SiglipVisionConfig(**IMAGES, vision_use_head=False)},
            r"image tower without a pooled embedding \(head\)",
        ),
        (
            {"text": transformers.DistilBertConfig(dim=32, hidden_dim=48, n_layers=1, n_heads=4)},
            r"a 'distilbert' as text tower; supported are bert, roberta, xlm-roberta",
        ),
    ],
)
def test_other_towers_are_refused(towers, configs, message):
    with pytest.raises(CheckpointError, match=message):
        DualEncoder.load(towers(**configs))


def test_weights_of_a_pooler_are_needed_where_it_is_used(declare):
    folder = declare({"mode": "mean"})
    whole = DualEncoder.load(folder).fingerprint
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert DualEncoder.load(folder).fingerprint == whole
    (folder / "config.json").write_text(
        json.dumps(json.loads((folder / "config.json").read_text()) | {"text_pooling": None})
    )
    with pytest.raises(CheckpointError, match=r"lacks 2 of its model's weights, such as text_model.pooler"):
        DualEncoder.load(folder)


def test_a_text_tower_without_a_pooler_needs_another_mode(declare):
    encoder = DualEncoder.load(declare(None))
    encoder.model.text_model.pooler = None
    parts = encoder.tokenizer, encoder.image_processor
    with pytest.raises(CheckpointError, match="without a pooler; declare text_pooling of mode mean or cls"):
        DualEncoder(encoder.model, *parts, name="mine")
    encoder.model.config.text_pooling = {"mode": "mean"}
    tokens, _ = DualEncoder(encoder.model, *parts, name="mine").encode_texts(TEXTS)
    assert tokens.isfinite().all()
    assert F.cosine_similarity(tokens[0, 0], tokens[1, 0], dim=0) < 0.9999
