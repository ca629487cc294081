"""The cascade's adaptive margin: its sign is the verdict, its gradient leads to the other one by any stage."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from judge.cascade.cascade import Cascade
from judge.cascade.margins import FAR, PATHS, StageLogits, margins_from_logits
from judge.cascade.pixel_margins import cascade_margins
from judge.cascade.settings import CascadeSettings
from judge.cascade.similarity import Platt, Similarities
from judge.cascade.stages import NEVER, STAGES, Cutoffs, decide
from judge.encoders.dual import DualEncoder
from judge.errors import ConfigError
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.student import Student
from judge.vlm.score import VisionLanguageJudge
from prompts import Category, Taxonomy

POLICY = Taxonomy("short", "1", (Category("one", "a 1"), Category("two", "a 2; or 3")))
PLAIN = Cutoffs(0.8, 0.1, 0.9, 0.3, 0.6, 0.5)
NAN = float("nan")


def columns(rows, with_judge=True, dtype=torch.float64):
    found = torch.tensor(rows, dtype=dtype).T
    return StageLogits(*found[:3], found[3] if with_judge else None)


def of(*row, cutoffs=PLAIN, with_judge=True, **options):
    """The margin of one row of probabilities (text, image, student, judge)."""
    values = [[NAN if np.isnan(p) else float(logit(p)) for p in row]]
    return float(margins_from_logits(columns(values, with_judge), cutoffs, **options))


def drawn(seed, rows=40):
    """Logits of four stages: mostly near cutoffs, some saturated, some missing."""
    rng = np.random.default_rng(seed)
    found = rng.normal(0, rng.choice([1.0, 4.0, 20.0]), (rows, 4))
    found[rng.random((rows, 4)) < 0.1] = rng.choice([0.0, 36.0, -36.0])
    found[rng.random((rows, 4)) < 0.1] = NAN
    return found.tolist()


cutoff = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0, NEVER]))


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 10**6), st.tuples(*[cutoff] * 6), st.booleans(), st.booleans())
def test_the_sign_is_the_verdict_on_every_path(seed, cuts, with_judge, on_cutoff):
    rows = drawn(seed)
    cutoffs = Cutoffs(*cuts) if with_judge else Cutoffs(*cuts).without_judge()
    if on_cutoff and not np.isnan(rows[0][2]):  # a score that lies on its cutoff
        cutoffs = Cutoffs(*cuts[:3], float(expit(rows[0][2])), cutoffs.student_unsafe, cutoffs.judge)
        cutoffs = cutoffs if with_judge else cutoffs.without_judge()
    logits = columns(rows, with_judge)
    verdict = decide(logits.probabilities(), cutoffs)
    said = logits.probabilities()
    # What a stage could not read is never safe, so nothing leads from it to safe.
    unread = np.isnan(said.image) | (np.isnan(said.student) & (verdict.stage > 0))
    judged = ~np.isnan(verdict.unsafe) & ~unread
    if not judged.all():
        with pytest.raises(ConfigError, match=f"cannot judge {int((~judged).sum())} of {len(rows)} rows"):
            margins_from_logits(logits, cutoffs)
        logits = columns([row for row, fine in zip(rows, judged, strict=True) if fine] or [(0.0,) * 4])
        logits = logits if with_judge else StageLogits(logits.text, logits.image, logits.student)
        verdict = decide(logits.probabilities(), cutoffs)
        if np.isnan(verdict.unsafe).any():
            return
    nearest = margins_from_logits(logits, cutoffs).numpy()
    for path in PATHS if with_judge else PATHS[:-1]:
        loose = margins_from_logits(logits, cutoffs, path=path, fixed_text=False).numpy()
        assert np.array_equal(loose > 0, verdict.unsafe >= 0.5)
        margins = margins_from_logits(logits, cutoffs, path=path).numpy()
        assert np.isfinite(margins).all()
        assert np.array_equal(margins > 0, verdict.unsafe >= 0.5)
        assert np.array_equal(margins < 0, verdict.unsafe < 0.5)
        assert (np.abs(margins) >= np.abs(nearest) - 1e-9).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.booleans())
def test_without_forcing_the_conditions_say_what_the_verdict_says(seed, with_judge, silent_text):
    rows = np.random.default_rng(seed).uniform(-6, 6, (50, 4)).tolist()
    # Well away from cutoffs the conditions alone have to decide; `decide` only settles what rounding could not.
    cutoffs = Cutoffs(NEVER, 0.1, 0.9, 0.3, 0.6, 0.5) if silent_text else PLAIN
    cutoffs = cutoffs if with_judge else cutoffs.without_judge()
    logits = columns(rows, with_judge)
    margins = margins_from_logits(logits, cutoffs, fixed_text=False).numpy()
    verdict = decide(logits.probabilities(), cutoffs)
    cuts = [float(logit(c)) for c in (0.2, 0.8, 0.1, 0.9, 0.3, 0.6, 0.5)]
    near = np.array([min(abs(value - cut) for value in row for cut in cuts) < 1e-3 for row in rows])
    assert (np.abs(margins[~near]) >= 1e-3).all()  # forced ones would be 1e-6
    assert np.array_equal(margins > 0, verdict.unsafe >= 0.5)


def test_the_margin_is_the_distance_to_the_nearest_way():
    # Unsafe by the student; the image filter's way to safe is longer than the student's own band.
    assert of(0.5, 0.5, 0.7, 0.9) == pytest.approx(logit(0.7) - logit(0.6))  # the judge has not been asked
    assert of(0.5, 0.5, 0.7, 0.9, path="student") == pytest.approx(logit(0.7) - logit(0.3))
    assert of(0.5, 0.5, 0.7, 0.9, path="filter") == pytest.approx(logit(0.5) - logit(0.1))
    assert of(0.01, 0.5, 0.7, 0.9, path="filter", fixed_text=False) == pytest.approx(logit(0.5) - logit(0.1))
    assert of(NAN, 0.5, 0.7, 0.9, path="filter") == pytest.approx(logit(0.5) - logit(0.1))
    # In the band: the judge says unsafe, and either it or the student has to be moved.
    assert of(0.5, 0.5, 0.5, 0.55) == pytest.approx(logit(0.55) - logit(0.5))
    assert of(0.5, 0.5, 0.31, 0.99) == pytest.approx(logit(0.31) - logit(0.3))
    assert of(0.5, 0.5, 0.5, 0.99, path="judge") == pytest.approx(logit(0.99) - logit(0.5))
    # Safe rows: minus the distance to unsafe.
    assert of(0.5, 0.5, 0.5, 0.4) == pytest.approx(logit(0.4) - logit(0.5))
    assert of(0.5, 0.5, 0.2, 0.4, path="student") == pytest.approx(logit(0.2) - logit(0.6))
    assert of(0.5, 0.05, 0.9, 0.9, path="student") == pytest.approx(logit(0.05) - logit(0.1))


def test_a_sure_text_filter_bars_what_it_contradicts():
    # The text is sure of unsafe, so the image can at most contradict it; then the student's turn comes.
    assert of(0.95, 0.5, 0.2, 0.2) == pytest.approx(logit(0.5) - logit(0.1))
    assert of(0.95, 0.05, 0.2, 0.2) < 0
    assert of(0.95, 0.05, 0.9, 0.2) > 0
    assert of(0.95, 0.5, 0.7, 0.9, path="filter") == of(0.95, 0.5, 0.7, 0.9)
    assert of(0.85, 0.5, 0.2, 0.2, fixed_text=False) == pytest.approx(logit(0.85) - logit(0.8))


def test_a_text_score_on_its_cutoff_bars_like_one_beyond_it():
    unsafe_from_half = Cutoffs(0.5, 0.1, 0.9, 0.3, 0.6, 0.5)  # the logit of one half is exactly 0
    assert of(0.5, 0.5, 0.2, 0.2, cutoffs=unsafe_from_half) == pytest.approx(logit(0.5) - logit(0.1))


def test_hidden_characters_close_the_filters_path_to_safe():
    logits = columns([[0.0, float(logit(0.05)), float(logit(0.7)), 0.0]])
    assert float(margins_from_logits(logits, PLAIN)) == pytest.approx(logit(0.05) - logit(0.1))
    hidden = replace(logits, hidden=torch.tensor([True]))
    assert float(margins_from_logits(hidden, PLAIN)) == pytest.approx(logit(0.7) - logit(0.6))
    assert float(margins_from_logits(hidden, PLAIN, path="filter")) == float(
        margins_from_logits(hidden, PLAIN)
    )


def test_a_way_that_is_barred_gives_the_nearest_other():
    never = Cutoffs(NEVER, 0.0, 0.9, 0.3, 0.6, 0.5)  # no filter ever says safe
    assert of(0.5, 0.5, 0.7, 0.9, cutoffs=never, path="filter") == of(0.5, 0.5, 0.7, 0.9, cutoffs=never)
    always = Cutoffs(NEVER, 0.0, 0.0, 0.3, 0.6, 0.5)  # the image filter calls everything unsafe
    assert of(0.5, 0.4, 0.1, 0.1, cutoffs=always) == FAR
    logits = columns([[0.3, -0.4, -2.0, -2.0]])
    logits.image.requires_grad_()
    margins_from_logits(logits, always).sum().backward()
    assert logits.image.grad.tolist() == [0.0]  # no pixel leads anywhere


def test_a_cutoff_of_one_is_a_long_way_and_one_that_is_never_reached_is_none():
    one = Cutoffs(NEVER, 0.1, 1.0, 0.3, 0.6, 0.5)
    found = of(0.5, 0.05, 0.1, 0.1, cutoffs=one, path="filter")
    assert found == pytest.approx(logit(0.05) - logit(1 - 1e-15))
    never = Cutoffs(NEVER, 0.1, NEVER, 0.3, 0.6, 0.5)
    nearest = of(0.5, 0.05, 0.1, 0.1, cutoffs=never)
    assert of(0.5, 0.05, 0.1, 0.1, cutoffs=never, path="filter") == nearest > found


def test_where_cutoffs_cross_a_row_is_safe_below_both():
    """From `unsafe` on a stage says unsafe, also below its `safe` cutoff: so there is further to go."""
    student = Cutoffs(NEVER, 0.0, NEVER, 0.7, 0.4, 0.5)
    assert of(0.5, 0.5, 0.6, cutoffs=student, with_judge=False) == pytest.approx(logit(0.6) - logit(0.4))
    assert of(0.5, 0.5, 0.3, cutoffs=student, with_judge=False) == pytest.approx(logit(0.3) - logit(0.4))
    image = Cutoffs(NEVER, 0.7, 0.4, 0.1, 0.9, 0.5)
    assert of(0.5, 0.6, 0.95, 0.9, cutoffs=image, path="filter") == pytest.approx(logit(0.6) - logit(0.4))


def test_without_a_judge_the_student_has_no_band():
    cutoffs = PLAIN.without_judge()
    assert of(0.5, 0.5, 0.4, cutoffs=cutoffs, with_judge=False) == pytest.approx(logit(0.4) - logit(0.3))
    assert of(0.5, 0.5, 0.2, cutoffs=cutoffs, with_judge=False) == pytest.approx(logit(0.2) - logit(0.3))
    with pytest.raises(ConfigError, match=r"No path 'judge'.*any, filter, student"):
        of(0.5, 0.5, 0.4, cutoffs=cutoffs, with_judge=False, path="judge")
    with pytest.raises(ConfigError, match="No path 'nearest'"):
        of(0.5, 0.5, 0.4, 0.4, path="nearest")


# The whole cascade


def as_pixels(images):
    return torch.stack([torch.from_numpy(np.array(i)).permute(2, 0, 1) for i in images]).float() / 255.0


PROMPTS = (["a two", None, "", "a photo of three on a wall", "one"] * 8)[:36]


@pytest.fixture(scope="module")
def images(noise_image):
    return [noise_image(seed, (16, 16)) for seed in range(36)]


@pytest.fixture(scope="module")
def student(tiny_clip_folder):
    encoder = DualEncoder.load(tiny_clip_folder, device="cpu")
    torch.manual_seed(0)
    head = CrossAttentionHead(HeadConfig(encoder.width, inner=32, heads=4, rank=4))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return Student(encoder, head)


@pytest.fixture(scope="module")
def make_cascade(student, tiny_vlm, images):
    """A cascade whose cutoffs lie amid the stages' own scores of the images, so that each decides some."""
    similarities = Similarities(student.encoder)
    seen = similarities.image_similarities(student.encoder.encode_images(images), POLICY).max(axis=1)
    read = similarities.prompt_similarities(PROMPTS, POLICY).max(axis=1)

    def platt(values):
        slope = 2.0 / float(np.nanstd(values))
        return Platt(slope, -slope * float(np.nanmedian(values)))

    text, image = platt(read), platt(seen)
    judge = VisionLanguageJudge(*tiny_vlm())
    band = np.quantile(student.score(images, PROMPTS, POLICY).unsafe, [0.3, 0.7])
    middle = float(np.median(judge.score(images, PROMPTS, POLICY).unsafe))
    low, high = np.quantile(image(seen), [0.2, 0.8])

    def make(with_judge=True, **changes):
        cutoffs = {
            "text_unsafe": 0.88,
            "image_safe": float(low),
            "image_unsafe": float(high),
            "student_safe": float(band[0]),
            "student_unsafe": float(band[1]),
            "judge": middle,
        }
        found = CascadeSettings(text, image, Cutoffs(**cutoffs | changes), with_judge, 0.05, 0.02, 100)
        return Cascade(student, found, judge if with_judge else None)

    return make


