import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adversarial.problem import AttackResult, Problem
from adversarial.storing import check_stored, encode_stored, through_jpeg, to_images, to_pixels
from adversarial.threat import ThreatModel
from adversarial.victim import Context


class Bright:
    """Says unsafe where the mean is above a half; `real` may be another function of the picture's mean."""

    name, no_gradients = "bright", None

    def __init__(self, real=None, slope=100.0):
        self.slope = slope
        self.real = real or (lambda mean: 1 / (1 + np.exp(-slope * (mean - 0.5))))
        self.policies = []

    def margins(self, pixels, contexts):
        return self.slope * (pixels.mean((1, 2, 3)) - 0.5)

    def score(self, images, contexts):
        self.policies.append({context.policy for context in contexts})
        return np.array([self.real(np.asarray(image).mean() / 255.0) for image in images])


def bytes_image(seed, size=(12, 9), count=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), generator=generator) / 255.0


def problem_for(victim, images, signs, threat, policies=None):
    policies = policies or [None] * len(images)
    contexts = [Context(None, policy) for policy in policies]
    return Problem(victim, images, contexts, torch.tensor(signs), threat, batch_size=2)


def found_at(problem, pixels):
    margin = torch.cat(
        [problem.signed_margins(pixels[row : row + 1], torch.tensor([row])) for row in range(len(problem))]
    )
    return AttackResult(
        pixels, margin, torch.ones(len(problem), dtype=torch.long), problem.clean_margins() < 0
    )


def robust(checked, entry):
    return checked.eligible & ~checked.success[entry] & ~checked.unjudged[entry]


def grey(*levels):
    return torch.stack([torch.full((3, 8, 8), level / 255.0) for level in levels])


def test_pictures_and_pixels_are_each_others_inverse() -> None:
    pixels = bytes_image(0)
    assert torch.equal(to_pixels(to_images(pixels)), pixels)
    assert to_images(pixels)[0].size == (9, 12)


