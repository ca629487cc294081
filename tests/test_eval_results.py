"""Tables of runs: which runs share a line, which compare, and that text and numbers survive every format."""

import csv
import io
import itertools
import re
import runpy
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics.judged import JudgedRow, summarise
from eval.results.formats import escape_latex, to_csv, to_latex, to_markdown
from eval.results.lines import put_together
from eval.results.measured import read_measurements
from eval.results.values import Value
from judge.errors import CheckpointError, ConfigError
from judge.runs.folder import RunDir
from judge.serve import cli
from prompts import Taxonomy

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "results_table.py"
PLANTS = Taxonomy.from_dict(
    {
        "name": "plants",
        "version": 1,
        "categories": [
            {"name": "Nettle", "definition": "it stings"},
            {"name": "Oak", "definition": "a tree"},
        ],
    }
)


def judged(seed, wrong=0):
    """Rows as a run keeps them: 20 questions drawn with a seed, the first `wrong` answered wrongly."""
    truths = np.random.default_rng(seed).permutation(20) % 2 == 0
    return [
        JudgedRow(
            f"q{n}", bool(truth), 0.9 if truth != (n < wrong) else 0.1, policy=("Nettle",), image=f"i{n}"
        )
        for n, truth in enumerate(truths)
    ]


def make_run(
    home, name, *, wrong=0, seed=1, kind="vlm", taxonomy=PLANTS, rows=None, commit="abcdef0123", **config
):
    """A run with a summary of rows, as a training recipe leaves it."""
    folder = RunDir.create(home / name, kind=kind)
    folder.write_taxonomy(taxonomy)
    config = {"dataset": "folder:garden", "seed": seed, "lora_r": 4, **config}
    folder.write_config({**config, "output_dir": str(home / name)})
    rows = judged(seed, wrong) if rows is None else rows
    file, found = {"vlm": ("after", {"after": summarise(rows)}), "student": ("test", summarise(rows))}[kind]
    folder.write_rows(file, (row.to_dict() for row in rows))
    folder.write_metrics({"before": None, **found, "commit": {"commit": commit, "dirty": False}})
    return folder.path


@pytest.fixture
def make(tmp_path):
    return partial(make_run, tmp_path)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """What one run measured, to be varied."""
    [one] = read_measurements(make_run(tmp_path_factory.mktemp("template"), "run"))
    return one


def table(*runs, metrics=(), **options):
    return put_together([one for run in runs for one in read_measurements(run)], metrics, **options)


def test_a_run_is_a_line_with_its_numbers_and_where_they_come_from(make):
    rows = judged(1, wrong=3)
    [line] = table(make("mine", wrong=3)).lines
    summary = summarise(rows)
    cell = line.cells["f1"]
    assert (cell.value, [cell.low, cell.high]) == (summary["f1"], list(summary["intervals"]["f1"]))
    assert (line.name, line.kind, line.rows, line.seeds, line.commits) == (
        "mine",
        "judge",
        20,
        (1,),
        ("abcdef0",),
    )
    assert not {"rows", "images", "threshold", "unsafe_rows"} & line.cells.keys()


NUMBERS = st.floats(0, 1) | st.just(0.98)


@given(st.lists(NUMBERS, min_size=2, max_size=6))
def test_seeds_share_a_line_with_the_mean_and_deviation_that_numpy_computes(template, values):
    runs = [
        replace(
            template, name=f"judge-seed{n}", run=Path(f"seed{n}"), seed=n, values={"f1": Value(value, 0, 1)}
        )
        for n, value in enumerate(values)
    ]
    [line] = put_together(runs).lines
    cell = line.cells["f1"]
    assert (line.name, line.seeds) == ("judge", tuple(range(len(values))))
    assert cell.value == pytest.approx(np.mean(values), rel=1e-12, abs=1e-12)
    assert cell.deviation == pytest.approx(np.std(values, ddof=1), rel=1e-9, abs=1e-12)
    assert (cell.low, cell.high) == (None, None), "an interval of one run is not one of several"


def test_what_makes_runs_one_training_is_every_option_but_seed_and_folders(make):
    one = make("a-seed1", seed=1, logging_steps=1)
    assert len(table(one, make("a-seed2", seed=2, logging_steps=9)).lines) == 1
    assert len(table(one, make("b", seed=3, lora_r=8)).lines) == 2
    assert len(table(one, make("c", seed=4, dataset="folder:park")).lines) == 2
    assert len(table(one, make("d", seed=5, test_rows=9)).lines) == 2
    assert len(table(one, make("e", seed=6, rows=judged(6)[:18])).lines) == 2
    assert len(table(one, make("f", seed=7, taxonomy=PLANTS.select(["nettle"]))).lines) == 2


