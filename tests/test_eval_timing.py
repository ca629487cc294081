"""Times: medians after a warm-up, in turns; costs of stages on the same batches add up to the cascade's."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eval.cascade import summarise_costs
from eval.costs import Costs, measure_costs, timing_batches
from eval.questions import draw_evaluation
from eval.timing import medians, time_in_turns
from judge.cascade.cascade import Cascade
from judge.cascade.settings import CascadeSettings
from judge.cascade.similarity import Platt
from judge.cascade.stages import STAGES, Cutoffs
from judge.protocol import Scores
from judge.standins.digits import digits_examples
from prompts import FlipOptions, load_taxonomy


class Clock:
    """Time that passes only by `work`: no test waits, none depends on the machine."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def work(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(
        "eval.costs.time_in_turns", lambda functions, **more: time_in_turns(functions, **more, clock=clock)
    )
    return clock


def test_the_first_call_and_a_hiccup_do_not_count():
    clock, calls = Clock(), []

    def stage():
        calls.append(1)
        clock.work({1: 50.0, 3: 18.0}.get(len(calls), 2.0))

    assert medians(time_in_turns({"stage": stage}, repeats=5, clock=clock)) == {"stage": 2.0}
    assert len(calls) == 6


def test_functions_take_turns():
    """So that a machine that is slow for a while is slow for all of them."""
    order = []
    functions = {name: lambda name=name: order.append(name) for name in "ab"}
    times = time_in_turns(functions, repeats=2)
    assert "".join(order) == "ababab"
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 2}
    order.clear()
    time_in_turns(functions, repeats=2, warm_up=False)
    assert "".join(order) == "abab"


class Encoder:
    """Takes 3 ms an image; an image is unsafe, by its tokens, where its mean is low."""

    width, context, device = 4, 100, torch.device("cpu")

    def __init__(self, clock):
        self.clock = clock

    def too_long(self, text):
        return False

    def token_count(self, text):
        return 1

    def encode_texts(self, texts):
        self.clock.work(0.001 * len(texts))
        return torch.ones(len(texts), 2, 4), torch.ones(len(texts), 2, dtype=torch.bool)

    def encode_images(self, images):
        self.clock.work(0.003 * len(images))
        return (
            torch.tensor([[np.asarray(image).mean()] for image in images])[:, None].expand(-1, 3, 4).float()
        )


class Timed:
    """A classifier that takes so long an image, and answers by the image."""

    def __init__(self, name, clock, seconds):
        self.name, self.clock, self.seconds, self.encoder = name, clock, seconds, Encoder(clock)

    def score(self, images, prompts, taxonomy):
        return self._answer([float(np.asarray(image).mean()) for image in images], taxonomy)

    def score_tokens(self, tokens, prompts, taxonomy):
        return self._answer(tokens[:, 0, 0].tolist(), taxonomy)

    def _answer(self, means, taxonomy):
        self.clock.work(self.seconds * len(means))
        unsafe = np.array([mean % 1.0 for mean in means])
        return Scores(unsafe, np.repeat(unsafe[:, None], len(taxonomy), 1), (None,) * len(means))


@pytest.fixture
def questions():
    examples = digits_examples("test", count=300)
    return list(draw_evaluation(examples, load_taxonomy("digits"), FlipOptions(), seed=0, rows=120).flips)


def test_batches_are_full_and_of_one_policy(questions):
    batches = timing_batches(questions, policies=3, rows=16)
    assert [len(batch.images) for batch in batches] == [len(batch.prompts) for batch in batches] == [16] * 3
    assert len({batch.policy.hash for batch in batches}) == 3
    assert [len(batch.images) for batch in timing_batches(questions[:5], policies=1)] == [5]


def test_a_cascade_costs_what_its_stages_do(clock, questions):
    """No stage settles for less than it costs to get there: the cascade's time is the sum, and measured to be."""
    student, judge = Timed("student", clock, 0.010), Timed("judge", clock, 0.200)
    cutoffs = Cutoffs(
        2.0, 0.0, 2.0, 0.3, 0.6, 0.5
    )  # filters settle nothing, the student what is below .3 or above .6
    settings = CascadeSettings(Platt(0.0, 0.0), Platt(0.0, 0.0), cutoffs, True, 0.1, 0.1, 99)
    costs = measure_costs(
        student, judge, timing_batches(questions), Cascade(student, settings, judge), repeats=3
    )
    assert costs.seconds["encoder"] == pytest.approx(0.003)
    assert costs.seconds["student"] == pytest.approx(0.010)
    assert costs.seconds["judge"] == pytest.approx(0.200)
    assert costs.reached["filter"] == costs.reached["student"] == 1.0
    assert 0.0 < costs.reached["judge"] < 1.0
    expected = costs.expected(costs.reached, cutoffs.uses_text_filter)
    assert expected == pytest.approx(0.003 + costs.seconds["image"] + 0.010 + 0.200 * costs.reached["judge"])
    assert costs.cascade == pytest.approx(expected)
    assert costs.cascade >= costs.filters(False)
    summary = summarise_costs(costs, cutoffs)
    assert summary["seconds_per_image"] == costs.cascade
    assert summary["timing"]["by_stages"] == pytest.approx(summary["seconds_per_image"])
    assert (summary["timing"]["rows"], summary["timing"]["repeats"]) == (64, 3)


def test_without_a_judge_or_a_cascade(clock, questions):
    costs = measure_costs(Timed("student", clock, 0.010), None, timing_batches(questions), repeats=1)
    assert "judge" not in costs.seconds
    assert costs.cascade is None
    summary = summarise_costs(costs, SimpleNamespace(uses_text_filter=False))
    assert summary["seconds_per_image"] is summary["timing"]["by_stages"] is None


def test_every_stage_pays_its_share_only():
    costs = Costs({"encoder": 1.0, "text": 8.0, "image": 1.0, "student": 4.0, "judge": 100.0}, 1, 1, 1)
    assert costs.expected(dict(zip(STAGES, (1.0, 0.5, 0.01), strict=True)), False) == pytest.approx(2 + 2 + 1)
    assert costs.expected(dict(zip(STAGES, (1.0, 0.0, 0.0), strict=True)), True) == pytest.approx(10)
