"""Judged rows: flips, pairs, categories, tables and the summary."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics.arrays import MetricError
from eval.metrics.judged import (
    JudgedRow,
    by_category,
    by_group,
    categories_correct,
    flips_correct,
    pairs_correct,
    summarise,
)

NAN = float("nan")


def unsafe_row(number, score, category="three", violated=("three",), **more):
    return JudgedRow(f"u{number}", True, score, category, frozenset(violated), ("three", "four"), **more)


def safe_row(number, score, policy=("four",), **more):
    return JudgedRow(f"s{number}", False, score, "four", frozenset(), policy, **more)


def pair(number, unsafe, safe, direction):
    shared = {"pair": f"p{number}", "direction": direction}
    return [unsafe_row(number, unsafe, **shared), safe_row(number, safe, **shared)]


PAIRS = [
    *pair(0, 0.9, 0.1, "safe_to_unsafe"),  # both right
    *pair(1, 0.2, 0.1, "safe_to_unsafe"),  # the changed policy's verdict wrong
    *pair(2, NAN, 0.1, "safe_to_unsafe"),  # not judged: wrong as well
    *pair(3, 0.9, 0.8, "unsafe_to_safe"),  # the changed policy's verdict wrong
    *pair(4, 0.3, 0.1, "unsafe_to_safe"),  # the first policy's verdict wrong, the changed one's right
]


def test_flips_count_the_changed_policy_in_each_direction():
    assert flips_correct(PAIRS, "safe_to_unsafe") == (1, 3)
    assert flips_correct(PAIRS, "unsafe_to_safe") == (1, 2)
    assert flips_correct(PAIRS, "safe_to_unsafe", threshold=0.15) == (2, 3)


def test_a_pair_is_right_when_both_its_verdicts_are():
    assert pairs_correct(PAIRS) == (1, 5)


def test_always_safe_fails_one_direction_and_every_pair():
    silent = [replace(row, unsafe=0.0) for row in PAIRS]
    assert flips_correct(silent, "unsafe_to_safe") == (2, 2)
    assert flips_correct(silent, "safe_to_unsafe") == (0, 3)
    assert pairs_correct(silent) == (0, 5)


def test_a_pair_must_be_one_safe_and_one_unsafe_row():
    with pytest.raises(MetricError, match=r"pair 'p0' has rows .* one safe and one unsafe"):
        pairs_correct(PAIRS[:1])
    with pytest.raises(MetricError, match="one safe and one unsafe"):
        pairs_correct([*PAIRS[:2], replace(PAIRS[1], id="third")])


def test_named_category_counts_only_where_flagged_right():
    rows = [
        unsafe_row(0, 0.9),
        unsafe_row(1, 0.9, category="four"),
        unsafe_row(2, 0.9, category="four", violated=("three", "four")),
        unsafe_row(3, 0.1, category="four"),
        unsafe_row(4, NAN),
        safe_row(5, 0.9),
        unsafe_row(6, 0.9, violated=()),  # nobody recorded how it is unsafe, so no name is wrong
    ]
    assert categories_correct(rows) == (2, 3)


def test_by_category_takes_safe_rows_of_policies_that_contain_it():
    rows = [
        unsafe_row(0, 0.9),
        unsafe_row(1, 0.1, category="four", violated=("four",)),
        safe_row(2, 0.8, policy=("three",)),
        safe_row(3, 0.1, policy=("three", "four")),
        safe_row(4, 0.1, policy=()),
    ]
    table = by_category(rows)
    assert list(table) == ["four", "three"]
    # three: its unsafe row is a hit; safe rows 2, 3 and 4 (no policy named: all categories), one of them flagged.
    assert (table["three"]["rows"], table["three"]["unsafe_rows"]) == (4, 1)
    assert table["three"]["precision"] == 0.5
    assert table["three"]["recall"] == 1.0
    # four: row 0 violates only three and is left out; row 2's policy does not contain four.
    assert (table["four"]["rows"], table["four"]["recall"]) == (3, 0.0)


def test_by_category_counts_renamed_categories_by_key():
    rows = [
        JudgedRow(
            "a", True, 0.9, "trio", frozenset(["trio"]), ("trio", "our list"), keys=("three", "custom")
        ),
        JudgedRow("b", True, 0.1, "three", frozenset(["three"]), ("three",)),
        JudgedRow("c", False, 0.1, None, frozenset(), ("own rule", "numeral 3"), keys=("custom", "three")),
    ]
    table = by_category(rows)
    assert {name: (entry["rows"], entry["unsafe_rows"]) for name, entry in table.items()} == {
        "custom": (1, 0),
        "three": (3, 2),
    }
    with pytest.raises(MetricError, match="1 keys for 2 categories"):
        replace(rows[0], keys=("three",))


def test_by_group_leaves_out_rows_without_group():
    rows = [unsafe_row(0, 0.9, arm="kept"), safe_row(1, 0.1, arm="kept"), safe_row(2, 0.9)]
    assert {name: entry["rows"] for name, entry in by_group(rows, lambda row: row.arm).items()} == {"kept": 2}


def test_summary_is_plain_json_with_every_key():
    summary = summarise(PAIRS)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert set(summary) >= {
        *("f1", "precision", "recall", "accuracy", "auc", "average_precision", "calibration_error", "brier"),
        *("safe_to_unsafe", "unsafe_to_safe", "pair_score", "category_accuracy", "unjudged", "rows"),
        *("by_category", "by_source", "intervals"),
    }
    assert summary["pair_score"] == 0.2
    assert summary["safe_to_unsafe"] == pytest.approx(1 / 3)
    assert (summary["unjudged"], summary["unjudged_share"], summary["rows"]) == (1, 0.1, 10)
    low, high = summary["intervals"]["pair_score"]
    assert low < 0.2 < high


def test_every_number_of_a_small_evaluation_by_hand():
    """Four images: a pair that is half right, a hit that names the wrong category, a safe row nobody judged."""
    rows = [
        unsafe_row(0, 0.9, pair="p", direction="safe_to_unsafe", arm="keep"),
        safe_row(0, 0.8, pair="p", direction="safe_to_unsafe", arm="flip"),
        unsafe_row(1, 0.5, violated=("four",), source="generated", arm="keep"),
        unsafe_row(2, 0.25, source="generated"),
        safe_row(3, NAN, policy=("three",)),
        safe_row(4, 0.125, policy=()),
    ]
    # Flagged from 0.5: two hits, one alarm, one miss, one passed; the unjudged safe row is an alarm too.
    summary = summarise(rows)
    assert set(summary) - {"intervals", "by_category", "by_source", "by_arm"} == {
        *(
            "rows",
            "unsafe_rows",
            "threshold",
            "f1",
            "precision",
            "recall",
            "accuracy",
            "auc",
            "average_precision",
        ),
        *(
            "safe_to_unsafe",
            "unsafe_to_safe",
            "pair_score",
            "category_accuracy",
            "calibration_error",
            "brier",
        ),
        *("unjudged", "unjudged_share", "images"),
    }
    assert (summary["rows"], summary["unsafe_rows"], summary["unjudged"]) == (6, 3, 1)
    assert summary["threshold"] == 0.5
    assert (summary["precision"], summary["recall"], summary["accuracy"]) == (2 / 4, 2 / 3, 3 / 6)
    assert summary["f1"] == pytest.approx(4 / 7)
    # Of nine pairs 0.9 wins two, 0.5 and 0.25 one each; three are lost to the unjudged row.
    assert summary["auc"] == pytest.approx(4 / 9)
    # The unjudged alarm comes first: precision 1/2 at 0.9, 2/4 at 0.5, 3/5 at 0.25.
    assert summary["average_precision"] == pytest.approx((1 / 2 + 2 / 4 + 3 / 5) / 3)
    assert summary["brier"] == pytest.approx((0.1**2 + 0.8**2 + 0.5**2 + 0.75**2 + 1 + 0.125**2) / 6)
    assert summary["calibration_error"] == pytest.approx((0.1 + 0.8 + 0.5 + 0.75 + 1 + 0.125) / 6)
    assert (summary["safe_to_unsafe"], summary["unsafe_to_safe"]) == (1.0, None)
    assert (summary["pair_score"], summary["category_accuracy"]) == (0.0, 1 / 2)
    assert summary["unjudged_share"] == 1 / 6
    assert set(summary["intervals"]) == {
        *("f1", "precision", "recall", "accuracy", "safe_to_unsafe", "unsafe_to_safe", "pair_score"),
        *("category_accuracy", "unjudged_share"),
    }
    for name, (low, high) in summary["intervals"].items():
        assert (low is None and summary[name] is None) or 0 <= low <= summary[name] <= high <= 1
    low, high = summary["intervals"]["recall"]
    assert high - low > 0.4  # three rows say little
    assert {name: entry["rows"] for name, entry in summary["by_source"].items()} == {
        "generated": 2,
        "real": 4,
    }
    assert {name: entry["rows"] for name, entry in summary["by_arm"].items()} == {"flip": 1, "keep": 2}
    assert {name: entry["rows"] for name, entry in summary["by_category"].items()} == {"four": 3, "three": 4}
    three = summary["by_category"]["three"]  # hit, missed, the unjudged alarm, passed
    low, high = three.pop("f1_interval")
    assert 0 <= low <= three["f1"] <= high <= 1
    low, high = three.pop("accuracy_interval")
    assert 0 <= low <= three["accuracy"] <= high <= 1
    assert three == {
        **{"rows": 4, "unsafe_rows": 2, "unjudged": 1, "category_accuracy": 1.0},
        **{"precision": 0.5, "recall": 0.5, "f1": 0.5, "accuracy": 0.5, "auc": 0.5},
    }


def test_one_threshold_reaches_every_number_that_depends_on_it():
    rows = [
        unsafe_row(0, 0.6, pair="p", direction="safe_to_unsafe"),
        safe_row(0, 0.55, pair="p", direction="safe_to_unsafe"),
        unsafe_row(1, 0.3, category="four", pair="q", direction="unsafe_to_safe"),
        safe_row(1, 0.2, pair="q", direction="unsafe_to_safe"),
    ]
    at = {threshold: summarise(rows, threshold) for threshold in (0.25, 0.5, 0.58, 0.9)}
    assert [at[t]["threshold"] for t in at] == list(at)
    assert [at[t]["recall"] for t in at] == [1.0, 0.5, 0.5, 0.0]
    assert [at[t]["pair_score"] for t in at] == [0.5, 0.0, 0.5, 0.0]
    assert [at[t]["safe_to_unsafe"] for t in at] == [1.0, 1.0, 1.0, 0.0]
    assert [at[t]["unsafe_to_safe"] for t in at] == [1.0, 1.0, 1.0, 1.0]
    assert [at[t]["category_accuracy"] for t in at] == [0.5, 1.0, 1.0, None]
    for table, name in (("by_category", "three"), ("by_source", "real")):
        assert [at[t][table][name]["recall"] for t in at] == [1.0, 0.5, 0.5, 0.0]
        assert [at[t][table][name]["category_accuracy"] for t in at] == [0.5, 1.0, 1.0, None]
    assert by_category(rows) == by_category(rows, 0.5)
    assert by_group(rows, lambda row: row.source) == by_group(rows, lambda row: row.source, 0.5)
    assert summarise(rows) == at[0.5]
    on_it = unsafe_row(9, 0.5)
    assert on_it.flagged() is on_it.correct() is on_it.flagged(0.5) is True
    assert on_it.flagged(0.51) is on_it.correct(0.51) is False
    assert (flips_correct([PAIRS[0]], "safe_to_unsafe"), categories_correct([on_it])) == ((1, 1), (1, 1))


def test_a_row_without_the_optional_fields_is_read_with_their_defaults():
    row = JudgedRow.from_dict({"id": "a", "truth": False, "unsafe": 0.25})
    assert row == JudgedRow("a", False, 0.25)
    assert (row.source, row.violated, row.policy, row.keys) == ("real", frozenset(), (), ())
    assert {name for name, value in vars(row).items() if value is None} == {
        *("category", "pair", "direction", "arm", "prompt", "reason", "image"),
    }


def test_a_judge_may_be_certain():
    assert (JudgedRow("a", False, 0.0).flagged(), JudgedRow("a", True, 1.0).flagged()) == (False, True)


def test_summary_of_nothing_is_none_not_zero():
    summary = summarise([])
    assert summary["f1"] is summary["auc"] is summary["pair_score"] is summary["intervals"]["f1"][0] is None
    assert summary["rows"] == 0


def test_numbers_from_numpy_behave_like_numbers():
    row = unsafe_row(0, np.float32(0.75))
    assert row.flagged() is True
    assert replace(row, truth=np.bool_(True)).correct()
    assert summarise([row])["f1"] == 1.0


def test_unjudged_is_neither_flagged_nor_right():
    for row in (unsafe_row(0, NAN), safe_row(1, NAN)):
        assert row.flagged() is None
        assert not row.correct()
        assert not row.judged


@pytest.mark.parametrize(
    "row",
    [
        unsafe_row(0, NAN, reason="truncated"),
        PAIRS[0],
        safe_row(3, 0.25, prompt="<b>"),
        unsafe_row(4, 0.5, keys=("3", "4"), arm="keep"),
    ],
)
def test_rows_survive_json(row):
    again = JudgedRow.from_dict(json.loads(json.dumps(row.to_dict(), allow_nan=False)))
    assert again.to_dict() == row.to_dict()
    assert (again.violated, again.policy, again.judged) == (row.violated, row.policy, row.judged)
    assert again == row or not row.judged


def test_bad_rows_are_refused():
    with pytest.raises(MetricError, match=r"row 'u0': unsafe is 2; give a probability"):
        unsafe_row(0, 2)
    with pytest.raises(MetricError, match="direction 'sideways'"):
        unsafe_row(0, 0.5, direction="sideways")
    with pytest.raises(MetricError, match="two rows have the id 's1'"):
        summarise([safe_row(1, 0.1), safe_row(1, 0.2)])


rows_strategy = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.3, 0.5, 0.8, NAN]), st.sampled_from(["three", "four"])),
    min_size=1,
    max_size=25,
).map(
    lambda rows: [
        JudgedRow(
            str(n), truth, value, name, frozenset(["three"] if truth else []), ("three", "four"), pair=None
        )
        for n, (truth, value, name) in enumerate(rows)
    ]
)


@given(rows_strategy, st.randoms(use_true_random=False))
def test_summary_ignores_the_order_of_rows(rows, rng):
    shuffled = list(rows)
    rng.shuffle(shuffled)
    assert flat(summarise(shuffled)) == pytest.approx(flat(summarise(rows)), nan_ok=True)


def flat(summary, prefix=""):
    out = {}
    for key, value in summary.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        else:
            for n, entry in enumerate(value if isinstance(value, list) else [value]):
                out[f"{prefix}{key}.{n}"] = NAN if entry is None else entry
    return out


def test_importing_eval_is_light():
    program = "import sys, eval; eval.JudgedRow; print([m for m in ('torch', 'sklearn', 'matplotlib', 'evaluate', 'datasets') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_public_names_exist():
    import eval as measuring

    for name in measuring.__all__:
        assert getattr(measuring, name) is not None
    with pytest.raises(AttributeError, match="it has: METRICS"):
        _ = measuring.summary
