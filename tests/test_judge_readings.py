"""The largest score over the image alone and the windows of its prompt."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from judge.protocol import Scores, on_one_scale
from judge.readings import TOO_MANY_TOKENS, combine_readings, highest_margins, read_prompts

LONG = " ".join(str(n) for n in range(200))
PROMPTS = [None, "a cat", LONG, "\u200b"]
PLAN = read_prompts(PROMPTS)


def test_the_image_alone_comes_first_and_every_window_is_a_reading() -> None:
    assert PLAN.texts[:3] == (None, None, "a cat")
    assert [len(PLAN.of_row(row)) for row in range(4)] == [1, 2, len(PLAN) - 4, 1]
    assert PLAN.hidden == (0, 0, 0, 1)
    assert read_prompts(PROMPTS, "ignore").texts == (None,) * 4
    assert read_prompts(PROMPTS, "use").texts[:2] == (None, "a cat")


@given(
    arrays(np.float64, len(PLAN), elements=st.floats(0, 1)),
    arrays(np.float64, (len(PLAN), 3), elements=st.floats(0, 1)),
)
def test_no_reading_lowers_a_score_of_the_image_alone(unsafe: np.ndarray, categories: np.ndarray) -> None:
    scores = Scores(unsafe, categories, (None,) * len(PLAN))
    found, alone = combine_readings(scores, PLAN), on_one_scale(scores)
    assert (found.unsafe >= alone.unsafe[PLAN.starts]).all()
    assert (found.categories >= alone.categories[PLAN.starts]).all()
    assert np.array_equal(on_one_scale(found).categories, found.categories)  # still on one scale
    assert (found.unsafe == [alone.unsafe[list(PLAN.of_row(row))].max() for row in range(4)]).all()


def test_what_cannot_be_read_with_the_prompt_is_judged_alone_and_noted() -> None:
    unsafe = np.full(len(PLAN), 0.2)
    unsafe[2] = np.nan
    reasons = [None, None, "too many tokens", *[None] * (len(PLAN) - 3)]
    found = combine_readings(Scores(unsafe, unsafe[:, None].copy(), tuple(reasons)), PLAN)
    assert found.unsafe.tolist() == [0.2] * 4
    assert found.reasons == (None,) * 4
    assert found.notes == (None, "the prompt was not read: too many tokens", None, None)


def test_without_the_image_alone_a_row_is_unjudged() -> None:
    unsafe = np.full(len(PLAN), 0.9)
    unsafe[1] = np.nan
    reasons = [None, "no finite score", *[None] * (len(PLAN) - 2)]
    found = combine_readings(Scores(unsafe, unsafe[:, None].copy(), tuple(reasons)), PLAN)
    assert np.isnan(found.unsafe[1])
    assert np.isnan(found.categories[1]).all()
    assert found.reasons[1] == "no finite score"


def test_under_use_a_prompt_that_is_not_read_leaves_the_image_unjudged() -> None:
    plan = read_prompts(["x" * 20_000, LONG], "use")
    found = combine_readings(Scores(np.zeros(len(plan)), np.zeros((len(plan), 1)), (None,) * len(plan)), plan)
    assert np.isnan(found.unsafe[0])
    assert found.unsafe[1] == 0
    assert "the prompt was not read" in (found.reasons[0] or "")


@pytest.mark.parametrize("mode", ["max", "use"])
def test_margins_are_the_logits_of_the_scores(mode: str) -> None:
    plan = read_prompts(PROMPTS, mode)  # type: ignore[arg-type]
    margins = torch.randn(len(plan), generator=torch.Generator().manual_seed(0), requires_grad=True)
    found = highest_margins(margins, plan)
    probabilities = margins.detach().double().sigmoid().numpy()
    scores = combine_readings(Scores(probabilities, probabilities[:, None], (None,) * len(plan)), plan)
    assert np.allclose(found.detach().double().sigmoid().numpy(), scores.unsafe)
    found.sum().backward()
    assert margins.grad is not None
    assert margins.grad.sum() == 4  # one reading of each image
    columns = highest_margins(torch.stack([margins, -margins], dim=1), plan)
    assert torch.equal(columns[:, 0], found)
    assert torch.equal(columns[:, 1], highest_margins(-margins, plan))


def test_margins_that_are_not_finite_count_as_scores_do() -> None:
    margins = torch.zeros(len(PLAN))
    margins[2] = torch.nan  # with a prompt
    assert highest_margins(margins, PLAN).tolist() == [0.0] * 4
    margins[0] = torch.nan  # an image alone
    assert highest_margins(margins, PLAN).isnan().tolist() == [True, False, False, False]
    plan = read_prompts(["a cat", "x" * 20_000, LONG], "use")
    margins = torch.zeros(len(plan))
    margins[-1] = torch.nan
    assert highest_margins(margins, plan).isnan().tolist() == [False, True, True]


def test_a_prompt_with_a_window_of_too_many_tokens_is_not_read() -> None:
    plan = read_prompts(["a cat", "a much too long cat"], too_long=lambda text: len(text) > 10)
    assert plan.texts == (None, "a cat", None)
    assert plan.notes == (None, f"the prompt was not read: {TOO_MANY_TOKENS}")


def test_images_alone_are_the_first_batch() -> None:
    batches = PLAN.batches(2)
    assert batches[0] == [0, 1, 3, len(PLAN) - 1]
    assert all(len(batch) <= 2 for batch in batches[1:])
    assert sorted(reading for batch in batches for reading in batch) == list(range(len(PLAN)))
    assert read_prompts([]).batches(2) == [[]]
    assert read_prompts(["a", "b", "c"], "use").batches(2) == [[0, 1], [2]]
