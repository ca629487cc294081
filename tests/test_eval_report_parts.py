"""Parts of reports: which pair is shown, what is mistaken for what, other thresholds, figures inside a page, the footer."""

import json
import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from fixtures_reports import NAMES, answers, new_run, taxonomy
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.metrics.arrays import confusion
from eval.metrics.judged import JudgedRow, truth_and_scores
from eval.reports.charts import chart, inline_svg
from eval.reports.confusion import category_confusion
from eval.reports.figures import GROUND, PALETTE, RED, new_axes, plain_label, plot_reliability, svg_bytes
from eval.reports.flip_pair import choose_pair, flip_pair
from eval.reports.origin import command_line, origin_of
from eval.reports.page import with_code
from eval.reports.run_report import write_run_report
from eval.reports.trade_off import trade_off_table
from eval.reports.words import count_tables
from eval.reports.wrong_verdicts import MOST_CARDS, MOST_WRONG, OF_EACH, SAFE, UNNAMED, wrong_cards
from judge.errors import CheckpointError
from judge.runs.folder import RunDir
from prompts.flip import report

NAN = float("nan")


def pair_rows(name, *, unsafe=0.9, safe=0.1, policy=("a", "b"), **more):
    common = {"pair": name, "direction": "safe_to_unsafe", "image": name, **more}
    other = (policy[0] + "'", *policy[1:])
    return [
        JudgedRow(f"{name}-safe", False, safe, other[0], policy=other, **common),
        JudgedRow(f"{name}-unsafe", True, unsafe, policy[0], frozenset(policy[:1]), policy, **common),
    ]


def test_the_pair_that_is_shown_was_judged_right_and_is_of_middling_certainty():
    rows = [*pair_rows("wrong", safe=0.99), *pair_rows("sure", unsafe=0.99, safe=0.01)]
    rows += [
        *pair_rows("middle", safe=0.2),
        *pair_rows("unsure", unsafe=0.51),
        *pair_rows("unjudged", safe=NAN),
    ]
    unsafe, safe = choose_pair(rows)
    assert (unsafe.id, safe.id) == ("middle-unsafe", "middle-safe")
    assert choose_pair(rows[:2])[0].id == "wrong-unsafe", "where none is right, it is shown that none is"
    assert choose_pair([JudgedRow("alone", True, 0.9)]) is None


def test_a_pair_without_a_prompt_and_of_a_short_policy_is_preferred():
    many = tuple("abcdef")
    rows = [*pair_rows("long", policy=many), *pair_rows("said", prompt="a knife"), *pair_rows("plain")]
    assert choose_pair(rows)[0].id == "plain-unsafe"
    assert choose_pair(rows[:4])[0].id == "long-unsafe"
    assert choose_pair(rows[2:4])[0].id == "said-unsafe"


def test_a_pair_says_what_each_policy_has_alone_and_what_is_violated():
    shown = flip_pair(answers(), taxonomy())
    assert shown.right
    for side in shown.sides:
        assert [line.only_here for line in side.policy] == [True, False]
        assert all(line.definition == f"pictures of {line.name.lower()}" for line in side.policy)
    assert [[line.violated for line in side.policy] for side in shown.sides] == [
        [True, False],
        [False, False],
    ]
    assert [side.verdict for side in shown.sides] == ["unsafe", "safe"]


