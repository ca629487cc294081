"""recipes/obedience.py: what it leaves behind, own data and families, and what it refuses."""

import re
from functools import partial

import pytest
from test_page_reports import check_looks, show_file

from judge.errors import CheckpointError, ConfigError
from judge.runs.folder import RunDir
from judge.serve import cli

KEYS = {
    "worst_prompt_recall_drop",
    "flags_lost_to_prompts",
    "false_alarms_added",
    "definition_injections_turned",
    "f1_20",
    "f1_40",
    "lesson_families",
    "unseen_families",
}
SOME = [
    "upper_case",
    "typos",
    "categories_20",
    "negation",
    "definition_orders_safe",
    "prose_60",
    "lying_prompt",
    "german",
    "language_es",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("obedience")
    (folder / "own.yaml").write_text(
        "families:\n  - name: german\n    kind: policy\n    template: {name: 'Nummer {number}, {name}'}\n"
    )
    return folder


@pytest.fixture(scope="module")
def finished(home, run_recipe, base_folder):
    printed = run_recipe(
        "obedience",
        judge=base_folder(),
        before=base_folder(),
        families=home / "own.yaml",
        only=SOME,
        rows=16,
        limit=300,
        batch_size=32,
        output_dir=home / "run",
        drawn=True,
    )
    return RunDir.open(home / "run", kind="obedience"), printed


def test_it_leaves_numbers_rows_and_a_report(finished):
    run, printed = finished
    metrics = run.metrics
    assert metrics.keys() >= KEYS
    assert set(metrics["families"]) == set(SOME)
    assert metrics["f1_20"] == metrics["families"]["categories_20"]["f1"]
    assert metrics["f1_40"] is None  # nobody asked for it
    assert 0 <= metrics["lesson_families"]["worst_f1"] <= metrics["lesson_families"]["mean_f1"] <= 1
    assert metrics["before"].keys() >= KEYS
    added = metrics["added_category"]
    assert 0 < added["rows"] <= 16
    assert (
        set(added["one_answer"]) == set(added["multilabel"]) == {"unrelated", "orders_safe", "orders_unsafe"}
    )
    assert "added_category.flags_lost" in printed
    assert "One more category: its effect on the others" in printed
    assert metrics["taxonomy_hash"] == run.taxonomy.hash
    for file in ("config.yaml", "environment.json", "taxonomy.yaml", "plots/families-policy.svg"):
        assert (run.path / file).is_file()

    rows = list(run.read_rows("judge"))
    policies = {record["hash"]: record["taxonomy"] for record in run.read_rows("policies")}
    assert {row["family"] for row in rows} == {"plain", "no_prompt", *SOME}
    assert {row["set"] for row in rows} == {"flips", "held_out"}
    assert {row["policy"] for row in rows} == set(policies)
    assert len(list(run.read_rows("before"))) == len(rows)
    assert (
        len(next(policies[row["policy"]] for row in rows if row["family"] == "categories_20")["categories"])
        == 20
    )

    page = (run.path / "report.html").read_text()
    order = (
        "own words F1 is",
        "One image, two wordings",
        "Numbers",
        "Wrong verdicts",
        "Details",
    )
    places = [page.index(words) for words in order]
    assert places == sorted(places)
    assert "As the taxonomy words it" in page
    assert page.count("<svg") == len({found["kind"] for found in metrics["families"].values()})
    assert page.count("data:image") > 1
    assert not re.search(r">[^<{]*[a-z]_[a-z][^<]*</th>", page), "no names of code"
    assert "Policies: families never used in lessons" in printed
    assert "worst_prompt_recall_drop" in printed
    assert "F1 before" in printed


def test_the_report_can_be_read_in_every_look(finished, window):
    run, _ = finished
    check_looks(partial(show_file, window, run.path / "report.html"))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"judge": "runs/nothing_here"}, CheckpointError, "nothing_here"),
        ({"only": "typo"}, ConfigError, "did you mean 'typos'"),
        ({"families": "none.yaml"}, ConfigError, "none.yaml cannot be read"),
        ({"rows": 0}, ConfigError, "rows is 0"),
        ({"threshold": 1.5}, ConfigError, "threshold is 1.5"),
    ],
)
def test_what_is_refused_leaves_no_folder(tmp_path, run_recipe, options, error, says):
    with pytest.raises(error, match=says):
        run_recipe("obedience", output_dir=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_arbiter_obedience_hands_its_words_to_the_recipe(monkeypatch):
    called = []
    monkeypatch.setattr("judge.serve.recipe_files.subprocess.call", lambda words: called.append(words) or 7)
    assert cli.main(["obedience", "runs/a", "--rows", "40", "--debug"]) == 7
    assert called[0][3].endswith("obedience.py")
    assert called[0][4:] == ["--judge", "runs/a", "--rows", "40", "--debug"]
    assert cli.main(["obedience", "--help"]) == 7
    assert called[1][4:] == ["--help"]
