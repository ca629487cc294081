"""Classifiers as victims: both paths agree, weights stay frozen, and what cannot be attacked says why."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from adversarial.errors import AttackError
from adversarial.problem import Problem
from adversarial.threat import ThreatModel
from adversarial.victim import Context
from eval.questions import Question
from eval.robustness.problems import build_problems, resize_to_input
from eval.robustness.victims import as_victim, check_victim
from judge.cascade.cascade import Cascade
from judge.cascade.filters_alone import FilterClassifier
from judge.cascade.settings import CascadeSettings
from judge.cascade.similarity import Platt
from judge.cascade.stages import Cutoffs
from judge.encoders.dual import DualEncoder
from judge.protocol import Scores
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.onnx import OnnxStudent
from judge.student.student import Student
from judge.vlm.remote import RemoteJudge
from judge.vlm.score import VisionLanguageJudge
from prompts import Category, Taxonomy
from prompts.errors import TaxonomyError
from prompts.example import Example
from prompts.flip.rows import Row

POLICY = Taxonomy("short", "1", (Category("one", "a 1"), Category("two", "a 2; or 3")))
OTHER = Taxonomy("other", "1", (Category("six", "a 6"), Category("two", "a 2")))
CONTEXTS = [
    Context(prompt, policy)
    for prompt, policy in zip(
        ["a two", None, "one", "", "six"], [POLICY, OTHER, POLICY, OTHER, POLICY], strict=True
    )
]


def make_student(folder, **options):
    encoder = DualEncoder.load(folder, device="cpu", **options)
    torch.manual_seed(0)
    head = CrossAttentionHead(HeadConfig(encoder.width, inner=32, heads=4, rank=4))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return Student(encoder, head)


@pytest.fixture
def student(tiny_clip_folder):
    return make_student(tiny_clip_folder)


@pytest.fixture
def images(noise_image):
    return [noise_image(seed, (16, 16)) for seed in range(5)]


def as_pixels(images):
    return torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in images]).float() / 255.0


def make_cascade(student, judge=None):
    settings = CascadeSettings(
        Platt(3.0, 0.0),
        Platt(9.0, 0.0),
        Cutoffs(2, 0.3, 0.8, 0.3, 0.6, 0.5),
        judge is not None,
        0.05,
        0.02,
        99,
    )
    return Cascade(student, settings, judge)


class Linear:
    """A classifier that is all arithmetic: unsafe where a picture is bright, each category likewise."""

    name = "linear"

    def __init__(self, dropout=0.0, shift=0.0):
        self.layer = nn.Linear(1, 1)
        nn.init.constant_(self.layer.weight, 8.0)
        nn.init.constant_(self.layer.bias, -4.0)
        self.layer.eval()
        self.dropout, self.shift, self.asked = dropout, shift, []

    def modules(self):
        return [self.layer]

    def pixel_margins(self, pixels, prompts, taxonomy, *, category=None):
        self.asked.append((taxonomy.name, list(prompts), category))
        bright = pixels.flatten(1).mean(1, keepdim=True) + (
            0 if category is None else taxonomy.index(category)
        )
        return nn.functional.dropout(self.layer(bright), self.dropout, True)[:, 0]

    def score(self, images, prompts, taxonomy):
        pixels = torch.cat([as_pixels([image]).mean((1, 2, 3)) for image in images])
        with torch.no_grad():
            columns = [self.layer(pixels[:, None] + place) for place in range(len(taxonomy))]
        found = torch.cat(columns, dim=1).double().sigmoid().numpy()
        unjudged = np.array([prompt == "unreadable" for prompt in prompts])
        unsafe = np.where(unjudged, np.nan, found[:, 0] + self.shift)
        return Scores(unsafe, found, tuple("x" if u else None for u in unjudged))


def grey(level, size=(8, 8)):
    return Image.new("RGB", size, (level, level, level))


# Margins


def test_policies_are_asked_apart_and_answers_keep_their_order(student, images):
    victim = as_victim(student)
    margins = victim.margins(as_pixels(images), CONTEXTS)
    assert margins.dtype == torch.float32
    for row, context in enumerate(CONTEXTS):
        alone = student.pixel_margins(as_pixels(images[row : row + 1]), [context.prompt], context.policy)
        assert margins[row].item() == pytest.approx(alone.item(), abs=1e-4)
        scored = student.score(images[row : row + 1], [context.prompt], context.policy).unsafe[0]
        assert victim.score(images, CONTEXTS)[row] == pytest.approx(scored, abs=1e-5)


def test_gradients_go_to_the_pixels_only(student, images):
    victim = as_victim(student)
    pixels = as_pixels(images).requires_grad_()
    victim.margins(pixels, CONTEXTS).sum().backward()
    assert (pixels.grad.flatten(1).abs().amax(1) > 0).all()
    for module in (student.head, student.encoder.model):
        assert not any(parameter.requires_grad for parameter in module.parameters())
        assert all(parameter.grad is None for parameter in module.parameters())


def test_every_stage_of_a_cascade_is_frozen(student, tiny_vlm):
    judge = VisionLanguageJudge(*tiny_vlm())
    student.head.requires_grad_(True)
    judge.model.requires_grad_(True)
    victim = as_victim(make_cascade(student, judge), path="judge")
    assert victim.no_gradients is None
    for module in (student.head, student.encoder.model, judge.model):
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_a_model_in_half_precision_takes_pixels_in_full(tiny_clip_folder, images):
    victim = as_victim(make_student(tiny_clip_folder, dtype="bfloat16"))
    pixels = as_pixels(images).requires_grad_()
    margins = victim.margins(pixels, CONTEXTS)
    (gradient,) = torch.autograd.grad(margins.sum(), pixels)
    assert margins.dtype == gradient.dtype == torch.float32
    assert (gradient.flatten(1).abs().amax(1) > 0).all()
    assert victim.classifier.encoder.model.dtype == torch.bfloat16
    check_victim(victim, images, CONTEXTS)


def test_a_category_is_asked_about_alone(student, images):
    # The less likely one: the likeliest is as likely as the whole (judge.protocol).
    victim, contexts = as_victim(student, category="one"), [Context(c.prompt, POLICY) for c in CONTEXTS]
    margins = victim.margins(as_pixels(images), contexts).sigmoid().numpy()
    scores = victim.score(images, contexts)
    assert margins == pytest.approx(scores, abs=1e-4)
    assert np.abs(scores - as_victim(student).score(images, contexts)).max() > 1e-3
    with pytest.raises(TaxonomyError, match=r"no category 'three'"):
        as_victim(student, category="three").score(images, CONTEXTS)


@pytest.mark.parametrize("threshold", [0.1, 0.9])
def test_a_threshold_is_moved_to_one_half(threshold):
    plain, victim = as_victim(Linear()), as_victim(Linear(), threshold=threshold)
    pictures = [grey(level) for level in range(0, 256, 5)]
    contexts = [Context(None, POLICY)] * len(pictures)
    flagged = plain.score(pictures, contexts) >= threshold
    assert 0 < flagged.sum() < len(flagged)
    assert np.array_equal(victim.score(pictures, contexts) >= 0.5, flagged)
    margins = victim.margins(as_pixels(pictures), contexts)
    assert np.array_equal(margins.numpy(force=True) >= 0, flagged)
    check_victim(victim, pictures, contexts)


def test_unknown_options_are_refused(student):
    with pytest.raises(AttackError, match="threshold is 1"):
        as_victim(student, threshold=1)
    with pytest.raises(AttackError, match="no cascade, so no path 'judge'"):
        as_victim(student, path="judge")
    cascade = make_cascade(student)
    with pytest.raises(AttackError, match=r"No path 'judge'.*any, filter, student"):
        as_victim(cascade, path="judge")
    with pytest.raises(AttackError, match="leave the threshold out"):
        as_victim(cascade, threshold=0.3)
    with pytest.raises(AttackError, match="'one' is that of whichever stage"):
        as_victim(cascade, category="one")
    with pytest.raises(AttackError, match="Context 0 has the policy 'x'"):
        as_victim(student).margins(torch.rand(1, 3, 8, 8), [Context(None, "x")])


# Victims without gradients


def named(kind, **attributes):
    return type(kind, (), {"name": kind.lower(), "score": Linear().score, **attributes})()


def remote():
    return named("RemoteJudge", why_no_gradients=RemoteJudge.why_no_gradients)


def exported():
    return named("OnnxStudent", why_no_gradients=OnnxStudent.why_no_gradients)


def test_who_has_no_gradients_says_why(student, tiny_vlm):
    assert "HTTP" in as_victim(remote()).no_gradients
    assert "ONNX" in as_victim(exported()).no_gradients
    assert "no pixel_margins" in as_victim(named("Oracle")).no_gradients
    qwen = VisionLanguageJudge(*tiny_vlm("qwen2_vl"))
    assert "image processor Qwen2VLImageProcessor" in as_victim(qwen).no_gradients
    cascade = make_cascade(student, remote())
    assert "stage 'remotejudge' is a RemoteJudge: it answers over HTTP" in as_victim(cascade).no_gradients
    assert as_victim(make_cascade(student)).no_gradients is None
    assert as_victim(FilterClassifier.from_cascade(cascade)).no_gradients is None
    problem = Problem(
        as_victim(exported()),
        torch.rand(1, 3, 8, 8),
        [Context(None, POLICY)],
        torch.ones(1),
        ThreatModel(0.1),
    )
    with pytest.raises(AttackError, match=r"exported ONNX graph.*transfer"):
        problem.gradient(problem.images, torch.tensor([0]))


def test_without_gradients_it_can_still_be_queried():
    victim = as_victim(exported())
    pictures = [grey(level) for level in (0, 100, 200)]
    contexts = [Context(prompt, POLICY) for prompt in (None, "", "unreadable")]
    margins = victim.margins(as_pixels(pictures), contexts)
    expected = [8 * level / 255 - 4 for level in (0, 100)]
    assert margins.numpy() == pytest.approx([*expected, 0.0], abs=1e-4)
    check_victim(victim, pictures, contexts)


# The check


def test_healthy_victims_pass(student, tiny_vlm, images):
    judge = VisionLanguageJudge(*tiny_vlm())
    for classifier in (
        student,
        judge,
        make_cascade(student, judge),
        FilterClassifier.from_cascade(make_cascade(student)),
    ):
        check_victim(as_victim(classifier), images, CONTEXTS)


def test_sizes_may_differ(student, noise_image):
    pictures = [noise_image(seed, size) for seed, size in enumerate([(16, 16), (20, 16), (16, 16)])]
    check_victim(as_victim(student), pictures, CONTEXTS[:3], tolerance=0.05)


def test_training_mode_is_caught(student, images):
    victim = as_victim(student)
    student.encoder.model.vision_model.train()
    with pytest.raises(AttackError, match=r"in training mode.*\.eval\(\)"):
        check_victim(victim, images, CONTEXTS)


def test_dropout_that_eval_mode_does_not_switch_off_is_caught(images):
    with pytest.raises(AttackError, match=r"differently from pass to pass.*dropout"):
        check_victim(as_victim(Linear(dropout=0.5)), images * 4, CONTEXTS * 4)


def test_paths_that_disagree_are_caught(images):
    with pytest.raises(
        AttackError, match=r"scores picture \d 0\.\d+ .* and 0\.\d+ by.*preprocessing differs"
    ):
        check_victim(as_victim(Linear(shift=0.1)), images, CONTEXTS)
    check_victim(as_victim(Linear(shift=0.1)), images, CONTEXTS, tolerance=0.11)


def test_a_cascade_whose_verdicts_disagree_is_caught(student, images, monkeypatch):
    victim = as_victim(make_cascade(student))
    scores = victim.score(images, CONTEXTS)
    monkeypatch.setattr(victim, "score", lambda *_: 1 - scores)
    with pytest.raises(AttackError, match="preprocessing differs"):
        check_victim(victim, images, CONTEXTS, tolerance=0.0)


# Problems


def question(number, picture, violates=(), policy=POLICY, unknown=(), prompt=None):
    example = Example(
        id=f"e{number}", image=picture, violates=frozenset(violates), unknown=frozenset(unknown)
    )
    unsafe = any(policy.label(example))
    return Question(f"q{number}", Row(example, policy, prompt, None, unsafe, None, None, "flip"))


BRIGHT, DARK = 200, 60


@pytest.fixture
def questions():
    """By `Linear`: 0 right unsafe, 1 right safe, 2 missed, 3 false alarm, 4 unjudged, 5 as 0 of another size."""
    return [
        question(0, grey(BRIGHT), ["one"]),
        question(1, grey(DARK)),
        question(2, grey(DARK), ["two"]),
        question(3, grey(BRIGHT), []),
        question(4, grey(BRIGHT), ["one"], prompt="unreadable"),
        question(5, grey(BRIGHT, (10, 6)), ["one"]),
    ]


def test_opposite_takes_every_question_and_counts_what_is_wrong_already(questions):
    square, wide = build_problems(as_victim(Linear()), questions, ThreatModel(8 / 255), batch_size=3, seed=5)
    assert square.places == [0, 1]
    assert square.misjudged == [2, 3]
    assert square.unjudged == [4]
    problem = square.problem
    assert problem.images.shape == (2, 3, 8, 8)
    assert problem.images.amax((1, 2, 3)).tolist() == pytest.approx([BRIGHT / 255, DARK / 255])
    assert problem.signs.tolist() == [1, -1]
    assert problem.contexts == (Context(None, POLICY), Context(None, POLICY))
    assert (problem.batch_size, problem.seed, problem.threat.epsilon) == (3, 5, 8 / 255)
    assert (problem.clean_margins() > 0).all()
    assert wide.places == [5]
    assert wide.problem.images.shape == (1, 3, 6, 10)


def test_safe_takes_unsafe_questions_only(questions):
    square, wide = build_problems(as_victim(Linear()), questions, ThreatModel(8 / 255, goal="safe"))
    assert (square.places, square.misjudged, square.unjudged) == ([0], [2], [4])
    assert (wide.places, wide.problem.signs.tolist()) == ([5], [1])


def test_a_size_of_which_nothing_is_left_is_still_counted(questions):
    [found] = build_problems(as_victim(Linear()), questions[2:4], ThreatModel(8 / 255))
    assert (found.places, found.misjudged) == ([], [0, 1])
    assert len(found.problem) == 0


def test_force_and_hide_go_by_the_category():
    far = Taxonomy("far", "1", (Category("nine", "a 9"),))
    asked = [
        question(0, grey(DARK), ["two"]),  # violates another
        question(1, grey(BRIGHT), ["one"]),
        question(2, grey(DARK), [], unknown=["one"]),
        question(3, grey(DARK), [], policy=far),
        question(4, grey(DARK), ["one"]),
        question(5, grey(BRIGHT), []),
    ]
    victim = as_victim(Linear(), category="ONE")
    [forced] = build_problems(victim, asked, ThreatModel(0.1, goal="force", category="ONE"))
    assert (forced.places, forced.misjudged, forced.problem.signs.tolist()) == ([0], [5], [-1])
    [hidden] = build_problems(victim, asked, ThreatModel(0.1, goal="hide", category="ONE"))
    assert (hidden.places, hidden.misjudged, hidden.problem.signs.tolist()) == ([1], [4], [1])
    hidden.problem.signed_margins(hidden.problem.images, torch.tensor([0]))
    assert victim.classifier.asked[-1][2] == "ONE"


def test_goals_and_victims_that_do_not_fit(questions):
    with pytest.raises(AttackError, match="has the category 'one', but linear scores None"):
        build_problems(as_victim(Linear()), questions, ThreatModel(0.1, goal="force", category="one"))
    with pytest.raises(AttackError, match="has the category None, but linear scores 'one'"):
        build_problems(as_victim(Linear(), category="one"), questions, ThreatModel(0.1))
    with pytest.raises(AttackError, match="no policy has 'nine'"):
        build_problems(
            as_victim(Linear(), category="nine"), questions, ThreatModel(0.1, goal="hide", category="nine")
        )
    with pytest.raises(AttackError, match="None of 2 questions"):
        build_problems(as_victim(Linear()), [questions[1], questions[3]], ThreatModel(0.1, goal="safe"))


# Pictures at the model's input


def test_at_the_input_pictures_have_the_models_size_and_nothing_is_resized_again(student, noise_image):
    victim = as_victim(student)
    picture = noise_image(0, (40, 24))
    small = resize_to_input(victim, picture)
    assert small.size == (16, 16)
    assert resize_to_input(victim, small) == small
    exact = student.encoder.pixel_values([picture])
    assert student.encoder.pixel_values([small]).numpy() == pytest.approx(exact.numpy(), abs=1e-5)
    asked = [question(n, noise_image(n, (40, 24)), ["one"] if n % 2 else []) for n in range(6)]
    [found] = build_problems(victim, asked, ThreatModel(8 / 255, space="input"))
    assert found.problem.images.shape[1:] == (3, 16, 16)
    assert sorted(found.places + found.misjudged) == list(range(6))
    if found.places:
        assert (found.problem.clean_margins() > 0).all()


def test_stages_that_see_different_sizes_are_attacked_through_the_file(
    tiny_clip_folder, tiny_vlm, noise_image
):
    student, judge = make_student(tiny_clip_folder), VisionLanguageJudge(*tiny_vlm())
    picture = noise_image(0, (40, 24))
    assert resize_to_input(as_victim(make_cascade(student, judge)), picture).size == (16, 16)
    steps = judge.processor.image_processor
    judge.processor.image_processor = type(steps)(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}
    )
    with pytest.raises(AttackError, match=r"input of 16 x 16 again.*space='file'"):
        resize_to_input(as_victim(make_cascade(student, judge)), picture)


def test_an_unknown_input_size_is_said(noise_image):
    with pytest.raises(AttackError, match=r"not known here.*space='file'"):
        resize_to_input(as_victim(Linear()), noise_image(0))
    tiles = SimpleNamespace(
        name="tiles",
        score=None,
        image_processor=lambda **_: {"pixel_values": torch.zeros(9, 16)},
    )
    with pytest.raises(AttackError, match=r"shape \(9, 16\)"):
        resize_to_input(as_victim(tiles), noise_image(0))