def test_what_is_mistaken_for_what_counts_every_row_once():
    rows = [
        JudgedRow("right", True, 0.9, "a", frozenset("a"), ("a", "b")),
        JudgedRow("either", True, 0.9, "b", frozenset("ab"), ("a", "b")),
        JudgedRow("other", True, 0.9, "b", frozenset("a"), ("a", "b")),
        JudgedRow("missed", True, 0.1, "a", frozenset("a"), ("a", "b")),
        JudgedRow("lost", True, NAN, None, frozenset("b"), ("a", "b")),
        JudgedRow("alarm", False, 0.9, "renamed", frozenset(), ("renamed",), keys=("b",)),
        JudgedRow("fine", False, 0.1, "a", frozenset(), ("a", "b")),
    ]
    found = category_confusion(rows)
    assert found.heads == ("a", "b", "safe", "unjudged")
    counts = {name: [cell.rows for cell in cells] for name, _, cells in found.lines}
    assert counts == {"a": [1, 1, 1, 0], "b": [0, 1, 0, 1], "safe": [0, 1, 1, 0]}
    assert {name: [cell.right for cell in cells].index(True) for name, _, cells in found.lines} == {
        "a": 0,
        "b": 1,
        "safe": 2,
    }
    assert category_confusion([JudgedRow("x", True, 0.9)]) is None


@settings(max_examples=40, deadline=None)
@given(
    scores=st.lists(st.one_of(st.just(NAN), st.floats(0, 1)), min_size=1, max_size=30),
    threshold=st.sampled_from([0.05, 0.5, 0.73]),
)
def test_every_line_of_another_threshold_is_what_counting_gives(scores, threshold):
    rows = [JudgedRow(str(number), number % 3 == 0, score) for number, score in enumerate(scores)]
    lines = dict(trade_off_table(rows, threshold).lines)
    assert f"{threshold:g} (in use)" in lines
    truth, unsafe = truth_and_scores(rows)
    for name, (flagged, _, recall, _, missed, wrong) in lines.items():
        cut = float(name.split()[0])
        assert flagged == sum(score >= cut for score in scores) / len(scores)
        assert missed == sum(not score >= cut for score in unsafe[truth])
        assert wrong == sum(score >= cut or math.isnan(score) for score in unsafe[~truth])
        assert recall == confusion(truth, unsafe, cut).recall


def test_wrong_verdicts_of_rare_categories_are_shown_beside_the_surest():
    rows = [JudgedRow(f"often{n}", True, 0.01, "a", frozenset("a"), ("a", "b")) for n in range(300)]
    rows += [JudgedRow(f"rare{n}", True, 0.4, "b", frozenset("b"), ("a", "b")) for n in range(9)]
    rows += [JudgedRow("alarm", False, 0.51, "a", policy=("a",)), JudgedRow("bare", True, 0.49)]
    found = wrong_cards(rows, None)
    assert found.total == 311
    assert found.categories == {"a": MOST_WRONG, "b": OF_EACH, UNNAMED: 1, SAFE: 1}
    assert found.kinds == {"missed": MOST_WRONG + OF_EACH + 1, "flagged": 1}
    many = [JudgedRow(str(n), True, 0.1, None, frozenset([f"c{n}"]), (f"c{n}",)) for n in range(500)]
    assert len(wrong_cards(many, None).cards) == MOST_CARDS


def test_a_figure_in_a_page_has_its_colours_its_own_ids_and_nothing_of_a_stranger():
    evil = "</text></svg><script>alert(1)</script>$\\frac"
    figure, axes = new_axes(plain_label(evil), "y")
    axes.plot([0, 1], [0, 1], color=RED, label="line")
    axes.bar([0.5], [1], hatch="///", edgecolor=GROUND)
    axes.legend()
    one, other = (inline_svg(svg_bytes(figure, letters=True), name) for name in ("Loss: a", "Loss: b"))
    root = ElementTree.fromstring(one)
    assert root.attrib["aria-label"] == "Loss: a"
    assert {element.tag for element in root.iter()}.isdisjoint({"script", "style", "metadata"})
    assert evil in "".join(root.itertext()).replace("\\$", "$")
    assert "http" not in one
    assert "var(--red)" in one
    assert "var(--ink)" in one
    ids = [re.findall(r' id="([^"]+)"', text) for text in (one, other)]
    assert len(set(ids[0])) == len(ids[0]) > 1
    assert not set(ids[0]) & set(ids[1])
    for text, own in zip((one, other), ids, strict=True):
        used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text)
        assert {a or b for a, b in used} == set(own)


