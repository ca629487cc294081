"""`arbiter init` and `arbiter train`: from labelled images to a training, without a question left."""

import csv
import re
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from judge.data.check import check_data
from judge.data.gather import gather
from judge.data.images import DEFAULT_LIMITS
from judge.serve import cli
from prompts import load_taxonomy
from prompts.example import UNSPECIFIED

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
COUNTS = {"loops": 6, "straight lines": 6, "safe": 8}


def picture(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((24, 24), 20 + number).convert("RGB").save(path)
    return path


@pytest.fixture
def in_folders(tmp_path, monkeypatch):
    """`pictures/CLASS/*.png` in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name, count in COUNTS.items():
        for number in range(count):
            picture(tmp_path / "pictures" / name.replace(" ", "_") / f"{number}.png", number)
    return tmp_path


@pytest.fixture
def with_table(in_folders):
    """`flat/*.png` and `flat/labels.csv`, with categories joined by commas too."""
    (in_folders / "flat").mkdir()
    lines = []
    for number, path in enumerate(sorted((in_folders / "pictures").rglob("*.png"))):
        shutil.copy(path, in_folders / "flat" / f"{number}.png")
        name = path.parent.name.replace("_", " ")
        lines.append(
            [f"{number}.png", "unsafe" if name != "safe" else "safe", name if name != "safe" else ""]
        )
    lines[0][2] = "loops, straight lines"
    with (in_folders / "flat" / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "categories"], *lines])
    return in_folders


def arbiter(*words):
    return cli.main(list(map(str, words)))


def training(project):
    return yaml.safe_load((project / "train.yaml").read_text())


def test_folders_named_by_class_become_a_table_and_a_taxonomy(in_folders, capsys):
    assert arbiter("init", "mine", "--images", "pictures") == 0
    said = capsys.readouterr().out
    assert "Images: 6 loops, 6 straight lines, 8 safe" in said
    rows = list(csv.DictReader((in_folders / "mine" / "data.csv").read_text().splitlines()))
    assert len(rows) == 20
    assert {row["categories"] for row in rows if row["label"] == "unsafe"} == {"loops", "straight lines"}
    taxonomy = in_folders / "mine" / "taxonomy.yaml"
    assert load_taxonomy(taxonomy).names == ("loops", "straight lines")
    assert taxonomy.read_text().count("# FILL IN") == 2
    given = training(in_folders / "mine")
    assert (given["held_out"], given["flip"]["max_categories"]) == ([], 2)
    assert not check_data(given["dataset"], load_taxonomy(taxonomy)).errors
    for line in (in_folders / "mine" / "commands.txt").read_text().splitlines():
        assert line in said


@pytest.mark.parametrize(
    ("folders", "counts", "names"),
    [
        (("safe", "unsafe"), "2 unsafe content, 2 safe", ("unsafe content",)),
        (("Hate", "hate", "safe"), "4 Hate, 2 safe", ("Hate",)),
        (
            ("guns; knives", "unsafe", "SFW"),
            "2 guns knives, 2 unsafe content, 2 safe",
            ("guns knives", "unsafe content"),
        ),
    ],
)
def test_every_image_of_a_folder_gets_its_label(tmp_path, monkeypatch, capsys, folders, counts, names):
    monkeypatch.chdir(tmp_path)
    for name in folders:
        for number in range(2):
            picture(tmp_path / "all" / name / f"{number}.png", number)
    assert arbiter("init", "mine", "--images", "all") == 0
    assert f"Images: {counts}" in capsys.readouterr().out
    taxonomy = load_taxonomy(tmp_path / "mine" / "taxonomy.yaml")
    assert taxonomy.names == names
    found = gather(training(tmp_path / "mine")["dataset"], taxonomy, DEFAULT_LIMITS, opened=False)
    assert not found.skipped
    for example in found.examples:
        folder = example.image.parent.name.lower()
        assert bool(example.violates) is (folder not in ("safe", "sfw"))
        if folder == "unsafe" and len(names) > 1:  # of whichever category, not of the one that others are of
            assert example.violates == {UNSPECIFIED}


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("loose.png", "1 images beside its folders, such as 'loose.png', and nothing says"),
        ("train/safe/1.png", r"divided into splits \(train\) and not into classes; write a table"),
    ],
)
def test_folders_that_do_not_say_what_all_images_show_are_refused(in_folders, capsys, path, said):
    picture(in_folders / "pictures" / path, 1)
    assert arbiter("init", "mine", "--images", "pictures") == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (in_folders / "mine").exists()


def test_rows_without_a_label_are_not_counted_as_safe(with_table, capsys):
    with (with_table / "flat" / "labels.csv").open("a") as file:
        file.write("0.png,,\n1.png,nsfw,\n")
    assert arbiter("init", "mine", "--images", "flat") == 0
    assert "6 loops, 8 safe" in capsys.readouterr().out


def test_a_table_is_read_and_left_as_it_is(with_table, capsys):
    before = (with_table / "flat" / "labels.csv").read_bytes()
    assert arbiter("init", "mine", "--images", "flat") == 0
    assert "Images: 7 straight lines, 6 loops, 8 safe" in capsys.readouterr().out
    assert (with_table / "flat" / "labels.csv").read_bytes() == before
    assert not (with_table / "mine" / "data.csv").exists()
    assert training(with_table / "mine")["dataset"] == "folder:flat"
    (with_table / "flat" / "labels.csv").rename(with_table / "elsewhere.csv")
    assert (
        arbiter("init", "other", "--images", "flat", "--table", "elsewhere.csv", "--taxonomy", "digits") == 0
    )
    given = training(with_table / "other")
    assert (given["dataset"], given["taxonomy"]) == ("folder:elsewhere.csv::flat", "digits")
    assert not (with_table / "other" / "taxonomy.yaml").exists()


def test_nothing_is_overwritten(in_folders, capsys):
    assert arbiter("init", "mine", "--images", "pictures") == 0
    mine = sorted((in_folders / "mine").iterdir())
    for path in mine:
        path.write_text("name: kept\nversion: 1\ncategories: [{name: a, definition: b}]\n")
    capsys.readouterr()
    assert arbiter("init", "mine", "--images", "pictures") == 0
    assert capsys.readouterr().out.count("which was there") == 3
    assert {path.read_text().splitlines()[0] for path in mine} == {"name: kept"}


def test_what_only_says_safe_or_unsafe_is_one_category(with_table):
    table = with_table / "flat" / "labels.csv"
    rows = [line.split(",")[:2] for line in table.read_text().splitlines()]
    table.write_text("".join(f"{','.join(row)}\n" for row in rows))
    assert arbiter("init", "mine", "--images", "flat") == 0
    assert load_taxonomy(with_table / "mine" / "taxonomy.yaml").names == ("unsafe content",)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["init", "mine", "--images", "pictured"], "--images pictured is no folder (did you mean"),
        (
            ["init", "mine", "--images", "pictures/loops"],
            "neither a table (columns path, label, categories) nor",
        ),
        (["train"], "takes a YAML, and none is given"),
        (["train", "mine.yaml"], "there is no mine.yaml; `arbiter init` writes one"),
        (["train", "here.yaml", "--accelerate", "zero4"], "no profile 'zero4' (did you mean 'zero"),
        (["train", "here.yaml", "--accelerate", "four.yaml"], "--accelerate: there is no four.yaml"),
    ],
)
def test_errors_are_one_line(in_folders, capsys, words, says):
    (in_folders / "here.yaml").write_text("max_steps: 1\n")
    assert arbiter(*words) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not (in_folders / "mine").exists()


def test_the_options_of_a_real_base(in_folders):
    assert arbiter("init", "mine", "--images", "pictures", "--base", "llava-hf/llava-1.5-7b-hf") == 0
    given = training(in_folders / "mine")
    assert given["model_name_or_path"] == "llava-hf/llava-1.5-7b-hf"
    assert (given["learning_rate"], given["dtype"], given["bf16"]) == (2e-4, "bfloat16", True)
    assert arbiter("init", "other", "--images", "pictures", "--base", "small-llava") == 0
    given = training(in_folders / "other")
    assert (given["model_name_or_path"], given["learning_rate"]) == ("small-llava", 1e-3)


@pytest.mark.parametrize(("profile", "processes"), [("single", 1), ("cpu_ddp", 2)])
def test_an_error_is_not_buried_by_the_launcher(in_folders, monkeypatch, capfd, profile, processes):
    recipes = in_folders / "recipes"
    shutil.copytree(RECIPES / "configs" / "accelerate", recipes / "configs" / "accelerate")
    (recipes / "lora_llava.py").write_text("raise SystemExit('error: the base is missing')\n")
    monkeypatch.setattr("judge.serve.recipe_files.recipes_folder", lambda: recipes)
    (in_folders / "mine.yaml").write_text("{}\n")
    assert arbiter("train", "mine.yaml", "--accelerate", profile) == 2
    said = capfd.readouterr().err.splitlines()
    # The launcher may end the second process before it says so, too.
    assert 1 <= said.count("error: the base is missing") <= processes
    assert not [line for line in said if "Error" in line or "Traceback" in line]
