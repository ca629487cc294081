"""The student as a classifier: protocol, caches, gradients, saving, and what it refuses."""

import json

import numpy as np
import pytest
import torch

from judge import load_classifier
from judge.encoders.dual import DualEncoder
from judge.encoders.phrases import KINDS
from judge.errors import CheckpointError
from judge.lessons.envelope import LessonsEnvelope
from judge.runs.folder import RunDir
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.student import Student, load_student, save_student
from prompts import Category, Taxonomy, load_taxonomy
from prompts.errors import ArbiterError

DIGITS = Taxonomy(
    "short", "1", (Category("one", "a 1"), Category("two", "a 2"), Category("six", "a 6; or 9"))
)


def make_student(folder, seed=0, **options):
    torch.manual_seed(seed)
    encoder = DualEncoder.load(folder)
    head = CrossAttentionHead(HeadConfig(encoder.width, inner=32, heads=4, rank=4))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return Student(encoder, head, **options)


@pytest.fixture
def student(tiny_clip_folder):
    return make_student(tiny_clip_folder, batch_size=2)


@pytest.fixture
def images(noise_image):
    return [noise_image(seed) for seed in range(5)]


PROMPTS = ["a two", None, "", "a photo of six and more words than one window holds", "one"]


@pytest.mark.parametrize("family", ["clip", "siglip", "mean"])
def test_scores_are_probabilities_of_the_right_shape(tiny_encoder_folder, images, family):
    scores = make_student(tiny_encoder_folder(family)).score(images, PROMPTS, DIGITS)
    assert scores.unsafe.shape == (5,)
    assert scores.categories.shape == (5, 3)
    assert scores.reasons == (None,) * 5
    assert scores.decided_by == ("student",) * 5
    for values in (scores.unsafe, scores.categories):
        assert ((values > 0) & (values < 1)).all()


def test_images_under_a_taxonomy_each_are_scored_as_alone(student, images):
    short, long = DIGITS.select(["two"]), load_taxonomy("digits")
    taxonomies = [DIGITS, short, DIGITS, long, short]
    mixed = student.score_mixed(images, PROMPTS, taxonomies)
    for found, image, prompt, taxonomy in zip(mixed, images, PROMPTS, taxonomies, strict=True):
        alone = student.score([image], [prompt], taxonomy)
        np.testing.assert_allclose(found.unsafe, alone.unsafe, atol=1e-5)
        np.testing.assert_allclose(found.categories, alone.categories, atol=1e-5)
        assert (found.reasons, found.decided_by) == (alone.reasons, alone.decided_by)


def test_batches_do_not_matter(student, images):
    whole = student.score(images, PROMPTS, DIGITS)
    for row, (image, prompt) in enumerate(zip(images, PROMPTS, strict=True)):
        alone = student.score([image], [prompt], DIGITS)
        np.testing.assert_allclose(alone.unsafe[0], whole.unsafe[row], atol=1e-5)
        np.testing.assert_allclose(
            alone.category_probabilities[0], whole.category_probabilities[row], atol=1e-5
        )


def test_a_blank_prompt_is_no_prompt(student, images):
    scores = student.score([images[0]] * 3, [None, "", "  "], DIGITS).unsafe
    np.testing.assert_allclose(scores, scores[0], atol=1e-6)
    student.prompt_mode = "use"
    assert abs(student.score(images[:1], ["two"], DIGITS).unsafe[0] - scores[0]) > 1e-6


def test_order_names_and_definitions(student, images):
    base = student.score(images, None, DIGITS)
    turned = student.score(images, None, DIGITS.select(["six", "one", "two"]))
    np.testing.assert_allclose(
        turned.category_probabilities, base.category_probabilities[:, [2, 0, 1]], atol=1e-6
    )
    np.testing.assert_allclose(turned.unsafe, base.unsafe, atol=1e-6)
    renamed = student.score(images, None, DIGITS.rename({"one": "1"}))
    assert np.abs(renamed.category_probabilities[:, 0] - base.category_probabilities[:, 0]).max() > 1e-6
    np.testing.assert_allclose(
        renamed.category_probabilities[:, 1:], base.category_probabilities[:, 1:], atol=1e-6
    )
    reworded = student.score(images, None, DIGITS.reword({"one": "big"}))
    assert np.abs(reworded.category_probabilities[:, 0] - base.category_probabilities[:, 0]).max() > 1e-6


