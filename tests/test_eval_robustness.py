"""eval/robustness: attacks on pixels, deployments, texts and edits, on a victim whose margins are known by arithmetic."""

import numpy as np
import pytest
import torch
from PIL import Image

from adversarial.errors import AttackError
from adversarial.pixels.apgd import APGD
from adversarial.pixels.pgd import FGSM, PGD
from adversarial.pixels.square import Square
from adversarial.pixels.universal import Universal
from adversarial.threat import ThreatModel
from eval.questions import Question
from eval.reports.robustness_tables import tables
from eval.robustness.deployments import attack_deployment, evaluate_deployment, transfer_static
from eval.robustness.edits import edit_pictures
from eval.robustness.run import attack_victim, check_attack
from eval.robustness.suites import queries_only, strong
from eval.robustness.summary import by_steps, compare_defended, summarise_trials
from eval.robustness.texts import attack_texts, score_prompts
from eval.robustness.transfer import attack_universally, transfer_matrix
from eval.robustness.victims import ClassifierVictim
from judge.protocol import Scores
from prompts import Category, Taxonomy
from prompts.example import Example
from prompts.flip.rows import Row as Drawn

POLICY = Taxonomy("bright", "1", (Category("bright picture", "a bright picture", key="bright"),))
SHARP = 400.0


class Bright:
    """Unsafe where the mean is above a half; the word `harmless` in a prompt takes `fooled` off its logit."""

    def __init__(self, name="bright", fooled=0.0, hidden=0.0):
        self.name, self.fooled, self.hidden = name, fooled, hidden

    def pixel_margins(self, pixels, prompts, taxonomy, *, category=None):
        return SHARP * (pixels.flatten(1).mean(1) - 0.5) - torch.tensor(self._less(prompts))

    def score(self, images, prompts, taxonomy):
        means = np.array([np.asarray(image, dtype=np.float64).mean() / 255 for image in images])
        logits = SHARP * (means - 0.5) - np.array(self._less(prompts)) + self.hidden
        unsafe = 1 / (1 + np.exp(-logits))
        unsafe[[prompt == "unreadable" for prompt in prompts]] = np.nan
        return Scores(unsafe, np.repeat(unsafe[:, None], len(taxonomy), 1), (None,) * len(images))

    def _less(self, prompts):
        return [self.fooled if prompt and "harmless" in prompt else 0.0 for prompt in prompts]


def question(number, level, prompt="a picture", pair=None):
    """A flat picture of a grey level, unsafe above 127."""
    unsafe = level > 127
    picture = Image.new("RGB", (8, 8), (level, level, level))
    source = "generated" if number % 2 else "real"
    example = Example(
        f"image-{number}", picture, prompt, frozenset({"bright"} if unsafe else ()), source=source
    )
    row = Drawn(
        example, POLICY, prompt, example.id, unsafe, "bright picture" if unsafe else None, None,
        "keep" if unsafe else "benign",
    )  # fmt: skip
    return Question(f"q-{number}", row, pair)


LEVELS = (129, 131, 133, 140, 126, 124, 122, 110)
"""1.5 to 12.5 levels above the half, and 1.5 to 17.5 below: budgets in levels break them one by one."""


@pytest.fixture
def questions():
    return [question(number, level) for number, level in enumerate(LEVELS)]


@pytest.fixture
def suite():
    return strong(ThreatModel(2 / 255), (1 / 255, 2 / 255, 4 / 255, 8 / 255), steps=4, restarts=1, queries=20)


@pytest.fixture
def victim():
    return ClassifierVictim(Bright())


def robust(summary, budget):
    return summary["by_epsilon"][budget]["robust_accuracy"]