@pytest.mark.parametrize("with_judge", [True, False])
@pytest.mark.parametrize("changes", [{}, {"text_unsafe": NEVER}])
def test_the_sign_is_that_of_the_real_score(make_cascade, images, with_judge, changes):
    cascade = make_cascade(with_judge, **changes)
    scores = cascade.score(images, PROMPTS, POLICY)
    assert set(scores.decided_by) == set(STAGES if with_judge else STAGES[:2])
    assert 0.1 < (scores.unsafe >= 0.5).mean() < 0.9
    for path in PATHS if with_judge else PATHS[:-1]:
        margins = cascade.pixel_margins(as_pixels(images), PROMPTS, POLICY, path=path)
        assert margins.dtype == torch.float32
        assert margins.shape == (36,)
        # Scores of single images lie on cutoffs here; batches of another size may round them over.
        clear = np.abs(margins.numpy(force=True)) > 1e-4
        assert clear.sum() >= 33
        assert np.array_equal((margins.numpy(force=True) > 0)[clear], (scores.unsafe >= 0.5)[clear])


def test_unless_told_otherwise_the_nearest_way_is_taken_and_prompts_stay(make_cascade, images):
    cascade = make_cascade()
    asked = (cascade, as_pixels(images), PROMPTS, POLICY)
    found = cascade_margins(*asked).detach()
    assert torch.equal(found, cascade_margins(*asked, path="any", fixed_text=True).detach())
    assert not torch.equal(found, cascade_margins(*asked, path="student").detach())
    assert not torch.equal(found, cascade_margins(*asked, fixed_text=False).detach())