def test_the_taxonomy_side_is_computed_once(student, images, monkeypatch):
    student.score(images, None, DIGITS)
    read = []
    monkeypatch.setattr(
        student.encoder,
        "encode_texts",
        lambda texts: read.append(texts) or DualEncoder.encode_texts(student.encoder, texts),
    )
    student.score(images, None, DIGITS)
    assert all(text == "" for texts in read for text in texts)
    student.clear_cache()
    student.score(images, None, DIGITS.extend({"nine": "a 9"}))
    assert sorted(text for texts in read for text in texts if text) == ["a 9", "nine"]


def test_outside_its_lessons_it_judges_nothing_and_reads_no_prompt(student, images):
    student.envelope = LessonsEnvelope.of([DIGITS], ["a photo of two"])
    more = DIGITS.extend({"nine": "a 9"})
    for scores in (
        student.score(images, None, more),
        student.score_tokens(student.encoder.encode_images(images), None, more),
    ):
        assert np.isnan(scores.unsafe).all()
        assert scores.reasons == (student.outside_lessons(more),) * 5
    found, alone = (student.score(images[:2], asked, DIGITS) for asked in (["two", "два"], None))
    assert "Cyrillic" in found.notes[1]
    assert found.notes[0] is None
    assert found.unsafe[1] == alone.unsafe[1]


def test_no_images(student):
    scores = student.score([], None, DIGITS)
    assert scores.unsafe.shape == (0,)
    assert scores.categories.shape == (0, 3)


def test_pixel_margins_are_the_logits_with_a_gradient(student, images):
    pixels = (
        torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]).float() / 255
    )
    pixels.requires_grad_(True)
    margins = student.pixel_margins(pixels, PROMPTS, DIGITS)
    np.testing.assert_allclose(
        margins.detach().sigmoid().numpy(), student.score(images, PROMPTS, DIGITS).unsafe, atol=2e-2
    )
    (gradient,) = torch.autograd.grad(margins.sum(), pixels)
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()
    pushed = (pixels + 0.02 * gradient.sign()).clamp(0, 1).detach()
    assert (student.pixel_margins(pushed, PROMPTS, DIGITS) > margins).float().mean() > 0.7


def test_numbers_that_are_not_finite_are_unjudged(student, images):
    with torch.no_grad():
        student.head.plain.bias.fill_(float("nan"))
    scores = student.score(images[:2], None, DIGITS)
    assert np.isnan(scores.unsafe).all()
    assert np.isnan(scores.categories).all()
    assert all("finite" in reason for reason in scores.reasons)


@pytest.mark.parametrize("prompt", ["two " * 3000, "\u8a9e" * 200])
def test_a_prompt_longer_than_is_read_leaves_the_image_alone(student, images, prompt):
    """More characters than are read of any prompt; and one window of more tokens than the encoder takes."""
    alone = student.score(images[:2], None, DIGITS)
    scores = student.score(images[:2], [prompt, None], DIGITS)
    np.testing.assert_array_equal(scores.unsafe, alone.unsafe)
    assert scores.reasons == (None, None)
    assert scores.notes[0].startswith("the prompt was not read: ")
    assert scores.notes[1] is None
    student.prompt_mode = "use"
    scores = student.score(images[:2], [prompt, None], DIGITS)
    assert np.isnan(scores.unsafe).tolist() == [True, False]
    assert np.isnan(scores.categories[0]).all()
    assert scores.reasons[0].startswith("the prompt was not read: ")
    pixels = torch.rand(2, 3, 20, 16)
    assert student.pixel_margins(pixels, [prompt, None], DIGITS).isnan().tolist() == [True, False]


def test_the_highest_reading_counts(student, images):
    """Against each reading by itself: the image alone, and every window."""
    prompt = "a photo of six, " * 40 + "a two"
    readings = student.read_prompts([prompt])
    assert len(readings) > 2
    found = student.score(images[:1], [prompt], DIGITS)
    student.prompt_mode = "use"
    each = [student.score(images[:1], [text], DIGITS) for text in readings.texts]
    np.testing.assert_allclose(found.unsafe[0], max(one.unsafe[0] for one in each), atol=1e-6)
    np.testing.assert_allclose(
        found.categories[0], np.max([one.categories[0] for one in each], axis=0), atol=1e-6
    )
    pixels = torch.rand(1, 3, 20, 16)
    for category in (None, "two"):
        one_by_one = [
            student.pixel_margins(pixels, [text], DIGITS, category=category) for text in readings.texts
        ]
        student.prompt_mode = "max"
        margin = student.pixel_margins(pixels, [prompt], DIGITS, category=category)
        student.prompt_mode = "use"
        torch.testing.assert_close(margin, torch.stack(one_by_one).amax(0), atol=1e-5, rtol=1e-5)
    student.prompt_mode = "ignore"
    np.testing.assert_array_equal(
        student.score(images, PROMPTS, DIGITS).unsafe, student.score(images, None, DIGITS).unsafe
    )


