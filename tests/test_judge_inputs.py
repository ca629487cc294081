"""The beginning of every `score`: a picture in any form is one picture, and what is no picture says what to pass."""

from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from judge.baselines.pooled_attention import PooledAttention, PooledAttentionHead
from judge.cascade.cascade import Cascade
from judge.cascade.filters_alone import FilterClassifier
from judge.cascade.settings import CascadeSettings
from judge.cascade.similarity import Platt
from judge.cascade.stages import Cutoffs
from judge.data.images import MAX_JUDGED_PIXELS
from judge.encoders.dual import DualEncoder
from judge.errors import ImageError, QuestionError
from judge.inputs import concatenate_scores, insert_failed_rows, open_input, validate_inputs
from judge.protocol import Scores, on_one_scale
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.student import Student
from judge.vlm.score import VisionLanguageJudge
from prompts import Category, Taxonomy

POLICY = Taxonomy("short", "1", (Category("one", "a 1"), Category("two", "a 2")))
# The student is asked about everything, and the judge about what it is unsure of.
SETTINGS = CascadeSettings(
    Platt(1.0, 0.0), Platt(1.0, 0.0), Cutoffs(2, 0, 2, 0.3, 0.7, 0.5), True, 0.02, 0.0, 100
)
NAMES = [
    "judge",
    "judge, multilabel",
    "judge, several",
    "student",
    "onnx",
    "filters",
    "pooled",
    "cascade",
    "own head",
]


class Bright:
    """A classifier of somebody else: the share of white is p(unsafe)."""

    name = "bright"

    def __init__(self):
        self.batches = []

    @validate_inputs
    def score(self, images, prompts, taxonomy):
        self.batches.append(len(images))
        unsafe = np.array([np.asarray(image).mean() / 255 for image in images])
        return Scores(unsafe, np.repeat(unsafe[:, None], len(taxonomy), axis=1), (None,) * len(images))


@pytest.fixture(scope="module")
def score(tiny_vlm, tiny_clip_folder, exported):
    """`score(name)` -> a function of images, prompts and a taxonomy."""
    torch.manual_seed(0)
    encoder = DualEncoder.load(tiny_clip_folder)
    student = Student(encoder, CrossAttentionHead(HeadConfig(encoder.width, inner=32, heads=4, rank=4)))
    judge = VisionLanguageJudge(*tiny_vlm())
    cascade = Cascade(student, SETTINGS, judge)
    pooled = PooledAttention(encoder, PooledAttentionHead(encoder.width), POLICY)
    known = {
        "judge": judge.score,
        "judge, multilabel": lambda *asked: judge.score(*asked, multilabel=True),
        "judge, several": lambda i, p, t: judge.score_taxonomies(i, p, [POLICY.select(["two"]), t])[1],
        "student": student.score,
        "filters": FilterClassifier.from_cascade(cascade).score,
        "pooled": pooled.score,
        "cascade": cascade.score,
        "own head": Bright().score,
    }

    def get(name):
        if name == "onnx" and name not in known:
            pytest.importorskip("onnxruntime")
            pytest.importorskip("onnxscript")
            from judge.student.onnx import load_onnx_student

            known[name] = load_onnx_student(exported("clip")[1], threads=1).score
        return known[name]

    return get


