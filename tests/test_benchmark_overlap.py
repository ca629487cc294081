"""Overlap of training and test images: what is found, what is not known, and the score without it."""

import math
from io import BytesIO

import pytest
from fixtures_benchmark import synthetic_predictions
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from eval.benchmark.overlap import (
    OverlapWithTraining,
    find_copies,
    hash_examples,
    overlap,
    overlap_table,
    score_without,
)
from eval.benchmark.training_rows import known_training
from judge.data.images import open_image
from judge.data.perceptual_hash import hash_images
from judge.runs.folder import RunDir
from judge.standins.digits import digits_examples
from prompts import load_taxonomy
from prompts.example import Example

DIGITS = load_taxonomy("digits")
TRAIN = digits_examples("train", count=60)
TEST = digits_examples("test", count=20)


def as_jpeg(image, quality=80):
    stored = BytesIO()
    open_image(image).save(stored, "JPEG", quality=quality)
    return stored.getvalue()


def run_folder(path, dataset="digits:60", *, config=None, kind="linear_probe", **about):
    run = RunDir.create(path, kind=kind, **about)
    run.write_taxonomy(DIGITS)
    run.write_config({"dataset": dataset, "limit": None} | (config or {}))
    return path


def image_folder(path, examples):
    path.mkdir()
    lines = ["path,label,categories,split"]
    for number, example in enumerate(examples):
        open_image(example.image).save(path / f"{number}.png")
        label = "unsafe" if example.violates else "safe"
        lines.append(f"{number}.png,{label},{';'.join(sorted(example.violates))},train")
    (path / "table.csv").write_text("\n".join(lines))
    return f"folder:{path}"


@pytest.fixture(scope="module")
def trained():
    return hash_examples(TRAIN)


@settings(max_examples=25, deadline=None)
@given(st.sets(st.integers(0, 59), max_size=6), st.sets(st.integers(60, 79), max_size=6), st.integers(0, 12))
def test_exactly_the_copies_are_found(trained, exact, new, near):
    """Copies of training images among new ones, whatever their number and order."""
    seen = [(f"exact-{place}", TRAIN[place].image) for place in sorted(exact)]
    stored = [("near", as_jpeg(TRAIN[near].image))]
    unseen = [(f"new-{place}", TEST[place - 60].image) for place in sorted(new)]
    tested = hash_images([*unseen, *stored, *seen])
    record = overlap(tested, [find_copies(trained, tested)])
    assert (record["exact"], record["near"]) == (len(exact), 1)
    assert set(record["ids"]) == {id_ for id_, _ in (*seen, *stored)}
    assert record["share"] == pytest.approx((len(exact) + 1) / len(tested))
    assert record["tested"] == len(tested)
    assert record["pairs"] == [
        [id_, TRAIN[near if id_ == "near" else int(id_.split("-")[1])].id] for id_ in record["ids"][:5]
    ]


def test_an_image_counts_once_and_exact_goes_before_near(trained):
    tested = hash_images([("seen", TRAIN[3].image)])
    stored = hash_images([("stored", as_jpeg(TRAIN[3].image))])
    record = overlap(tested, [find_copies(stored, tested), find_copies(trained, tested)])
    assert (record["exact"], record["near"], record["ids"]) == (1, 0, ["seen"])
    assert record["trained"] == 61


def test_of_several_copies_in_training_the_first_is_named(trained):
    tested = hash_images([("seen", TRAIN[3].image)])
    stored = hash_images([(f"quality {q}", as_jpeg(TRAIN[3].image, q)) for q in (90, 80, 70)])
    assert find_copies(stored, tested).near == {"seen": "quality 90"}


def test_what_cannot_be_opened_is_counted():
    tested = hash_examples([*TEST, Example("broken", b"no image")])
    found = find_copies([TRAIN[0], Example("broken too", b"no image")], tested)
    assert overlap(tested, [found])["unreadable"] == 2
    nothing = overlap(tested, [find_copies([Example("broken", b"no image")], tested)])
    assert nothing["share"] is None
    assert "opened" in nothing["reason"]


