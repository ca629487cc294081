"""`arbiter attack my_head.py:make_head`: any object with `score`, attacked by queries only, and said so."""

import json
import sys
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from test_page_reports import check_looks, show_file

from adversarial.errors import AttackError
from adversarial.texts.families import FAMILIES
from eval.classifiers import load
from eval.reports.robustness_page import describe_robustness
from eval.results.measured import read_measurements
from eval.results.values import KINDS
from eval.robustness.run import suite_for
from eval.robustness.suites import strong
from eval.robustness.victims import ClassifierVictim
from judge import load_examples, open_image
from judge.errors import ConfigError
from prompts import load_taxonomy

HEAD = """
import numpy as np
from judge.protocol import Scores

ASKED = []

class Ink:
    # Flags what is dark, and what the prompt calls a fence; reads any policy alike.
    def score(self, images, prompts, taxonomy):
        ASKED.extend((prompt, taxonomy.name) for prompt in prompts)
        light = np.array([np.asarray(image.convert("RGB")).mean() / 255 for image in images])
        told = np.array(["fence" in (prompt or "") for prompt in prompts])
        unsafe = 1 / (1 + np.exp(60 * (light - 0.73) - 5 * told))
        return Scores(unsafe, np.tile(unsafe[:, None], (1, len(taxonomy))), (None,) * len(images))

class Array(Ink):
    def score(self, images, prompts, taxonomy):
        return np.zeros(len(images))

def make_head():
    return Ink()
"""
SMALL = {
    "cascade": "none",
    "defended_cascade": "none",
    "rows": 6,
    "text_rows": 3,
    "clean_rows": 16,
    "epsilon": "8/255",
    "epsilons": ["8/255", "128/255"],
    "steps": 1,
    "restarts": 1,
    "queries": 40,
    "severities": 3,
}


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    path = tmp_path_factory.mktemp("own head") / "my_head.py"
    path.write_text(HEAD)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.path", sys.path[:])
        yield path


@pytest.fixture(scope="module")
def finished(head, run_recipe, shapes, tmp_path_factory):
    out = tmp_path_factory.mktemp("attacked") / "run"
    return out, attack(run_recipe, shapes, out, [f"{head}:make_head"])


def attack(run_recipe, shapes, out, victims, **options):
    more = {"dataset": shapes.dataset, "taxonomy": shapes.taxonomy, "victims": victims, "output_dir": out}
    (out.parent / "none.yaml").write_text("defended: {}\nflip: {group_size: 4, max_categories: 2}\n")
    # So few queries may fail the honesty checks; the exit code says so.
    with suppress(SystemExit):
        run_recipe("attack", **{**SMALL, **more, **options}, config=out.parent / "none.yaml", drawn=True)
    return json.loads((out / "metrics.json").read_text())


def test_a_head_of_ones_own_is_attacked_by_queries_and_the_report_says_so(finished, shapes):
    out, metrics = finished
    [found] = metrics["pixels"].values()
    assert found["knowledge"] == "queries"
    assert found["no_gradients"] == "as a Ink, it has no pixel_margins"
    assert set(found["by_attack"]) == {"square"}
    assert found["spent"]["square"]["forwards"] > 0
    assert found["by_epsilon"]["128/255"]["robust_accuracy"] < found["clean_accuracy"], (
        "queries alone break it"
    )

    name = "my_head.py:make_head"
    assert set(metrics["texts"][name]["families"]) >= set(FAMILIES)
    assert metrics["disguises"]["classifiers"][name]["rows"] > 0
    assert (metrics["transfer"], metrics["universal"]) == (None, {}), "nothing is crafted without gradients"
    assert {check["name"] for check in metrics["honesty"][name]} >= {"huge_epsilon", "deterministic"}
    assert "by queries only" in (out / "report.html").read_text()

    import _own_my_head

    assert {policy for _, policy in _own_my_head.ASKED} == {load_taxonomy(shapes.taxonomy).name}
    assert len({prompt for prompt, _ in _own_my_head.ASKED}) > 50, "of all families of texts"