def stored(image, kind="PNG", **options):
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def in_colour(levels, folder):
    """Forms of an RGB picture (H, W, 3); the first is plain."""
    image = Image.fromarray(levels)
    path = folder / "picture.png"
    image.save(path)
    floats = levels / np.float32(255)
    tensor = torch.from_numpy(levels.copy())
    return {
        "RGB": image,
        "path": path,
        "text": str(path),
        "bytes": path.read_bytes(),
        "bytearray": bytearray(stored(image, "BMP")),
        "WebP": stored(image, "WEBP", lossless=True),
        "lazy": Image.open(path),
        "RGBA": image.convert("RGBA"),
        "RGBX": image.convert("RGBX"),
        "CMYK": image.convert("CMYK"),
        "HWC": levels,
        "CHW": levels.transpose(2, 0, 1),
        "turned view": levels[::-1][::-1],
        "floats": floats,
        "doubles CHW": (levels / 255).transpose(2, 0, 1),
        "half": floats.astype(np.float16),
        "RGBA array": np.dstack([levels, np.full(levels.shape[:2], 255, np.uint8)]),
        "tensor HWC": tensor,
        "tensor CHW": tensor.permute(2, 0, 1),
        "tensor of floats": (tensor.permute(2, 0, 1) / 255).requires_grad_(),
    }


def in_grey(levels, folder):
    """Forms of a grey picture (H, W); the first is its RGB."""
    image = Image.fromarray(levels)
    sixteen = levels.astype(np.uint16) * 257
    return {
        "RGB": Image.fromarray(np.repeat(levels[..., None], 3, axis=2)),
        "L": image,
        "L in a file": stored(image),
        "LA": image.convert("LA"),
        "La": image.convert("LA").convert("La"),
        "P": image.convert("P"),
        "P in a GIF": stored(image, "GIF"),
        "I;16": Image.fromarray(sixteen),
        "I;16 in a file": stored(Image.fromarray(sixteen)),
        "I": Image.fromarray(sixteen.astype(np.int32)),
        "F": Image.fromarray(levels.astype(np.float32)),
        "F to 1": Image.fromarray(levels.astype(np.float32) / 255),
        "HW": levels,
        "HW1": levels[..., None],
        "1HW": levels[None],
        "floats": levels / np.float64(255),
        "tensor": torch.from_numpy(levels.copy()),
    }


def in_black_and_white(levels, folder):
    one = Image.fromarray((levels > 127).astype(np.uint8) * 255).convert("1")
    return {"RGB": one.convert("RGB"), "1": one, "1 in a file": stored(one), "1 in a BMP": stored(one, "BMP")}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("forms", [in_colour, in_grey, in_black_and_white])
def test_a_picture_scores_the_same_in_any_form(score, tmp_path, name, forms):
    @settings(max_examples=2)
    @given(seed=st.integers(0, 10**6), width=st.integers(5, 40), height=st.integers(5, 40))
    def check(seed, width, height):
        shape = (height, width, 3) if forms is in_colour else (height, width)
        levels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        levels.flat[:2] = 0, 255  # a grey picture of 32 bits is known for 16 bits by its largest value
        pictures = forms(levels, tmp_path)
        found = score(name)(list(pictures.values()), ["a 2"] * len(pictures), POLICY)
        assert found.reasons == (None,) * len(pictures)
        for row, form in enumerate(pictures):
            assert abs(found.unsafe[row] - found.unsafe[0]) <= 1e-6, form
            np.testing.assert_allclose(found.categories[row], found.categories[0], atol=1e-6, err_msg=form)

    check()


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_opened_is_a_row_of_its_own(score, noise_image, tmp_path, name):
    good = noise_image(1)
    bad = [b"no image", Image.new("RGB", (0, 0)), np.zeros((0, 0, 3), np.uint8), tmp_path / "none.png"]
    found = score(name)([bad[0], good, *bad[1:]], ["a 2", "a 1", None, None, None], POLICY)
    alone = score(name)([good], ["a 1"], POLICY)
    assert np.isnan(found.unsafe[[0, 2, 3, 4]]).all()
    assert np.isnan(found.categories[[0, 2, 3, 4]]).all()
    assert abs(found.unsafe[1] - alone.unsafe[0]) <= 1e-6
    words = [(reason or "judged").split(":")[0] for reason in found.reasons]
    assert words == ["not_an_image", "judged", "unreadable", "unreadable", "missing"]
    none = score(name)(bad, None, POLICY)
    assert np.isnan(none.unsafe).all()
    assert none.categories.shape == (4, 2)
    if found.decided_by is not None:
        assert found.decided_by[0] == none.decided_by[0] == "door"
        assert found.decided_by[1] != "door"


