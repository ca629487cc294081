"""Published numbers: the file adds up where the papers do, and a run is compared with what it can be compared with."""

import json
from copy import deepcopy
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise

import pytest
import yaml
from fixtures_benchmark import synthetic_predictions

from eval.benchmark.compare import compare_published, published_tables
from eval.benchmark.effectiveness import measure
from eval.benchmark.published import PublishedError, literature, read_published, simplify
from eval.benchmark.union import unite
from judge.data.examples import EXTERNAL_SETS
from prompts import load_taxonomy

KEYS = load_taxonomy("unsafebench").keys
HALF = 0.0005 + 1e-9
"""A number of three decimals is at most this far from what it was rounded from."""
LEAVES_SPAM = tuple(key for key in KEYS if key not in ("Sexual", "Spam"))


def numbers(where, **wanted):
    return [
        one
        for one in literature().numbers
        if one.where == where
        and one.reference.startswith("UnsafeBench")
        and all(getattr(one, name) == value for name, value in wanted.items())
    ]


def table_4():
    """(classifier, source, category or None) -> F1."""
    return {(one.classifier, one.images, one.category): one.value for one in numbers("Table 4")}


# What the papers' tables allow to check


def test_table_2_adds_up():
    rows = literature().statistics
    for row in rows.values():
        assert row["all"] == row["safe"] + row["unsafe"] + row["not_applicable"]
    for column in ("all", "safe", "unsafe", "not_applicable"):
        assert rows["real"][column] + rows["generated"][column] == rows["all"][column]
    assert rows["generated"]["kappa"] < rows["all"]["kappa"] < rows["real"]["kappa"]


def test_table_9_adds_up_and_agrees_with_table_2():
    counts, rows = literature().images, literature().statistics
    for source in ("real", "generated"):
        for kind in ("safe", "unsafe"):
            found = counts[source][kind]
            assert tuple(found)[:-1] == KEYS
            assert sum(found[key] for key in KEYS) == found["overall"] == rows[source][kind]
    for key in (*KEYS, "overall"):
        parts = [counts[source][kind][key] for source in ("real", "generated") for kind in ("safe", "unsafe")]
        assert sum(parts) == counts["all"]["total"][key]


def test_the_test_split_adds_up_and_is_a_fifth():
    split, counts = literature().test_split, literature().images
    for kind in ("safe", "unsafe"):
        assert sum(split[kind][key] for key in KEYS) == split[kind]["overall"]
        assert split[kind]["overall"] == pytest.approx(
            0.2 * sum(counts[source][kind]["overall"] for source in ("real", "generated")), rel=0.05
        )


def test_table_4_covers_what_table_3_says():
    found = table_4()
    for classifier, keys in literature().coverage.items():
        covered = {key for name, images, key in found if (name, images) == (classifier, "all") and key}
        said = set(KEYS if keys is None else keys)
        # The paper itself: SD_Filter has a dash for Shocking.
        assert covered == said - ({"Shocking"} if classifier == "SD_Filter" else set())
        assert ((classifier, "all", None) in found) == (keys is None)
        for source in ("real", "generated"):
            there = {key for name, images, key in found if (name, images) == (classifier, source) and key}
            extra = (
                {"Self-harm"} if (classifier, source) == ("MultiHeaded", "real") else set()
            )  # the paper itself
            assert there == covered | extra


def test_table_4_lies_between_its_parts():
    """F1 of two groups of images together is a weighted mean of theirs; so is that of all categories together."""
    found = table_4()
    for (classifier, images, key), value in found.items():
        if images == "all":
            parts = [found[classifier, source, key] for source in ("real", "generated")]
            assert min(parts) - 2 * HALF <= value <= max(parts) + 2 * HALF
        if key is None:
            parts = [found[classifier, images, one] for one in KEYS]
            assert min(parts) < value < max(parts)


