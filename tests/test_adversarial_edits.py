import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from adversarial.edits.attack import EditAttack
from adversarial.edits.base import SEVERITIES
from adversarial.edits.platform import EDITS, RESIZING, grid, padding, screenshot, stripes
from adversarial.edits.writing import SAFE_WORDS, Writing, place_text, typographic, words_for
from adversarial.errors import AttackError
from adversarial.problem import Problem
from adversarial.threat import ThreatModel
from adversarial.victim import Context

GROWING = ["jpeg", "resize", "blur", "grayscale", "rotation", "brightness", "contrast", "stripes", "stickers"]


def picture(width=64, height=48):
    """Bands, an edge, a disc and colour: something for every edit to bite on."""
    down, across = np.mgrid[0:height, 0:width]
    red = 127 + 100 * np.sin(across / 3)
    green = np.where(across > width / 2, 200, 60) + 0 * down
    blue = np.where(np.hypot(across - width / 3, down - height / 2) < min(width, height) / 4, 230, 40)
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8))


def distance(one, other):
    return float(np.sqrt(((np.asarray(one, dtype=float) - np.asarray(other, dtype=float)) ** 2).mean()))


@pytest.mark.parametrize("name", GROWING)
def test_more_severity_is_more_distortion(name: str) -> None:
    image = picture()
    sizes = [distance(EDITS[name](image, severity), image) for severity in SEVERITIES]
    assert sizes[0] > 0.5
    assert all(after > before for before, after in itertools.pairwise(sizes)), sizes


@pytest.mark.parametrize("name", sorted(RESIZING))
def test_more_severity_leaves_less_of_the_picture(name: str) -> None:
    image = picture()
    areas = [np.prod(EDITS[name](image, severity).size) for severity in SEVERITIES]
    assert areas == sorted(areas, reverse=name == "crop")
    assert len(set(areas)) == 5
    assert image.width * image.height not in areas


@pytest.mark.parametrize("name", EDITS)
@given(st.integers(8, 64), st.integers(8, 64), st.sampled_from(SEVERITIES))
def test_any_size_is_edited_alike_each_time(name: str, width: int, height: int, severity: int) -> None:
    image = picture(width, height)
    before = image.tobytes()
    once, again = EDITS[name](image, severity), EDITS[name](image, severity)
    assert image.tobytes() == before
    assert once.mode == "RGB"
    assert (once.size == image.size) == (name not in RESIZING)
    assert once.tobytes() == again.tobytes()
    assert once.tobytes() != before


@pytest.mark.parametrize("name", EDITS)
def test_one_pixel_is_no_error(name: str) -> None:
    for severity in SEVERITIES:
        EDITS[name](Image.new("RGB", (1, 1), (9, 90, 200)), severity)


