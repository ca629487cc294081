"""Contact sheets: what is shown, how it is blurred, and what happens to images that cannot be shown."""

import base64
import re
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from fixtures_benchmark import synthetic_predictions
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from eval.benchmark.predictions import Predictions
from eval.benchmark.report.contact_sheet import BLURRED_SIDE, SIDE, Thumbnails, contact_sheets, thumbnail
from judge.errors import ImageError
from prompts.example import UNSPECIFIED

NAN = float("nan")


def drawing(name="a", size=(400, 300)):
    """Black bars on white, as sharp as an image can be."""
    image = Image.new("RGB", size, "white")
    for left in range(0, size[0], 24):
        ImageDraw.Draw(image).rectangle((left, 0, left + 11, size[1]), fill="black")
    return image


def decoded(uri):
    kind, data = uri.split(";base64,")
    assert kind == "data:image/jpeg"
    return base64.b64decode(data)


def contrast(image):
    return float(np.asarray(image.convert("L"), dtype=float).std())


def changed(predictions, rows):
    """Predictions with other values in the rows of these numbers."""
    found = (replace(row, **rows.get(number, {})) for number, row in enumerate(predictions.rows))
    return Predictions(predictions.about, tuple(found))


def test_the_embedded_pixels_are_blurred():
    uri, missing = Thumbnails(drawing).embed("a")
    assert missing is None
    with Image.open(BytesIO(decoded(uri))) as blurred:
        assert max(blurred.size) == BLURRED_SIDE
        assert contrast(blurred) < contrast(drawing()) / 5
    sharp, _ = Thumbnails(drawing, blur=False).embed("a")
    with Image.open(BytesIO(decoded(sharp))) as shown:
        assert max(shown.size) == SIDE
        assert contrast(shown) > contrast(drawing()) / 2


@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.sampled_from(["RGB", "L", "RGBA", "LA", "P", "I;16", "1"]),
)
def test_any_image_becomes_a_small_picture(size, mode):
    for blur in (True, False):
        small = thumbnail(Image.new(mode, size), blur=blur)
        assert small.mode == "RGB"
        assert max(small.size) <= (BLURRED_SIDE if blur else SIDE)


def test_nothing_of_the_file_but_its_look_is_embedded():
    stored, image = BytesIO(), drawing()
    image.save(stored, "JPEG", comment=b"taken at home", exif=b"Exif\0\0secret", icc_profile=b"a profile")
    with Image.open(stored) as opened:
        opened.load()
        assert opened.info["comment"] == b"taken at home"
        for blur in (True, False):
            uri, _ = Thumbnails(lambda name: opened, blur=blur).embed("a")
            for part in (b"taken", b"secret", b"profile"):
                assert part not in decoded(uri)


def test_what_is_transparent_is_grey_and_not_what_hides_below_it():
    image = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    assert thumbnail(image).getpixel((20, 20)) == (128, 128, 128)


def test_an_image_is_opened_once():
    opened = []
    thumbnails = Thumbnails(lambda name: opened.append(name) or drawing())
    assert thumbnails.embed("a") == thumbnails.embed("a")
    assert opened == ["a"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ImageError("truncated", "the file ends early"), "cannot be opened: truncated: the file ends early"),
        (OSError("no such file"), "cannot be opened: no such file"),
        (RuntimeError("the archive\nis broken"), "cannot be opened: the archive"),
        (MemoryError(), "cannot be opened: MemoryError"),
    ],
)
def test_an_image_that_cannot_be_opened_has_a_reason(error, reason):
    def broken(name):
        raise error

    assert Thumbnails(broken).embed("a") == (None, reason)


def test_an_image_that_is_not_at_hand_has_a_reason():
    assert Thumbnails(lambda name: None).embed("a") == (None, "no image is at hand")


def test_all_pictures_together_are_bounded():
    thumbnails = Thumbnails(drawing, max_bytes=3000)
    found = [thumbnails.embed(str(number)) for number in range(20)]
    shown = [uri for uri, _ in found if uri]
    assert 1 <= len(shown) < 20
    assert sum(map(len, shown)) <= 3000
    assert {missing for uri, missing in found if uri is None} == {
        "left out, as the page would become too large"
    }


def test_repeated_pictures_count_each_time():
    size = len(Thumbnails(drawing).embed("a")[0])
    thumbnails = Thumbnails(drawing, max_bytes=2 * size)
    assert [thumbnails.embed("a")[1] for _ in range(3)][:2] == [None, None]
    assert thumbnails.embed("a")[0] is None


def test_sheets_hold_each_kind_of_error_the_surest_first():
    unsafe = {"violates": frozenset(["three"])}
    safe = {"violates": frozenset()}
    rows = [
        *({**unsafe, "unsafe": score} for score in (0.01, 0.3, 0.2)),
        {**safe, "unsafe": 0.6},
        {**unsafe, "unsafe": NAN, "reason": "timed out"},
        {**safe, "unsafe": 0.5},  # at the threshold: flagged
        {**safe, "unsafe": 0.9, "unknown": frozenset(["three"])},  # the labels do not say
        {**unsafe, "unsafe": 0.9},
        {**safe, "unsafe": 0.1},
    ]
    predictions = changed(synthetic_predictions(rows=9), dict(enumerate(rows)))
    sheets = contact_sheets(predictions, Thumbnails(drawing), tiles=2)
    assert [(sheet.title, sheet.total) for sheet in sheets] == [
        ("False negatives", 3),
        ("False positives", 2),
        ("Unjudged", 1),
    ]
    ids = [[tile.row.id for tile in sheet.tiles] for sheet in sheets]
    assert ids == [["image-0", "image-2"], ["image-3", "image-5"], ["image-4"]]
    assert sheets[0].tiles[0].truth == "three"
    assert sheets[1].tiles[0].truth == "safe"
    assert sheets[0].tiles[0].verdict.startswith("0.010, ")
    assert sheets[2].tiles[0].verdict == "timed out"
    assert all(re.fullmatch("data:image/jpeg;base64,.+", tile.picture) for tile in sheets[0].tiles)


def test_a_violated_category_that_was_not_asked_about_is_named_so():
    asked = frozenset(["one"])
    one = synthetic_predictions(rows=1)
    unscored = (NAN,) * len(one.about.taxonomy)
    row = {"unsafe": 0.9, "violates": frozenset(["three"]), "asked": asked, "categories": unscored}
    [sheet] = contact_sheets(changed(one, {0: row}), Thumbnails(drawing))
    assert sheet.title == "False positives"
    assert sheet.tiles[0].truth == "safe (not asked: three)"
    assert sheet.tiles[0].verdict == "0.900"


@pytest.mark.parametrize(
    ("asked", "unsafe", "says"),
    [("three seven", 0.1, "unsafe, category not named"), ("three", NAN, "not labelled")],
)
def test_an_unsafe_image_of_no_named_category_is_never_called_safe(asked, unsafe, says):
    row = {
        "violates": frozenset([UNSPECIFIED]),
        "unknown": frozenset(["three", "seven"]),
        "asked": frozenset(asked.split()),
        "unsafe": unsafe,
    }
    [sheet] = contact_sheets(changed(synthetic_predictions(rows=1), {0: row}), Thumbnails(drawing))
    assert [tile.truth for tile in sheet.tiles] == [says]


def test_no_error_no_sheet():
    perfect = {"unsafe": 0.9, "violates": frozenset(["three"])}
    predictions = changed(synthetic_predictions(rows=2), {0: perfect, 1: perfect})
    assert contact_sheets(predictions, Thumbnails(drawing)) == ()
