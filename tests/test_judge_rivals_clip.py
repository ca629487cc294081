"""Q16, MultiHeaded, NSFW_Detector and SD_Filter say what their published formulas say, on random weights."""

import math
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from adversarial.victim import Context
from eval.robustness.victims import as_victim, check_victim
from judge.encoders.dual import DualEncoder
from judge.errors import CheckpointError, ConfigError
from judge.rivals.clip import SharedPass
from judge.rivals.multiheaded import load_multiheaded
from judge.rivals.nsfw_detector import load_nsfw_detector
from judge.rivals.q16 import load_q16
from judge.rivals.sd_filter import SdFilter, load_sd_filter
from prompts import load_taxonomy

UNSAFEBENCH = load_taxonomy("unsafebench")
LOADERS = {"q16": load_q16, "multiheaded": load_multiheaded, "nsfw_detector": load_nsfw_detector}
COUNT = 24


@pytest.fixture(scope="module")
def encoder(tiny_clip_folder):
    return DualEncoder.load(tiny_clip_folder, device="cpu")


@pytest.fixture
def images(rival_images):
    return rival_images


@pytest.fixture(scope="module")
def rivals(converted, encoder):
    found = {name: load(weights=converted[name], encoder=encoder) for name, load in LOADERS.items()}
    return found | {"sd_filter": load_sd_filter(folder=converted["sd_filter"], device="cpu")}


@pytest.fixture
def embeddings(rival_embeddings):
    return rival_embeddings


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def unit(vector):
    return vector / math.sqrt(sum(one * one for one in vector))


def q16_by_hand(published, embedding):
    """Logits 100 * cosine with either prompt; their softmax."""
    safe, unsafe = pickle.loads((published / "prompts.p").read_bytes()).astype(np.float64)
    logits = [100 * float(unit(embedding) @ unit(prompt)) for prompt in (safe, unsafe)]
    return [sigmoid(logits[1] - logits[0])] * 9


def multiheaded_by_hand(published, embedding):
    found = []
    for name in ("sexual", "violent", "disturbing", "hateful", "political"):
        w = {key: t.double().numpy() for key, t in torch.load(published / "heads" / f"{name}.pt").items()}
        hidden = [
            max(0.0, float(row @ embedding + b)) for row, b in zip(w["0.weight"], w["0.bias"], strict=True)
        ]
        normed = [
            (h - mean) / math.sqrt(var + 1e-5) * scale + shift
            for h, mean, var, scale, shift in zip(
                hidden, w["3.running_mean"], w["3.running_var"], w["3.weight"], w["3.bias"], strict=True
            )
        ]
        found.append(sigmoid(float(w["4.weight"][0] @ normed + w["4.bias"][0])))
    return found


def nsfw_by_hand(published, embedding):
    w = {key: t.double().numpy() for key, t in torch.load(published / "nsfw.pth").items()}
    values = (unit(embedding) - w["norm.mean"]) / np.sqrt(w["norm.variance"])
    for number in (1, 2, 3, 4):
        values = w[f"linear_{number}.weight"] @ values + w[f"linear_{number}.bias"]
        if number < 4:
            values = np.maximum(values, 0)
    return [sigmoid(float(values[0]))] * 2


def checker_scores_by_hand(concept_cosines, special_cosines, limits, special_limits):
    """The 17 scores of one image, step by step, with the carry-over between special concepts."""
    adjustment, scores = 0.0, []
    for cosine, limit in zip(special_cosines, special_limits, strict=True):
        if round(cosine - limit + adjustment, 3) > 0:
            adjustment = 0.01
    for cosine, limit in zip(concept_cosines, limits, strict=True):
        scores.append(round(cosine - limit + adjustment, 3))
    return scores