@pytest.mark.parametrize(("severity", "count"), [(1, 2), (2, 3), (3, 4)])
def test_grid_repeats_the_picture(severity: int, count: int) -> None:
    tiled = np.asarray(grid(picture(48, 48), severity)).reshape(count, 48 // count, count, 48 // count, 3)
    tiles = tiled.transpose(0, 2, 1, 3, 4).reshape(count * count, -1)
    assert (tiles == tiles[0]).all()
    assert tiles[0].std() > 10


def test_frames_keep_the_picture_whole() -> None:
    image = picture(40, 30)
    wide = padding(image, 3)
    left, top = (wide.width - 40) // 2, (wide.height - 30) // 2
    assert wide.crop((left, top, left + 40, top + 30)).tobytes() == image.tobytes()
    shot = np.asarray(screenshot(image, 5))
    assert any(
        (shot[top : top + 30, left : left + 40] == np.asarray(image)).all()
        for top in range(shot.shape[0] - 29)
        for left in range(shot.shape[1] - 39)
    )
    memed = EDITS["meme"](image, 3)
    assert memed.crop((0, memed.height - 30, 40, memed.height)).tobytes() == image.tobytes()
    assert np.asarray(memed)[: memed.height - 30].min() < 100  # the caption is there


def test_stripes_cover_what_they_promise() -> None:
    covered = (np.asarray(stripes(Image.new("RGB", (40, 80), (200, 200, 200)), 3)) == 0).mean()
    assert covered == pytest.approx(0.3, abs=0.05)


def test_what_cannot_be_edited_is_refused() -> None:
    with pytest.raises(AttackError, match="mode is L"):
        EDITS["jpeg"](Image.new("L", (8, 8)), 1)
    for severity in (0, 6):
        with pytest.raises(AttackError, match="1, 2, 3, 4 or 5"):
            EDITS["blur"](picture(), severity)
    with pytest.raises(AttackError, match="nothing to edit"):
        EDITS["blur"](Image.new("RGB", (0, 8)), 1)


@pytest.mark.parametrize("place", ["top", "centre", "bottom", "diagonal"])
@pytest.mark.parametrize(
    "text", ["safe", "harmless drawing", "approved by moderators", "extraordinarylongword"]
)
def test_words_fit_whole_on_small_canvases(place: str, text: str) -> None:
    for severity in SEVERITIES:
        written = np.asarray(Writing(text, place)(Image.new("RGB", (40, 40), (0, 0, 0)), severity))
        assert written.max() > 100
        lit = written.max(axis=2) > 0
        # Ink keeps off the left and right edges: nothing was cut.
        assert not lit[:, 0].any()
        assert not lit[:, -1].any()


def test_words_change_pixels_where_they_stand() -> None:
    image = picture(96, 96)
    changed = {
        place: (np.asarray(Writing("safe", place)(image, 2)) != np.asarray(image)).any(axis=2)
        for place in ("top", "bottom", "centre")
    }
    assert changed["top"][:32].any()
    assert not changed["top"][32:].any()
    assert changed["bottom"][64:].any()
    assert not changed["bottom"][:64].any()
    assert changed["centre"][32:64].any()
    assert not changed["centre"][:32].any()
    assert 20 < changed["top"].sum() < 96 * 32 / 2


def test_larger_and_stronger_words_change_more() -> None:
    image = picture(96, 96)
    sizes = [distance(Writing("safe")(image, severity), image) for severity in SEVERITIES]
    assert all(after > before for before, after in itertools.pairwise(sizes))
    weights = [distance(Writing("safe", contrast=c)(image, 3), image) for c in (0.2, 0.5, 1.0)]
    assert all(after > 1.5 * before for before, after in itertools.pairwise(weights))


@given(st.integers(1, 80), st.integers(1, 80), st.sampled_from(["safe", "harmless drawing", "a b c d e"]))
def test_words_on_any_canvas(width: int, height: int, text: str) -> None:
    mask = place_text((width, height), text, max(1, min(width, height) // 4), "bottom")
    assert mask.size == (width, height)
    if min(width, height) >= 8:
        assert mask.getextrema()[1] > 0


@pytest.mark.parametrize("ground", [0, 127, 128, 255])
def test_ink_stands_out_from_any_ground(ground: int) -> None:
    written = np.asarray(Writing("safe")(Image.new("RGB", (64, 64), (ground,) * 3), 4)).astype(int)
    assert np.abs(written - ground).max() >= 100


def test_words_follow_the_goal() -> None:
    assert words_for(1, ["balloons"]) == SAFE_WORDS
    assert words_for(-1, ["balloons", "digits"]) == ("balloons", "digits")
    assert words_for(-1, [], ["own words"]) == ("own words",)
    with pytest.raises(AttackError, match="category names"):
        words_for(-1)
    with pytest.raises(AttackError, match="sign"):
        words_for(0)
    edits = typographic(["safe", "a drawing"])
    assert len(edits) == 12
    assert "'safe' bottom 40%" in edits
    with pytest.raises(AttackError, match="place"):
        Writing("safe", "left")
    with pytest.raises(AttackError, match="contrast"):
        Writing("safe", contrast=0.0)
    with pytest.raises(AttackError, match="no text"):
        Writing("  ")


class Reader:
    """p(unsafe) is the mean, unless it is very dark, where it gives up."""

    name, no_gradients = "reader", "it reads files"

    def __init__(self):
        self.policies = []

    def margins(self, pixels, contexts):
        raise AssertionError("edits ask the real path only")

    def score(self, images, contexts):
        self.policies.append({context.policy for context in contexts})
        means = np.array([np.asarray(image).mean() / 255 for image in images])
        return np.where(means < 0.1, np.nan, means)


def reader_problem(*levels, signs):
    images = torch.stack([torch.full((3, 10, 10), level / 255.0) for level in levels])
    contexts = [Context(None, "ab"[row % 2]) for row in range(len(levels))]
    return Problem(Reader(), images, contexts, torch.tensor(signs), ThreatModel(0.0), batch_size=2)


def test_edits_as_attacks_by_the_real_path() -> None:
    def darker(image, severity):
        return Image.fromarray((np.asarray(image) * (1 - 0.2 * severity)).astype(np.uint8))

    problem = reader_problem(200, 100, 240, 100, signs=[1, -1, 1, 1])
    done = EditAttack({"darker": darker, "padding": padding}, (1, 2, 5)).run(problem)
    assert all(len(policies) == 1 for policies in problem.victim.policies)
    assert done.eligible.tolist() == [True, True, True, False]
    assert done.robust("darker").tolist() == [
        [True, True, True, False],
        [False, True, True, False],
        [False, False, False, False],  # too dark to be judged
    ]
    assert done.robust("padding")[0].tolist() == [
        True,
        False,
        True,
        False,
    ]  # a white frame makes row 1 brighter
    assert not done.robust_to_all().any()
    light = EditAttack({"darker": darker, "padding": padding}, (1,)).run(problem)
    assert light.robust_to_all().tolist() == [True, False, True, False]


def test_nothing_to_try_is_refused() -> None:
    with pytest.raises(AttackError, match="nothing to try"):
        EditAttack({})
    with pytest.raises(AttackError, match="do not exist"):
        EditAttack(EDITS, (1, 9))
