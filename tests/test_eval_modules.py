"""The `evaluate` modules: they load from the package, with no network at all, and agree with `eval.metrics.judged`."""

import doctest
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eval.metrics.arrays import MetricError
from eval.metrics.judged import JudgedRow, summarise
from eval.modules import METRICS, load_metric

PROGRAM = """
import json, socket, sys

def no_network(*args, **kwargs):
    raise AssertionError(f"the network was touched: {args}")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = no_network

import evaluate
from eval import METRICS, load_metric

NAN = float("nan")
verdicts = [{"unsafe": 0.9, "category": ""}, {"unsafe": NAN, "category": ""}, {"unsafe": 0.8, "category": "three"}]
truth = {"unsafe": True, "violated": ["three"], "policy": ["three", "four"],
         "source": "real", "pair": "", "direction": "", "arm": "kept"}
truths = [truth | {"unsafe": False, "violated": []}, truth, truth]
folder = sys.argv[1]
answers = {}
for load in (load_metric, lambda name: evaluate.load(f"{folder}/{name}")):
    verdict_module, flip_module, f1_module = (load(name) for name in METRICS)
    f1_module.add_batch(predictions=[0.9, 0.2], references=[True, True])
    f1_module.add(prediction=NAN, reference=False)
    answers = {
        "f1": f1_module.compute(),
        "flips": flip_module.compute(
            predictions=[0.9, 0.1, 0.4, 0.7],
            references=[
                {"unsafe": True, "pair": "a", "direction": "safe_to_unsafe"},
                {"unsafe": False, "pair": "a", "direction": "safe_to_unsafe"},
                {"unsafe": True, "pair": "b", "direction": "unsafe_to_safe"},
                {"unsafe": False, "pair": "b", "direction": "unsafe_to_safe"},
            ],
        ),
        "no flip": flip_module.compute(
            predictions=[None, 0.1],
            references=[{"unsafe": u, "pair": "a", "direction": "safe_to_unsafe"} for u in (True, False)],
        ),
        "none": f1_module.compute(predictions=[0.9, None, 0.2], references=[True, True, False]),
        "no verdict": verdict_module.compute(predictions=[verdicts[0], {"unsafe": None, "category": ""}], references=truths[:2]),
        "verdicts": verdict_module.compute(predictions=verdicts, references=truths, threshold=0.85),
        "previous": answers,
    }
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    fresh = tmp_path_factory.mktemp("hub")
    modules = Path(sys.modules[load_metric.__module__].__file__).parent
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(modules)],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(fresh)},
        cwd=fresh,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_both_ways_of_loading_agree(answers):
    assert answers["previous"].pop("previous") == {}
    assert answers["previous"] == {name: value for name, value in answers.items() if name != "previous"}


def test_f1_counts_the_unjudged_row_as_an_alarm(answers):
    assert answers["f1"]["precision"] == answers["f1"]["recall"] == answers["f1"]["f1"] == 0.5
    assert answers["f1"]["unjudged"] == 1


def test_none_is_unjudged(answers):
    assert (answers["none"]["unjudged"], answers["none"]["recall"]) == (1, 0.5)
    assert (answers["no flip"]["unjudged"], answers["no flip"]["safe_to_unsafe"]) == (1, 0.0)
    assert (answers["no verdict"]["unjudged"], answers["no verdict"]["recall"]) == (1, 0.0)


def test_flip_pairs(answers):
    assert answers["flips"] == {
        "pair_score": 0.5,
        "safe_to_unsafe": 1.0,
        "unsafe_to_safe": 0.0,
        "unjudged": 0,
    }


def test_verdicts_equal_the_summary_of_the_same_rows(answers):
    three = frozenset(["three"])
    policy = ("three", "four")
    rows = [
        JudgedRow("0", False, 0.9, None, frozenset(), policy, arm="kept"),
        JudgedRow("1", True, float("nan"), None, three, policy, arm="kept"),
        JudgedRow("2", True, 0.8, "three", three, policy, arm="kept"),
    ]
    assert answers["verdicts"] == summarise(rows, threshold=0.85)


@pytest.fixture(scope="module", params=METRICS)
def module(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        return load_metric(request.param)


def test_a_module_says_what_it_is_what_it_takes_and_whom_to_cite(module):
    assert len(module.description.split()) > 30
    fields = module.features["references"]
    named = [*fields] if isinstance(fields, dict) else []
    if isinstance(module.features["predictions"], dict):
        named += [*module.features["predictions"]]
    for word in (
        "predictions:",
        "references:",
        "threshold:",
        "Returns:",
        "not judged",
        *(f"`{n}`" for n in named),
    ):
        assert word in module.inputs_description + module.description, word
    entries = re.findall(r"^@(\w+)\{(\w+),$", module.citation, re.MULTILINE)
    assert entries[0] == ("software", "arbiter")
    assert len(entries) > 1
    assert module.citation.count("{") == module.citation.count("}")


def test_the_example_of_a_module_runs_as_it_stands(module):
    examples = doctest.DocTestParser().get_doctest(module.inputs_description, {}, module.name, None, 0)
    assert len(examples.examples) > 1
    assert doctest.DocTestRunner(verbose=False).run(examples).failed == 0


def test_every_module_folder_is_listed_and_the_other_way_round():
    folder = Path(sys.modules[load_metric.__module__].__file__).parent
    assert {path.parent.name for path in folder.glob("*/*.py")} == set(METRICS)


def test_unknown_metric_names_the_known_ones():
    with pytest.raises(MetricError, match="no metric 'accuracy'; there are judge_verdicts, flip_pairs"):
        load_metric("accuracy")
