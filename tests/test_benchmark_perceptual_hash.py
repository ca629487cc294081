"""Copies of images: exact ones, near ones, and pictures that only look as if they were."""

from io import BytesIO

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from judge.data.images import open_image
from judge.data.perceptual_hash import exact_copies, hash_images, near, near_copies, perceptual_hash
from judge.standins.digits import digits_examples

HASHES = arrays(np.uint64, st.integers(0, 12), elements=st.integers(0, 2**64 - 1))


@pytest.fixture(scope="module")
def pictures():
    return [open_image(example.image) for example in digits_examples("test", count=80)]


@pytest.fixture(scope="module")
def hashes(pictures):
    return hash_images((f"image-{place}", picture) for place, picture in enumerate(pictures))


def hashed(images):
    return hash_images((str(place), image) for place, image in enumerate(images))


def as_jpeg(image, quality=60):
    stored = BytesIO()
    image.save(stored, "JPEG", quality=quality)
    return stored.getvalue()


def cut(image):
    return image.crop((1, 1, image.width - 1, image.height - 1))


def share_found(copies, originals):
    pairs = near_copies(hashed(copies), originals)
    return np.mean([[place, place] in pairs.tolist() for place in range(len(copies))])


@settings(max_examples=60, deadline=None)
@given(HASHES, HASHES, st.integers(0, 64))
def test_near_is_every_pair_within_the_distance(a, b, distance):
    expected = [
        [i, j]
        for i, one in enumerate(a.tolist())
        for j, two in enumerate(b.tolist())
        if bin(one ^ two).count("1") <= distance
    ]
    assert near(a, b, distance).tolist() == expected


def test_near_compares_more_pairs_than_one_chunk_holds(monkeypatch):
    monkeypatch.setattr("judge.data.perceptual_hash._CHUNK", 64)
    values = np.random.default_rng(0).integers(0, 2**64, 50, dtype=np.uint64)
    flipped = values ^ np.uint64(0b10110)
    assert near(values, flipped, 3).tolist() == [[place, place] for place in range(50)]
    assert len(near(values, flipped, 2)) == 0


def test_the_hash_is_that_of_the_library(pictures):
    for picture in pictures[:5]:
        assert f"{perceptual_hash(picture):016x}" == str(imagehash.phash(picture))


def test_stored_resized_and_slightly_cut_copies_are_found_and_other_pictures_are_not(pictures, hashes):
    assert share_found([as_jpeg(picture) for picture in pictures], hashes) > 0.95
    assert share_found([picture.resize((64, 64)) for picture in pictures], hashes) > 0.95
    assert share_found([cut(picture) for picture in pictures], hashes) > 0.9
    others = hash_images((example.id, example.image) for example in digits_examples("train", count=400))
    assert len(near_copies(hashes, others)) <= 1


def test_exact_copies_survive_another_lossless_format_and_name_the_first(pictures, hashes):
    stored = BytesIO()
    pictures[3].save(stored, "BMP")
    twice = hashed([pictures[0], stored.getvalue(), pictures[3]])
    assert exact_copies(twice, hashes).tolist() == [[0, 0], [1, 3], [2, 3]]
    assert exact_copies(hashes, twice).tolist() == [[0, 0], [3, 1]]
    assert exact_copies(hashed([as_jpeg(pictures[3])]), hashes).shape == (0, 2)


def test_near_copies_within_one_set_pair_every_image_with_itself(pictures):
    found = hashed([pictures[0], pictures[1], as_jpeg(pictures[0])])
    assert near_copies(found, found).tolist() == [[0, 0], [0, 2], [1, 1], [2, 0], [2, 2]]


def test_uniform_pictures_are_near_copies_of_nothing():
    noise = np.random.default_rng(0).integers(127, 129, (64, 64, 3)).astype(np.uint8)
    blank = hashed(
        [Image.new("RGB", (64, 64), grey) for grey in ("white", "red", "black")] + [Image.fromarray(noise)]
    )
    assert blank.flat.all()
    assert len(near(blank.perceptual[:1], blank.perceptual[1:2], 0)) == 1  # their hashes are equal
    assert len(near_copies(blank, blank)) == 0
    assert exact_copies(blank, blank).tolist() == [[place, place] for place in range(4)]


def test_a_picture_of_another_layout_with_the_same_hash_is_no_copy():
    steep = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
    bent = np.tile((255 * np.linspace(0, 1, 64) ** 8).astype(np.uint8), (64, 1))
    found = hashed([Image.fromarray(steep), Image.fromarray(bent)])
    assert len(near(found.perceptual[:1], found.perceptual[1:], 10)) == 1
    assert near_copies(found, found).tolist() == [[0, 0], [1, 1]]


def test_what_cannot_be_opened_is_reported(pictures, tmp_path):
    found = hash_images([("good", pictures[0]), ("prose", b"no image"), ("gone", tmp_path / "gone.png")])
    assert found.ids == ("good",)
    assert [(one.id, one.status) for one in found.skipped] == [("prose", "not_an_image"), ("gone", "missing")]
    assert len(hash_images([])) == 0
    assert near_copies(hash_images([]), found).shape == (0, 2)