PICTURE = Image.new("RGB", (8, 8))
WRONG_IMAGES = {
    "one PIL image": (PICTURE, r"one Image; give a list of images: \[image\]"),
    "one path": ("picture.png", "one str"),
    "bytes": (b"\x89PNG", "one bytes"),
    "one array": (np.zeros((8, 8, 3), np.uint8), "one ndarray"),
    "one tensor": (torch.zeros(3, 8, 8), "one Tensor"),
    "a generator": ((image for image in [PICTURE]), "is a generator; give a list or tuple"),
    "a dictionary": ({0: PICTURE}, "is a dict"),
    "nothing": (None, "is a NoneType"),
    "a URL": (["https://example.org/a.png"], "is a URL, and nothing is fetched"),
    "a data URL": (["data:image/png;base64,AAAA"], "is a URL"),
    "a number": ([3], "not int"),
    "nothing in a list": ([None], "not NoneType"),
    "lists": ([[[0, 0, 0]]], "not list"),
    "int64": ([np.zeros((8, 8, 3), np.int64)], "int64 has no known range"),
    "uint16": ([np.zeros((8, 8, 3), np.uint16)], "uint16 has no known range"),
    "truth values": ([np.zeros((8, 8), bool)], "bool has no known range"),
    "floats to 255": (
        [np.full((8, 8, 3), 200.0)],
        "Floats of a picture are 0 to 1, got 200 to 200. Divide by 255",
    ),
    "normalised floats": ([torch.full((3, 8, 8), -0.5)], "undo a normalisation"),
    "not a number": ([np.full((8, 8, 3), np.nan)], "0 to 1, got nan"),
    "five channels": ([np.zeros((8, 8, 5), np.uint8)], r"shape \(8, 8, 5\) is no picture"),
    "a batch as an image": ([np.zeros((2, 8, 8, 3), np.uint8)], "is no picture"),
    "a row": ([np.zeros(8, np.uint8)], "is no picture"),
    "channels anywhere": ([np.zeros((3, 8, 3), np.uint8)], "channels first or last"),
}


@pytest.mark.parametrize("case", WRONG_IMAGES)
@pytest.mark.parametrize("name", ["judge", "student", "cascade"])
def test_wrong_arguments_say_what_to_pass(score, name, case):
    images, message = WRONG_IMAGES[case]
    with pytest.raises(QuestionError, match=message):
        score(name)(images, None, POLICY)


@pytest.mark.parametrize("name", NAMES)
def test_taxonomies_and_prompts_of_another_form(score, name):
    for wrong in (["one", "two"], {"one": "a 1"}, "digits", None):
        with pytest.raises(
            QuestionError, match=f"taxonomy is a {type(wrong).__name__}, not a prompts.Taxonomy"
        ):
            score(name)([PICTURE], None, wrong)
    with pytest.raises(QuestionError, match="Got 1 images but 2 prompts; give one each, or None"):
        score(name)([PICTURE], ["a", "b"], POLICY)
    with pytest.raises(QuestionError, match="prompts is one str; give a list"):
        score(name)([PICTURE] * 3, "two", POLICY)
    with pytest.raises(QuestionError, match="A prompt is a text or None, not int"):
        score(name)([PICTURE], [2], POLICY)