def test_one_seed_twice_is_no_sample(make):
    one = make("a")
    with pytest.raises(ConfigError, match="one training, both of seed 1: no sample of seeds"):
        table(one, make("b"))
    with pytest.raises(ConfigError, match="the same folder"):
        table(one, one)


def test_runs_that_were_asked_the_same_share_a_letter_whoever_answers(make):
    results = table(make("judge"), make("student", kind="student", lora_r=None, wrong=2))
    assert [line.asked for line in results.lines] == ["a", "a"]
    assert not [note for note in results.notes if "do not compare" in note]
    assert "asked" not in to_markdown(results).splitlines()[2]


OTHER_WORDS = Taxonomy.from_dict(
    {
        "name": "plants",
        "version": 1,
        "categories": [{"name": "Nettle", "definition": "any weed"}, {"name": "Oak", "definition": "a tree"}],
    }
)


@pytest.mark.parametrize(
    "other",
    [{"seed": 2, "lora_r": 8}, {"rows": judged(1)[:18]}, {"taxonomy": OTHER_WORDS}],
    ids=["draw", "number", "wording"],
)
def test_runs_that_were_asked_something_else_are_marked(make, other):
    runs = make("one"), make("two", **other)
    results = table(*runs)
    assert [line.asked for line in results.lines] == ["a", "b"]
    assert any("do not compare" in note for note in results.notes)
    for text in (to_markdown(results), to_latex(results)):
        assert "(a)" in text
        assert "(b)" in text
    assert [row["asked"] for row in csv.DictReader(io.StringIO(to_csv(results)))] == ["a", "b"]
    with pytest.raises(
        ConfigError, match=r"not asked the same questions: one: \(a\) 20 questions on 20 images"
    ):
        table(*runs, strict=True)


def test_a_head_that_lacks_held_out_categories_was_asked_the_same(make):
    head = make("head", kind="student", taxonomy=PLANTS.select(["nettle"]))
    assert len(table(make("judge"), head).asked) == 1


def test_without_its_rows_a_run_is_told_apart_by_its_options(make):
    runs = [make("one"), make("two", lora_r=8), make("three", dataset="folder:park")]
    for run in runs:
        (run / "rows" / "after.jsonl").unlink()
    results = table(*runs)
    assert [line.asked for line in results.lines] == ["a", "a", "b"]
    assert "options" in results.asked["a"]


def test_what_is_not_there_is_a_dash_and_never_zero(make):
    empty = [row for row in judged(1) if not row.truth]  # AUC and recall are undefined
    results = table(make("one"), make("two", rows=empty, seed=3), metrics=("auc", "accuracy"))
    assert [line.cells.get("auc") is None for line in results.lines] == [False, True]
    assert [row.split("|")[5].strip() for row in to_markdown(results).splitlines()[4:6]] == ["1.000", "–"]
    assert r"& \textendash{} &" in to_latex(results)
    found = list(csv.DictReader(io.StringIO(to_csv(results))))
    assert (found[0]["auc"], found[1]["auc"], found[1]["auc_seeds"]) == ("1.0", "", "")


def test_a_number_that_some_seeds_lack_says_so(make):
    empty = [JudgedRow(f"q{n}", False, 0.1, policy=("Nettle",), image=f"i{n}") for n in range(20)]
    results = table(make("a1", seed=1), make("a2", seed=2, rows=empty), metrics=("auc", "accuracy"))
    [line] = results.lines
    assert (line.cells["auc"].seeds, line.cells["auc"].deviation) == (1, None)
    assert "1.000 (1 of 2 seeds)" in to_markdown(results)


def test_csv_keeps_every_digit(make):
    value = summarise(judged(1, wrong=3))["f1"]
    [row] = csv.DictReader(io.StringIO(to_csv(table(make("mine", wrong=3)))))
    assert float(row["f1"]) == value
    assert len(row["f1"]) > 8
    assert row["rows"] == "20"


def test_unknown_metrics_are_answered_with_those_there_are(make):
    with pytest.raises(ConfigError, match=r"No run has a number 'recal' \(did you mean 'recall'\?\)"):
        table(make("one"), metrics=("recal",))