@pytest.mark.parametrize("path", PATHS)
def test_gradients_are_finite_differences(make_cascade, images, path):
    cascade = make_cascade(text_unsafe=NEVER)
    pixels = (as_pixels(images) * 0.4 + 0.3).requires_grad_()
    margins = cascade.pixel_margins(pixels, PROMPTS, POLICY, path=path)
    (gradient,) = torch.autograd.grad(margins.sum(), pixels)
    size = gradient.flatten(1).norm(dim=1)
    assert (size > 0).all()
    along = gradient / size[:, None, None, None]
    with torch.no_grad():
        up, down = (
            cascade.pixel_margins(pixels + s * along, PROMPTS, POLICY, path=path) for s in (2e-3, -2e-3)
        )
    slopes = ((up - down) / 4e-3).numpy()
    # Where the nearest condition changes, or the judge comes in, there is a kink.
    fits = np.isclose(slopes, size.numpy(), rtol=0.15)
    assert fits.mean() > 0.8


def test_each_path_has_a_gradient_of_its_own(make_cascade, images):
    cascade = make_cascade(text_unsafe=NEVER)
    gradients = {}
    for path in ("filter", "student", "judge"):
        pixels = as_pixels(images).requires_grad_()
        margins = cascade.pixel_margins(pixels, PROMPTS, POLICY, path=path)
        gradients[path] = torch.autograd.grad(margins.sum(), pixels)[0].flatten(1)
    for one, other in (("filter", "student"), ("student", "judge"), ("filter", "judge")):
        alike = torch.cosine_similarity(gradients[one], gradients[other])
        assert (alike < 0.99).float().mean() > 0.2


