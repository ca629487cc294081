"""judge/encoders/dual.py: the joint space of each family, long texts, identity, pixels, refusals."""

import json
import shutil

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file

from judge.encoders.dual import MAX_WINDOWS, DualEncoder
from judge.errors import CheckpointError

SHORT = ["two", "a photo of two and three", "seven"]
LONG = "a photo of two and three; handwritten seven on a wall, and zero, and one"
FAMILIES = ("clip", "siglip", "dual")
KINDS = {
    "clip": transformers.CLIPModel,
    "siglip": transformers.SiglipModel,
    "dual": transformers.VisionTextDualEncoderModel,
}
CLOSE = 5e-5
"""1e-5 of the values, which reach 5 and, in float32, differ so between processors."""


@pytest.fixture(scope="module")
def encoders(tiny_encoder_folder):
    return {family: DualEncoder.load(tiny_encoder_folder(family)) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def encoder(encoders, family):
    return encoders[family]


@pytest.fixture
def images(noise_image):
    return [noise_image(seed, size) for seed, size in enumerate([(20, 16), (16, 16), (31, 40)])]


@pytest.fixture
def reference(tiny_encoder_folder, family):
    """transformers' own model, loaded on its own."""
    return KINDS[family].from_pretrained(tiny_encoder_folder(family)).eval()


@pytest.fixture
def copied(tiny_encoder_folder, family, tmp_path):
    return shutil.copytree(tiny_encoder_folder(family), tmp_path / "copy")


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def windows(encoder, text):
    """The text's tokens cut by hand, each piece with the special tokens around it."""
    tokenizer = encoder.tokenizer
    own = tokenizer(text, add_special_tokens=False).input_ids
    whole = tokenizer(text).input_ids
    before, after = whole[: whole.index(own[0])], [tokenizer.eos_token_id]
    assert whole == before + own + after
    room = encoder.context - len(before) - len(after)
    return [before + own[i : i + room] + after for i in range(0, len(own), room)]


def pad(encoder, ids):
    """As the family was trained: SigLIP on padded texts."""
    missing = encoder.context - len(ids) if encoder.family == "siglip" else 0
    return torch.tensor([ids + [encoder.tokenizer.pad_token_id] * missing])


def test_pooled_images_are_transformers_own(encoder, reference, images):
    processor = transformers.AutoImageProcessor.from_pretrained(encoder.name)
    with torch.no_grad():
        expected = reference.get_image_features(**processor(images=images, return_tensors="pt")).pooler_output
    tokens = encoder.encode_images(images)
    assert tokens.shape == (3, 1 + 4, encoder.width)
    assert tokens.dtype is torch.float32
    torch.testing.assert_close(tokens[:, 0], expected, rtol=1e-5, atol=CLOSE)


def test_pooled_texts_are_transformers_own(encoder, reference):
    with torch.no_grad():
        expected = torch.cat(
            [
                reference.get_text_features(pad(encoder, encoder.tokenizer(text).input_ids)).pooler_output
                for text in SHORT
            ]
        )
    tokens, _ = encoder.encode_texts(SHORT)
    torch.testing.assert_close(tokens[:, 0], expected, rtol=1e-5, atol=CLOSE)


@pytest.mark.parametrize("family", ["clip", "dual"])
def test_patches_of_a_clip_tower_take_the_path_of_the_class_token(encoder, images):
    hidden = encoder.model.vision_model(encoder.pixel_values(images)).last_hidden_state
    projected = encoder.model.visual_projection(encoder.model.vision_model.post_layernorm(hidden))
    torch.testing.assert_close(encoder.encode_images(images), projected.detach())


def test_patches_of_siglip_take_the_path_of_the_pooled_token(tiny_encoder_folder, encoders, images):
    """Where an image is one patch, attention has nothing to choose from: patch and image are one."""
    one_patch = DualEncoder.load(tiny_encoder_folder("siglip", patch_size=16))
    tokens = one_patch.encode_images(images)
    assert tokens.shape[1] == 2
    torch.testing.assert_close(tokens[:, 1], tokens[:, 0])
    tokens = encoders["siglip"].encode_images(images)
    assert not torch.allclose(tokens[:, 1], tokens[:, 0], atol=1e-3)


def test_text_tokens_are_the_texts_own_in_the_joint_space(encoder, family, reference):
    tokens, mask = encoder.encode_texts(SHORT)
    assert tokens.dtype is torch.float32
    for text, row, seen in zip(SHORT, tokens, mask, strict=True):
        whole = encoder.tokenizer(text).input_ids
        own = encoder.tokenizer(text, add_special_tokens=False).input_ids
        start = whole.index(own[0])
        with torch.no_grad():
            hidden = reference.text_model(pad(encoder, whole)).last_hidden_state
            own_states = hidden[0, start : start + len(own)]
            if family == "dual":  # each token as a text of its own
                own_states = reference.text_model.pooler(own_states[:, None])
            project = reference.text_model.head if family == "siglip" else reference.text_projection
            expected = project(own_states)
        assert seen.tolist() == [True] * (1 + len(own)) + [False] * (len(row) - 1 - len(own))
        torch.testing.assert_close(row[seen][1:], expected, rtol=1e-5, atol=CLOSE)
        assert not row[~seen].any()


def test_long_texts_are_read_in_windows_and_nothing_is_cut(encoder, reference):
    pieces = windows(encoder, LONG)
    assert len(pieces) > 2
    with torch.no_grad():
        pooled = torch.cat(
            [reference.get_text_features(pad(encoder, piece)).pooler_output for piece in pieces]
        )
    tokens, mask = encoder.encode_texts(["two", LONG])
    own = encoder.tokenizer(LONG, add_special_tokens=False).input_ids
    assert mask.sum(1).tolist() == [
        1 + len(encoder.tokenizer("two", add_special_tokens=False).input_ids),
        1 + len(own),
    ]
    torch.testing.assert_close(tokens[1, 0], pooled.mean(0), rtol=1e-5, atol=CLOSE)
    changed, _ = encoder.encode_texts([LONG[:-1] + "x"])
    assert not torch.allclose(tokens[1, 0], changed[0, 0], atol=1e-4), "the last letter has no effect"
    torch.testing.assert_close(
        tokens[:1, : mask[0].sum()], encoder.encode_texts(["two"])[0], rtol=1e-4, atol=CLOSE
    )


@pytest.mark.parametrize("count", [1, 5])
def test_texts_are_read_alike_alone_and_together(encoder, count):
    texts = ["", "two", LONG, "é \U0001f642", "handwritten seven on a wall"][:count]
    together, mask = encoder.encode_texts(texts)
    for text, row, seen in zip(texts, together, mask, strict=True):
        alone, all_seen = encoder.encode_texts([text])
        assert all_seen.all()
        torch.testing.assert_close(row[seen], alone[0], rtol=1e-4, atol=CLOSE)


def test_an_empty_text_is_its_pooled_embedding(encoder):
    tokens, mask = encoder.encode_texts([""])
    assert tokens.shape == (1, 1, encoder.width)
    assert mask.all()
    assert tokens.isfinite().all()


def test_broken_unicode_is_read(encoder):
    broken, _ = encoder.encode_texts(["two \ud800"])
    torch.testing.assert_close(broken, encoder.encode_texts(["two ?"])[0])
    assert encoder.token_count("two \ud800") == encoder.token_count("two ?")


def test_token_count_tells_what_fits(encoder):
    fits = " ".join(["two"] * 3)
    assert encoder.token_count(fits) == len(encoder.tokenizer(fits).input_ids) <= encoder.context
    assert encoder.token_count(LONG) == len(encoder.tokenizer(LONG).input_ids) > encoder.context


def test_a_text_too_long_is_refused_before_anything_is_read(encoder, monkeypatch):
    room = len(windows(encoder, "x" * 100)[0]) - (1 if encoder.family == "siglip" else 2)
    tokens, _ = encoder.encode_texts(["x" * 50])
    per_letter = (tokens.shape[1] - 1) / 50
    fits, too_long = (int(room * MAX_WINDOWS / per_letter) + more for more in (0, room))
    encoder.encode_texts(["x" * fits])
    monkeypatch.setattr(encoder, "encode_token_ids", lambda *_: pytest.fail("it was read"))
    with pytest.raises(CheckpointError, match=f"takes {MAX_WINDOWS + 1} windows of 12 tokens; at most"):
        encoder.encode_texts(["two", "x" * too_long])


def test_a_text_that_the_tokenizer_writes_out_is_counted_so(tiny_clip_folder):
    """CLIP's tokenizers know NFC, SigLIP's NFKC: one character may become eighteen."""
    encoder = DualEncoder.load(tiny_clip_folder)
    encoder.tokenizer.backend_tokenizer.normalizer = tokenizers.normalizers.NFKC()
    room = MAX_WINDOWS * (encoder.context - 2)
    for letter in ("\ufdfa", "\u33d8"):
        text = letter * (room // len(letter.encode()))
        assert len(text.encode()) <= room < encoder.token_count(text) - 2
        assert encoder.too_long(text)
    assert not encoder.too_long("x" * room)


def test_the_model_is_frozen_and_gradients_reach_the_pixels(encoder, images):
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())
    assert not encoder.model.training
    pixels = encoder.pixel_values(images).requires_grad_()
    encoder.encode_pixel_values(pixels).sum().backward()
    assert pixels.grad.abs().sum() > 0
    assert not encoder.encode_images(images).requires_grad
    assert not encoder.encode_texts(SHORT)[0].requires_grad


def test_pixels_are_seen_as_images_are(encoders, images):
    encoder = encoders["clip"]
    for image in images:
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).float() / 255
        pixels = pixels.view(1, image.height, image.width, 3).permute(0, 3, 1, 2).clone().requires_grad_()
        seen, expected = encoder.encode_pixels(pixels), encoder.encode_images([image])
        # Pillow rounds to 8 bits while it resizes; on random noise that is what remains.
        limit = 1e-5 if image.size == (16, 16) else 0.02
        assert (seen - expected).abs().mean() / expected.abs().mean() < limit
        seen.sum().backward()
        assert pixels.grad.abs().sum() > 0


