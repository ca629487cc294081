"""Stages counted by hand: cutoffs, levels, losses over images, and which shape tuning takes."""

import numpy as np
import pytest

from judge.cascade.stages import NEVER, Cutoffs, StageScores, decide, filter_verdict
from judge.cascade.tuning import (
    LEVELS,
    CascadeShape,
    CutoffFamily,
    _level_by_bisection,
    cascade_shapes,
    choose_level,
    decided_losses,
    precise_cutoff,
    tune,
)
from judge.errors import ConfigError

NAN = float("nan")
NOTHING = (0.0, NEVER)


def test_levels_run_from_nothing_to_everything():
    assert (LEVELS[0], LEVELS[1], LEVELS[-1]) == (0.0, pytest.approx(1e-4), 1.0)
    assert len(LEVELS) == 301
    assert np.allclose(np.diff(np.log(LEVELS[1:])), np.log(1e4) / 299)


@pytest.mark.parametrize(
    ("unsafe", "has"), [(NEVER, False), (1.5, False), (1.0, True), (0.5, True), (0.0, True)]
)
def test_a_text_filter_that_is_never_sure_has_no_say(unsafe, has):
    """Above 1 there is no probability."""
    assert Cutoffs(unsafe, *NOTHING, *NOTHING, 0.5).uses_text_filter is has


def test_cutoffs_may_be_anything_from_never_safe_to_never_unsafe():
    assert Cutoffs(*[0] * 6).judge == 0
    assert Cutoffs(*[NEVER] * 6).without_judge() == Cutoffs(*[NEVER] * 6)
    cutoffs = Cutoffs(0.2, 0.3, 0.4, 0.5, 0.6, 0.7).without_judge()
    assert cutoffs == Cutoffs(0.2, 0.3, 0.4, 0.5, 0.5, 0.7)
    with pytest.raises(ConfigError, match="judge"):
        Cutoffs(*[0.5] * 5, NEVER + 1e-9)


def test_shares_may_be_nothing_or_all_and_precisions_out_of_reach():
    assert CascadeShape(0, 0, 0, NEVER, NEVER, 0).band == 0
    assert CascadeShape(1, 1, 1, 0, 0, 1).band == 1
    for name in ("image", "student", "judge", "band"):
        with pytest.raises(ConfigError, match=rf"^{name} of"):
            CascadeShape(**{name: 1.01})
    for name in ("text_precision", "image_precision"):
        with pytest.raises(ConfigError, match=rf"^{name} of"):
            CascadeShape(**{name: 2.01})


def test_twenty_rows_are_the_least_from_which_a_filter_is_sure():
    unsafe = np.array([True] * 20 + [False] * 20)
    column = np.array([0.9] * 20 + [0.1] * 20)
    assert precise_cutoff(column, unsafe, 1.0) == 0.9
    assert precise_cutoff(column[1:], unsafe[1:], 1.0) == NEVER
    assert precise_cutoff(column[1:], unsafe[1:], 1.0, min_rows=19) == 0.9
    assert precise_cutoff(column, unsafe, 0.5) == 0.1  # exactly half of all forty
    assert precise_cutoff(column, unsafe, 0.51) == 0.9
    column[5], column[6] = NAN, NAN  # what was not judged counts for neither
    assert precise_cutoff(column, unsafe, 1.0) == NEVER
    assert precise_cutoff(column, unsafe, 1.0, min_rows=18) == 0.9


def test_the_shape_unless_another_is_given():
    assert CascadeShape() == CascadeShape(0.25, 0.5, 0.5, 0.99, 0.99, 0.05)


def test_rows_of_scores_are_rows_of_every_stage():
    columns = [np.arange(3) / 10 + stage for stage in range(4)]
    chosen = StageScores(*columns, np.array([True, False, False])).rows([2, 0])
    assert chosen.hidden.tolist() == [False, True]
    assert [column.tolist() for column in (chosen.text, chosen.image, chosen.student, chosen.judge)] == [
        [stage + 0.2, stage] for stage in range(4)
    ]
    assert StageScores(*columns[:3]).rows([0]).judge is None
    assert StageScores(*columns[:3]).rows([0]).hidden is None


def test_where_both_filters_are_equally_sure_the_image_is_believed():
    cutoffs = Cutoffs(0.8, 0.2, 0.8, *NOTHING, 0.5)
    found = filter_verdict(np.array([0.9, 0.95, 0.9]), np.array([0.9, 0.9, 0.95]), cutoffs)
    assert found.by_text.tolist() == [False, True, False]