def test_an_attack_along_each_path_turns_verdicts_of_the_real_cascade(make_cascade, images):
    cascade = make_cascade(text_unsafe=NEVER)
    clean = as_pixels(images)
    before = cascade.score(images, PROMPTS, POLICY).unsafe >= 0.5
    signs = torch.from_numpy(np.where(before, 1.0, -1.0)).float()
    turned = {}
    for path in PATHS:
        pixels, best = clean.clone(), torch.full((len(images),), torch.inf)
        found = clean.clone()
        for _ in range(6):
            pixels.requires_grad_(True)
            gap = cascade.pixel_margins(pixels, PROMPTS, POLICY, path=path) * signs
            (gradient,) = torch.autograd.grad(gap.sum(), pixels)
            better = gap.detach() < best
            best[better], found[better] = gap.detach()[better], pixels.detach()[better]
            step = pixels.detach() - 6 / 255 * gradient.sign()
            pixels = (clean + (step - clean).clamp(-24 / 255, 24 / 255)).clamp(0, 1)
        from PIL import Image

        levels = (found * 255).round().byte().permute(0, 2, 3, 1).numpy()
        after = cascade.score([Image.fromarray(level) for level in levels], PROMPTS, POLICY).unsafe >= 0.5
        turned[path] = after != before
        agree = after == (best.numpy() * signs.numpy() > 0)
        assert agree.mean() > 0.85  # but for the rounding to bytes
    assert all(share.mean() > 0.4 for share in turned.values()), turned
    assert np.any(list(turned.values()), axis=0).mean() >= max(share.mean() for share in turned.values())


