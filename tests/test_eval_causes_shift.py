"""eval/causes: statistics of images, effect sizes, distribution shift."""

import json
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from eval.causes.effects import cliffs_delta, common_edges, compare, distribution
from eval.causes.image_statistics import STATISTICS, grey_levels, image_statistics, noise_deviation
from eval.causes.outcomes import MOST_SOURCES
from eval.causes.shift import distribution_shift, measure_images
from judge.data.examples import load_examples
from prompts import load_taxonomy
from prompts.example import Example


@pytest.fixture(scope="module")
def scene():
    """A smooth picture of 256 x 256 with a few shapes, as (256, 256) floats."""
    down, across = np.mgrid[0:256, 0:256] / 255
    grey = 90 + 60 * across + 40 * down
    grey[60:120, 80:170] = 200
    grey[150:210, 30:90] = 40
    return grey


def picture(levels):
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8)).convert("RGB")


def test_noise_lowers_the_signal_to_noise_ratio_and_raises_the_rest(scene):
    rng = np.random.default_rng(0)
    found = [
        image_statistics(picture(scene + deviation * rng.standard_normal(scene.shape)))
        for deviation in (0, 8, 16, 32)
    ]
    columns = {name: [one[name] for one in found] for name in STATISTICS}
    assert columns["snr"] == sorted(columns["snr"], reverse=True)
    for name in ("noise", "entropy", "edge_density"):
        assert columns[name] == sorted(columns[name])
        assert columns[name][0] < columns[name][-1]


def test_noise_is_estimated_in_grey_levels(scene):
    noise = np.random.default_rng(1).standard_normal(scene.shape)
    for deviation in (4, 10, 20):
        levels = grey_levels(picture(scene + deviation * noise))
        assert noise_deviation(levels) == pytest.approx(deviation, rel=0.1)