def test_a_run_leads_to_the_rows_of_all_it_was_made_from(tmp_path):
    """A cascade of a student and a judge; the student's teacher is that judge, its encoder one of another run."""
    run_folder(tmp_path / "judge", "digits:30", kind="vlm", base="tiny-llava")
    run_folder(tmp_path / "robust", "digits:50", kind="encoder", base="tiny-clip")
    where = f"{tmp_path.name}/robust/encoder"
    run_folder(
        tmp_path / "student", "digits:20", kind="student", teacher=f"{tmp_path.name}/judge", encoder=where
    )
    stages = {name: {"path": f"../{name}", "sha256": "0"} for name in ("student", "judge")}
    cascade = run_folder(tmp_path / "cascade", "digits:40", kind="cascade", **stages)
    known = known_training(cascade)
    assert {(one.dataset, one.split) for one in known.sources} == {
        (f"digits:{count}", split) for count in (20, 30, 40, 50) for split in ("train", "validation")
    }
    assert set(known.not_known) == {"tiny-clip: not recorded", "tiny-llava: not recorded"}


def test_fewer_rows_of_the_same_split_are_not_read_twice(tmp_path):
    run_folder(tmp_path / "student", "digits", kind="student", teacher="labels")
    cascade = run_folder(
        tmp_path / "cascade", "digits", kind="cascade", config={"limit": 10}, student={"path": "../student"}
    )
    assert [(one.split, one.limit) for one in known_training(cascade).sources] == [
        ("train", None),
        ("validation", None),
    ]


def test_a_judge_that_was_no_teacher_taught_nothing(tmp_path):
    run_folder(tmp_path / "demo", "digits:30", kind="vlm")
    config = {"teacher": "labels", "judge": str(tmp_path / "demo")}
    probe = run_folder(tmp_path / "probe", "digits:20", config=config)
    assert {one.dataset for one in known_training(probe).sources} == {"digits:20"}
    config["teacher"] = "judge"
    taught = run_folder(tmp_path / "taught", "digits:20", config=config)
    assert {one.dataset for one in known_training(taught).sources} == {"digits:20", "digits:30"}


def test_a_hardened_judge_saw_further_digits(tmp_path):
    run_folder(tmp_path / "first", "digits:20", kind="vlm")
    config = {"feature_images": 90, "judge": str(tmp_path / "first")}
    run = run_folder(tmp_path / "hardened", "digits:20", kind="vlm", config=config)
    found = {(one.dataset, one.split) for one in known_training(run).sources}
    assert found == {("digits:20", "train"), ("digits:20", "validation"), ("digits:90", "train")}


def test_a_run_that_names_itself_ends(tmp_path):
    run_folder(tmp_path / "one", kind="vlm", judge=str(tmp_path / "two"))
    run_folder(tmp_path / "two", kind="vlm", judge=str(tmp_path / "one"))
    assert len(known_training(tmp_path / "one").sources) == 2


@pytest.mark.parametrize(
    "name", ["q16", "Q16", "tiny-llava", "hf:owner/name", "http://host/v1#m", "runs/gone"]
)
def test_what_has_no_run_folder_is_unknown_and_never_zero(name):
    record = OverlapWithTraining(hash_examples(TEST[:2]), "digits").measure(name)
    assert record["reason"] == f"{name}: not recorded"
    assert all(record[key] is None for key in ("exact", "near", "share", "ids", "trained"))
    line = overlap_table({name: record}).to_text().splitlines()[-1]
    assert line.count("unknown") == 4


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"dataset": "owner/name"}, "trained on owner/name, which is not here"),
        ({"dataset": "unsafebench"}, "trained on unsafebench, which is not here"),
        ({"dataset": "folder:gone"}, "trained on folder:gone, which is not here"),
        ({"dataset": None}, "its config.yaml names no data set"),
        ({"limit": "many"}, "its config.yaml names no data set"),
        ({"dataset": "digits:none"}, "is no count"),
    ],
)
def test_data_that_are_gone_are_unknown_and_no_host_is_asked(tmp_path, config, reason):
    run = run_folder(tmp_path / "run", config=config)
    record = OverlapWithTraining(hash_examples(TEST[:2]), "digits").measure(run)
    assert record["share"] is None
    assert reason in record["reason"]