def test_the_text_of_section_4_1_agrees_with_table_4():
    found = table_4()
    q16 = [value for (name, images, _), value in found.items() if (name, images) == ("Q16", "all")]
    assert (min(q16), max(q16)) == (0.475, 0.784)
    sexual = [
        found[name, "all", "Sexual"] for name in ("MultiHeaded", "SD_Filter", "NSFW_Detector", "NudeNet")
    ]
    assert (min(sexual), max(sexual)) == (0.624, 0.785)
    hate = sorted(
        (found[name, "all", "Hate"] for name, images, key in found if (images, key) == ("all", "Hate"))
    )
    assert hate[-2:] == [0.423, 0.533]
    by_category = {
        key: [value for (_, images, one), value in found.items() if (images, one) == ("all", key)]
        for key in KEYS
    }
    assert (len(by_category["Sexual"]), len(by_category["Shocking"])) == (7, 5)
    means = {key: sum(values) / len(values) for key, values in by_category.items()}
    assert sorted(means, key=means.get)[-2:] == ["Sexual", "Shocking"]
    assert max(means[key] for key in ("Hate", "Harassment", "Self-harm")) < 0.5


def test_the_rates_of_hate_give_the_f1_of_table_4_nearly():
    counts = literature().images
    unsafe, safe = (
        sum(counts[source][kind]["Hate"] for source in ("real", "generated")) for kind in ("unsafe", "safe")
    )
    # The paper itself is off by this much.
    for classifier, off in (("Q16", 0.0103), ("GPT-4V", 0.0014)):
        rates = {
            one.metric: one.value for one in numbers("section 4.1", classifier=classifier, category="Hate")
        }
        hits = (1 - rates["false_negative_rate"]) * unsafe
        errors = rates["false_negative_rate"] * unsafe + rates["false_positive_rate"] * safe
        f1 = 2 * hits / (2 * hits + errors)
        assert abs(f1 - table_4()[classifier, "all", "Hate"]) == pytest.approx(off, abs=1e-4)


@pytest.mark.parametrize("where", ["Table 5", "Table 7"])
def test_averages_of_robust_accuracy(where):
    groups = {}
    for one in numbers(where):
        groups.setdefault((one.classifier, one.dataset, one.images), {})[one.attack] = one
    assert len(groups) == {"Table 5": 14, "Table 7": 2}[where]
    for found in groups.values():
        average = found.pop("average")
        assert sum(one.value for one in found.values()) / 4 == pytest.approx(average.value, abs=HALF)
        assert all((one.deviation is None) == (where == "Table 7") for one in found.values())


def test_average_of_table_6_is_a_mean_for_prompt_learning_alone():
    """The other three are printed larger than their columns; the file says so beside the number."""
    means = {}
    for classifier in dict.fromkeys(one.classifier for one in numbers("Table 6")):
        found = {one.dataset: one for one in numbers("Table 6", classifier=classifier)}
        printed = found.pop("external_average")
        del found["unsafebench"]
        assert set(found) == set(EXTERNAL_SETS)
        means[classifier] = sum(one.value for one in found.values()) / 5
        agrees = abs(means[classifier] - printed.value) <= HALF
        assert agrees == (classifier == "Prompt Learning (CLIP)")
        assert agrees != any("not the mean" in note for note in printed.notes)
        assert printed.value >= means[classifier] - HALF
    assert [round(one, 3) for one in means.values()] == [0.703, 0.802, 0.815, 0.789]


# Comparing a run


def run(*predictions, **options):
    return measure(predictions, draws=20, **options)


def unsafebench(label, **options):
    return synthetic_predictions(label, taxonomy="unsafebench", rows=200, **options)