def test_a_chart_is_a_file_too_with_plain_colours(tmp_path):
    figure, axes = new_axes("x", "y")
    axes.plot([0, 1], [0, 1], color=RED)
    made = chart(figure, "Title", "About", file=tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert RED in text
    assert "var(" not in text
    assert set(PALETTE.values()) >= set(re.findall(r"var\(--[a-z]+\)", made.svg))


def test_no_line_joins_bins_and_a_bin_of_one_is_hollow():
    _, axes = new_axes("x", "y")
    truth, scores = [True, False, True, True], [0.05, 0.05, 0.95, 0.5]
    assert plot_reliability(axes, truth, scores, name="judge", colour=RED)
    assert all(len(line.get_xdata()) == 0 for line in axes.lines), "only the entry of the legend"
    lines, many, single = axes.collections
    assert len(lines.get_segments()) == 1
    assert np.asarray(many.get_offsets()).tolist() == [[0.05, 0.5]]
    assert len(single.get_offsets()) == 2
    assert len(single.get_facecolors()) == 0
    assert not plot_reliability(axes, [True], [NAN], name="nothing", colour=RED)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["recipes/lora_llava.py", "--taxonomy", "my list.yaml"], "python recipes/lora_llava.py --taxonomy 'my list.yaml'"),
        (["/usr/local/bin/arbiter", "bench", "runs/a"], "arbiter bench runs/a"),
        ([], ""),
    ],
)  # fmt: skip
def test_the_command_can_be_typed_again(words, text):
    assert command_line(words) == text


def test_the_footer_says_where_the_numbers_come_from(tmp_path):
    found = origin_of(new_run(tmp_path / "a", "vlm", "lora_llava"))
    assert found["command"] == "python recipes/lora_llava.py --seed 7"
    assert found["seed"] == "7"
    assert found["commit"] == f"{'c' * 40}, with changes that are in no commit"
    assert found["taxonomy"].startswith("own, ")
    bare = origin_of(RunDir.create(tmp_path / "b"))
    assert set(bare) == {"started"}
    wheel = RunDir.create(tmp_path / "c")
    (wheel.path / "environment.json").write_text(json.dumps({"command": [], "git": None}))
    assert origin_of(wheel)["commit"] == "unknown, as this was no checkout"


@pytest.mark.parametrize(
    ("text", "markup"),
    [
        ("try `arbiter calibrate`.", "try <code>arbiter calibrate</code>."),
        ("`a` and `b`", "<code>a</code> and <code>b</code>"),
        ("a lone ` and <b>", "a lone ` and &lt;b&gt;"),
        ("`<i>` and one ` more", "<code>&lt;i&gt;</code> and one ` more"),
        ("", ""),
    ],
)
def test_commands_in_a_verdict_are_code_and_nothing_else_is_markup(text, markup):
    assert with_code(text) == markup


def test_counts_of_a_draw_are_in_words():
    empty = report([])
    assert "arm" in empty
    tables = count_tables(
        {name: values for name, values in empty.items() if isinstance(values, dict)}
        | {"called": {"own": 3, "renamed": 1}, "focus": {"Hate": 2}, "arm": {"focus_keep": 1}}
    )
    assert not {"arm", "called", "focus", "Arm", "Called", "Focus"} & set(tables)
    assert tables["Name of that category"] == {"as in the taxonomy": 3, "another name": 1}
    assert not [name for values in tables.values() for name in values if "_" in str(name)]


def test_other_kinds_of_runs_and_unfinished_ones_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="of kind 'corpus'"):
        write_run_report(new_run(tmp_path / "a", "corpus", "build_corpus"))
    with pytest.raises(CheckpointError, match=r"has no metrics\.json"):
        write_run_report(new_run(tmp_path / "b", "vlm", "lora_llava"))
    assert len(NAMES) == len(set(NAMES))
