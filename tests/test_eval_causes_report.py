"""eval/reports/causes_*: figures and tables of what eval/causes finds, for full, thin and empty records."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from fixtures_benchmark import synthetic_predictions

from eval.causes.attack_loss import _describe
from eval.causes.case_study import study_cases
from eval.causes.chosen_images import ChosenImages
from eval.causes.clusters import cluster_failures
from eval.causes.confidence import describe_confidence
from eval.causes.embedding import embedding_map, separation
from eval.causes.explain import explain_failures
from eval.causes.shift import distribution_shift, measure_images
from eval.causes.variations import PainterlyFilter, draw_variations
from eval.reports.causes_figures import draw_causes, draw_map, draw_shift
from eval.reports.causes_tables import cause_tables
from judge.protocol import Scores
from prompts.example import Example

HOSTILE = "<b>new\nline\u202e|"


class Coin:
    name = "coin"

    def score(self, images, prompts, taxonomy):
        scores = np.array([np.asarray(image).mean() / 255 for image in images])
        return Scores(scores, np.column_stack([scores] * len(taxonomy)), (None,) * len(images))


def make_record(folder, noise, labels):
    """A full record, of predictions that were made up."""
    said = [synthetic_predictions(label, rows=60, seed=seed) for seed, label in enumerate(labels)]
    examples = [
        Example(row.id, noise(n), violates=row.violates, source=row.source)
        for n, row in enumerate(said[0].rows)
    ]
    vectors = np.random.default_rng(0).standard_normal((60, 4))
    measured = measure_images(examples)
    unsafe = tuple(example for example in examples if example.violates)[:3]
    chosen = ChosenImages(unsafe, tuple(labels), 3, {"blind": "sees nothing"})
    variations = draw_variations(unsafe, PainterlyFilter(), strengths=(0.2, 0.6), grids=(2,))
    abouts = {one.about.label: one.about for one in said}
    case = study_cases(
        chosen, variations, abouts, lambda label: Coin(), folder, keep=[e.id for e in unsafe[:2]]
    )
    margins = [(("real", "generated")[n % 2], 2.0, 2.0 - 0.1 * n) for n in range(20)]
    return {
        "shift": distribution_shift(measured),
        "map": {**embedding_map(vectors, examples, projection="pca"), "encoder": "tiny"},
        "separation": separation(vectors, examples),
        "clusters": cluster_failures(vectors, [e.id for e in examples], said, clusters=9),
        "case_study": {
            **case,
            "style": PainterlyFilter().describe(),
            "review": {"made": False, "said": "nobody looked"},
            "similarity": None,
        },
        "confidence": describe_confidence(said),
        "attack_loss": {
            "run": "attack",
            "epsilon": "2/255",
            "loss_edges": [],
            "victims": {labels[0]: {"fgsm": _describe(margins, 0), "apgd": _describe(margins, 0)}},
        },
        "unreadable": {"images": 2, "reasons": {}},
        "not_made": {},
    }


@pytest.fixture(scope="module")
def record(tmp_path_factory, noise_image):
    return make_record(tmp_path_factory.mktemp("causes"), noise_image, ["one", HOSTILE])


@pytest.fixture(scope="module")
def figures(record):
    return draw_causes(record)


def test_every_part_is_drawn_as_well_formed_svg(figures):
    assert {heading: len(plots) for heading, (_, plots) in figures.items()} == {
        "Shift between sources": 5,
        "Map of images": 1,
        "Style and layout": 2,
        "Confidence": 2,
        "Loss": 2,
        "Loss under attack": 1,  # FGSM alone, as it ran
    }
    for about, plots in figures.values():
        assert about.endswith(".")
        for plot in plots:
            root = ET.fromstring(plot.svg)
            assert root.tag.endswith("svg")
            assert b"<script" not in plot.svg
            assert len(plot.svg) < 200_000
    assert [plot.label for plot in figures["Confidence"][1]] == ["one", HOSTILE]
    assert "not judged" in figures["Confidence"][1][0].caption


def test_figures_do_not_depend_on_the_day(record, figures):
    assert draw_map(record["map"], record["separation"]) == figures["Map of images"][1]


def test_sources_differ_by_more_than_colour(figures):
    """In grey a dashed line and a hatched box are still dashed and hatched."""
    [shift, *_] = figures["Shift between sources"][1]
    assert b"stroke-dasharray" in shift.svg
    [boxes, *_] = figures["Loss"][1]
    assert b"<pattern" in boxes.svg


def test_tables_hold_the_numbers_of_the_record(record):
    tables = {table.title: table for table in cause_tables(record)}
    shift = tables["Shift between sources"]
    assert len(shift.lines) == 6
    entropy = dict(shift.lines)["entropy (bits)"]
    effect = record["shift"]["statistics"]["entropy"]["against_reference"]["generated"]
    assert entropy[2:] == [effect["cliffs_delta"], effect["interval"], effect["ks"]]
    assert "2 images could not be opened" in shift.note
    assert "real 100%, generated 100%" in shift.note
    case = tables["Case study of style and layout: share judged right"]
    assert [name for name, _ in case.lines] == ["one", HOSTILE, "all together"]
    assert case.heads[:3] == ["images", "original", "style 0.2"]
    for said in (
        "nobody looked",
        "Kuwahara",
        "lost what they showed: 1.",
        "blind: sees nothing",
        "Drawn from 3",
    ):
        assert said in case.note
    counts = dict(tables["Failures by kind and source"].lines)
    unjudged = sum(int(str(cell).split(" of ")[0]) for cell in counts["one"][4:6])
    assert unjudged == sum(row.reason is not None for row in synthetic_predictions("one", rows=60).rows)
    assert counts["one"][-1] is None  # a single classifier is never mixed
    clusters = tables["Clusters of failures"]
    assert all(name.startswith("all: ") for name, _ in clusters.lines)
    assert "as many as there are different images" in clusters.note
    assert len(tables["Confidence and loss"].lines) == 2
    assert len(tables["Loss under attack at 2/255"].lines) == 2
    for table in tables.values():
        assert {len(cells) for _, cells in table.lines} == {len(table.heads)}
        text, markdown = table.to_text(), table.to_markdown()
        assert "\u202e" not in text + markdown
        assert "<b>" not in markdown


def test_thin_and_empty_records(tmp_path, noise_image):
    empty = explain_failures([], [], tmp_path)
    assert draw_causes(empty) == {}
    assert [table.title for table in cause_tables(empty)] == ["Not made"]
    said = [synthetic_predictions("one", rows=1)]
    row = said[0].rows[0]
    one = explain_failures([Example(row.id, noise_image(0), source=row.source)], said, tmp_path)
    figures = draw_causes(one)
    assert len(figures["Shift between sources"][1]) == 5
    assert figures["Shift between sources"][1][0].caption == "one source"
    assert "Shift between sources" in [table.title for table in cause_tables(one)]


@pytest.mark.parametrize("source", ["$\\frac{$", "$5 and $6", "a\\$b", "_{^"])
def test_a_source_that_looks_like_a_formula_is_text(record, source):
    found = record["shift"]["statistics"]["entropy"]
    renamed = {source: found["sources"]["real"], "generated": found["sources"]["generated"]}
    shift = {"statistics": {"entropy": {**found, "sources": renamed}}}
    [plot] = draw_shift(shift)
    assert re.search(rf"<!--\s+{re.escape(source)} -->".encode(), plot.svg)
