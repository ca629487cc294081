"""The tables of a benchmark: the paper's layouts, and that nothing in them is silent."""

import pytest
from fixtures_benchmark import synthetic_predictions
from fixtures_predictions import prediction, predictions

from eval.benchmark.effectiveness import measure
from eval.benchmark.tables import across_data_sets, by_category, leaders, ranking, tables
from eval.metrics.arrays import MetricError


@pytest.fixture(scope="module")
def metrics():
    return measure(
        [
            synthetic_predictions("nude", covers=("three",), group="conventional", seed=2),
            synthetic_predictions("llava", group="zero_shot", skill=0.1, seed=1, price_per_1000=20.0),
            synthetic_predictions("ours", group="ours"),
        ],
        draws=30,
    )


def found(metrics):
    return {table.title: table for table in tables(metrics)}


def test_table_4_has_a_block_for_each_source_then_one_for_all(metrics):
    table = by_category(metrics)
    assert table.title == "F1 by category"
    assert table.heads == ["classifier", *(one["name"] for one in metrics["categories"]), "Overall"]
    assert [name for name, _ in table.lines] == [
        "Real-World",
        "",
        "",
        "AI-Generated",
        "",
        "",
        "Overall",
        "",
        "",
    ]
    assert [cells[0] for _, cells in table.lines] == ["nude", "llava*", "ours"] * 3
    record = metrics["classifiers"]["llava"]
    line = table.lines[4][1]
    assert line[4] == record["cells"]["three"]["generated"]["f1"]
    assert line[-1] == record["overall"]["generated"]["f1"]
    # What is not covered is a dash, and so is the whole of what does not cover all.
    nude = table.lines[6][1]
    assert nude[4] == metrics["classifiers"]["nude"]["cells"]["three"]["all"]["f1"]
    assert [cell for place, cell in enumerate(nude[1:]) if place != 3] == [None] * 10
    assert "–" in table.to_text()
    assert "llava\\*" in table.to_markdown()


@pytest.mark.parametrize("field", ["precision", "recall", "f1_interval", "false_positive_rate"])
def test_the_same_table_of_other_numbers(metrics, field):
    line = by_category(metrics, field).lines[-1][1]
    record = metrics["classifiers"]["ours"]
    assert line[4] == record["cells"]["three"]["all"][field]
    assert line[-1] == record["overall"]["all"][field]


def test_one_source_has_one_block():
    rows = [prediction("1", "a", (1.0, 0.0, 0.0)), prediction("2")]
    table = by_category(measure([predictions(rows)], draws=2))
    assert [name for name, _ in table.lines] == ["Overall"]


def test_other_sources_keep_their_names():
    rows = [prediction("1", "a", source="web"), prediction("2", source="generated")]
    table = by_category(measure([predictions(rows)], draws=2))
    assert [name for name, _ in table.lines] == ["AI-Generated", "web", "Overall"]


def test_leaders_first_by_f1_those_that_cover_everything_before_the_others(metrics):
    assert ranking(metrics) == ["ours", "llava", "nude"]
    table = leaders(metrics)
    assert [name for name, _ in table.lines] == ["ours", "llava*", "nude"]
    cells = dict(zip(table.heads, table.lines[1][1], strict=True))
    overall = metrics["classifiers"]["llava"]["overall"]["all"]
    assert (cells["F1"], cells["behind"]) == (overall["f1"], overall["behind_best"])
    assert cells["$/1,000 images"] == 20.0
    assert dict(zip(table.heads, table.lines[0][1], strict=True))["behind"] == "best"
    partly = dict(zip(table.heads, table.lines[2][1], strict=True))
    assert (partly["categories"], partly["F1"], partly["behind"]) == (1, None, None)
    assert partly["F1, covered"] == metrics["classifiers"]["nude"]["covered"]["all"]["f1"]


def test_the_best_of_each_category_is_named(metrics):
    table = found(metrics)["F1 behind the best by category"]
    for place, (_, cells) in enumerate(table.lines[6:]):
        record = list(metrics["classifiers"].values())[place]
        for cell, one in zip(cells[1:], metrics["categories"], strict=False):
            own = record["cells"].get(one["key"], {}).get("all", {})
            assert cell == ("best" if own.get("best") else own.get("behind_best"))
    assert [cells[-1] for _, cells in table.lines[6:]].count("best") == 1