def by_student(student, unsafe, share=1.0):
    """A family in which the student decides alone; its scores, and the truth of the tuning rows."""
    student = np.array(student, dtype=float)
    silent = np.full(len(student), 0.5)
    shape = CascadeShape(0.0, share, 0.0, NEVER, NEVER)
    return CutoffFamily(StageScores(silent, silent, student), np.array(unsafe), shape)


def students(*values):
    silent = np.full(len(values), 0.5)
    return StageScores(silent, silent, np.array(values))


def test_the_safe_cutoff_is_the_quantile_of_unsafe_rows_between_which_it_is_straight():
    family = by_student([0.2, 0.4, 0.6, 0.8, 0.1, 0.3], [True] * 4 + [False] * 2)
    found = [family.at(level).student_safe for level in (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)]
    assert found == pytest.approx([0.0, 0.1, 0.2, 0.4, 0.6, 0.8])
    assert family.at(0.5).student_unsafe == family.at(0.5).student_safe  # without a judge no band
    (silent,) = {CascadeShape(student=1.0, band=band) for band in (0.5,)}
    assert (
        CutoffFamily(students(0.2, 0.4, 0.9), np.array([True, True, False]), silent).at(1.0).student_unsafe
        == 0.4
    )
    half = by_student([0.2, 0.4, 0.6, 0.8, 0.1, 0.3], [True] * 4 + [False] * 2, share=0.5)
    assert half.at(1.0).student_safe == pytest.approx(0.4)


def test_the_band_is_a_share_of_all_rows_that_the_judge_gets():
    values = np.arange(1, 11) / 20
    unsafe = np.array([False] * 5 + [True] * 5)
    silent = np.full(10, 0.5)
    with_judge = StageScores(silent, silent, values, values)
    shape = CascadeShape(0.0, 1.0, 1.0, NEVER, NEVER, 0.2)
    cutoffs = CutoffFamily(with_judge, unsafe, shape).at(0.2)  # the lowest of five unsafe rows
    assert (cutoffs.student_safe, cutoffs.judge) == (pytest.approx(0.3), pytest.approx(0.3))
    assert cutoffs.student_unsafe == pytest.approx(0.4)  # two rows on: 0.30 and 0.35 are the judge's
    decided = decide(with_judge, cutoffs)
    assert decided.stage.tolist() == [1] * 5 + [2] * 2 + [1] * 3
    assert decided.safe.tolist() == [True] * 5 + [False] * 5
    top = CutoffFamily(with_judge, unsafe, shape).at(1.0)
    assert (top.student_safe, top.student_unsafe) == (
        pytest.approx(0.5),
        NEVER,
    )  # the band ends above all rows


def test_losses_over_images_leave_out_what_no_level_decides():
    family = by_student([0.25, 0.5, 0.75, 0.1], [True, True, True, False])
    rows = students(0.2, 0.6, NAN, 0.6, 0.9)
    levels = (0.0, 0.5, 0.99)  # cutoffs 0, 0.375, and a little under 0.75
    assert decided_losses(family, rows, levels=levels).tolist() == [
        [0, 1, 1],
        [0, 0, 1],
        [0, 0, 1],
        [0, 0, 0],
    ]
    images = ["a", "a", "b", "c", "c"]
    assert decided_losses(family, rows, images=images, levels=levels).tolist() == [[0, 0.5, 1], [0, 0, 0.5]]
    # Half of image a is missed at the second level, which keeps a promise of one half: (0.5 + 1) / (2 + 1).
    assert choose_level(family, rows, 0.5, images=images, levels=levels) == 0.5
    assert choose_level(family, rows, 0.5, levels=levels) == 0.5
    assert choose_level(family, rows, 0.49, images=images, levels=levels) == 0.0


def test_a_row_that_only_the_most_lenient_level_decides_counts():
    """The student cannot read it; at the last level the image filter calls it safe."""
    family = CutoffFamily(
        StageScores(np.full(3, 0.5), np.array([0.4, 0.8, 0.5]), np.array([0.6, 0.8, 0.1])),
        np.array([True, True, False]),
        CascadeShape(1.0, 0.0, 0.0, NEVER, NEVER),
    )
    row = StageScores(np.array([0.5]), np.array([0.6]), np.array([NAN]))
    levels = (0.0, 0.5, 1.0)  # image cutoffs 0, 0.4, 0.8
    assert decided_losses(family, row, levels=levels).tolist() == [[0, 0, 1]]


def test_halving_finds_the_level_that_trying_all_finds():
    rng = np.random.default_rng(0)
    tuning = [*rng.random(40), *rng.random(40) / 2]
    family = by_student(tuning, [True] * 40 + [False] * 40)
    rows = students(*rng.random(59))
    for promise in (1 / 60, 2 / 60, 0.1, 29 / 60, 30 / 60, 59 / 60):
        assert _level_by_bisection(family, rows, promise) == choose_level(family, rows, promise)
    assert _level_by_bisection(family, students(0.0, 0.0), 0.9) == 0.0  # missed at every level but this
    assert _level_by_bisection(family, students(0.0, 0.0), 1.0) == 1.0


