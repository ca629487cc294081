"""Judged rows: flips, pairs, categories, tables and the summary."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics import (
    JudgedRow,
    by_category,
    by_group,
    categories_right,
    flips,
    pairs_right,
    summarise,
)
from eval.scores import MetricError

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
    assert flips(PAIRS, "safe_to_unsafe") == (1, 3)
    assert flips(PAIRS, "unsafe_to_safe") == (1, 2)
    assert flips(PAIRS, "safe_to_unsafe", threshold=0.15) == (2, 3)


def test_a_pair_is_right_when_both_its_verdicts_are():
    assert pairs_right(PAIRS) == (1, 5)


def test_always_safe_fails_one_direction_and_every_pair():
    silent = [replace(row, unsafe=0.0) for row in PAIRS]
    assert flips(silent, "unsafe_to_safe") == (2, 2)
    assert flips(silent, "safe_to_unsafe") == (0, 3)
    assert pairs_right(silent) == (0, 5)


def test_a_pair_must_be_one_safe_and_one_unsafe_row():
    with pytest.raises(MetricError, match=r"pair 'p0' has rows .* one safe and one unsafe"):
        pairs_right(PAIRS[:1])
    with pytest.raises(MetricError, match="one safe and one unsafe"):
        pairs_right([*PAIRS[:2], replace(PAIRS[1], id="third")])


def test_named_category_counts_only_where_flagged_right():
    rows = [
        unsafe_row(0, 0.9),
        unsafe_row(1, 0.9, category="four"),
        unsafe_row(2, 0.9, category="four", violated=("three", "four")),
        unsafe_row(3, 0.1, category="four"),
        unsafe_row(4, NAN),
        safe_row(5, 0.9),
    ]
    assert categories_right(rows) == (2, 3)


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


def test_summary_of_nothing_is_none_not_zero():
    summary = summarise([])
    assert summary["f1"] is summary["auc"] is summary["pair_score"] is summary["intervals"]["f1"][0] is None
    assert summary["rows"] == 0


def test_numbers_from_numpy_behave_like_numbers():
    row = unsafe_row(0, np.float32(0.75))
    assert row.flagged() is True
    assert replace(row, truth=np.bool_(True)).right()
    assert summarise([row])["f1"] == 1.0


def test_unjudged_is_neither_flagged_nor_right():
    for row in (unsafe_row(0, NAN), safe_row(1, NAN)):
        assert row.flagged() is None
        assert not row.right()
        assert not row.judged


@pytest.mark.parametrize(
    "row", [unsafe_row(0, NAN, reason="truncated"), PAIRS[0], safe_row(3, 0.25, prompt="<b>")]
)
def test_rows_survive_json(row):
    again = JudgedRow.from_dict(json.loads(json.dumps(row.to_dict(), allow_nan=False)))
    assert again.to_dict() == row.to_dict()
    assert (again.violated, again.policy, again.judged) == (row.violated, row.policy, row.judged)


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