def test_edges_rise_with_stripes():
    densities = []
    for stripes in (0, 2, 8, 32):
        across = np.arange(256)
        levels = np.broadcast_to(255.0 * ((across * stripes // 256) % 2), (256, 256))
        densities.append(image_statistics(picture(levels))["edge_density"])
    assert densities == [0.0, 2 / 256, 14 / 256, 62 / 256]  # each of the edges takes two columns


def test_entropy_of_known_histograms():
    for count, bits in ((1, 0.0), (2, 1.0), (256, 8.0)):
        levels = np.resize(np.linspace(0, 255, count).round(), (256, 256))
        assert image_statistics(picture(levels))["entropy"] == pytest.approx(bits)


def test_the_ratio_is_mean_over_deviation_in_decibels():
    levels = np.resize([90.0, 110.0], (256, 256))
    assert image_statistics(picture(levels))["snr"] == pytest.approx(20.0)  # 100 / 10
    assert image_statistics(picture(np.zeros((256, 256))))["snr"] == pytest.approx(0.0)
    assert image_statistics(picture(np.full((256, 256), 255.0)))["snr"] == pytest.approx(
        20 * np.log10(255 * 12**0.5)
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 60))
def test_statistics_are_finite_in_range_and_blind_to_mirrors(seed, width, height):
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8) // rng.integers(1, 256)
    image = Image.fromarray(levels.astype(np.uint8))
    found = image_statistics(image, working_pixels=32 * 32)
    assert found.keys() == STATISTICS.keys()
    assert np.isfinite(list(found.values())).all()
    assert -40 <= found["snr"] <= 60
    assert 0 <= found["edge_density"] <= 1
    assert 0 <= found["entropy"] <= 8
    assert found["noise"] >= 0
    mirrored = image_statistics(image.transpose(Image.Transpose.ROTATE_180), working_pixels=32 * 32)
    assert mirrored == pytest.approx(found, rel=0.02, abs=0.02)  # resizing rounds to whole levels


def test_size_alone_does_not_shift_a_picture(scene):
    small = picture(scene)
    large = image_statistics(small.resize((1024, 1024), Image.Resampling.BICUBIC))
    own = image_statistics(small)
    assert large["pixels"] == 16 * own["pixels"]
    for name in ("snr", "edge_density", "entropy"):
        assert large[name] == pytest.approx(own[name], rel=0.1)


SAMPLES = st.lists(st.integers(-5, 5), min_size=1, max_size=12)


@given(SAMPLES, SAMPLES)
def test_effects_equal_a_plain_loop_and_scipy(first, second):
    wins = sum(np.sign(b - a) for a, b in product(first, second))
    found = compare(first, second, draws=20)
    assert found["cliffs_delta"] == pytest.approx(wins / (len(first) * len(second)))
    u = stats.mannwhitneyu(second, first).statistic
    assert found["auc"] == pytest.approx(u / (len(first) * len(second)))
    assert found["ks"] == pytest.approx(stats.ks_2samp(first, second).statistic)
    assert cliffs_delta(second, first) == pytest.approx(-found["cliffs_delta"])
    if found["interval"] is None:
        assert 1 in found["rows"]
    else:
        assert -1 <= found["interval"][0] <= found["interval"][1] <= 1


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Of normal samples half a deviation apart delta is 2 * Phi(0.5 / sqrt(2)) - 1."""
    truth = 2 * stats.norm.cdf(0.5 / np.sqrt(2)) - 1
    hits = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        low, high = compare(rng.normal(0, 1, 60), rng.normal(0.5, 1, 80), draws=200, seed=seed)["interval"]
        hits += low <= truth <= high
    assert 51 <= hits <= 60


def test_nothing_to_compare():
    assert compare([], [1.0]) == {
        "rows": [0, 1], "cliffs_delta": None, "interval": None, "auc": None, "ks": None, "ks_p_value": None,
    }  # fmt: skip
    assert distribution([], [0, 1, 2]) == {"rows": 0, "quantiles": None, "counts": [0, 0]}
    assert len(common_edges([])) == len(common_edges([3.0])) == len(common_edges([1, 2, 3]))


@given(st.lists(st.floats(-1e6, 1e6), max_size=30))
def test_every_number_is_in_a_histogram(values):
    edges = common_edges(values)
    assert sorted(set(edges)) == edges
    assert sum(distribution(values, edges)["counts"]) == len(values)


def folder_examples(tmp_path, scene, count=6):
    """Real pictures are smooth, generated ones noisy; one cannot be opened."""
    rng, lines = np.random.default_rng(0), ["path,label,categories,source"]
    for number in range(count):
        for source, deviation in (("real", 2), ("generated", 25)):
            name = f"{source}-{number}.png"
            picture(scene + deviation * rng.standard_normal(scene.shape) + number).save(tmp_path / name)
            lines.append(f"{name},{('safe', 'unsafe')[number % 2]},{('', 'three')[number % 2]},{source}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return load_examples(f"folder:{tmp_path}", split="all", taxonomy=load_taxonomy("digits")).examples


def test_the_shift_of_a_folder_is_found(tmp_path, scene):
    examples = folder_examples(tmp_path, scene)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nno")
    seen = []
    measured = measure_images([*examples, Example("broken", broken)], progress=seen.append)
    assert seen == list(range(1, 14))
    assert measured.table.shape == (12, len(STATISTICS))
    assert list(measured.unreadable) == ["broken"]
    found = distribution_shift(measured, seed=3)
    assert found["reference"] == "real"
    assert found["sources"] == {"real": 6, "generated": 6}
    assert found["enlarged"] == {"real": 0.0, "generated": 0.0}
    effects = {name: one["against_reference"]["generated"] for name, one in found["statistics"].items()}
    assert effects["snr"]["cliffs_delta"] < -0.5
    assert effects["noise"]["cliffs_delta"] == effects["edge_density"]["cliffs_delta"] == 1.0
    assert effects["entropy"]["cliffs_delta"] == 1.0
    assert effects["pixels"]["cliffs_delta"] == 0.0
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert distribution_shift(measured, seed=3) == found


def test_few_images_and_many_sources(noise_image):
    none = distribution_shift(measure_images([]))
    assert none["reference"] is None
    assert none["statistics"]["snr"]["sources"] == {}
    one = distribution_shift(measure_images([Example("1", noise_image(0), source="camera")]))
    assert one["reference"] == "camera"
    assert one["enlarged"] == {"camera": 1.0}
    assert one["statistics"]["snr"]["sources"]["camera"]["rows"] == 1
    many = [Example(str(n), noise_image(n), source=f"model {n % 9}") for n in range(20)]
    found = distribution_shift(measure_images(many, working_pixels=100))
    assert found["reference"] == "model 0"
    assert len(found["sources"]) == MOST_SOURCES
    assert found["left_out"] == {"model 6": 2, "model 7": 2, "model 8": 2}