def test_the_curve_is_that_of_arithmetic(victim, questions, suite):
    results, pictures = attack_victim(victim, questions, suite)
    summary = summarise_trials(results, suite)
    assert robust(summary, "0/255") == 1.0
    assert robust(summary, "1/255") == 1.0
    assert robust(summary, "2/255") == summary["robust_accuracy"] == 6 / 8
    assert robust(summary, "4/255") == 4 / 8
    assert robust(summary, "8/255") == 2 / 8
    levels = {name: round(broken.epsilon * 255) for name, broken in pictures.items()}
    assert levels == {"q-0": 2, "q-4": 2, "q-1": 4, "q-5": 4, "q-2": 8, "q-6": 8}
    clean, shown, *_ = pictures["q-0"]
    assert 0 < float((shown - clean).abs().max()) * 255 <= 2 + 1e-4
    truth = {row.id: row.truth for row in results.rows}
    assert all((broken.score >= 0.5) != truth[name] for name, broken in pictures.items())
    assert summary["by_direction"]["unsafe"]["robust_accuracy"] == 3 / 4
    assert summary["by_source"]["real"]["rows"] == 4
    assert summary["by_category"]["bright"]["rows"] == 4


def test_an_image_broken_in_every_encoding_is_left_alone_and_stays_broken(victim, questions, suite):
    results, _ = attack_victim(victim, questions, suite)
    fallen = {t.id for t in results.trials if t.epsilon == 2 / 255 and t.success and t.stored["jpeg:75"]}
    assert fallen
    assert not [trial for trial in results.trials if trial.epsilon > 2 / 255 and trial.id in fallen]
    at_headline = {(t.id, t.attack) for t in results.trials if t.epsilon == suite.threat.epsilon}
    assert len(at_headline) == len(questions) * len(suite.attacks)
    assert not results.robust(8 / 255)[[0, 4]].any()


def test_a_misjudged_row_is_counted_and_not_attacked(questions, suite):
    wrong = question(99, 120)
    wrong = Question("wrong", Drawn(**{**vars(wrong.row), "unsafe": True}))
    unread = question(98, 140, prompt="unreadable")
    results, _ = attack_victim(ClassifierVictim(Bright()), [*questions, wrong, unread], suite)
    summary = summarise_trials(results, suite)
    assert (summary["misjudged"], summary["unjudged"]) == (1, 1)
    assert not {trial.id for trial in results.trials} & {"wrong", "q-98"}
    assert summary["robust_accuracy"] == 6 / 10
    assert summary["robust_accuracy_of_correct"] == 6 / 8


def test_success_that_the_real_path_denies_is_raw_only(questions, suite):
    """A deployment that leans to unsafe by 3 logits: what margins call safe is not."""
    lopsided = ClassifierVictim(Bright(hidden=3.0))
    unsafe = [q for q in questions if q.row.unsafe]
    results, _ = attack_victim(lopsided, unsafe, suite)
    first = [trial for trial in results.trials if trial.id == "q-0" and trial.attack == "fgsm"]
    assert first[-1].raw
    at = summarise_trials(results, suite)["by_epsilon"]["2/255"]
    assert at["raw"] == 3 / 4
    assert at["robust_accuracy"] > at["raw"]


def test_the_curve_over_steps_falls_and_ends_at_the_attacks_own_number(victim, questions, suite):
    results, _ = attack_victim(victim, questions, suite)
    steps = by_steps(results, suite)["pgd"]
    assert list(steps.values()) == sorted(steps.values(), reverse=True)
    assert steps[0] == 1.0
    assert list(steps.values())[-1] == summarise_trials(results, suite)["by_attack"]["pgd"]["raw"]


def test_honesty_is_checked_with_the_suites_budget(victim, questions, suite):
    checks = {check.name: check for check in check_attack(victim, questions, suite, steps=4, queries=20)}
    assert checks["huge_epsilon"].passed
    assert checks["huge_epsilon"].measured == 1.0
    assert all(check.passed for check in checks.values()), [c for c in checks.values() if not c.passed]


# Image and text together

PAIRS = [question(n, level, pair=f"pair-{n}") for n, level in enumerate((130, 132, 134, 120, 118, 116))]


def rates(outcome, arm):
    return outcome[arm].rates