def test_a_run_is_compared_with_the_numbers_of_the_same_classifier_and_cell():
    metrics = run(
        unsafebench("my_q16", covers=LEAVES_SPAM, protocol="paper"),
        unsafebench("gpt_4v", seed=1, protocol="paper"),
    )
    metrics["classifiers"]["my_q16"]["classifier"] = "q16"
    compared = compare_published(metrics, "unsafebench:/somewhere")
    assert json.loads(json.dumps(compared, allow_nan=False)) == compared
    assert compared["dataset"] == "unsafebench"
    [one] = [
        one
        for one in compared["numbers"]
        if (one["classifier"], one["category"], one["images"], one["metric"])
        == ("my_q16", "Violence", "real", "f1")
    ]
    ours = metrics["classifiers"]["my_q16"]["cells"]["Violence"]["real"]
    assert (one["published_as"], one["published"]) == ("Q16", 0.693)
    assert one["difference"] == pytest.approx(ours["f1"] - 0.693)
    assert one["inside"] == (ours["f1_interval"][0] <= 0.693 <= ours["f1_interval"][1])
    assert list(one["differs"]) == ["split"]
    assert one["reference"].endswith("Table 4")
    whole = {
        (one["published"], one["images"])
        for one in compared["numbers"]
        if one["classifier"] == "gpt_4v" and one["metric"] == "f1" and one["category"] is None
    }
    assert whole == {(0.712, "real"), (0.707, "generated"), (0.709, "all"), (0.717, "all")}
    assert not any(one["category"] is None for one in compared["numbers"] if one["classifier"] == "my_q16")
    assert {"Q16", "GPT-4V"}.isdisjoint(one["classifier"] for one in compared["others"])


def test_the_union_of_q16_and_nudenet_is_compared_on_what_the_two_cover():
    q16, nudenet = unsafebench("q16", covers=LEAVES_SPAM), unsafebench("nudenet", covers=("Sexual",), seed=3)
    metrics = run(q16, nudenet, unite(nudenet, q16))
    compared = compare_published(metrics, "yiting/UnsafeBench")
    [one] = [one for one in compared["numbers"] if one["metric"] == "covered_f1"]
    assert one["published"] == 0.665
    assert one["value"] == metrics["classifiers"]["nudenet or q16"]["covered"]["all"]["f1"]
    [beside] = {
        note for one in compared["numbers"] if one["classifier"] == "nudenet" for note in one["notes"]
    }
    assert "not the detector of version 3" in beside


def test_what_differs_in_protocol_is_said():
    compared = compare_published(run(unsafebench("llava")), "unsafebench")
    of_table_4 = [one for one in compared["numbers"] if one["reference"].endswith("Table 4")]
    assert all(set(one["differs"]) == {"protocol", "split"} for one in of_table_4)
    text = "\n".join(table.to_text() + table.note for table in published_tables(compared))
    assert "this run used the default protocol" in text
    assert "Published on train and test; this run on test." in text
    assert "trained on 80 % of a pool that holds UnsafeBench" in text


def test_the_validation_split_is_part_of_the_published_training_split():
    made = unsafebench("llava")
    made = replace(made, about=replace(made.about, splits=("test", "train", "validation")))
    compared = compare_published(run(made), "unsafebench")
    of_table_4 = [one for one in compared["numbers"] if one["reference"].endswith("Table 4")]
    assert all(set(one["differs"]) == {"protocol", "images"} for one in of_table_4)


def test_a_renamed_taxonomy_is_said_to_differ():
    taxonomy = load_taxonomy("unsafebench").rename({"Hate": "Slurs"})
    metrics = run(unsafebench("llava"))
    assert metrics["categories"][0]["key"] == taxonomy.keys[0] == "Hate"
    metrics["taxonomy_hash"] = taxonomy.hash
    assert all("taxonomy" in one["differs"] for one in compare_published(metrics, "unsafebench")["numbers"])


def test_nothing_is_compared_on_other_data_or_under_another_name():
    assert compare_published(run(synthetic_predictions("q16"))) | {"categories": []} == {
        "dataset": None,
        "categories": [],
        "numbers": [],
        "others": [],
    }
    assert published_tables(compare_published(run(synthetic_predictions("q16")))) == []
    compared = compare_published(run(unsafebench("mine")), "unsafebench")
    assert compared["numbers"] == []
    ranked = [one["published"] for one in compared["others"]]
    assert "Q16" not in {one["classifier"] for one in compared["others"]}  # it has no F1 of all categories
    assert len(ranked) > 20


