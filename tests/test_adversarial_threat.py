import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adversarial.errors import AttackError
from adversarial.threat import ThreatModel, format_epsilon, parse_epsilon, perturbation_norm, round_to_8_bits


def drawn(seed, count=3):
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(0, 256, (count, 3, 4, 4), generator=generator) / 255.0
    return clean, clean + torch.randn(clean.shape, generator=generator) * 0.1


@pytest.mark.parametrize(
    ("text", "value"),
    [("2/255", 2 / 255), ("0.01", 0.01), (" 2.55/255 ", 0.01), (0.5, 0.5), ("0", 0.0), ("1", 1.0)],
)
def test_epsilon_is_read(text, value):
    assert parse_epsilon(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["8", 8, "8.0", "2040/255"])
def test_grey_levels_without_a_divisor_are_refused(text):
    with pytest.raises(AttackError, match=r"epsilon is 8, but pixels are in \[0, 1\]; .* write 8/255"):
        parse_epsilon(text)


@pytest.mark.parametrize("text", ["", "two", "2/0", "2//255", "2/255/1"])
def test_what_is_no_epsilon(text):
    with pytest.raises(AttackError, match="is no epsilon; write grey levels as 2/255"):
        parse_epsilon(text)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, "-1/255", "nan"])
def test_what_no_epsilon_can_be(value):
    with pytest.raises(AttackError, match="finite number from 0"):
        parse_epsilon(value)


def test_grey_levels_are_written():
    assert [format_epsilon(value) for value in (2 / 255, 0.01, 0.0, 1.0)] == [
        "2/255",
        "2.55/255",
        "0/255",
        "255/255",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 8}, "write 8/255"),
        ({"epsilon": -1}, "finite number from 0"),
        ({"norm": "l1"}, "norm is 'l1'; it is one of linf, l2"),
        ({"goal": "harm"}, "goal is 'harm'"),
        ({"space": "latent"}, "space is 'latent'"),
        ({"knowledge": "all"}, "knowledge is 'all'"),
        ({"goal": "hide"}, "force and hide need a category"),
        ({"category": "seven"}, "the other goals have none"),
        ({"after": ("webp",)}, "use 8bit, png or jpeg:75"),
        ({"after": ("jpeg:0",)}, "'jpeg:0' is no way"),
        ({"after": ("jpeg:101",)}, "'jpeg:101' is no way"),
    ],
)
def test_threat_models_that_do_not_exist(options, message):
    with pytest.raises(AttackError, match=message):
        ThreatModel(**{"epsilon": 2 / 255, **options})


def test_threat_models_that_do():
    ThreatModel(8.0, norm="l2")
    ThreatModel(0.1, goal="force", category="seven", after=("8bit", "png", "jpeg:100", "jpeg:1"))
    assert ThreatModel(1 / 255).can_be_stored
    assert not ThreatModel(0.99 / 255).can_be_stored
    assert ThreatModel(0.1 / 255, norm="l2").can_be_stored


@given(st.integers(0, 1000), st.floats(0, 0.5), st.sampled_from(["linf", "l2"]))
def test_a_projection_keeps_the_budget_and_moves_nothing_twice(seed, epsilon, norm):
    threat, (clean, pixels) = ThreatModel(epsilon, norm=norm), drawn(seed)
    inside = threat.project(pixels, clean)
    assert bool(threat.within_budget(inside, clean).all())
    assert torch.allclose(threat.project(inside, clean), inside, atol=1e-6)
    assert float(inside.min()) >= 0
    assert float(inside.max()) <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_points_within_the_budget_stay(norm):
    clean = torch.full((1, 3, 4, 4), 0.5)
    pixels = clean.clone()
    pixels[0, 0, 0, 0] = 0.55
    assert torch.allclose(ThreatModel(0.06, norm=norm).project(pixels, clean), pixels)
    far = ThreatModel(0.02, norm=norm).project(pixels, clean)
    assert float(far[0, 0, 0, 0]) == pytest.approx(0.52)


def test_budgets_are_told_from_their_breach():
    clean = torch.full((3, 3, 2, 2), 0.5)
    pixels = clean.clone()
    pixels[0] += 2 / 255
    pixels[1, 0, 0, 0] += 2.01 / 255
    assert ThreatModel(2 / 255).within_budget(pixels, clean).tolist() == [True, False, True]
    assert ThreatModel(2.02 / 255, norm="l2").within_budget(pixels, clean).tolist() == [False, True, True]
    white = torch.ones(1, 3, 2, 2)
    assert ThreatModel(0.1).within_budget(white + 0.01, white).tolist() == [False]
    assert ThreatModel(0.1).within_budget(white * torch.nan, white).tolist() == [False]


@given(st.integers(0, 1000), st.floats(0, 20))
def test_what_is_stored_are_bytes_within_the_budget(seed, levels):
    threat, (clean, pixels) = ThreatModel(levels / 255), drawn(seed)
    stored = threat.quantize(threat.project(pixels, clean), clean)
    assert bool(threat.within_budget(stored, clean).all())
    assert torch.allclose(stored * 255, (stored * 255).round(), atol=1e-3)
    if levels < 0.99:
        assert torch.allclose(stored, clean)


def test_a_change_is_rounded_to_the_levels_it_may_use():
    clean = torch.full((1, 3, 1, 4), 100 / 255)
    change = torch.tensor([2.55, 2.4, 1.4, -2.55]) / 255
    stored = ThreatModel(2.55 / 255).quantize(clean + change, clean)
    assert (stored[0, 0, 0] * 255).round().tolist() == [102, 102, 101, 98]
    whole = ThreatModel(3 / 255).quantize(clean + change, clean)
    assert (whole[0, 0, 0] * 255).round().tolist() == [103, 102, 101, 97]


def test_rounding_and_lengths():
    assert (round_to_8_bits(torch.tensor([-0.1, 0.5, 1.2])) * 255).tolist() == [0.0, 128.0, 255.0]
    change = torch.tensor([[[3.0, -4.0]]])
    assert perturbation_norm(change, "linf").tolist() == [4.0]
    assert perturbation_norm(change, "l2").tolist() == [5.0]