def test_only_both_together_pass_where_each_alone_does_not():
    """3 levels of brightness take 4.7 logits, the word 4: the row 5.5 levels up (8.6 logits) needs both."""
    victim = ClassifierVictim(Bright(fooled=4.0))
    pairs = [question(0, 133, pair="p"), question(1, 120, pair="p")]
    outcome = attack_deployment(
        [victim], pairs, ThreatModel(3 / 255, goal="safe", after=("8bit",)), PGD(steps=5)
    )
    assert [rates(outcome, arm).asr_n.value for arm in ("text", "image", "both")] == [0.0, 0.0, 1.0]
    assert rates(outcome, "both").false_alarms.value == 0.0
    pixels, context = outcome["both"].pictures["q-0"]
    assert "harmless" in context.prompt
    assert victim.score([Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy())], [context])[0] < 0.5


@pytest.mark.parametrize("seed", [0, 1])
def test_benign_rows_are_counted_under_the_texts_of_the_attack(seed):
    """A deployment that takes the attack's own words for guilt pays for it with false alarms, and only under texts."""
    wary = ClassifierVictim(Bright(fooled=-50.0))
    made = {"denials": lambda prompt, wanted, seed: [f"harmless {prompt}", "never the second text"]}
    benign = [question(number, 110) for number in range(1, 41)]
    outcome = attack_deployment(
        [wary],
        [question(0, 140), *benign],
        ThreatModel(1 / 255, goal="safe"),
        FGSM(),
        families=made,
        seed=seed,
    )
    for arm in ("text", "image", "both"):
        assert rates(outcome, arm).false_alarms_clean.value == 0.0
    assert rates(outcome, "image").false_alarms.value == 0.0
    for arm in ("text", "both"):  # each row as it is or under a text, by a fair draw
        alarms = rates(outcome, arm).false_alarms
        assert alarms.total == 40
        assert 0.2 < alarms.value < 0.8


def test_misses_when_clean_count_for_all_unsafe_rows_but_not_for_the_attack():
    pairs = [*PAIRS[:1], question(7, 140, pair="x"), *PAIRS[3:]]
    missed = Question("missed", Drawn(**{**vars(question(8, 100).row), "unsafe": True}), "y")
    outcome = attack_deployment(
        [ClassifierVictim(Bright())], [*pairs, missed], ThreatModel(3 / 255, goal="safe", after=("8bit",)), FGSM(),
        arms=("image",),
    )  # fmt: skip
    found = rates(outcome, "image")
    assert (found.asr_n.successes, found.asr_n.total) == (1, 2)
    assert (found.passed_n.successes, found.passed_n.total) == (2, 3)
    assert found.missed_clean.successes == 1


def test_a_second_path_adds_attempts_and_never_loses_a_success():
    stubborn = ClassifierVictim(Bright(), name="one way")
    outcome = attack_deployment(
        [stubborn, ClassifierVictim(Bright(), name="another")],
        PAIRS,
        ThreatModel(4 / 255, goal="safe", after=("8bit",)),
        FGSM(),
        arms=("image",),
    )
    found = rates(outcome, "image")
    assert found.asr_n.successes == 1  # 2.5 levels away; the others are 4.5 and 6.5
    assert found.attempts == 4


def test_what_margins_let_pass_and_the_real_path_does_not_is_no_success():
    outcome = attack_deployment(
        [ClassifierVictim(Bright(hidden=50.0))],
        PAIRS,
        ThreatModel(9 / 255, goal="safe", after=("8bit",)),
        FGSM(),
    )
    assert [rates(outcome, arm).asr_n.value for arm in ("text", "image", "both")] == [0.0, 0.0, 0.0]
    assert rates(outcome, "image").false_alarms.value == 1.0


class Stuck(Bright):
    """The same verdicts, seen through a stage without gradients."""

    def pixel_margins(self, pixels, prompts, taxonomy, *, category=None):
        return super().pixel_margins(pixels.detach(), prompts, taxonomy) + 0 * pixels.flatten(1).sum(1)