def test_published_tables_are_tables():
    metrics = run(unsafebench("LLaVA*"), unsafebench("llavaguard", seed=2))
    tables = {table.title: table for table in published_tables(compare_published(metrics, "unsafebench"))}
    by_category = tables["F1 by category, minus the published one"]
    assert [line[0] for line in by_category.lines] == ["Real-World", "AI-Generated", "Overall"]
    ours = metrics["classifiers"]["LLaVA*"]["cells"]["Spam"]["all"]["f1"]
    assert by_category.lines[-1][1][-1] == f"{ours - 0.054:+.3f}"
    # Three reports of one classifier's F1, each with its warning.
    remarks = [cells[-1] for name, cells in tables["Published numbers"].lines if name == "llavaguard"]
    assert len(remarks) == 3
    assert all("rather than copy one" in remark for remark in remarks)
    others = [cells[0] for _, cells in tables["Published F1 of others on unsafebench"].lines]
    assert all(one >= two for one, two in pairwise(others))
    for table in tables.values():
        assert all(len(cells) == len(table.heads) for _, cells in table.lines)


# The file itself


def test_names_are_matched_whatever_their_case_and_punctuation():
    known = literature()
    assert simplify("GPT-4V*") == "gpt4v"
    for name in ("q16", "Q-16", "sd_filter", "NSFW detector", "llamaguard_4", "SHIELDGEMMA"):
        assert known.classifier(name) is not None
    assert known.classifier("my own", "nudenet_v2") == "NudeNet"
    assert known.classifier("my own", "runs/judge") is None
    assert known.dataset("UnsafeBench:PATH") == "unsafebench"
    assert known.dataset("folder:unsafebench") is None


@pytest.fixture(scope="module")
def content():
    path = files("eval.benchmark") / "published.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_every_category_and_data_set_of_the_file_is_known(content):
    assert {one.category for one in numbers("Table 4")} == {*KEYS, None}
    assert set(EXTERNAL_SETS) < set(content["data_sets"])
    assert all(set(keys or ()) <= set(KEYS) for keys in literature().coverage.values())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.pop("notes"), "sections: notes"),
        (lambda data: data["numbers"][0].update(value=66.5), "66.5 is no share"),
        (lambda data: data["numbers"][0].update(value="0.665"), "no share"),
        (lambda data: data["numbers"][0].update(source="nobody"), "source 'nobody' of Q16 or NudeNet"),
        (lambda data: data["numbers"][0].update(metric="f2"), "metric 'f2'"),
        (lambda data: data["numbers"][0].update(dataset="imagenet"), "data set 'imagenet'"),
        (lambda data: data["numbers"][0].update(notes=["nothing"]), "note 'nothing'"),
        (lambda data: data["numbers"][0].update(colour="red"), "colour"),
        (lambda data: data["numbers"].append(data["numbers"][0]), "stands there twice"),
        (lambda data: data["notes"].update(idle="unused"), "'unused' is on no number"),
        (lambda data: data["classifiers"].update(Nobody=[]), "'Nobody', of which there are no numbers"),
        (lambda data: data["tables"][0]["blocks"]["real"]["Q16"].pop(), "Table 4, Q16 has 11 numbers for 12"),
        (lambda data: data["tables"][0].update(columns_are="colour"), "columns are 'colour'"),
        (lambda data: data["tables"][0].pop("metric"), "metric"),
        (lambda data: data["images"]["rows"]["real"]["safe"].pop(), "real has 11 numbers"),
        (lambda data: data.update(tables="none"), "not built as expected"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, content, change, words):
    data = deepcopy(content)
    change(data)
    path = tmp_path / "published.yaml"
    path.write_text(json.dumps(data), encoding="utf-8")  # JSON is YAML
    with pytest.raises(PublishedError, match=words):
        read_published(path)


@pytest.mark.parametrize("text", ["- a list", "{", "\x00"])
def test_what_is_no_such_file_is_refused(tmp_path, text):
    path = tmp_path / "published.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(PublishedError, match=r"published\.yaml"):
        read_published(path)
    with pytest.raises(PublishedError, match="cannot be read"):
        read_published(tmp_path / "missing.yaml")
