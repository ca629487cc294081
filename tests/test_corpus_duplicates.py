"""Near-duplicates of a corpus, and its split: what is alike never stands on both sides."""

import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from judge.corpus import duplicates
from judge.corpus.duplicates import NearDuplicates
from judge.corpus.pictures import encode_picture
from judge.corpus.rows import CorpusRow, Variant
from judge.corpus.split import SplitByCluster
from judge.data.perceptual_hash import CORRELATION, DISTANCE
from judge.errors import ConfigError


def blobs(seed):
    """A picture of soft shapes, (48, 48, 3) bytes; other seeds are no near copies."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((48, 48), Image.Resampling.BICUBIC))


def brighter(pixels):
    return (pixels.astype(int) * 9 // 10 + 12).astype(np.uint8)


class Pictures:
    """Rows with pictures, by a short name."""

    def __init__(self):
        self.rows, self.files, self.opened = [], {}, []

    def add(self, name, pixels, **more):
        row, file = encode_picture(CorpusRow(name, **more), pixels)
        self.rows.append(replace(row, sha256=hashlib.sha256(file).hexdigest()))
        self.files[name] = file

    def read(self, row):
        self.opened.append(row.id)
        return self.files[row.id]

    def copies(self, **options):
        return {row.id: row.duplicate_of for row in NearDuplicates(**options)(self.rows, self.read)}


@pytest.fixture
def pictures():
    return Pictures()


def variant(of):
    return Variant("apgd", "student", {}, of)


def test_the_first_of_exact_and_of_near_copies_is_kept(pictures):
    pictures.add("a", blobs(0), prompt="one")
    pictures.add("b", blobs(1), prompt="two")
    pictures.add("c", blobs(0), prompt="three")
    pictures.add("d", brighter(blobs(1)), prompt="four")
    assert pictures.copies() == {"c": "a", "d": "b"}


def test_a_chain_of_small_changes_makes_no_copies_of_its_ends(pictures):
    """What a row is compared with is kept itself."""
    steps = np.linspace(0, 1, 12)
    for number, share in enumerate(steps):
        mixed = (1 - share) * blobs(0) + share * blobs(1)
        pictures.add(f"{number:02}", mixed.astype(np.uint8))
    copies = pictures.copies()
    assert len(copies) > 5
    assert not set(copies) & set(copies.values())
    assert copies.get("11") != "00"


def test_flat_pictures_are_copies_only_pixel_by_pixel(pictures):
    for name, level in (("a", 100), ("b", 101), ("c", 100)):
        pixels = np.full((48, 48, 3), level, dtype=np.uint8)
        pixels[0, 0] = 0
        pictures.add(name, pixels)
    assert pictures.copies() == {"c": "a"}


def test_a_variant_is_no_copy_of_its_own_row_but_of_any_other_and_goes_where_its_row_goes(pictures):
    pictures.add("a", blobs(0))
    pictures.add("b", blobs(1))
    pictures.add("copy of a", brighter(blobs(0)))
    pictures.add("variant of a", brighter(blobs(0)), variant=variant("a"))
    pictures.add("another of a", blobs(0), variant=variant("a"))
    pictures.add("variant of b that looks like a", blobs(0), variant=variant("b"))
    pictures.add("variant of the copy", blobs(7), variant=variant("copy of a"))
    assert pictures.copies() == {
        "copy of a": "a",
        "variant of b that looks like a": "a",
        "variant of the copy": "a",
    }


def test_blocks_change_nothing(pictures, monkeypatch):
    draw = np.random.default_rng(0)
    for number in range(60):
        pixels = blobs(int(draw.integers(0, 25)))
        pictures.add(f"{number:02}", brighter(pixels) if number % 3 else pixels)
    whole = pictures.copies()
    assert len(whole) > 20
    monkeypatch.setattr(duplicates, "_BLOCK", 7)
    assert pictures.copies() == whole


def test_hashing_goes_on_where_it_was_killed(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "_HASHED_AT_ONCE", 4)
    for number in range(10):
        pictures.add(f"{number}", blobs(number % 8))
    cache = tmp_path / "hashes"

    def dies(row):
        if row.id == "6":
            raise KeyboardInterrupt
        return Pictures.read(pictures, row)

    with pytest.raises(KeyboardInterrupt):
        list(NearDuplicates(cache=cache)(pictures.rows, dies))
    with cache.open("ab") as file:
        file.write(b"half a record")
    pictures.opened.clear()
    assert pictures.copies(cache=cache) == {"8": "0", "9": "1"}
    assert pictures.opened == ["4", "5", "6", "7"]  # 8 and 9 are equal files of 0 and 1
    pictures.opened.clear()
    assert pictures.copies(cache=cache) == {"8": "0", "9": "1"}
    assert pictures.opened == []


def test_what_cannot_be_opened_fails_and_is_no_copy(pictures):
    pictures.add("a", blobs(0))
    pictures.files["a"] = b"no picture"
    [row] = NearDuplicates()(pictures.rows, pictures.read)
    assert (row.failure.stage, row.failure.status) == ("duplicates", "not_an_image")


@pytest.mark.parametrize("options", [{"distance": 65}, {"distance": -1}, {"correlation": 2}])
def test_limits_outside_their_range_are_refused(options):
    with pytest.raises(ConfigError, match="0 to 64 bits"):
        NearDuplicates(**options)
    assert NearDuplicates().about == {"distance": DISTANCE, "correlation": CORRELATION}


# --- split -------------------------------------------------------------------------------------------------


def rows_of(prompts, seeds=2):
    return [
        CorpusRow(f"{number}/{seed}", prompt=text, written_by=dict(written), seed=seed)
        for number, (text, written) in enumerate(prompts)
        for seed in range(seeds)
    ]


WORDS = [f"word{number}" for number in range(40)]
FORMS = ("a photo of {}", "{} at night in the rain", "an oil painting of {}")


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.integers(0, 1000), st.sampled_from([None, "words"]))
def test_seeds_variants_words_and_near_prompts_share_a_split(seed, key):
    draw = np.random.default_rng(seed)
    prompts = [
        (form.format(word), {key: [word]} if key else {})
        for word in draw.choice(WORDS, 12, replace=False)
        for form in FORMS
    ]
    rows = rows_of(prompts)
    variants = [
        CorpusRow(f"v{row.id}", prompt=f"never seen {row.id}", variant=variant(row.id)) for row in rows[::5]
    ]
    removed = replace(rows[1], id="copy", duplicate_of=rows[0].id)
    failed = CorpusRow("failed", prompt="x").failed("labels", "unjudged", "x")
    every = [*rows, removed, *variants]
    shares = {"train": 0.6, "test": 0.4}
    done = {row.id: row for row in SplitByCluster(shares, seed)([*every, failed], lambda row: b"")}
    assert set(done) == {row.id for row in every} - {"copy"}
    assert {row.split for row in done.values()} == {"train", "test"}
    for row in rows:
        assert done[row.id].split == done[row.id.partition("/")[0] + "/0"].split
    for row in variants:
        assert done[row.id].split == done[row.variant.of].split
    if key:
        by_word = {}
        for row in rows:
            by_word.setdefault(row.written_by["words"][0], set()).add(done[row.id].split)
        assert all(len(splits) == 1 for splits in by_word.values())


def test_pictures_without_a_prompt_are_clusters_of_their_own():
    rows = [CorpusRow(f"{number:032x}", file=f"{number}.png") for number in range(40)]
    variants = [CorpusRow(f"v{row.id}", variant=variant(row.id)) for row in rows]
    done = list(SplitByCluster({"train": 0.5, "test": 0.5})([*rows, *variants], lambda row: b""))
    assert len({row.cluster for row in done}) == 40
    assert [row.split for row in done[:40]] == [row.split for row in done[40:]]


def test_too_few_clusters_for_the_shares_are_said():
    with pytest.raises(ConfigError, match="2 rows form 1 clusters"):
        list(SplitByCluster()(rows_of([("a tree", {})]), lambda row: b""))


def test_pictures_of_the_tests_are_pictures():
    with Image.open(io.BytesIO(encode_picture(CorpusRow("a"), blobs(0))[1])) as image:
        assert image.size == (48, 48)