def test_only_rows_that_reach_the_judge_are_asked_about(make_cascade, images, monkeypatch):
    cascade = make_cascade()
    asked = []
    plain = cascade.judge.pixel_margins
    monkeypatch.setattr(
        cascade.judge,
        "pixel_margins",
        lambda pixels, prompts, taxonomy: asked.append(len(pixels)) or plain(pixels, prompts, taxonomy),
    )
    cascade.pixel_margins(as_pixels(images), PROMPTS, POLICY)
    reached = cascade.score(images, PROMPTS, POLICY).decided_by.count("judge")
    assert 0 < reached < 36
    assert abs(sum(asked) - reached) <= 3  # rows on a cutoff


def test_a_prompt_that_is_not_read_leaves_the_margin_of_the_image_alone(make_cascade, images):
    prompts, pixels = ["word " * 2000, None], as_pixels(images[:2])
    for cascade in (make_cascade(), make_cascade(False)):
        alone = cascade.pixel_margins(pixels, None, POLICY)
        torch.testing.assert_close(cascade.pixel_margins(pixels, prompts, POLICY), alone)


def test_what_a_cascade_refuses(make_cascade, images):
    cascade, pixels = make_cascade(), as_pixels(images[:2])
    with pytest.raises(ConfigError, match="no margin for 'one' alone"):
        cascade.pixel_margins(pixels, None, POLICY, category="one")
    with pytest.raises(ValueError, match="2 images but 1 prompts"):
        cascade.pixel_margins(pixels, ["one"], POLICY)
    with pytest.raises(ConfigError, match="No path 'x'"):
        cascade.pixel_margins(pixels, None, POLICY, path="x")

    class Silent:
        name = "silent"

    dumb = make_cascade(student_safe=0.0, student_unsafe=NEVER, image_safe=0.0, image_unsafe=NEVER)
    dumb.judge, dumb.student = Silent(), Silent()
    with pytest.raises(ConfigError, match="student is a Silent, whose verdict has no gradients"):
        dumb.pixel_margins(pixels, None, POLICY)
    dumb.student = cascade.student
    with pytest.raises(ConfigError, match="judge is a Silent, which gives no gradients"):
        dumb.pixel_margins(pixels, None, POLICY)