def test_what_holds_no_numbers_of_classifiers_is_refused(make, tmp_path):
    RunDir.create(tmp_path / "corpus", kind="corpus")
    with pytest.raises(ConfigError, match="kind 'corpus', which measures no classifier"):
        read_measurements(tmp_path / "corpus")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_measurements(tmp_path / "nowhere")
    unfinished = make("unfinished")
    (unfinished / "metrics.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no metrics\.json"):
        read_measurements(unfinished)
    (unfinished / "metrics.json").write_text('{"after": 3}')
    with pytest.raises(CheckpointError, match="is not what a run of kind 'vlm' writes"):
        read_measurements(unfinished)


_PLAIN = {
    r"\textbackslash{}": "\\", r"\{": "{", r"\}": "}", r"\$": "$", r"\&": "&", r"\#": "#", r"\%": "%", r"\_": "_",
    r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textless{}": "<", r"\textgreater{}": ">",
    r"\textbar{}": "|", r"\symbol{34}": '"', "{[}": "[", "{]}": "]", "{*}": "*", r"\textasciigrave{}": "`",
    r"\textquotesingle{}": "'", r"\textendash{}": "–", r"$\pm$": "±", "{}": "",
}  # fmt: skip


@given(st.text(st.sampled_from("\\{}$&#%_~^<>|\"[]*`'–±-,ab \né字"), max_size=12))
def test_escaped_text_is_read_back_by_latex_as_it_was(text):
    """With the commands that LaTeX defines replaced by what they print, it is the text; nothing else has a meaning."""
    escaped = escape_latex(text)
    pattern = "|".join(map(re.escape, sorted(_PLAIN, key=len, reverse=True)))
    assert re.sub(pattern, lambda found: _PLAIN[found[0]], escaped) == text.replace("\n", r"\n")
    rest = re.sub(pattern, "\0", escaped)
    assert not set(rest) & set("\\{}$&#%_~^<>|\"[]*`'")
    assert not re.search("--|,,", escaped)


@given(
    st.lists(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=6), min_size=1, max_size=3)
)
def test_no_name_breaks_a_table(template, names):
    measured = [replace(template, name=name, options=name) for name in {*names}]
    results = put_together(measured, ("f1", "auc"))
    body = [line for line in to_latex(results).split("\n") if line.endswith(r"\\")]
    assert len(body) == 1 + len(measured)
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {6}
    rows = [line for line in to_markdown(results).split("\n") if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {8}
    found = list(csv.DictReader(io.StringIO(to_csv(results))))
    assert len(found) == len(measured)
    assert not [row for row in found if row["name"].startswith(("=", "+", "-", "@", "\t"))]


def test_latex_is_a_whole_table_with_balanced_braces(make):
    text = to_latex(table(make("one_run"), make("two", seed=2, lora_r=8)))
    for name in ("table", "tabular"):
        assert text.count(f"\\begin{{{name}}}") == text.count(f"\\end{{{name}}}") == 1
    assert [text.count(f"\\{rule}rule") for rule in ("top", "mid", "bottom")] == [1, 2, 1]
    depth = itertools.accumulate({"{": 1, "}": -1}[sign] for sign in re.findall(r"(?<!\\)[{}]", text))
    assert min(depths := list(depth)) == 0
    assert depths[-1] == 0
    assert r"one\_run & judge & 20 & 1 & 1.000" in text


def test_the_command_writes_a_file_and_hands_words_to_the_recipe(make, tmp_path, capsys, monkeypatch):
    main = runpy.run_path(str(RECIPE), run_name="recipe")["main"]
    words = ["--runs", f"Ours={make('judge')}", "--metrics", "f1, auc", "--format", "csv"]
    main([*words, "--out", str(tmp_path / "t.csv")])
    assert capsys.readouterr().out == f"Wrote {tmp_path / 't.csv'}\n"
    [row] = csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text()))
    assert (row["name"], row["f1"]) == ("Ours", "1.0")
    main(words)
    assert capsys.readouterr().out == (tmp_path / "t.csv").read_text()
    with pytest.raises(ConfigError, match="There is no folder"):
        main([*words, "--out", str(tmp_path / "nowhere" / "t.csv")])

    called = []
    monkeypatch.setattr("judge.serve.recipe_files.subprocess.call", lambda words: called.append(words) or 0)
    assert cli.main(["table", "runs/a", "runs/b", "--format", "latex"]) == 0
    assert called[0][3].endswith("results_table.py")
    assert called[0][4:] == ["--runs", "runs/a", "runs/b", "--format", "latex"]
