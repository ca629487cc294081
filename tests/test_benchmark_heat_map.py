"""The heat map: readable in grey, on any printer, by anyone."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from eval.benchmark.report.heat_map import heat_colour, heat_map, luminance

SHARES = st.floats(0, 1)


def contrast(one, two):
    dark, light = sorted((luminance(one), luminance(two)))
    return (light + 0.05) / (dark + 0.05)


def test_luminance_is_that_of_wcag():
    assert luminance("#ffffff") == 1.0
    assert luminance("#000000") == 0.0
    assert abs(luminance("#808080") - 0.2159) < 1e-4
    assert abs(contrast("#767676", "#ffffff") - 4.54) < 0.01  # the lightest grey that passes on white


@given(SHARES)
def test_the_number_stands_out_from_its_ground(value):
    assert contrast(*heat_colour(value)) >= 4.5


@given(SHARES, SHARES)
def test_the_higher_the_darker(one, two):
    low, high = sorted((one, two))
    if high - low > 0.02:
        assert luminance(heat_colour(high)[0]) < luminance(heat_colour(low)[0])


def test_tenths_can_be_told_apart_in_grey():
    """By lightness as CIE 1976 defines it, of which people see a difference of about 1 side by side."""
    lights = [116 * luminance(heat_colour(step / 10)[0]) ** (1 / 3) - 16 for step in range(11)]
    assert min(one - two for one, two in pairwise(lights)) > 3


def test_values_outside_are_those_at_the_ends():
    assert heat_colour(-1) == heat_colour(0)
    assert heat_colour(2) == heat_colour(1)


def test_cells():
    metrics = {
        "categories": [{"key": "a", "name": "A"}, {"key": "b", "name": "B"}],
        "classifiers": {
            "one": {"covers": ["a", "b"], "cells": {"a": {"all": {"f1": 0.5}}, "b": {"all": {"f1": None}}}},
            "two": {"covers": ["a"], "cells": {"a": {"all": {"f1": 0.0}}}},
        },
    }
    (first, a), (second, b) = heat_map(metrics, ["two", "one"])
    assert (first, second) == ("A", "B")
    assert [(cell.text, cell.kind) for cell in a] == [("0.000", "value"), ("0.500", "value")]
    assert [(cell.text, cell.kind) for cell in b] == [("–", "not_covered"), ("n/a", "undefined")]