def test_the_shapes_that_are_tried():
    shapes = cascade_shapes(0.04)
    assert len(set(shapes)) == len(shapes) == 4 * 3 * 3 * 3 * 5
    assert sorted({shape.band for shape in shapes}) == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.12])
    assert {shape.image_precision for shape in shapes} == {0.98, 0.995, NEVER}
    assert {shape.text_precision for shape in shapes} == {0.99}
    assert max(shape.band for shape in cascade_shapes(0.5)) == 1.0
    alone = cascade_shapes(0.04, with_judge=False)
    assert len(set(alone)) == len(alone) == 4 * 3 * 3
    assert {(shape.judge, shape.band) for shape in alone} == {(1.0, 0.0)}
    for name, values in (
        ("image", {0.0, 0.1, 0.25, 0.5}),
        ("student", {0.25, 0.5, 1.0}),
    ):
        assert {getattr(shape, name) for shape in (*shapes, *alone)} == values


def tuning_rows(rows=200, seed=0):
    """A judge that is always right, a student that errs in a grey zone, an image filter that knows the clear half."""
    rng = np.random.default_rng(seed)
    unsafe = np.arange(rows) % 2 == 1
    noise = rng.random(rows)
    student = np.where(unsafe, 0.35 + 0.6 * noise, 0.65 - 0.6 * noise)
    image = np.where(noise > 0.5, np.where(unsafe, 0.9, 0.1) + 0.05 * noise, 0.5)
    judge = np.where(unsafe, 0.99, 0.01)
    return StageScores(np.full(rows, 0.5), image, student, judge), unsafe


def test_tuning_takes_the_best_shape_that_spares_the_judge():
    scores, unsafe = tuning_rows()
    narrow = CascadeShape(0.0, 0.5, 0.5, NEVER, NEVER, 0.02)
    wide = CascadeShape(0.0, 0.5, 0.5, NEVER, NEVER, 0.3)
    for shapes in ([narrow, wide], [wide, narrow]):
        assert tune(scores, unsafe, 0.05, judge_share=0.35, shapes=shapes).shape == wide
        assert tune(scores, unsafe, 0.05, judge_share=0.1, shapes=shapes).shape == narrow
        assert tune(scores, unsafe, 0.05, shapes=shapes).shape == narrow  # 4 % unless more is allowed
    with pytest.raises(ConfigError, match=r"at most 1\.0% of the rows"):
        tune(scores, unsafe, 0.05, judge_share=0.01, shapes=[narrow])


def test_of_shapes_equally_good_tuning_takes_the_cheapest():
    """A student that is always right; the image filter spares it half of the rows."""
    scores, unsafe = tuning_rows()
    right = StageScores(scores.text, scores.image, np.where(unsafe, 0.9, 0.1))
    asked = CascadeShape(0.0, 1.0, 1.0, NEVER, NEVER, 0.0)
    spared = CascadeShape(0.0, 1.0, 1.0, NEVER, 0.99, 0.0)
    for shapes in ([asked, spared], [spared, asked]):
        assert tune(right, unsafe, 0.05, shapes=shapes).shape == spared
        dear = {"text": 9.0, "student": 1.0, "judge": 1.0}
        assert tune(right, unsafe, 0.05, shapes=shapes, costs=dear).shape == spared
    free = {"text": 0.0, "student": 0.0, "judge": 0.0}
    assert tune(right, unsafe, 0.05, shapes=[asked, spared], costs=free).shape == asked  # all cost alike


def test_a_much_better_shape_is_worth_its_price():
    scores, unsafe = tuning_rows()
    cheap = CascadeShape(0.0, 0.0, 0.0, NEVER, NEVER, 0.0)  # flags everything, asks no judge
    dear = CascadeShape(0.0, 0.5, 0.5, NEVER, NEVER, 0.02)
    costs = {"text": 0.0, "student": 1.0, "judge": 1e6}
    assert tune(scores, unsafe, 0.05, shapes=[cheap, dear], costs=costs).shape == dear