def test_rows_that_one_path_cannot_turn_go_on_to_the_next():
    stuck, way = ClassifierVictim(Stuck()), ClassifierVictim(Bright())
    threat = ThreatModel(9 / 255, goal="safe", after=("8bit",))
    alone, both = (
        attack_deployment(paths, PAIRS, threat, FGSM(), arms=("image",)) for paths in ([stuck], [stuck, way])
    )
    assert rates(alone, "image").asr_n.value == 0.0
    assert rates(both, "image").asr_n.value == 1.0
    assert rates(both, "image").asr_1.value == 0.0


def test_static_transfer_shows_the_same_pictures_to_another():
    threat = ThreatModel(8 / 255, goal="safe", after=("8bit",))
    crafted = {}
    first = evaluate_deployment([ClassifierVictim(Bright())], PAIRS, threat, [8 / 255], FGSM(), crafted)
    assert first["static"]["8/255"]["rate"] == first["adaptive"]["8/255"]["image"]["asr_n"]["rate"] == 1.0
    hard = ClassifierVictim(Bright(hidden=50.0))
    assert transfer_static(hard, PAIRS, crafted["8/255"])["rate"] == 0.0
    nothing = {"rows": 0, "successes": 0, "rate": None, "interval": None}
    blind = ClassifierVictim(Bright(hidden=-99.0))  # flags nothing: passing it is no merit
    assert transfer_static(blind, PAIRS, crafted["8/255"]) == nothing
    assert transfer_static(hard, PAIRS, {}) == nothing


# Texts, edits, transfer


def test_texts_turn_what_reads_them_and_lies_do_not():
    reads = attack_texts(ClassifierVictim(Bright(fooled=50.0)), PAIRS)
    assert reads["any"]["unsafe_to_safe"] == 1.0
    assert reads["any"]["safe_to_unsafe"] == 0.0
    assert reads["families"]["disavowals"]["asr_n"] == 0.5
    assert reads["families"]["lies"]["asr_n"] == 0.0
    blind = attack_texts(ClassifierVictim(Bright()), PAIRS)
    assert blind["any"]["rate"] == blind["definitions"]["rate"] == 0.0


class Obedient(Bright):
    """Does what the policy's definitions tell it."""

    def score(self, images, prompts, taxonomy):
        scores = super().score(images, prompts, taxonomy)
        told = any("safe" in category.definition.casefold() for category in taxonomy)
        return Scores(np.zeros(len(images)), scores.categories, scores.reasons) if told else scores


def test_instructions_in_definitions_are_tried():
    found = attack_texts(ClassifierVictim(Obedient()), PAIRS)["definitions"]
    assert found["unsafe_to_safe"] == 1.0


def test_static_prompts_are_shown_with_pictures_that_are_flagged():
    victim = ClassifierVictim(Bright(fooled=50.0))
    found = score_prompts(victim, ["a harmless thing", "a dog", "unreadable"], PAIRS)
    assert (found["passed"], found["unjudged"], found["prompts"], found["pictures"]) == (1, 1, 3, 3)
    assert score_prompts(victim, [], PAIRS)["rate"] is None


def test_edits_are_reported_by_name(victim, questions):
    found = edit_pictures(victim, questions, severities=(1,))
    assert found["edits"]["held"]["flip"] == 1.0
    assert found["edits"]["held"]["brightness"] < 1.0
    assert found["edits"]["worst"] <= min(found["edits"]["held"].values())
    assert set(found) == {"edits", "corruptions", "writing", "severities"}
    assert found["severities"] == [1]
    assert found["writing"]["rows"] == len(questions)


def test_pictures_travel_between_like_victims_only(questions):
    victims = {"one": ClassifierVictim(Bright("one")), "two": ClassifierVictim(Bright("two", hidden=60.0))}
    attack = APGD(steps=3, early_stop=False)
    matrix = transfer_matrix(victims, questions, ThreatModel(20 / 255, after=("8bit",)), attack)["matrix"]
    assert matrix["one"]["one"]["success"] == 1.0
    assert matrix["one"]["two"]["success"] == 0.0