@given(
    st.integers(0, 50),
    st.sampled_from([0.0, 0.5, 1.0, 2.0, 2.55, 4.0, 8.0]),
    st.integers(8, 20),
    st.integers(8, 20),
)
def test_stored_pictures_keep_the_budget(seed: int, levels: float, height: int, width: int) -> None:
    clean = bytes_image(seed, (height, width), 2)
    threat = ThreatModel(levels / 255, after=("8bit", "png", "jpeg:75"))
    noise = torch.rand(clean.shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    pixels = threat.project(clean + noise.sign() * threat.epsilon, clean)
    stored = encode_stored(pixels, clean, threat)
    assert list(stored) == ["8bit", "png", "jpeg:75"]
    base = np.round(clean.numpy() * 255).transpose(0, 2, 3, 1)
    for entry in ("8bit", "png"):
        change = np.stack([np.asarray(image, dtype=np.int64) for image in stored[entry]]) - base
        assert np.abs(change).max() == int(
            levels
        )  # 2.55 grey levels are 2 in bytes, and half a level is none
    assert all(a.tobytes() == b.tobytes() for a, b in zip(stored["8bit"], stored["png"], strict=True))
    assert stored["jpeg:75"][0].tobytes() != stored["png"][0].tobytes()
    assert stored["jpeg:75"][0].size == (width, height)


def test_jpeg_gets_worse_with_less_quality() -> None:
    [image] = to_images(bytes_image(1, (32, 32), 1))
    levels = np.asarray(image, dtype=float)
    errors = [np.abs(np.asarray(through_jpeg(image, quality)) - levels).mean() for quality in (95, 75, 30, 5)]
    assert errors == sorted(errors)
    assert errors[0] < errors[-1]


def test_half_a_level_succeeds_in_floats_and_in_no_file() -> None:
    threat = ThreatModel(0.5 / 255, after=("8bit", "png", "jpeg:75"))
    victim = Bright(slope=1000.0)
    images = grey(128, 128)
    problem = problem_for(victim, images, [1, 1], threat)
    checked = check_stored(victim, found_at(problem, threat.project(images - 1, images) - 1e-7), problem)
    assert checked.success["raw"].all()
    assert not any(checked.success[entry].any() for entry in threat.after)
    assert robust(checked, "8bit").all()
    assert not checked.distance["8bit"].any()


def test_distances_are_in_grey_levels() -> None:
    threat = ThreatModel(2.55 / 255, after=("8bit", "jpeg:10"))
    victim, images = Bright(), bytes_image(2)
    problem = problem_for(victim, images, [1, -1, 1], threat)
    checked = check_stored(victim, found_at(problem, threat.project(images + 1, images)), problem)
    assert checked.distance["8bit"].tolist() == [2.0, 2.0, 2.0]
    assert (checked.distance["jpeg:10"] > 2.0).all()


def test_a_real_path_that_disagrees_with_its_margins_is_seen() -> None:
    threat = ThreatModel(2 / 255, after=("8bit",))
    images = grey(128, 129)
    attacked = threat.project(images - 1, images)
    honest = Bright()
    problem = problem_for(honest, images, [1, 1], threat)
    checked = check_stored(honest, found_at(problem, attacked), problem)
    assert checked.success["8bit"].tolist() == checked.success["raw"].tolist() == [True, True]
    assert max(checked.agreement.values()) < 1e-5
    stubborn = Bright(real=lambda mean: 0.9)
    checked = check_stored(stubborn, found_at(problem, attacked), problem)
    assert checked.success["raw"].all()
    assert not checked.success["8bit"].any()
    assert checked.agreement["clean"] > 0.1
    assert checked.agreement["8bit"] > 0.4
    late = Bright(real=lambda mean: honest.real(mean) if mean >= 0.5 else 0.9)
    agreement = check_stored(late, found_at(problem, attacked), problem).agreement
    assert agreement["clean"] < 1e-5
    assert agreement["8bit"] > 0.4


def test_what_the_real_path_misjudges_clean_is_no_success() -> None:
    threat = ThreatModel(2 / 255, after=("8bit",))
    images = grey(128, 120)
    blind = Bright(real=lambda mean: 0.1)
    problem = problem_for(blind, images, [1, 1], threat)
    checked = check_stored(blind, found_at(problem, threat.project(images - 1, images)), problem)
    assert checked.misjudged.all()
    assert not checked.success["8bit"].any()
    assert not robust(checked, "8bit").any()
    assert not checked.eligible.any()


def test_unjudged_is_neither_success_nor_robust() -> None:
    threat = ThreatModel(2 / 255, after=("8bit", "png"))
    images = grey(128, 127, 200, 50)
    fails = Bright(
        real=lambda mean: float("nan") if 0.48 < mean < 0.5 or mean > 0.51 else 0.9 * (mean > 0.499)
    )
    problem = problem_for(fails, images, [1, -1, 1, -1], threat)
    towards = torch.tensor([-1.0, 1.0, -1.0, 1.0])[:, None, None, None]
    checked = check_stored(fails, found_at(problem, threat.project(images + towards, images)), problem)
    assert checked.unjudged["clean"].tolist() == [False, True, True, False]
    assert checked.unjudged["8bit"].tolist() == [True, False, True, False]
    assert checked.success["raw"].tolist() == [True, True, False, False]
    for entry in threat.after:
        assert checked.success[entry].tolist() == [False] * 4
        assert robust(checked, entry).tolist() == [False, False, False, True]
    assert checked.eligible.tolist() == [True, False, False, True]
    nothing = Bright(real=lambda mean: float("nan"))
    checked = check_stored(nothing, found_at(problem, images), problem)
    assert np.isnan(checked.agreement["clean"])
    assert not robust(checked, "8bit").any()


def test_policies_are_not_mixed_and_rows_keep_their_places() -> None:
    threat = ThreatModel(8 / 255, after=("8bit",))
    victim, images = Bright(), grey(100, 200, 60, 140, 90)
    problem = problem_for(victim, images, [-1, 1, -1, 1, -1], threat, ["a", "b", "a", "b", "a"])
    checked = check_stored(victim, found_at(problem, images), problem)
    assert all(len(policies) == 1 for policies in victim.policies)
    assert checked.unsafe["clean"] == pytest.approx(
        [victim.real(level / 255) for level in (100, 200, 60, 140, 90)]
    )
    assert robust(checked, "8bit").all()
