"""Thresholds per category: fitted, saved and loaded, and used from the command line."""

import json
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from judge.calibration.thresholds import Thresholds, best_f1, fit_thresholds, load_thresholds
from judge.errors import ConfigError
from judge.protocol import Scores
from judge.serve.cli import main
from judge.serve.exit_codes import EXIT_ERROR, EXIT_FLAGGED, EXIT_SAFE
from prompts import Category, Taxonomy

COLOURS = Taxonomy("colours", "1", (Category("red", "anything red"), Category("green", "anything green")))


def f1(unsafe, safe, threshold):
    hits, alarms = (np.asarray(unsafe) >= threshold).sum(), (np.asarray(safe) >= threshold).sum()
    return 2 * hits / (hits + alarms + len(unsafe))


rows = st.lists(st.floats(0, 1) | st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=12)


@given(rows, rows)
def test_no_threshold_has_a_better_f1(unsafe, safe):
    found = best_f1(unsafe, safe)
    assert 0 <= found <= 1
    tried = [f1(unsafe, safe, cut) for cut in [*unsafe, *safe, 0.0, 1.0]]
    assert f1(unsafe, safe, found) == pytest.approx(max(tried))


def test_the_border_lies_in_the_middle_and_of_equals_the_lowest_is_taken():
    assert best_f1([0.6, 0.8], [0.1, 0.2]) == pytest.approx(0.4)
    assert best_f1([0.2, 0.9], [0.5, 0.6]) == pytest.approx(0.1)  # 2 hits and 2 alarms, or 1 hit: both 2/3


def drawn(count=400, seed=0):
    """Truth and scores of two categories; the second one's scores are low, so 0.5 misses most of it."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((count, 2)) < 0.3).astype(float)
    scores = np.clip(truth * [0.6, 0.3] + rng.normal(0.2, 0.08, (count, 2)), 0, 1)
    return truth, scores


def test_each_category_gets_its_own_and_unknown_rows_are_left_out():
    truth, scores = drawn()
    found = fit_thresholds(COLOURS, truth, scores, judge="x")
    assert 0.35 < found.thresholds["red"].threshold < 0.65
    assert 0.25 < found.thresholds["green"].threshold < 0.45
    assert found.thresholds["green"].recall > 0.9
    truth[:50, 0], scores[50:80, 1] = np.nan, np.nan
    fewer = fit_thresholds(COLOURS, truth, scores, judge="x").thresholds
    assert fewer["red"].unsafe + fewer["red"].safe == 350
    assert fewer["green"].unsafe + fewer["green"].safe == 370


def test_a_promised_miss_rate_holds_on_average():
    missed = []
    for seed in range(40):
        truth, scores = drawn(seed=seed)
        limits = fit_thresholds(COLOURS, truth[:200], scores[:200], judge="x", miss_rate=0.1).thresholds
        for place, name in enumerate(COLOURS.names):
            unsafe = scores[200:, place][truth[200:, place] == 1]
            missed.append((unsafe < limits[name].threshold).mean())
    assert 0.05 < np.mean(missed) < 0.11


def test_too_few_rows_are_said_by_category():
    truth, scores = drawn(60)
    truth[:, 1] = 0
    with pytest.raises(
        ConfigError, match=r"at least 20 unsafe.*green \(0 unsafe, 60 safe\).*--categories"
    ) as error:
        fit_thresholds(COLOURS, truth, scores, judge="x", min_rows=20)
    assert "red" not in str(error.value) or int(truth[:, 0].sum()) < 20
    truth, scores = drawn(200)
    with pytest.raises(ConfigError, match=r"red: A promised miss rate of 0.001 needs at least 999"):
        fit_thresholds(COLOURS, truth, scores, judge="x", miss_rate=0.001)


@pytest.mark.parametrize("name", ["t.yaml", "t.json"])
def test_a_file_comes_back_and_belongs_to_its_definitions(tmp_path, name):
    found = fit_thresholds(COLOURS, *drawn(), judge="x")
    found.save(tmp_path / name)
    again = load_thresholds(tmp_path / name)
    assert again == found
    limits = {category: fitted.threshold for category, fitted in found.thresholds.items()}
    assert again.for_taxonomy(COLOURS) == limits
    more = COLOURS.select(["green"]).extend({"blue": "anything blue"})
    assert again.for_taxonomy(more) == {"green": limits["green"]}  # blue keeps 0.5
    with pytest.raises(ConfigError, match="'red' was fitted for another definition"):
        again.for_taxonomy(COLOURS.reword({"red": "only dark red"}))
    with pytest.raises(ConfigError, match="No threshold for any of blue; fitted were red, green"):
        again.for_taxonomy(Taxonomy("x", "1", (Category("blue", "anything blue"),)))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "a: [",
        "thresholds: {}",
        "judge: x\ntarget: y\nthresholds: {red: {threshold: 2}}",
        "thresholds: 3",
    ],
)
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"t\.yaml holds no thresholds .*arbiter calibrate"):
        assert load_thresholds(tmp_path / "t.yaml").for_taxonomy(COLOURS)
    with pytest.raises(ConfigError, match="holds no thresholds"):
        load_thresholds(tmp_path / "missing.yaml")


class ColourJudge:
    """Scores half of the red and green there is, so that 0.5 flags nothing."""

    name = "colours"
    default_taxonomy = COLOURS

    def score(self, images: Any, prompts: Any, taxonomy: Taxonomy) -> Scores:
        found = np.array([image.resize((1, 1)).getpixel((0, 0))[:2] for image in images]) / 255 / 2
        found = found.reshape(-1, 2)[:, [COLOURS.index(name) for name in taxonomy.names]]
        return Scores(found.max(axis=1), found, (None,) * len(images))


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder of 60 labelled pictures, and the judge above in place of any run."""
    monkeypatch.setattr("judge.load_classifier", lambda name, **options: ColourJudge())
    folder, lines = tmp_path / "mine", ["path,label,categories"]
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(60):
        kind = ("red", "green", "")[number % 3]
        level = int(rng.integers(150, 250)) if kind else 0
        colour = {"red": (level, number, 9), "green": (number, level, 9), "": (number, 9, number)}[kind]
        Image.new("RGB", (8, 8), colour).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{'unsafe' if kind else 'safe'},{kind}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