@pytest.mark.parametrize("text", [None, "[1, 2", "- a list", "5"])
def test_a_damaged_config_is_unknown(tmp_path, text):
    run = run_folder(tmp_path / "run")
    (run / "config.yaml").unlink()
    if text is not None:
        (run / "config.yaml").write_text(text)
    record = OverlapWithTraining(hash_examples(TEST[:2]), "digits").measure(run)
    assert record["share"] is None
    assert record["reason"].startswith(f"{run}: ")


def test_the_tested_data_set_may_be_on_the_hub(tmp_path):
    run = run_folder(tmp_path / "run", "owner/name")
    assert [one.dataset for one in known_training(run, "owner/name").sources] == ["owner/name"] * 2


def test_a_published_set_is_the_same_wherever_its_copy_lies(tmp_path):
    run = run_folder(tmp_path / "run", "unsafebench:moved")
    assert {one.dataset for one in known_training(run, "unsafebench:here").sources} == {"unsafebench:here"}
    assert not known_training(run, "smid:here").sources
    other = run_folder(tmp_path / "other", "folder:moved")
    assert not known_training(other, "folder:here").sources


def test_rows_of_a_folder_are_found_again(tmp_path):
    dataset = image_folder(tmp_path / "images", TRAIN[:12])
    run = run_folder(tmp_path / "run", dataset)
    tested = hash_images([("seen", TRAIN[5].image), ("new", TEST[0].image)])
    record = OverlapWithTraining(tested, "digits").measure(run)
    assert record["reason"] is None
    assert (record["exact"], record["ids"], record["trained"]) == (1, ["seen"], 12)


def test_one_data_set_of_several_runs_is_read_once(tmp_path):
    runs = [run_folder(tmp_path / name) for name in ("one", "two")]
    read = []
    compared = OverlapWithTraining(hash_examples(TEST[:2]), "digits")
    first, second = (compared.measure(run, read.append) for run in runs)
    assert first == second
    assert read == ["digits:60/train", "digits:60/validation"]


def test_the_score_without_copies_is_that_of_the_others():
    predictions = synthetic_predictions(rows=80)
    copies = [row.id for row in predictions.rows[::3]]
    found = score_without(predictions, copies)

    def expected(rows):
        truth = [row.truth for row in rows]
        # An unjudged row is an error on either side.
        return f1_score(
            truth, [row.unsafe >= 0.5 if not math.isnan(row.unsafe) else not row.truth for row in rows]
        )

    assert found["f1"] == pytest.approx(expected(predictions.rows))
    assert found["clean_f1"] == pytest.approx(
        expected([row for row in predictions.rows if row.id not in copies])
    )
    assert found["clean_rows"] == 80 - len(copies)
    assert found["clean_f1_interval"][0] <= found["clean_f1"] <= found["clean_f1_interval"][1]
    everything = score_without(predictions, [row.id for row in predictions.rows])
    assert (everything["clean_rows"], everything["clean_f1"]) == (0, None)


def test_the_table_has_f1_with_and_without():
    tested = hash_examples(TEST)
    record = overlap(tested, [find_copies([TEST[0], TRAIN[0]], tested)], ["tiny-clip: not recorded"])
    table = overlap_table({"probe": record}, {"probe": {"f1": 0.9, "clean_f1": 0.8}})
    assert table.lines == [("probe", [2, 1, 0, 0.05, 0.9, 0.8, "tiny-clip: not recorded"])]
