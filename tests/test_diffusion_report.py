"""Comparison with baselines, held-out categories, promises over looks, and the page that shows them."""

import json
from html import escape

import numpy as np
import pytest

from eval.diffusion.comparison import BOTH, DECODED, DETECTOR, TEXT, Finished, behind, compare
from eval.diffusion.figures import draw_calibration
from eval.diffusion.heldout import held_out_columns, measure_held_out
from eval.diffusion.promise import (
    Guarding,
    ask_policies,
    check_promises,
    split_taxonomy,
    stopped_at,
    strictest,
)
from eval.diffusion.report import write_diffusion_report
from eval.diffusion.scored import ScoreFiles, joined
from eval.diffusion.tables import headline, tables
from judge.calibration.envelope import Envelope
from judge.diffusion.looks_promise import LooksPromise, Sampling
from judge.errors import CheckpointError, ConfigError
from judge.runs.folder import RunDir
from prompts import Category, Taxonomy

AT = (4, 9)
VAGUE = "vague <b>"
TAXONOMY = Taxonomy(
    "weapons", "1", tuple(Category(name, f"shows a {name}") for name in ("gun", "knife", "axe"))
)
MADE = Sampling(("DDIMScheduler",), (20, 20), (5.0, 5.0))


@pytest.fixture(scope="module")
def pictures():
    """240 pictures of 60 prompts, what each detector says of them, and their labels."""
    rng = np.random.default_rng(1)
    prompts = [f"prompt {number}" for number in range(60) for _ in range(4)]
    kinds = [("named", VAGUE)[number // 40] for number in range(60) for _ in range(4)]
    tendency = np.repeat(rng.random((60, 3)), 4, axis=0)
    labels = (rng.random((240, 3)) < tendency).astype(float)

    def noisy(share):
        return np.clip(share * labels + (1 - share) * rng.random((240, 3)), 0, 1)

    labels[0, 0] = np.nan
    text, decoded = dict.fromkeys(AT, tendency), {4: noisy(0.1), 9: noisy(0.4)}
    for values in decoded.values():
        values[0] = 0.5  # of an unknown label
    both = {step: joined([tendency, decoded[step]], labels, prompts) for step in AT}
    detector = {4: np.clip(0.5 * noisy(0.4) + 0.5 * tendency, 0, 1), 9: noisy(0.7)}
    for values in detector.values():
        values[0] = 0.5
    scores = {DETECTOR: detector, TEXT: text, DECODED: decoded, BOTH: both, "ndm": {4: noisy(0.05), 9: None}}
    scores["ndm"][4][0] = 0.5
    return Finished(labels, kinds, prompts), scores


@pytest.fixture(scope="module")
def metrics(pictures):
    finished, scores = pictures
    found = compare(finished, scores)
    found |= {"log_snr": {"4": -2.5, "9": 0.3}, "category_names": list(TAXONOMY.names)}
    held = measure_held_out(finished, scores[DETECTOR][9], scores[DETECTOR][9], [1])
    found |= {"held_out": {"9": held}, "held_out_names": ["knife"]}
    policies = split_taxonomy(TAXONOMY, 0)
    questions = ask_policies(finished, [scores[DECODED][step] for step in AT], TAXONOMY, policies, None)
    found["promises"] = check_promises(
        Guarding("ours", AT, policies, MADE), questions, (0.001, 0.1, 0.3), splits=40
    )
    found["overheads"] = [{"pictures": 8, "step_ms": 9.5, "look": 0.031, "idle": 0.004}]
    return found


def test_the_numbers_by_key(metrics):
    assert set(metrics["auc"]) == {"4", "9"}
    assert metrics["auc"]["9"] > metrics["auc"]["4"] > metrics["baselines"]["text"]
    assert metrics["auc_equal_prompt"]["9"] == metrics["areas"]["detector"]["9"]["equal_prompt"]["auc"]
    assert {"auc_named", f"auc_{VAGUE}"} <= metrics.keys()
    assert set(metrics["baselines"]["decoded"]) == {"4", "9"}
    assert set(metrics["families"]) == {"ndm"}
    assert set(metrics["families"]["ndm"]) == {"4"}, "it is not offered for step 9"
    assert len(metrics["categories"]["detector"]["9"]) == 3
    json.dumps(metrics)


def test_who_is_not_surely_ahead_is_named(metrics, pictures):
    finished, scores = pictures
    assert behind(metrics) == []
    worse = compare(finished, {**scores, DETECTOR: scores[DECODED]})
    lines = behind(worse)
    assert any(line.startswith("step 4, all prompts: -") and line.endswith("text alone") for line in lines)
    # Against itself the lead is nothing, and nothing is not ahead.
    assert (
        "step 9, pairs of equal prompt: +0.000 (+0.000 – +0.000) against labeller on the decoded picture"
        in lines
    )


def test_text_and_decoded_picture_together_beat_either(metrics):
    together = metrics["baselines"][BOTH]
    assert together["9"] > max(metrics["baselines"][TEXT], metrics["baselines"][DECODED]["9"])


def test_a_joined_baseline_lacks_what_one_of_them_lacks_and_never_saw_its_own_prompt():
    labels = np.array([[1.0], [0.0], [1.0], [0.0]] * 10)
    prompts = [str(number // 4) for number in range(40)]
    first, second = labels.copy(), np.full((40, 1), 0.5)
    first[3] = np.nan
    found = joined([first, second], labels, prompts)
    assert np.isnan(found).ravel().tolist() == [row == 3 for row in range(40)]
    # Labels of one half of the prompts turn the other half's scores, and not its own.
    half = np.array([list(np.unique(prompts)).index(prompt) % 2 for prompt in prompts])
    turned = joined([first, second], np.where(half[:, None] == 0, 1 - labels, labels), prompts)
    known = ~np.isnan(found).ravel()
    np.testing.assert_allclose(turned[known & (half == 0)], found[known & (half == 0)])
    assert (abs(turned - found)[known & (half == 1)] > 0.5).all()


def test_held_out_columns():
    assert held_out_columns(TAXONOMY, ["knife"]) == [1]
    assert held_out_columns(TAXONOMY, []) == []
    with pytest.raises(
        ConfigError, match=r"held_out names 'sword', which 'weapons' lacks; it has gun, knife"
    ):
        held_out_columns(TAXONOMY, ["sword"])
    with pytest.raises(ConfigError, match="names every category"):
        held_out_columns(TAXONOMY, TAXONOMY.keys)


def test_held_out_and_trained_are_told_apart(pictures):
    finished, scores = pictures
    good = scores[DETECTOR][9]
    blind = good.copy()
    blind[:, 1] = 0.5
    found = measure_held_out(finished, blind, good, [1])
    assert found["held_out"]["auc"] == 0.5
    assert found["trained"]["auc"] > 0.9
    assert found["held_out_when_trained"]["auc"] > 0.9
    assert found["categories"]["without"][1] == 0.5
    assert found["held_out"]["violating"] == int(np.nansum(finished.labels[:, 1]))


def test_promises_hold_on_average_and_cost_what_they_say(metrics):
    impossible, tenth, third = metrics["promises"]
    assert impossible["splits"] == 0
    assert "needs at least 999 unsafe" in impossible["reason"]
    for record in (tenth, third):
        assert record["splits"] == 80
        assert record["miss_rate"] <= record["promise"] + 0.02  # the mean of 80 splits of 240 pictures
        assert record["worst"] > record["miss_rate"]
        early, late = record["stopped_by"]["4"], record["stopped_by"]["9"]
        assert early <= late == pytest.approx(1 - record["miss_rate"])
    assert tenth["false_alarms"] > third["false_alarms"]


def test_the_strictest_promise_that_can_be_kept(pictures):
    finished, scores = pictures
    policies = split_taxonomy(TAXONOMY, 1)
    assert sorted(name for policy in policies for name in policy.names) == sorted(TAXONOMY.names)
    questions = ask_policies(finished, [scores[DETECTOR][9]], TAXONOMY, policies, None)
    assert len(questions) == 3 * 240 - 1, "of one cell the truth is not known"
    guarding = Guarding("ours", (9,), policies, MADE)
    cutoffs, reasons = strictest(guarding, questions, [0.2, 0.001, 0.05])
    assert cutoffs.promise == 0.05
    assert cutoffs.why_outside(policies[0]) is None
    assert len(reasons) == 1
    assert strictest(guarding, questions, [0.0001])[0] is None


def test_what_was_not_judged_is_stopped():
    cutoffs = LooksPromise(
        "ours", AT, (0.5, 0.8), "missed", 0.1, 20, 0.1, Envelope.from_policies([TAXONOMY]), MADE
    )
    scores = np.array([[0.6, 0.1], [0.4, 0.8], [0.4, 0.7], [0.4, np.nan], [np.nan, 0.9]])
    assert stopped_at(scores, cutoffs).tolist() == [0, 1, 2, 1, 0]


def test_the_page_holds_every_table_and_no_markup_of_names(metrics, pictures, tmp_path):
    finished, scores = pictures
    known = ~np.isnan(finished.labels)
    truth = [finished.labels[known] >= 0.5] * 2
    calibration = draw_calibration(truth, [scores[DETECTOR][step][known] for step in AT], AT)
    run = RunDir.create(tmp_path / "run", kind="diffusion")
    metrics = {**metrics, "corpus": {"rows": 10_000, "lost": 0, "doubled": 0}}
    write_diffusion_report(
        run, metrics, facts=["12,000 pairs of <tiny> pipeline"], figures={"Calibration": calibration}
    )
    page, markdown = ((run.path / name).read_text() for name in ("report.html", "report.md"))
    for table in tables(metrics):
        assert f"<h2>{escape(table.title)}</h2>" in page
        assert table.title in markdown.replace("\\", "")
    titles = [table.title for table in tables(metrics)]
    parts = ("all prompts", "named prompts", f"{VAGUE} prompts", "pairs of equal prompt and opposite label")
    assert titles[:4] == [f"AUC, {part}" for part in parts]
    assert {
        "Lead of the detector",
        "Categories held out of training",
        "Promise over all looks",
        "Corpus",
    } <= {*titles}
    assert "vague <b>" not in page
    assert "<tiny>" not in page
    assert page.count('<svg class="chart"') + page.count('class="chart" role="img"') == 3
    assert "step 9 (+0.3)" in page
    assert "detector" in headline(metrics).to_text()


def test_scores_are_kept_and_a_damaged_file_is_named(tmp_path):
    files, made = ScoreFiles(tmp_path / "scores"), []

    def make():
        made.append(1)
        return np.array([[0.25, np.nan]])

    for _ in range(2):
        np.testing.assert_array_equal(files.once("text-4", (1, 2), make), [[0.25, np.nan]])
    assert len(made) == 1
    with pytest.raises(
        CheckpointError, match=r"text-4.npy cannot be read \(it holds float64 of shape \(1, 2\)"
    ):
        files.once("text-4", (2, 2), make)
    (tmp_path / "scores" / "text-4.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(CheckpointError, match="delete it, and it is made again"):
        files.once("text-4", (1, 2), make)