def checker_by_hand(published, embedding):
    w = {
        key: t.double().numpy() for key, t in torch.load(published / "checker" / "pytorch_model.bin").items()
    }
    scores = checker_scores_by_hand(
        [float(unit(embedding) @ unit(concept)) for concept in w["concept_embeds"]],
        [float(unit(embedding) @ unit(concept)) for concept in w["special_care_embeds"]],
        w["concept_embeds_weights"].tolist(),
        w["special_care_embeds_weights"].tolist(),
    )
    return [sigmoid(2 * (max(scores) - 0.0005))]


BY_HAND = {
    "q16": q16_by_hand,
    "multiheaded": multiheaded_by_hand,
    "nsfw_detector": nsfw_by_hand,
    "sd_filter": checker_by_hand,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_scores_are_those_of_the_published_formula(rivals, published, images, embeddings, name):
    wanted = np.array([BY_HAND[name](published, embedding) for embedding in embeddings])
    assert np.ptp(wanted) > 0.02  # images differ
    rival = rivals[name]
    found = rival.score(images, None, rival.default_taxonomy)
    np.testing.assert_allclose(found.categories, wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.unsafe, wanted.max(axis=1), rtol=0, atol=1e-5)
    assert found.unsafe.min() < 0.5 < found.unsafe.max()
    assert found.reasons == (None,) * COUNT


@pytest.mark.parametrize("name", BY_HAND)
def test_one_image_gives_one_row_and_none_gives_none(rivals, images, name):
    rival = rivals[name]
    one = rival.score(images[:1], None, rival.default_taxonomy)
    assert one.categories.shape == (1, len(rival.default_taxonomy))
    every = rival.score(images, ["a prompt"] * COUNT, rival.default_taxonomy)
    np.testing.assert_allclose(one.unsafe[0], every.unsafe[0], atol=1e-5)
    assert rival.score([], None, rival.default_taxonomy).categories.shape == (0, len(rival.default_taxonomy))


def test_special_care_carries_over_and_scores_are_rounded_as_by_hand():
    """Cosines about their thresholds, so that rounding and 0.01 of care decide."""
    rng = np.random.default_rng(0)
    concepts = rng.normal(-0.006, 0.004, (400, 17))
    special = rng.normal(-0.003, 0.003, (400, 3))
    model = Cosines(torch.tensor(concepts), torch.tensor(special))
    rival = SdFilter(model=model, image_processor=lambda **_: {"pixel_values": torch.zeros(400)})
    found = rival.probabilities([None] * 400)
    by_hand = [
        checker_scores_by_hand(row, care, [0.0] * 17, [0.0] * 3)
        for row, care in zip(concepts.tolist(), special.tolist(), strict=True)
    ]
    np.testing.assert_allclose(found, [sigmoid(2 * (max(row) - 0.0005)) for row in by_hand], atol=1e-9)
    unsafe = [any(score > 0 for score in row) for row in by_hand]
    assert (found > 0.5).tolist() == unsafe
    assert 40 < sum(unsafe) < 360
    assert any(max(row) == 0 for row in by_hand)  # exactly at the threshold is safe


class Cosines(nn.Module):
    """A checker whose cosines are given."""

    def __init__(self, concepts, special):
        super().__init__()
        self.found = concepts, special
        self.concept_embeds = nn.Parameter(torch.zeros(1))

    def forward(self, pixel_values):
        return self.found


# Coverage


TABLE_3 = """
                Hate Harassment Violence Self-harm Sexual Shocking Illegal Deception Political Health Spam
q16              x       x         x        x        -       x        x       x         x        x     -
multiheaded      x       -         x        -        x       x        -       -         x        -     -
sd_filter        -       -         -        -        x       -        -       -         -        -     -
nsfw_detector    -       x         -        -        x       -        -       -         -        -     -
"""


@pytest.mark.parametrize("row", TABLE_3.strip().splitlines()[1:], ids=lambda row: row.split()[0])
def test_each_covers_what_table_3_says_and_leaves_the_rest_unjudged(rivals, images, row):
    name, *marks = row.split()
    covers = np.array([mark == "x" for mark in marks])
    found = rivals[name].score(images, None, UNSAFEBENCH)
    assert (np.isnan(found.categories) == ~covers).all()
    assert sorted(rivals[name].default_taxonomy.keys) == sorted(np.array(UNSAFEBENCH.keys)[covers].tolist())
    # What it does not flag may violate what it does not cover.
    highest = np.nanmax(found.categories, axis=1)
    assert (np.isnan(found.unsafe) == (highest < 0.5)).all()
    for reason, unsafe in zip(found.reasons, found.unsafe, strict=True):
        assert (reason is None) == np.isfinite(unsafe)
        assert reason is None or reason.startswith(f"{name} does not cover: ")


def test_categories_are_mapped_by_key_whatever_their_name_and_order(rivals, images):
    mine = UNSAFEBENCH.select(["Shocking", "Sexual"]).rename({"Shocking": "Gore", "Sexual": "Naked people"})
    own = rivals["multiheaded"].score(images, None, rivals["multiheaded"].default_taxonomy)
    found = rivals["multiheaded"].score(images, None, mine)
    np.testing.assert_array_equal(found.categories, own.category_probabilities[:, [2, 0]])


# One pass for all


def test_a_shared_pass_gives_each_its_own_scores_and_encodes_once(rivals, encoder, images, monkeypatch):
    chosen = [rivals[name] for name in LOADERS]
    wanted = [rival.score(images, None, rival.default_taxonomy) for rival in chosen]
    calls = []
    monkeypatch.setattr(
        DualEncoder,
        "pixel_values",
        lambda self, some, real=DualEncoder.pixel_values: calls.append(len(some)) or real(self, some),
    )
    shared = SharedPass(chosen, batch_size=10)
    found = shared.score(
        [images[0], b"no picture", *images[1:]], None, [rival.default_taxonomy for rival in chosen]
    )
    assert calls == [10, 10, 4]
    for own, one in zip(wanted, found, strict=True):
        assert np.isnan(one.unsafe[1])
        assert "not_an_image" in one.reasons[1]
        np.testing.assert_allclose(np.delete(one.categories, 1, axis=0), own.categories, atol=1e-6)
    for rival, none in zip(chosen, shared.score([], None, [UNSAFEBENCH] * 3), strict=True):
        assert none.categories.shape == (0, 11), rival.name


def test_a_shared_pass_needs_one_encoder_and_a_taxonomy_each(rivals, converted, images, tiny_encoder_folder):
    other = load_q16(weights=converted["q16"], encoder=tiny_encoder_folder("clip", num_hidden_layers=1))
    with pytest.raises(ConfigError, match="q16, q16: one pass needs one encoder, and these have 2"):
        SharedPass([rivals["q16"], other])
    with pytest.raises(ConfigError, match="No classifier"):
        SharedPass([])
    with pytest.raises(ConfigError, match="1 taxonomies for 2 classifiers"):
        SharedPass([rivals["q16"], rivals["multiheaded"]]).score(images, None, [UNSAFEBENCH])


# Gradients


@pytest.mark.parametrize("name", BY_HAND)
def test_margins_are_logits_of_the_scores_and_gradients_lower_them(rivals, images, name):
    rival, own = rivals[name], rivals[name].default_taxonomy
    pixels = torch.tensor(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 255
    pixels.requires_grad_(True)
    margins = rival.pixel_margins(pixels, None, own)
    scores = rival.score(images, None, own).unsafe
    logits = np.log(scores / (1 - scores))
    # Scores of sd_filter are rounded to 0.001, margins are not.
    tolerance = 0.001 + 1e-5 if name == "sd_filter" else 1e-5 * np.abs(logits).max()
    np.testing.assert_allclose(margins.detach(), logits, rtol=0, atol=tolerance)
    assert ((margins.detach().numpy() > 0) == (scores > 0.5)).all()
    [gradient] = torch.autograd.grad(margins.sum(), pixels)
    with torch.no_grad():
        after = rival.pixel_margins((pixels - 0.002 * gradient.sign()).clamp(0, 1), None, own)
    assert (after < margins).float().mean() > 0.9
    one = rival.pixel_margins(pixels, None, UNSAFEBENCH, category=own.names[-1])
    assert one.shape == (COUNT,)
    with pytest.raises(ConfigError, match=f"{name} does not cover .*Spam"):
        rival.pixel_margins(pixels, None, UNSAFEBENCH)


@pytest.mark.parametrize("name", BY_HAND)
def test_gradient_attacks_take_them_as_victims(rivals, rival_images, name):
    victim = as_victim(rivals[name])
    assert victim.no_gradients is None
    contexts = [Context(None, rivals[name].default_taxonomy)] * 6
    check_victim(victim, rival_images[:6], contexts, tolerance=0.001)


def test_modules_can_be_frozen(rivals):
    for rival in rivals.values():
        assert not any(p.requires_grad for module in rival.modules() for p in module.parameters())
        assert not any(part.training for module in rival.modules() for part in module.modules())


# Files that cannot be used


@pytest.mark.parametrize("name", LOADERS)
def test_weights_that_are_not_theirs_are_refused(tmp_path, encoder, converted, published, name):
    load, file = LOADERS[name], tmp_path / "weights.safetensors"

    def refused(match, weights=file):
        with pytest.raises(CheckpointError, match=match):
            load(weights=weights, encoder=encoder)

    refused("cannot be read as safetensors .*scripts/convert_rival.py", tmp_path / "nowhere.safetensors")
    refused("is a pickle, which is never loaded here; scripts/convert_rival.py", published / "prompts.p")
    file.write_bytes((published / "prompts.p").read_bytes())  # under another name
    refused("cannot be read as safetensors")
    file.write_bytes(converted[name].read_bytes()[:-7])
    refused("cannot be read as safetensors")
    for other in LOADERS.keys() - {name}:
        refused(f"holds no weights of {name}", converted[other])
    tensors = load_file(converted[name])
    first = next(name for name in tensors if name.endswith(("weight", "mean", "prompts")))
    save_file({key: tensor for key, tensor in tensors.items() if key != first}, file)
    refused(f"holds no weights of {name}")
    save_file(tensors | {first: tensors[first] * math.nan}, file)
    refused(f"holds weights that are not finite, such as {first}")


def test_a_head_of_another_width_is_refused(converted, tiny_siglip_folder):
    with pytest.raises(CheckpointError, match=r"embeddings of width 24, .* has 32"):
        load_q16(weights=converted["q16"], encoder=tiny_siglip_folder, device="cpu")


def test_half_precision_weights_are_used_in_single(converted, encoder, images, tmp_path):
    half = {key: tensor.half() for key, tensor in load_file(converted["q16"]).items()}
    save_file(half, tmp_path / "half.safetensors")
    rival = load_q16(weights=tmp_path / "half.safetensors", encoder=encoder)
    assert rival.head.prompts.dtype == torch.float32
    assert np.isfinite(rival.score(images, None, rival.default_taxonomy).unsafe).all()


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json; .* scripts/convert_rival.py"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "holds no safety checker"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("[]"), "holds no safety checker"),
        (
            lambda folder: (folder / "config.json").write_text(
                '{"model_type": "clip", "vision_config": {"hidden_size": 33}}'
            ),
            "holds no safety checker",
        ),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "clip", "projection_dim": 5}'),
            "holds no safety checker",
        ),
        (
            lambda folder: save_file({"a": torch.zeros(1)}, folder / "model.safetensors"),
            "holds no safety checker",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "cannot be read as safetensors"),
    ],
)
def test_a_damaged_checker_is_refused(converted, tmp_path, damage, match):
    folder = tmp_path / "checker"
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (folder / name).write_bytes((converted["sd_filter"] / name).read_bytes())
    damage(folder)
    with pytest.raises(CheckpointError, match=match):
        load_sd_filter(folder=folder, device="cpu")
