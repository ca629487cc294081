"""Adversarial rows of a corpus: against the defence asked for, within the budget, judged anew on their own pictures."""

import io
from dataclasses import replace

import numpy as np
import pytest
from fixtures_corpus import TREES, StubPictures, stub_plan, stub_stages
from fixtures_defences import ChannelIsUnsafe, WithoutGradients
from PIL import Image

from eval.corpus.variants import AdversarialVariants
from judge.corpus.builder import LEDGER, build
from judge.corpus.ledger import Ledger
from judge.corpus.stages import Task
from judge.errors import ConfigError

MOST = 8 / 255
POLICY = replace(TREES, categories=tuple(TREES.categories))


def attacks(**options):
    options = {"load": lambda name: ChannelIsUnsafe(), "steps": 10} | options
    return AdversarialVariants("red", POLICY, **options)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """All rows of a corpus with its variants, and their pictures."""
    folder = tmp_path_factory.mktemp("corpus")
    stages = replace(stub_stages(variants=False), variants=attacks(), whole=())
    build(stub_plan(prompts=16), stages, folder)
    with Ledger(folder / LEDGER) as ledger:
        return list(ledger.rows())


def pictures_of(rows):
    return StubPictures()(Task(0, tuple(replace(row, sha256=None) for row in rows))).pictures


@pytest.fixture
def task(rows):
    clean = tuple(row for row in rows if row.variant is None and row.failure is None)[:16]
    return Task(0, clean, pictures_of(clean))


def pixels(encoded):
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_a_variant_names_attack_target_budget_origin_and_outcome(rows):
    by_id = {row.id: row for row in rows}
    variants = [row for row in rows if row.variant]
    assert {row.variant.kind for row in variants} == {"families", "pixels", "joint"}
    assert len({row.id for row in rows}) == len(rows)
    for row in variants:
        assert row.variant.target == "red"
        assert row.variant.budget["families" if row.variant.kind == "families" else "epsilon"] > 0
        assert by_id[row.variant.of].unsafe >= 0.5
        assert by_id[row.variant.of].variant is None
        assert isinstance(row.variant.outcome["evaded"], bool)
        assert row.variant.outcome["unsafe_before"] == by_id[row.variant.of].unsafe
    outcomes = {row.variant.outcome["evaded"] for row in variants if row.variant.kind == "pixels"}
    assert outcomes == {True, False}


def test_labels_of_a_variant_are_about_its_own_picture(rows):
    by_id = {row.id: row for row in rows}
    variants = [row for row in rows if row.variant and row.failure is None]
    pixel = [row for row in variants if row.variant.kind == "pixels"]
    assert pixel
    for row in pixel:
        assert row.sha256 != by_id[row.variant.of].sha256
        assert row.scores["oak"] < by_id[row.variant.of].scores["oak"]
    assert all(row.labelled_by == "stub" for row in variants)
    text = [row for row in variants if row.variant.kind == "families"]
    assert all(row.prompt != by_id[row.variant.of].prompt and "harmless" in row.prompt for row in text)


def test_success_is_that_of_the_defence_on_the_files_and_pixels_stay_within_the_budget(task):
    result = attacks(kinds=("pixels", "joint"))(task)
    assert len(result.pictures) == len(result.rows) > 4
    for row in result.rows:
        found, clean = pixels(result.pictures[row.id]), pixels(task.pictures[row.variant.of])
        changed = np.abs(found - clean).max()
        assert changed <= round(MOST * 255)
        assert changed or (
            row.variant.kind == "joint" and "harmless" in row.prompt
        )  # the text alone sufficed
        image = Image.fromarray(found.astype(np.uint8))
        [again] = ChannelIsUnsafe().score([image], [row.prompt], POLICY).unsafe
        assert row.variant.outcome["evaded"] == (again < 0.5)


def test_only_what_is_unsafe_and_flagged_is_attacked(task):
    found = {row.variant.of for row in attacks(kinds=("pixels",))(task).rows}
    expected = set()
    for row in task.rows:
        [score] = ChannelIsUnsafe().score([task.pictures[row.id]], [row.prompt], POLICY).unsafe
        if row.unsafe >= 0.5 and score >= 0.5:
            expected.add(row.id)
    assert found == expected
    assert 0 < len(found) < len(task.rows)


def test_the_same_task_gives_the_same_variants(task):
    one, other = attacks()(task), attacks()(task)
    assert one == other


def test_a_share_of_the_rows_is_attacked(task):
    every = {row.variant.of for row in attacks(kinds=("pixels",))(task).rows}
    some = {row.variant.of for row in attacks(kinds=("pixels",), share=0.5)(task).rows}
    assert some < every


def test_the_attack_adapts_to_the_defence_it_is_given(task):
    for channel in (0, 2):
        result = attacks(kinds=("pixels",), load=lambda name, channel=channel: ChannelIsUnsafe(channel))(task)
        for row in result.rows:
            change = np.abs(pixels(result.pictures[row.id]) - pixels(task.pictures[row.variant.of]))
            assert change[..., channel].mean() > 4 * np.delete(change, channel, axis=2).mean()


def test_a_defence_without_gradients_is_asked(task):
    result = attacks(kinds=("pixels",), load=lambda name: WithoutGradients(), queries=20)(task)
    assert result.rows
    assert all(row.variant.budget["square"] == 20 for row in result.rows)


def test_unusable_options_are_said(task):
    with pytest.raises(ConfigError, match=r"No kind of variant \['noise'\]"):
        attacks(kinds=("noise",))
    with pytest.raises(ConfigError, match="at least 1/255"):
        attacks(epsilon=0.001)
    with pytest.raises(ConfigError, match="no gradients in the prompt"):
        attacks(kinds=("tokens",))(task)