def test_nothing_is_fetched_whatever_the_string(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection"))
    for url in ("http://127.0.0.1:9/a.png", "HTTPS://x/a", "file:///etc/hostname", "s3://b/a.png", "data:,"):
        with pytest.raises(QuestionError, match="nothing is fetched"):
            open_input(url)
    with pytest.raises(ImageError, match="missing"):
        open_input("photos:1,2.png")


def test_batches_in_one_array_are_batches():
    levels = np.random.default_rng(0).integers(0, 256, (3, 8, 9, 3), dtype=np.uint8)
    found = Bright().score(levels, None, POLICY)
    assert found.unsafe == pytest.approx(levels.mean(axis=(1, 2, 3)) / 255)
    turned = torch.from_numpy(levels).permute(0, 3, 1, 2)
    assert Bright().score(turned, None, POLICY).unsafe == pytest.approx(found.unsafe)
    assert Bright().score([], None, POLICY).unsafe.shape == (0,)


def test_clean_images_are_not_copied():
    assert open_input(PICTURE) is PICTURE
    for other in (
        Image.new("L", (8, 8)),
        Image.new("RGB", (2050, 2048)),
        Image.open(BytesIO(stored(PICTURE))),
    ):
        assert open_input(other) is not other
    marked = PICTURE.copy()
    marked.info["gamma"] = 1.0
    assert open_input(marked) is not marked
    with pytest.raises(ImageError, match="too_narrow"):
        open_input(Image.new("RGB", (51, 1)))


def test_only_so_many_opened_images_are_held(monkeypatch, tmp_path):
    monkeypatch.setattr("judge.inputs.OPENED_PIXELS", 2 * 64)
    PICTURE.save(tmp_path / "a.png")
    classifier = Bright()
    mixed = [tmp_path / "a.png", b"", tmp_path / "a.png", PICTURE, np.full((8, 8, 3), 255, np.uint8)]
    found = classifier.score(mixed, None, POLICY)
    assert classifier.batches == [2, 2]
    assert found.unsafe[[0, 2, 3, 4]].tolist() == [0, 0, 0, 1]
    assert [bool(reason) for reason in found.reasons] == [False, True, False, False, False]
    held = Bright()
    held.score([PICTURE] * 9, None, POLICY)
    assert held.batches == [9]


def test_large_pictures_are_reduced_before_they_are_judged():
    seen = open_input(np.zeros((3000, 4000, 3), np.uint8))
    assert seen.size == (2000, 1500)
    assert seen.width * seen.height <= MAX_JUDGED_PIXELS


def test_rows_are_put_where_they_belong():
    judged = Scores(
        np.array([0.1, 0.9]), np.array([[0.1], [0.9]]), (None, "x"), ("filter", "judge"), ("a", "b")
    )
    found = insert_failed_rows(judged, ["broken", None, "cut", None])
    assert np.array_equal(found.unsafe, [np.nan, 0.1, np.nan, 0.9], equal_nan=True)
    assert found.reasons == ("broken", None, "cut", "x")
    assert found.decided_by == ("door", "filter", "door", "judge")
    assert found.because == ("broken", "a", "cut", "b")
    both = concatenate_scores([found, judged])
    assert both.unsafe.shape == (6,)
    assert both.because == ("broken", "a", "cut", "b", "a", "b")
    assert concatenate_scores([judged, Scores(np.zeros(1), np.zeros((1, 1)), (None,))]).decided_by is None


def test_probabilities_as_found_outlive_unopened_rows_and_batches():
    """Lessons and temperatures are made of them; without them they would be made of moved scores."""
    found = on_one_scale(Scores(np.array([0.9, 0.2]), np.array([[0.6, 0.3], [0.1, 0.2]]), (None, None)))
    whole = insert_failed_rows(found, [None, "broken", None])
    np.testing.assert_allclose(whole.category_probabilities, [[0.6, 0.3], [np.nan, np.nan], [0.1, 0.2]])
    unmoved = Scores(np.array([0.4]), np.array([[0.4, 0.1]]), (None,))
    np.testing.assert_allclose(
        concatenate_scores([found, unmoved]).category_probabilities, [[0.6, 0.3], [0.1, 0.2], [0.4, 0.1]]
    )
    assert concatenate_scores([unmoved, unmoved]).separate is None