def test_the_report_can_be_read_in_every_look(finished, window):
    out, _ = finished
    check_looks(partial(show_file, window, out / "report.html"))
    page = show_file(window, out / "report.html", 390)
    assert page.locator("svg.chart").count() == 2, "sizes and margins; an attack by queries has no steps"
    assert page.locator(".attacked").count() > 0
    assert page.locator(".attacked .picture.blurred").count() == 3 * page.locator(".attacked").count()
    verdict, picture = page.locator(".verdict").bounding_box(), page.locator(".attacked").first.bounding_box()
    assert verdict["y"] < picture["y"] < page.locator("table").first.bounding_box()["y"]


def test_a_table_keeps_it_apart_from_victims_attacked_by_gradients(finished):
    out, metrics = finished
    [asked] = read_measurements(out)
    assert "attacked by the suite strong; by queries only" in asked.questions.about
    for found in metrics["pixels"].values():
        found["knowledge"] = "white_box"
    [other] = KINDS["attack"][1](metrics)
    assert other.asked["knowledge"] == "white_box"


@pytest.mark.parametrize(
    ("robust", "interval", "failed", "good"),
    [
        (0.95, (0.9, 0.98), [], True),
        (0.95, (0.6, 1.0), [], None),
        (0.3, (0.2, 0.4), [], False),
        (0.95, (0.9, 0.98), [{"name": "huge_epsilon", "passed": False, "message": "It does not."}], False),
    ],
)
def test_good_news_needs_enough_questions_and_sound_attacks(finished, robust, interval, failed, good):
    _, metrics = finished
    one = {**next(iter(metrics["pixels"].values())), "clean_accuracy": 1.0, "robust_accuracy": robust}
    told = describe_robustness(
        {**metrics, "pixels": {"x": {**one, "interval": interval}}, "honesty": {"x": failed}}, "8/255"
    )
    assert told.good is good
    assert f"{robust:.1%} of x's verdicts ({interval[0]:.1%} to" in told.sentence
    assert "at 128/255)" in told.sentence
    assert ("A check of the attacks failed" in told.sentence) == bool(failed)


def test_only_a_victim_without_gradients_gets_the_attacks_by_queries(head):
    suite = strong()
    asked = suite_for(ClassifierVictim(load(f"{head}:make_head")), suite)
    assert [attack.name for attack in asked.attacks] == ["square"]
    assert asked.weak
    assert suite_for(SimpleNamespace(no_gradients=None), suite) is suite


def test_what_is_wrong_with_a_head_is_said_before_there_is_a_folder(head, run_recipe, shapes, tmp_path):
    for end, error, says in (
        ("Array", AttackError, r"Array: `score` gave back a ndarray, expected judge\.protocol\.Scores"),
        ("make_haed", ConfigError, "'make_haed' does not exist.*did you mean 'make_head'"),
    ):
        with pytest.raises(error, match=says):
            attack(run_recipe, shapes, tmp_path / "run", [f"{head}:{end}"])
        assert not (tmp_path / "run").exists()
    with pytest.raises(AttackError, match=r"make_head gives no gradients .*needs gradients.*norm linf"):
        attack(
            run_recipe,
            shapes,
            tmp_path / "run",
            [f"{head}:make_head"],
            norm="l2",
            epsilon=0.5,
            epsilons=[0.5],
        )
    assert not (tmp_path / "run").exists()


def test_the_head_is_not_flagging_all(head, shapes):
    """The toy judges some pictures right and some wrong, so that there is something to attack."""
    taxonomy = load_taxonomy(shapes.taxonomy)
    examples = load_examples(shapes.dataset, split="test", taxonomy=taxonomy).examples
    found = load(f"{head}:make_head").score(
        [open_image(e.image) for e in examples], [None] * len(examples), taxonomy
    )
    assert 0.1 < np.mean(found.unsafe > 0.5) < 0.9
