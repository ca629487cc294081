"""eval/causes: variations of images, which images are varied, whether people kept them, and what classifiers say."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from fixtures_benchmark import synthetic_predictions
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eval.benchmark.predictions import About, Prediction, Predictions
from eval.causes.case_study import study_cases
from eval.causes.chosen_images import ChosenImages, choose_images
from eval.causes.diffusion_style import DiffusionStyle
from eval.causes.review import TABLE, read_review, review_hash, write_review
from eval.causes.variations import (
    GRIDS,
    STRENGTHS,
    PainterlyFilter,
    draw_variations,
    kuwahara,
    tile,
)
from judge.errors import CheckpointError, ConfigError
from judge.protocol import Scores
from prompts import load_taxonomy
from prompts.example import Example

TAXONOMY = load_taxonomy("digits").select(["three", "four"])
VARIATIONS = 1 + len(STRENGTHS) + len(GRIDS)


# Variations


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_paintings_keep_size_and_range_of_colours(width, height, strength):
    levels = np.random.default_rng(width * height).integers(40, 200, (height, width, 3), dtype=np.uint8)
    painted = PainterlyFilter().paint(Image.fromarray(levels), strength)
    assert painted.size == (width, height)
    found = np.asarray(painted)
    assert levels.min() <= found.min() <= found.max() <= levels.max()  # means of what was there


def test_strength_changes_more_and_more_and_none_changes_nothing(noise_image):
    image = noise_image(0, (48, 40))
    pixels = np.asarray(image, dtype=float)
    changes = [
        np.abs(np.asarray(PainterlyFilter().paint(image, s), dtype=float) - pixels).mean()
        for s in (0, *STRENGTHS)
    ]
    assert changes[0] == 0
    assert changes == sorted(changes)
    assert changes[-1] > 5


def test_kuwahara_equals_a_plain_loop():
    pixels = np.random.default_rng(0).uniform(0, 255, (7, 9, 3))
    width = 3
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), mode="symmetric")
    found = kuwahara(pixels, width)
    for row in range(7):
        for column in range(9):
            # The four windows that have the pixel, at (row + 2, column + 2) of the padded picture, in a corner.
            windows = [
                padded[row + a : row + a + 3, column + b : column + b + 3] for a in (0, 2) for b in (0, 2)
            ]
            best = min(windows, key=lambda window: window.mean(axis=2).var())
            assert found[row, column] == pytest.approx(best.mean(axis=(0, 1)))


def test_an_even_edge_survives_the_filter():
    pixels = np.zeros((20, 20, 3))
    pixels[:, 10:] = 200
    assert kuwahara(pixels, 5) == pytest.approx(pixels, abs=1e-6)


def test_grids_hold_the_whole_picture_in_every_place():
    image = Image.new("RGB", (40, 24), "white")
    image.paste("black", (0, 0, 20, 24))
    for copies in GRIDS:
        tiled = np.asarray(tile(image, copies).convert("L"), dtype=float)
        assert tiled.shape == (24, 40)
        assert tiled.mean() == pytest.approx(127.5, abs=8)
        # From dark to light once a copy.
        assert (np.diff((tiled[12] > 200).astype(int)) == 1).sum() == copies


def test_every_image_gets_its_variations(noise_image):
    examples = [Example("a", noise_image(0)), Example("b", noise_image(1, (1600, 400)))]
    found = draw_variations(examples, PainterlyFilter())
    assert len(found) == 2 * VARIATIONS
    assert [one.name for one in found[:VARIATIONS]] == [
        "original", *(f"style-{s:g}" for s in STRENGTHS), *(f"grid-{g}" for g in GRIDS),
    ]  # fmt: skip
    assert {one.image.size for one in found[:VARIATIONS]} == {(20, 16)}  # never enlarged
    assert {one.image.size for one in found[VARIATIONS:]} == {(512, 128)}
    for wrong in ({"strengths": [0]}, {"strengths": [1.1]}, {"grids": [1]}, {"grids": [7]}):
        with pytest.raises(ConfigError, match="strengths are over 0"):
            draw_variations(examples, PainterlyFilter(), **wrong)


# Choosing images


def predictions(label, scores, *, violates=("three",), asked=("three", "four"), **values):
    """p(unsafe) that a classifier gives to images 0, 1, ...; None: it was not asked about that image."""
    about = About(label, label, "other", TAXONOMY, tuple(asked), "digits", ("test",))
    rows = [
        Prediction(str(n), frozenset(violates), frozenset(), p, (p, p), frozenset(asked), **values)
        for n, p in enumerate(scores)
        if p is not None
    ]
    return Predictions(about, tuple(rows))


def images(count, noise, **values):
    values = {"violates": frozenset({"three"}), "source": "real", **values}
    return [Example(str(n), noise(n), "a prompt", **values) for n in range(count)]


def test_images_are_those_that_everybody_gets_right(noise_image):
    examples = images(6, noise_image)
    examples[5] = replace(examples[5], source="generated")
    both = [
        predictions("one", [0.9, 0.9, 0.9, 0.1, math.nan, 0.9]),
        predictions("two", [0.9, 0.1, None, 0.9, 0.9, 0.9]),
    ]
    found = choose_images(examples, both, labels=["one", "two"], images=9)
    assert [one.id for one in found.examples] == ["0", "2"]
    assert found.candidates == 2
    assert found.labels == ("one", "two")
    [only] = choose_images(examples, both, labels=["one", "two"], images=1, seed=1).examples
    assert only.id in ("0", "2")
    assert [e.id for e in choose_images(examples, both, source="generated", images=1).examples] == ["5"]
    assert choose_images(examples, both, labels=["one", "two"], category="four").examples == ()
    with pytest.raises(ConfigError, match="no predictions of too; there are of one, two"):
        choose_images(examples, both, labels=["too"])


def test_a_classifier_that_finds_little_is_left_out_and_said(noise_image):
    examples = images(10, noise_image)
    several = [
        predictions("blind", [0.1] * 9 + [0.9]),
        predictions("good", [0.9] * 9 + [0.1]),
        predictions("fair", [0.9] * 8 + [0.1] * 2),
    ]
    found = choose_images(examples, several, images=10)
    assert found.labels == ("good", "fair")
    assert len(found.examples) == 8
    assert found.left_out == {
        "blind": "flags 10% of the unsafe images of source 'real'; too few would be left"
    }
    # Asked for by name, it stays, and there is nothing to vary.
    assert choose_images(examples, several, labels=["blind", "good"]).examples == ()
    # None is left out for a handful of images more.
    few = choose_images(examples[:9], several[1:], images=20)
    assert few.labels == ("good", "fair")
    assert choose_images(examples, [], images=10).examples == ()


def test_an_image_that_shows_nothing_a_classifier_covers_is_none_of_its(noise_image):
    examples = images(4, noise_image)
    found = choose_images(examples, [predictions("four only", [0.1] * 4, asked=("four",))])
    assert found.examples == ()
    both = [predictions("four only", [0.1] * 4, asked=("four",)), predictions("all", [0.9] * 4)]
    found = choose_images(examples, both, labels=["four only", "all"])
    assert len(found.examples) == 4
    assert found.labels == ("all",)
    assert found.left_out == {"four only": "covers nothing that these images show"}


# Asking about variations


class Fragile:
    """Flags a picture unless it differs too much from the originals that it was shown."""

    name = "fragile"

    def __init__(self, examples, limit, crash=()):
        self.limit, self.crash, self.asked, self.prompts = limit, crash, 0, []
        self.originals = [np.asarray(example.image, dtype=float) for example in examples]

    def score(self, images, prompts, taxonomy):
        self.asked += len(images)
        self.prompts += prompts
        found = []
        for image in images:
            pixels = np.asarray(image, dtype=float)
            distance = min(np.abs(pixels - one).mean() for one in self.originals)
            if any(low <= distance < high for low, high in self.crash):
                raise RuntimeError("cannot look at this")
            found.append(0.9 if distance <= self.limit else 0.1)
        scores = np.array(found)
        return Scores(scores, np.column_stack([scores] * len(taxonomy)), (None,) * len(images))


@pytest.fixture
def case(noise_image):
    """Six images, their variations, and how far the paintings of each strength are from the originals."""
    examples = images(6, lambda seed: noise_image(seed, (32, 32)))
    variations = draw_variations(examples, PainterlyFilter())
    originals = {v.id: np.asarray(v.image, dtype=float) for v in variations if v.kind == "original"}
    distances = {}
    for v in variations:
        distance = np.abs(np.asarray(v.image, dtype=float) - originals[v.id]).mean()
        distances.setdefault(v.name, []).append(distance)
    chosen = ChosenImages(tuple(examples), ("fragile",), 9, {"blind": "sees nothing"})
    return chosen, variations, distances


def abouts(*labels):
    return {label: synthetic_predictions(label, taxonomy="digits").about for label in labels}


def test_a_classifier_that_fails_from_a_known_strength_on(case, tmp_path):
    chosen, variations, distances = case
    limit = (max(distances["style-0.3"]) + min(distances["style-0.4"])) / 2
    assert max(distances["style-0.3"]) < limit < min(distances["style-0.4"])
    classifier = Fragile(chosen.examples, limit)
    found = study_cases(chosen, variations, abouts("fragile"), lambda label: classifier, tmp_path)
    table = found["classifiers"]["fragile"]
    assert table["original"]["share"] == 1.0
    assert [cell["share"] for cell in table["style"]] == [1, 1, 1, 0, 0, 0]
    assert [cell["level"] for cell in table["style"]] == list(STRENGTHS)
    assert [cell["drop"] for cell in table["grid"]] == [1, 1, 1]
    assert table["style"][3]["drop_interval"] == [1, 1]
    low, high = table["style"][0]["interval"]
    assert low < 0.7 < high == 1.0  # six images say little
    assert found["left_out"] == {"blind": "sees nothing"}
    assert found["together"] == {k: v for k, v in table.items() if k != "reasons"}
    assert set(classifier.prompts) == {None}
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_what_was_said_is_kept(case, tmp_path):
    chosen, variations, _ = case
    classifier = Fragile(chosen.examples, 5)
    runs = [
        study_cases(chosen, variations, abouts("fragile"), lambda label: classifier, tmp_path)
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert classifier.asked == len(variations)
    # Nor is it loaded when a review leaves fewer of these pictures.
    fewer = study_cases(chosen, variations, abouts("fragile"), {}.__getitem__, tmp_path, keep=["1"])
    assert fewer["classifiers"]["fragile"]["images"] == 1
    # Other pictures are asked about anew.
    study_cases(chosen, variations[:VARIATIONS], abouts("fragile"), lambda label: classifier, tmp_path)
    assert classifier.asked == len(variations) + VARIATIONS


def test_a_crash_is_unjudged_and_not_right(case, tmp_path):
    chosen, variations, distances = case
    middle = [min(distances["style-0.5"]) - 0.1, max(distances["style-0.5"]) + 0.1]
    assert max(distances["style-0.4"]) < middle[0] < middle[1] < min(distances["style-0.6"])
    classifier = Fragile(chosen.examples, 1e9, crash=[middle])
    found = study_cases(chosen, variations, abouts("fragile"), lambda label: classifier, tmp_path)
    table = found["classifiers"]["fragile"]
    assert [cell["unjudged"] for cell in table["style"]] == [0, 0, 0, 0, 6, 0]
    assert [cell["share"] for cell in table["style"]] == [1, 1, 1, 1, 0, 1]
    assert table["reasons"] == {"the classifier crashed: RuntimeError: cannot look at this": 6}


def test_a_classifier_that_cannot_be_asked_is_left_out(case, tmp_path):
    chosen, variations, _ = case
    chosen = replace(chosen, labels=("fragile", "gone", "broken", "elsewhere"))
    classifiers = {
        "fragile": Fragile(chosen.examples, 1e9),
        "broken": Fragile(chosen.examples, 0, crash=[(-1, 1e9)]),
    }

    def load(label):
        if label == "gone":
            raise CheckpointError("no such folder")
        return classifiers[label]

    labels = abouts("fragile", "gone", "broken", "elsewhere")
    found = study_cases(chosen, variations, labels, load, tmp_path)
    assert list(found["classifiers"]) == ["fragile"]
    assert found["left_out"]["gone"] == "no such folder"
    assert found["left_out"]["elsewhere"] == "only its predictions were given"
    assert "crashed" in found["left_out"]["broken"]
    nobody = study_cases(replace(chosen, labels=("gone",)), variations, labels, load, tmp_path)
    assert nobody["classifiers"] == {}
    assert nobody["together"] is None


def test_a_classifier_counts_only_for_what_it_covers(case, tmp_path):
    chosen, variations, _ = case
    examples = [replace(e, violates=frozenset({"four"})) if e.id in "13" else e for e in chosen.examples]
    about = replace(abouts("fragile")["fragile"], covers=("four",))
    classifier = Fragile(chosen.examples, 1e9)
    found = study_cases(
        replace(chosen, examples=tuple(examples)),
        variations,
        {"fragile": about},
        lambda label: classifier,
        tmp_path,
    )
    assert found["classifiers"]["fragile"]["images"] == 2
    assert found["classifiers"]["fragile"]["original"]["right"] == 2


def test_images_that_lost_their_content_leave_with_all_variations(case, tmp_path):
    chosen, variations, _ = case
    classifier = Fragile(chosen.examples, 1e9)
    about = abouts("fragile")
    found = study_cases(chosen, variations, about, lambda label: classifier, tmp_path, keep=["1", "4"])
    assert found["images"] == ["1", "4"]
    assert found["dropped"] == ["0", "2", "3", "5"]
    assert classifier.asked == 2 * VARIATIONS
    none = study_cases(chosen, variations, about, lambda label: classifier, tmp_path, keep=[])
    assert none["images"] == []
    assert none["classifiers"] == {}
    assert classifier.asked == 2 * VARIATIONS


# Reviewing


def answer(folder, give):
    with (folder / TABLE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["keep"] = give(number, row)
    with (folder / TABLE).open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_pictures_are_written_for_a_person_and_their_answers_read(case, tmp_path):
    _, variations, _ = case
    assert review_hash(None) is review_hash(tmp_path / "review") is None
    table = write_review(tmp_path / "review", variations)
    unanswered = review_hash(table.parent)
    assert len(list(table.parent.glob("*.png"))) == len(variations)
    picture = Image.open(table.parent / "002-style-0.4.png")
    [same] = [v for v in variations if v.id == "1" and v.name == "style-0.4"]
    assert np.array_equal(np.asarray(picture), np.asarray(same.image))
    assert read_review(table.parent, variations) is None
    answer(table.parent, lambda number, row: "no" if row["file"] == "003-style-0.2.png" else " Yes")
    assert read_review(table.parent, variations) == {"0", "1", "3", "4", "5"}
    assert review_hash(table.parent) != unanswered
    before = table.read_text()
    write_review(table.parent, variations)
    assert table.read_text() == before


def test_half_a_review_and_one_of_other_pictures(case, tmp_path):
    chosen, variations, _ = case
    write_review(tmp_path, variations)
    answer(tmp_path, lambda number, row: "yes" if number else "")
    with pytest.raises(ConfigError, match="1 of 54 pictures have no yes or no"):
        read_review(tmp_path, variations)
    answer(tmp_path, lambda number, row: "yes")
    other = draw_variations(chosen.examples, PainterlyFilter(1 / 4))
    with pytest.raises(ConfigError, match="about other pictures"):
        read_review(tmp_path, other)
    with pytest.raises(ConfigError, match="no such file"):
        read_review(tmp_path / "nowhere", variations)


# Diffusion


@pytest.fixture(scope="module")
def tiny_diffusion(tmp_path_factory):
    """A random Stable Diffusion of 16 x 16 latents, saved as the hub has them."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionImg2ImgPipeline, UNet2DConditionModel
    from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel

    from judge.standins.shipped import checkpoint_path

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path("tiny-clip"))
    tokenizer.model_max_length = 16
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    pipeline = StableDiffusionImg2ImgPipeline(
        vae, CLIPTextModel(text), tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    folder = tmp_path_factory.mktemp("diffusion") / "tiny"
    pipeline.save_pretrained(folder)
    return folder


def test_a_diffusion_model_paints(tiny_diffusion, noise_image):
    style = DiffusionStyle.load(tiny_diffusion, steps=2, device="cpu")
    assert style.pipeline.safety_checker is None
    assert style.describe() == {
        "kind": "diffusion",
        "said": "tiny, image to image, prompt 'in the style of oil painting', 2 steps, seed 0",
    }
    image = noise_image(0, (44, 30))
    painted = style.paint(image, 0.5)
    assert painted.size == (44, 30)
    assert painted.mode == "RGB"
    assert not np.array_equal(np.asarray(painted), np.asarray(image))
    assert np.array_equal(np.asarray(painted), np.asarray(style.paint(image, 0.5)))
    assert not np.array_equal(np.asarray(painted), np.asarray(style.paint(image, 1.0)))
    assert not np.array_equal(np.asarray(painted), np.asarray(replace(style, seed=1).paint(image, 0.5)))
    assert style.paint(image, 0) is image
    with pytest.raises(ConfigError, match="take at least 10 steps"):
        style.paint(image, 0.1)
    with pytest.raises(ConfigError, match="at least 1"):
        replace(style, steps=0)


def changed_index(source, folder, change):
    import shutil

    shutil.copytree(source, folder)
    index = json.loads((folder / "model_index.json").read_text())
    change(index)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.update(unet=["os", "system"]), "only classes of diffusers and transformers"),
        (lambda index: index.update(unet=["unet.py", "Mine"]), "only classes of diffusers and transformers"),
        (lambda index: index.update(_class_name="FluxPipeline"), "holds 'FluxPipeline'"),
        (lambda index: index.pop("vae"), "could not be loaded as Stable Diffusion"),
    ],
)
def test_what_is_no_stable_diffusion_is_refused(tiny_diffusion, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        DiffusionStyle.load(changed_index(tiny_diffusion, tmp_path / "other", change))


def test_pickled_weights_are_not_loaded(tiny_diffusion, tmp_path):
    import torch
    from safetensors.torch import load_file

    folder = changed_index(tiny_diffusion, tmp_path / "pickled", lambda index: None)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(
        load_file(weights), weights.with_suffix(".bin")
    )  # diffusers would read it, if it were asked to
    weights.unlink()
    with pytest.raises(CheckpointError, match="could not be loaded as Stable Diffusion"):
        DiffusionStyle.load(folder)
    for index in ("[]", "{", None):
        if index is None:
            (folder / "model_index.json").unlink()
        else:
            (folder / "model_index.json").write_text(index)
        with pytest.raises(CheckpointError, match=r"holds None|not JSON|cannot be read"):
            DiffusionStyle.load(folder)
