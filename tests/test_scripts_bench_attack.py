"""scripts/bench_attack.py runs and prints its JSON; no times are compared."""

import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_attack.py"


@pytest.fixture
def run(start_script):
    def ended(*options):
        done = start_script(SCRIPT, "--size", "tiny", "--threads", 1, *options)
        return done.wait(), done

    return ended


@pytest.mark.slow
def test_both_methods_are_timed_and_their_robust_accuracy_measured(run):
    code, done = run("--images", "3", "--steps", "3", "--batch", "2", "--epsilon", "0.05")
    assert code == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for key in ("image_steps_ratio", "image_steps_ratio_pixel_gradients_only", "seconds_per_image_ratio"):
        assert found[key] > 0
    assert 0 <= found["robust_accuracy"] <= 1
    assert 0 <= found["baseline_robust_accuracy"] <= 1
    assert found["mean_gap"]["clean"] > found["mean_gap"]["baseline"], "the baseline attacks"
    assert found["mean_gap"]["clean"] > found["mean_gap"]["ours, no early stop"]
    assert found["tokens"]["policy"] > 800, "the policy of eleven categories comes before the image"
    assert found["budget"] == {"baseline_normalised": 0.05, "ours_grey_levels": "3.332/255"}
    assert len(found["steps_until_success"]) == 3
    assert {"machine", "versions", "load_average", "sustained_tflops"} <= found.keys()
    assert {"torch", "transformers"} <= found["versions"].keys()


def test_counts_below_one_are_refused(run):
    code, done = run("--images", "0")
    assert code == 2
    assert "1 at least" in done.stderr