def test_another_mode_is_refused(tiny_clip_folder):
    with pytest.raises(ArbiterError, match="No prompt mode 'some'"):
        make_student(tiny_clip_folder, prompt_mode="some")


def test_prompts_must_match_images(student, images):
    with pytest.raises(ValueError, match="5 images but 1 prompts"):
        student.score(images, ["one"], DIGITS)


def test_a_definition_longer_than_the_context_is_the_mean_of_its_windows(student, images):
    text = "far too many words for this little text encoder to read at once"
    scores = student.score(images, None, DIGITS.extend({"long": text}))
    assert not np.isnan(scores.categories).any()
    embeddings, kinds = student.phrase_embeddings.embed([DIGITS.extend({"long": text})])
    definition = embeddings[0, -1, (kinds[0, -1] == KINDS.index("definition")).nonzero()[0, 0]]
    ids = student.encoder.tokenizer(text, add_special_tokens=False).input_ids
    size = student.encoder.context - 2
    windows = [student.encoder.tokenizer.decode(ids[i : i + size]) for i in range(0, len(ids), size)]
    assert len(windows) > 1
    pooled = torch.stack([student.encoder.encode_texts([window])[0][0, 0] for window in windows])
    torch.testing.assert_close(definition, pooled.mean(dim=0), rtol=1e-4, atol=1e-5)


def save(student, path):
    run = RunDir.create(path, kind="student")
    run.write_taxonomy(DIGITS)
    save_student(run, student)
    return run


def test_saved_and_loaded(student, images, tmp_path):
    with torch.no_grad():
        student.head.calibration.copy_(torch.tensor([[1.5, 0.3], [0.7, -0.2]]))
    run = save(student, tmp_path / "run")
    loaded = load_classifier(run.path)
    assert loaded.name == "run"
    assert loaded.default_taxonomy == DIGITS
    np.testing.assert_allclose(
        loaded.score(images, PROMPTS, DIGITS).unsafe, student.score(images, PROMPTS, DIGITS).unsafe, atol=1e-6
    )


def test_another_encoder_is_refused(student, tmp_path, tiny_encoder_folder):
    run = save(student, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"of width 24, and .* has width 32"):
        load_student(run, encoder=DualEncoder.load(tiny_encoder_folder("siglip")))
    with torch.no_grad():
        other = DualEncoder.load(student.encoder.name)
        other.fingerprint = "0" * 64
    with pytest.raises(CheckpointError, match="fingerprint 0000000000000000; load that encoder and revision"):
        load_student(run, encoder=other)


def test_a_head_of_another_width_is_refused(tiny_clip_folder):
    with pytest.raises(CheckpointError, match="encoder of width 16"):
        Student(DualEncoder.load(tiny_clip_folder), CrossAttentionHead(HeadConfig(16, inner=8, heads=2)))


@pytest.mark.parametrize("damage", ["missing", "truncated", "shape", "unknown", "json"])
def test_damaged_runs_are_refused(student, tmp_path, damage):
    run = save(student, tmp_path / "run")
    weights, shape = run.path / "head.safetensors", run.path / "head.json"
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:200])
    elif damage == "json":
        shape.write_text("{")
    else:
        content = json.loads(shape.read_text())
        content |= {"inner": 64} if damage == "shape" else {"colour": "red"}
        shape.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="holds no student that can be loaded"):
        load_student(run)


def test_a_template_makes_no_sense(student, tmp_path):
    run = save(student, tmp_path / "run")
    with pytest.raises(CheckpointError, match="has no template"):
        load_classifier(run.path, template="perspective")


@pytest.mark.slow
def test_the_encoder_that_ships_knows_digits_it_was_never_asked_about():
    """Zero-shot: an untrained head on tiny-clip judges all ten digits."""
    from judge.standins.digits import digits_examples

    encoder = DualEncoder.load("tiny-clip")
    student = Student(encoder, CrossAttentionHead(HeadConfig(encoder.width, inner=32)))
    taxonomy = load_taxonomy("digits")
    examples = [example for example in digits_examples("validation", count=120) if example.violates]
    scores = student.score([e.image for e in examples], [None] * len(examples), taxonomy)
    right = [
        taxonomy.keys[row.argmax()] in e.violates for row, e in zip(scores.categories, examples, strict=True)
    ]
    assert np.mean(right) > 0.93
