"""recipes/attack.py as a file, and `arbiter attack`: what they leave behind, and what they refuse."""

import json
import runpy
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml

from adversarial.checks.check import Check
from adversarial.errors import AttackError
from eval.results.measured import read_measurements
from judge.cascade.saved import save_cascade
from judge.cascade.settings import CascadeSettings
from judge.cascade.similarity import Platt
from judge.cascade.stages import Cutoffs
from judge.encoders.dual import DualEncoder
from judge.errors import CheckpointError
from judge.runs.folder import RunDir
from judge.serve import cli
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.student import Student, save_student
from prompts import load_taxonomy

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "attack.py"
CONFIG = RECIPE.parent / "configs" / "attack.yaml"


@pytest.fixture(scope="module")
def recipe():
    return runpy.run_path(str(RECIPE), run_name="recipe")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two untrained heads on the encoder that ships, fair zero-shot classifiers already, and two cascades of the first."""
    home, taxonomy = tmp_path_factory.mktemp("runs"), load_taxonomy("digits")
    encoder = DualEncoder.load("tiny-clip")
    for seed, name in enumerate(("student", "defended")):
        torch.manual_seed(seed)
        run = RunDir.create(home / name, kind="student")
        run.write_taxonomy(taxonomy)
        save_student(run, Student(encoder, CrossAttentionHead(HeadConfig(encoder.width, 32, 2, 1, 4))))
    cutoffs = Cutoffs(2.0, 0.3, 0.9, 0.4, 0.4, 0.5)
    settings = CascadeSettings(Platt(0.0, 0.0), Platt(14.0, -2.0), cutoffs, False, 0.05, 0.05, 99)
    for name in ("cascade", "defended_cascade"):
        run = RunDir.create(home / name, kind="cascade")
        run.write_taxonomy(taxonomy)
        save_cascade(run, settings, student=home / "student", judge=None)
    return home


def arguments(runs, out, **more):
    given = {
        "victims": [runs / "student", runs / "defended"],
        "cascade": runs / "cascade",
        "defended_cascade": runs / "defended_cascade",
        "output_dir": out,
        "rows": 4,
        "unsafe_rows": 2,
        "text_rows": 1,
        "severities": [3],
        "clean_rows": 12,
        "limit": 120,
        "steps": 2,
        "restarts": 1,
        "queries": 3,
        "epsilons": ["2/255", "32/255"],
        **more,
    }
    return [
        text
        for name, value in given.items()
        for text in (f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)]))
    ]


def run_recipe(recipe, *given):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["attack.py", *given])
        recipe["main"]()


@pytest.fixture(scope="module", autouse=True)
def _few_texts():
    """Searches for prompts in few steps, and few disguises: both have tests of their own."""
    from eval.robustness import disguises, texts

    few = {"TokenSearch": {"candidates": 8, "top_k": 8, "steps": 2}, "SubwordSearch": {"queries": 6}}
    with pytest.MonkeyPatch.context() as patch:
        for name, changed in few.items():
            search = getattr(texts, name)
            patch.setattr(texts, name, lambda *given, s=search, c=changed, **more: s(*given, **more | c))
        for kind, kept in (("HARMLESS", [disguises.PLAIN]), ("DISGUISES", ["buried_middle", "homoglyphs"])):
            makers = getattr(disguises, kind)
            patch.setattr(disguises, kind, {name: makers[name] for name in kept})
        yield


@pytest.fixture
def pixels_only(recipe, monkeypatch):
    """Leave out checks, texts, edits and transfer, which take most of the time and are tested by the whole run."""
    nothing = {
        "texts": {},
        "disguises": {},
        "edits": {},
        "transfer": None,
        "universal": {},
        "static_sets": {},
    }
    monkeypatch.setitem(recipe["main"].__globals__, "run_other_attacks", lambda *_: nothing)
    passed = [Check("huge_epsilon", True, 1.0, 1.0, "not run here").to_dict()]
    monkeypatch.setitem(
        recipe["main"].__globals__, "check_attacks", lambda victims, *_: dict.fromkeys(victims, passed)
    )


@pytest.fixture(scope="module")
def config(runs):
    path = runs / "attack.yaml"
    path.write_text(yaml.safe_dump({"defended": {str(runs / "student"): str(runs / "defended")}}))
    return path


@pytest.fixture(scope="module")
def finished(recipe, runs, config, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "attack"
    sets = runs / "prompts.csv"
    sets.write_text("prompt\na harmless drawing of balloons\nzxqv balloons\n")
    more = {"config": config, "static_sets": [f"generic:{sets}"]}
    try:
        run_recipe(recipe, *arguments(runs, out, **more))
        code = 0
    except SystemExit as stop:
        code = stop.code
    return out, code


@pytest.mark.slow
def test_it_leaves_numbers_trials_and_a_report(finished):
    out, _ = finished
    metrics = json.loads((out / "metrics.json").read_text())
    for key in ("huge_epsilon_success", "filters_asr", "cascade_asr", "undefended_robust_accuracy"):
        assert 0.0 <= metrics[key] <= 1.0
    assert set(metrics["pixels"]) == {"student", "defended"}
    assert set(metrics["deployments"]) == {"filters of cascade", "cascade", "defended_cascade"}
    by_epsilon = metrics["pixels"]["student"]["by_epsilon"]
    values = [by_epsilon[key]["robust_accuracy"] for key in ("0/255", "2/255", "32/255")]
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]
    assert metrics["static_sets"].popitem()[1]["student"]["prompts"] == 2
    disguised = metrics["disguises"]["classifiers"]
    assert set(disguised) >= {"student", "defended", "cascade", "defended_cascade"}
    assert all(entry["rows"] <= 1 for entry in disguised.values())
    assert metrics["disguises"]["text_filters"]["cascade"]["lost"]["homoglyphs"] >= 0
    trials = list(RunDir.open(out).read_rows("trials"))
    assert {trial["victim"] for trial in trials} == {"student", "defended"}
    assert all(trial["levels"] >= 0 for trial in trials)
    page = (out / "report.html").read_text()
    assert "Checks of the attacks themselves" in page
    assert page.index("Still right under an attack that changes colour values by at most") < page.index(
        "Before and after"
    )
    assert page.count("<svg") >= 4, "sizes, steps and margins of both victims"
    assert page.count("data:image") % 3 == 0, "before, after and what was changed"
    assert "data:image" in page


@pytest.mark.slow
def test_a_table_has_a_line_for_each_victim_and_deployment(finished):
    metrics = json.loads((finished[0] / "metrics.json").read_text())
    found = {one.part: one for one in read_measurements(finished[0])}
    assert set(found) == {*metrics["pixels"], *metrics["deployments"]}
    rate = metrics["deployments"]["cascade"]["adaptive"]["2/255"]["both"]["asr_n"]
    value = found["cascade"].values.get("attack_success@2/255")
    assert (value and value.value) == rate["rate"]
    assert found["cascade"].questions.key != found["student"].questions.key


@pytest.mark.slow
def test_the_exit_code_tells_of_failed_checks(finished):
    out, code = finished
    checks = [
        c for found in json.loads((out / "metrics.json").read_text())["honesty"].values() for c in found
    ]
    assert code == int(not all(check["passed"] for check in checks))
    assert ("Checks of the attacks that failed" in (out / "report.html").read_text()) == bool(code)


@pytest.mark.slow
@pytest.mark.usefixtures("pixels_only")
def test_the_same_seed_gives_the_same_numbers(finished, recipe, runs, config, tmp_path):
    out, _ = finished
    only = {"config": config, "victims": [runs / "student"], "cascade": "none", "defended_cascade": "none"}
    with suppress(SystemExit):
        run_recipe(recipe, *arguments(runs, tmp_path / "again", **only))
    first, again = (json.loads((path / "metrics.json").read_text()) for path in (out, tmp_path / "again"))
    for key in ("by_epsilon", "by_direction"):
        assert first["pixels"]["student"][key] == again["pixels"]["student"][key]
    assert again["filters_asr"] is None
    assert again["defended_robust_accuracy"] is None


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"epsilon": "8"}, "8/255"),
        ({"preset": "weakest"}, "strong or unsafebench"),
        ({"knowledge": "everything"}, "white_box or queries"),
        ({"norm": "l7"}, "linf"),
    ],
)
def test_options_that_do_not_exist_stop_the_run(recipe, runs, tmp_path, more, says):
    with pytest.raises(AttackError, match=says):
        run_recipe(recipe, *arguments(runs, tmp_path / "out", **more))


def test_an_unknown_option_and_a_missing_victim_stop_the_run(recipe, runs, tmp_path):
    with pytest.raises((SystemExit, ValueError)):
        run_recipe(recipe, *arguments(runs, tmp_path / "out", stepz=3))
    with pytest.raises(CheckpointError):
        run_recipe(recipe, *arguments(runs, tmp_path / "out", victims=[tmp_path]))
    with pytest.raises(CheckpointError):
        run_recipe(recipe, *arguments(runs, tmp_path / "out", defended_cascade=tmp_path / "none"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"victims": ["nowhere\x1b"]}, "nowhere\\x1b"),
        ({"epsilon": "8"}, "8/255"),
        ({"taxonomy": "digitz"}, "digits"),
    ],
)
def test_errors_are_two_and_one_line_since_one_is_a_failed_check(
    runs, tmp_path, monkeypatch, capfd, change, line
):
    monkeypatch.setattr(sys, "argv", ["attack.py", *arguments(runs, tmp_path / "out", **change)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(RECIPE), run_name="__main__")
    shown = capfd.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert shown[-1].startswith("error: ")
    assert line in shown[-1]
    assert not any("Traceback" in line for line in shown)


@pytest.mark.slow
@pytest.mark.usefixtures("pixels_only")
def test_the_papers_preset_runs_and_says_that_it_is_weak(recipe, runs, tmp_path, capsys):
    more = {
        "preset": "unsafebench",
        "victims": [runs / "student"],
        "cascade": "none",
        "defended_cascade": "none",
    }
    with suppress(SystemExit):
        run_recipe(recipe, *arguments(runs, tmp_path / "paper", draws=[2023, 2024], **more))
    metrics = json.loads((tmp_path / "paper" / "metrics.json").read_text())
    assert "WEAK" in metrics["suite"]["about"]
    assert len(metrics["draws"]["student"]["draws"]) == 2


def test_the_configuration_that_ships_names_known_options_only(recipe):
    shipped = yaml.safe_load(CONFIG.read_text())
    known = recipe["AttackOptions"].__dataclass_fields__
    assert set(shipped) <= set(known)


def test_arbiter_attack_hands_its_words_to_the_recipe(monkeypatch):
    called = []
    monkeypatch.setattr("judge.serve.recipe_files.subprocess.call", lambda words: called.append(words) or 7)
    assert cli.main(["attack", "runs/a", "runs/b", "--preset", "strong"]) == 7
    assert called[0][3].endswith("attack.py")
    assert called[0][4:] == ["--victims", "runs/a", "runs/b", "--preset", "strong"]
    assert cli.main(["attack", "--help"]) == 7
    assert called[1][4:] == ["--help"]


@pytest.mark.parametrize("rows", [1, 6, 7, 16])
def test_so_many_rows_are_drawn_as_were_asked_for(recipe, rows):
    options = recipe["AttackOptions"](limit=200, flip={"group_size": 4})
    drawn = recipe["draw"](options, load_taxonomy("digits"), 42, rows)
    assert len({question.id for question in drawn}) == len(drawn) == rows
    assert abs(2 * sum(question.row.unsafe for question in drawn) - rows) <= 1


def test_an_attacker_who_only_asks_is_given_no_gradients_anywhere(recipe, runs, tmp_path, monkeypatch):
    """Neither on pixels nor through cascades, by transfer, or on tokens; and the run says so."""
    from adversarial.problem import Problem
    from adversarial.texts.tokens import TokenSearch

    def no_gradients(*arguments, **options):
        raise AssertionError("a gradient was taken")

    monkeypatch.setattr(Problem, "gradient", no_gradients)
    monkeypatch.setattr(TokenSearch, "run", no_gradients)
    more = {
        "knowledge": "queries",
        "victims": [runs / "student"],
        "defended_cascade": "none",
        "rows": 4,
        "unsafe_rows": 2,
    }
    with suppress(SystemExit):
        run_recipe(recipe, *arguments(runs, tmp_path / "asking", **more))
    metrics = json.loads((tmp_path / "asking" / "metrics.json").read_text())
    assert metrics["suite"]["threat"]["knowledge"] == "queries"
    assert metrics["suite"]["rows"] == metrics["pixels"]["student"]["rows"] == 4
    assert metrics["transfer"] is None
    assert set(metrics["deployments"]) == {"filters of cascade", "cascade"}