def test_calibrate_fits_and_judge_uses_the_file(data, tmp_path, capsys):
    out = tmp_path / "limits.yaml"
    common = ["--judge", "runs/x", "--data", f"folder:{data}", "--split", "all"]
    assert main(["calibrate", *common, "--out", str(out)]) == EXIT_SAFE
    shown = capsys.readouterr().out
    assert "red" in shown
    assert "measure on others" in shown
    limits = yaml.safe_load(out.read_text())["thresholds"]
    assert all(0.1 < fitted["threshold"] < 0.4 and fitted["unsafe"] == 20 for fitted in limits.values())
    picture = str(data / "0.png")
    assert main(["judge", picture, "--judge", "runs/x"]) == EXIT_SAFE
    capsys.readouterr()
    assert main(["judge", picture, "--judge", "runs/x", "--threshold", str(out), "--json"]) == EXIT_FLAGGED
    assert json.loads(capsys.readouterr().out)["category"] == "red"
    assert main(["calibrate", *common, "--miss-rate", "0.1", "--out", str(out)]) == EXIT_SAFE
    assert "at most 0.1 of the unsafe rows missed" in capsys.readouterr().out


def test_a_file_of_another_judge_is_a_warning(data, tmp_path, capsys):
    out = tmp_path / "limits.yaml"
    fitted = fit_thresholds(COLOURS, *drawn(), judge="another")
    Thresholds("another", fitted.target, fitted.thresholds).save(out)
    main(["judge", str(data / "0.png"), "--judge", "runs/x", "--threshold", str(out)])
    assert "thresholds were fitted for another, not for colours" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.txt"], "ends in .yaml"),
        (["--out", "nowhere/x.yaml"], "there is no folder nowhere"),
        (["--out", "x.yaml", "--miss-rate", "2"], "between 0 and 1"),
        (["--out", "x.yaml", "--limit", "0"], "'--limit': Input should be greater than or equal to 1"),
        (["--out", "x.yaml", "--limit", "9"], "Too few labelled and judged rows"),
        (["--out", "x.yaml", "--miss-rate", "0.01"], "needs at least 99"),
    ],
)
def test_options_that_calibrate_refuses(data, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    command = ["calibrate", "--judge", "runs/x", "--data", f"folder:{data}", "--split", "all", *options]
    assert main(command) == EXIT_ERROR
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x.yaml").exists()


def test_a_threshold_file_beside_a_number_is_refused(data, tmp_path, capsys):
    command = [
        "judge",
        str(data / "0.png"),
        "--judge",
        "runs/x",
        "--threshold",
        "a.yaml",
        "--threshold",
        "red=0.1",
    ]
    assert main(command) == EXIT_ERROR
    assert "one file, or numbers, not both" in capsys.readouterr().err
