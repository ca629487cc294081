"""The shipped base and the recipe give the recorded numbers (`scripts/record_golden.py`)."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def recorder():
    spec = importlib.util.spec_from_file_location("record_golden", ROOT / "scripts" / "record_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def golden(recorder):
    return json.loads(recorder.GOLDEN.read_text())


def test_scores_of_the_shipped_base(recorder, golden):
    np.testing.assert_allclose(recorder.base_scores(), golden["scores"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_recipe")
def test_loss_curve_of_the_recipe(recorder, golden, run_recipe, monkeypatch):
    """Six steps of AdamW in float32: other CPUs round differently, and steps add that up.

    The recipe runs in this process: what a fresh one imports takes longer than its steps.
    """

    def run_here(command, **_):
        run_recipe(Path(command[1]).stem, *command[2:])

    monkeypatch.setattr(recorder, "subprocess", SimpleNamespace(run=run_here))
    monkeypatch.setattr(recorder, "base_scores", list)  # the other test's
    assert golden["options"] == recorder.OPTIONS
    losses = recorder.measure()["losses"]
    difference = np.abs(np.array(losses) - golden["losses"])
    assert len(losses) == 6
    assert difference.max() < 5e-3
    assert difference.mean() < 1e-3