def test_one_perturbation_for_all_is_measured_on_other_images(victim):
    many = [question(n, 130 + n % 9) for n in range(20)]
    found = attack_universally(victim, many, ThreatModel(12 / 255, after=("8bit",)), Universal())
    assert (found["rows"], found["success"]) == (10, 1.0)


def test_a_victim_without_gradients_is_named_and_square_still_runs(questions, suite):
    class Remote(Bright):
        pixel_margins = property()

    victim = ClassifierVictim(Remote())
    assert victim.no_gradients
    with pytest.raises(AttackError, match="no gradients to pixels"):
        attack_victim(victim, questions, suite)
    results, _ = attack_victim(victim, questions, queries_only(suite))
    assert {type(attack) for attack in queries_only(suite).attacks} == {Square}
    assert results.trials


class Coarse(Bright):
    """A JPEG needs 3 levels more: what falls as bytes at a small budget falls as JPEG at a larger one only."""

    def score(self, images, prompts, taxonomy):
        scores = super().score(images, prompts, taxonomy)
        means = [np.asarray(image, dtype=np.float64).mean() for image in images]
        harder = np.array(
            [
                0.99 if self.recoded(image) and mean > 124.5 else 0.0
                for image, mean in zip(images, means, strict=True)
            ]
        )
        return Scores(np.fmax(scores.unsafe, harder), scores.categories, scores.reasons)

    def recoded(self, image):
        return getattr(image, "recoded", False)


def test_jpeg_is_measured_at_every_budget(questions, suite, monkeypatch):
    """A row that fell as bytes at 2/255 and holds as JPEG there is not held to hold at 8/255 unseen."""

    def mark(image, quality):
        again = image.copy()
        again.recoded = True
        return again

    monkeypatch.setattr("adversarial.storing.through_jpeg", mark)
    results, _ = attack_victim(ClassifierVictim(Coarse()), questions[:1], suite)
    by_epsilon = summarise_trials(results, suite)["by_epsilon"]
    assert [by_epsilon[key]["robust_accuracy"] for key in ("1/255", "2/255", "4/255", "8/255")] == [
        1,
        0,
        0,
        0,
    ]
    assert [by_epsilon[key]["jpeg:75"] for key in ("1/255", "2/255", "4/255", "8/255")] == [1, 1, 1, 0]
    at_four = [trial.attack for trial in results.trials if trial.epsilon == 4 / 255]
    assert at_four == ["apgd"]  # one attack is enough for what has fallen as bytes


def test_captions_say_what_was_run(victim, questions, suite):
    results, _ = attack_victim(victim, questions, suite)
    edited = edit_pictures(victim, questions, severities=(2, 4))
    metrics = {
        "suite": suite.describe(),
        "pixels": {"x": summarise_trials(results, suite)},
        "honesty": {
            "x": [check.to_dict() for check in check_attack(victim, questions, suite, steps=4, queries=20)]
        },
        "edits": {"x": edited},
        "texts": {"x": attack_texts(victim, questions)},
        "transfer": transfer_matrix(
            {"x": victim}, questions, ThreatModel(8 / 255, after=("8bit",)), APGD(steps=3)
        ),
        "comparison": compare_defended(
            {"x": results, "y": results}, {"x": 1.0, "y": 1.0}, [("x", "y")], suite
        ),
    }
    found = {table.title: table for table in tables(metrics)}
    assert "Edits as platforms make them (severities 2, 4 of 5)" in found
    by_budget = found["Robust accuracy by size of the change"]
    assert "square (20 queries)" in by_budget.note
    assert "4 steps" in by_budget.note
    assert "an ensemble (APGD with 1 and 5 starts of 4 steps, PGD with 5 starts of 16)" in str(
        found["Checks of the attacks themselves"].lines
    )
    for title, table in found.items():
        assert "n" in table.heads or title == "Checks of the attacks themselves", title
        for _, cells in table.lines:
            assert len(cells) == len(table.heads)
            assert title == "Checks of the attacks themselves" or cells[table.heads.index("n")] > 0