def test_every_table_is_whole(metrics):
    titles = found(metrics)
    assert {
        "Leader table",
        "Cost",
        "Images by category",
        "Mean F1 by source",
        "Images that could not be judged",
    } <= set(titles)
    assert {"Severity", "Naming of unseen harms"}.isdisjoint(titles)
    for table in titles.values():
        assert table.lines
        assert all(len(cells) == len(table.heads) for _, cells in table.lines)
        assert table.title in table.to_text()
        assert table.title in table.to_markdown()


def test_images_by_category_are_those_of_a_classifier_that_covers_it(metrics):
    lines = found(metrics)["Images by category"].lines
    overall = metrics["classifiers"]["ours"]["overall"]["all"]
    assert [name for name, _ in lines] == ["Real-World", "", "AI-Generated", "", "Overall", ""]
    assert lines[4][1][-1] == overall["unsafe_rows"]
    assert lines[5][1][-1] == overall["rows"] == 60


def test_mean_f1_by_category_and_by_source(metrics):
    line = dict(found(metrics)["Classifiers that cover a category"].lines)["three"]
    assert line[0] == 3
    assert line[-1] == metrics["by_category"]["three"]["mean_f1"]["all"]
    sources = found(metrics)["Mean F1 by source"]
    assert dict(sources.lines)["ours"][0] == metrics["classifiers"]["ours"]["mean_f1"]["real"]["f1"]


def test_failures_are_listed_with_their_share(metrics):
    lines = found(metrics)["Images that could not be judged"].lines
    [cells] = [cells for name, cells in lines if name == "ours"]
    count = metrics["classifiers"]["ours"]["unjudged"]
    assert cells == [count, count / 60, "the model gave no answer"]


def test_images_that_were_left_out_are_said():
    rows = [
        prediction("1", "a", collected_for="a"),
        prediction("2", "b", collected_for="a"),
        prediction("3", collected_for="b"),
    ]
    assert (
        "Left out, as their labels do not say on which side they are or what they were collected for: a 1."
        in by_category(measure([predictions(rows)], draws=2)).note
    )
    assert "Left out" not in by_category(measure([predictions(rows[:1])], draws=2)).note


def test_severity_and_naming_have_tables_where_there_are_any():
    rows = [
        prediction(f"{number}", "a" if number else "", (number / 9, 0.0, 0.0), severity=number % 3)
        for number in range(9)
    ]
    metrics = measure([predictions(rows)], draws=20, held_out=["a"])
    record = metrics["classifiers"]["one"]
    severity = found(metrics)["Severity"]
    assert severity.heads[-3:] == ["flagged, grade 0", "flagged, grade 1", "flagged, grade 2"]
    assert dict(severity.lines)["one"][2] == record["severity"]["tau_b"]
    naming = found(metrics)["Naming of unseen harms"]
    assert dict(naming.lines)["one"][:3] == [8, record["naming"]["found"], record["naming"]["named"]]


# Several data sets


def of_data_set(name, *labels, covers=None):
    made = [
        synthetic_predictions(label, rows=40, seed=len(label) + len(name), covers=covers) for label in labels
    ]
    return {**measure(made, draws=2), "dataset": name}


def test_table_6_is_one_line_a_classifier_and_one_column_a_data_set():
    inside, first, second = (
        of_data_set("own", "a", "bb"),
        of_data_set("smid", "a", "bb"),
        of_data_set("web", "a"),
    )
    table = across_data_sets([inside, first, second], trained_on=["own"])
    assert table.heads == ["own (in distribution)", "smid", "web", "OOD average"]
    lines = dict(table.lines)
    f1 = [one["classifiers"]["a"]["overall"]["all"]["f1"] for one in (inside, first, second)]
    assert lines["a"] == [*f1, pytest.approx((f1[1] + f1[2]) / 2)]
    assert lines["bb"][2:] == [None, None]  # no average where a number is missing
    assert across_data_sets([inside, first]).heads == ["own", "smid", "average"]


def test_who_covers_a_part_has_no_number_in_table_6():
    table = across_data_sets([of_data_set("own", "a", covers=("three",)), of_data_set("smid", "a")])
    assert dict(table.lines)["a"][0] is None
    assert dict(table.lines)["a"][2] is None


def test_data_sets_that_do_not_fit_are_refused():
    own = of_data_set("own", "a")
    with pytest.raises(MetricError, match="own, own; give each of them once"):
        across_data_sets([own, own])
    with pytest.raises(MetricError, match="'other' is none of them"):
        across_data_sets([own], trained_on=["other"])