def test_identity_does_not_depend_on_place_or_dtype(encoder, family, copied):
    again = DualEncoder.load(copied, dtype="bfloat16")
    assert again.fingerprint == encoder.fingerprint
    assert len(again.fingerprint) == 64
    assert again.name != encoder.name
    assert next(again.model.parameters()).dtype is torch.bfloat16


def test_half_precision_gives_floats_near_the_others(encoder, copied, images):
    half = DualEncoder.load(copied, dtype="bfloat16")
    for one, two in (
        (half.encode_images(images), encoder.encode_images(images)),
        (half.encode_texts(SHORT)[0], encoder.encode_texts(SHORT)[0]),
    ):
        assert one.dtype is torch.float32
        assert (one - two).abs().mean() / two.abs().mean() < 0.05


def test_one_weight_changes_the_identity(encoder, copied):
    weights = load_file(copied / "model.safetensors")
    first = sorted(weights)[0]
    weights[first].view(-1)[0] += 1e-3
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert DualEncoder.load(copied).fingerprint != encoder.fingerprint


def test_missing_weights_are_refused(copied):
    weights = load_file(copied / "model.safetensors")
    lost = next(name for name in weights if name.endswith("layers.1.mlp.fc1.weight"))
    del weights[lost]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"lacks 1 of its model's weights, such as .*{lost[-10:]}"):
        DualEncoder.load(copied)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", lambda c: c["vision_config"].update(hidden_act="relu")),
        ("config.json", lambda c: c["text_config"].update(num_attention_heads=8)),
        ("preprocessor_config.json", lambda c: c.update(image_mean=[0.1, 0.1, 0.1])),
        ("preprocessor_config.json", lambda c: c.update(resample=2)),
        ("tokenizer.json", lambda c: c["model"].update(merges=c["model"]["merges"][:-20])),
        ("tokenizer.json", lambda c: c.update(normalizer={"type": "Lowercase"})),
    ],
)
def test_settings_that_change_features_change_the_identity(encoder, copied, file, change):
    edit_json(copied / file, change)
    assert DualEncoder.load(copied).fingerprint != encoder.fingerprint


def test_settings_that_change_nothing_do_not(encoder, copied):
    edit_json(
        copied / "config.json", lambda c: c.update(transformers_version="0.0", logit_scale_init_value=1.0)
    )
    assert DualEncoder.load(copied).fingerprint == encoder.fingerprint


def test_the_shipped_encoder_loads_by_name():
    encoder = DualEncoder.load("tiny-clip")
    assert (encoder.name, encoder.family, encoder.width) == ("tiny-clip", "clip", 128)


def test_another_family_is_refused(base_folder):
    with pytest.raises(CheckpointError, match="'llava' model; an encoder is one of clip, siglip"):
        DualEncoder.load(base_folder())


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"could not be loaded.* hub id or folder, or tiny-clip"):
        DualEncoder.load(tmp_path / "nothing")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="could not be loaded as an image-text encoder"):
        DualEncoder.load(tmp_path)


def test_pickled_weights_are_refused(copied):
    weights = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    torch.save(weights, copied / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="could not be loaded"):
        DualEncoder.load(copied)


def test_damaged_weights_are_refused(copied):
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="could not be loaded"):
        DualEncoder.load(copied)