def sure_of(share, student_share, rows=1000):
    """Half is unsafe; the text filter is sure of `share` of all rows, the student and the judge are always right."""
    unsafe = np.arange(rows) < rows // 2
    text = np.where(np.arange(rows) < round(share * rows), 0.95, 0.5)
    student = np.where(unsafe, 0.95 - np.arange(rows) / rows / 2, 0.1)
    scores = StageScores(text, np.full(rows, 0.5), student, np.where(unsafe, 0.99, 0.01))
    alone = CascadeShape(0.0, 1.0, 1.0, NEVER, NEVER, 0.0)
    helped = CascadeShape(0.0, 1.0, 1.0, 0.99, NEVER, student_share)
    return scores, unsafe, alone, helped


@pytest.mark.parametrize(
    ("share", "band", "costs", "worth_it"),
    [
        # What the text filter spares the student, less its own price and what the band costs the judge.
        (0.105, 0.0, None, True),
        (0.095, 0.0, None, False),
        (0.205, 0.01, None, True),
        (0.195, 0.01, None, False),
        (0.02, 0.03, {"text": 0.0, "student": 1.0}, True),  # a judge without a price is free
        (0.03, 0.02, {"text": 0.0, "student": 1.0, "judge": 2.0}, False),
    ],
)
def test_a_student_costs_ten_times_the_text_filter_and_a_judge_ten_students(share, band, costs, worth_it):
    scores, unsafe, alone, helped = sure_of(share, band)
    for shapes in ([alone, helped], [helped, alone]):
        found = tune(scores, unsafe, 0.05, shapes=shapes, costs=costs).shape
        assert found == (helped if worth_it else alone)


def test_without_a_judge_its_price_is_not_needed():
    scores, unsafe, alone, helped = sure_of(0.2, 0.0)
    scores = StageScores(scores.text, scores.image, scores.student)
    assert tune(scores, unsafe, 0.05, shapes=[alone, helped], costs={"text": 0, "student": 1}).shape == helped


@pytest.mark.parametrize(("alarms", "worth_it"), [(3, True), (5, False)])
def test_an_f1_within_two_thousandths_of_the_best_is_as_good(alarms, worth_it):
    """The image filter spares the student half of 2000 rows and gives so many false alarms, 0.0005 of F1 each."""
    unsafe = np.arange(2000) < 1000
    image = np.where(np.arange(2000) < 1000 + alarms, 0.9, 0.5)
    scores = StageScores(np.full(2000, 0.5), image, np.where(unsafe, 0.9, 0.1))
    exact, cheap = (CascadeShape(0.0, 1.0, 1.0, NEVER, precision, 0.0) for precision in (NEVER, 0.99))
    assert tune(scores, unsafe, 0.05, shapes=[exact, cheap]).shape == (cheap if worth_it else exact)


def test_what_a_shape_leaves_undecided_counts_as_an_error():
    """A student that cannot read a tenth of the rows, all unsafe, of which a text filter that costs much is sure."""
    unsafe = np.arange(200) < 100
    student = np.where(unsafe, 0.9, 0.1)
    student[:20] = NAN
    text = np.where(np.arange(200) < 20, 0.9, 0.5)
    scores = StageScores(text, np.full(200, 0.5), student)
    cheap = CascadeShape(0.0, 1.0, 1.0, NEVER, NEVER, 0.0)
    dear = CascadeShape(0.0, 1.0, 1.0, 0.99, NEVER, 0.0)
    costs = {"text": 9.0, "student": 1.0}
    assert tune(scores, unsafe, 0.05, shapes=[cheap, dear], costs=costs).shape == dear


def test_tuning_looks_at_half_and_twice_the_level_too(monkeypatch):
    asked, plain = [], CutoffFamily.at
    monkeypatch.setattr(CutoffFamily, "at", lambda self, level: asked.append(level) or plain(self, level))
    scores, unsafe = tuning_rows()
    shape = CascadeShape(0.0, 0.5, 0.5, NEVER, NEVER, 0.02)
    tune(scores, unsafe, 0.05, judge_share=0.02, shapes=[shape])  # at most: exactly so many are allowed
    level = asked[-3]
    assert 0 < level < 0.5
    assert asked[-2:] == [level / 2, level * 2]
    tune(scores, unsafe, 1.0, shapes=[shape])
    assert asked[-3:] == [1.0, 0.5, 1.0]


def test_without_shapes_those_for_the_judges_share_are_tried(monkeypatch):
    scores, unsafe = tuning_rows()
    shape = CascadeShape(0.0, 0.5, 0.5, NEVER, NEVER, 0.02)
    asked = []
    monkeypatch.setattr(
        "judge.cascade.tuning.cascade_shapes",
        lambda share, *, with_judge: asked.append((share, with_judge)) or [shape],
    )
    assert tune(scores, unsafe, 0.05, judge_share=0.03).shape == shape
    tune(StageScores(scores.text, scores.image, scores.student), unsafe, 0.05)
    assert asked == [(0.03, True), (0.04, False)]
