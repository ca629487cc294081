"""Measuring the hooks: what is measured, and that the pipeline is as before. Times themselves are for the bench."""

import itertools

import pytest
import torch

from eval.diffusion.hook_cost import hook_cost
from judge.diffusion.layouts import attention_layers
from judge.diffusion.observer import Observer
from judge.standins.random_pipelines import random_pipeline

torch.set_num_threads(1)


def draw(pipeline):
    seeds = torch.Generator().manual_seed(3)
    return pipeline(["a kite"], num_inference_steps=2, generator=seeds, output_type="latent").images


@pytest.mark.parametrize("name", ["sd1", "sd3"])
def test_the_pipeline_is_as_before(name):
    pipeline = random_pipeline(name)
    layers = list(attention_layers(pipeline))
    options = {"max_sequence_length": 32} if name == "sd3" else {}
    before = draw(pipeline)
    found = hook_cost(pipeline, layers, ["a kite"], repeats=2, turns=3, **options)
    assert torch.equal(draw(pipeline), before)
    assert "step" not in vars(pipeline.scheduler)
    assert found["step_ms"] > 0
    assert found["idle_overhead"] == pytest.approx(found["hooks_us"] / 1000 / found["step_ms"])


def test_only_what_the_hooks_add_is_counted(monkeypatch):
    """With a clock that moves when it is read, and then also with every hook of a layer: two in each of five steps."""
    pipeline = random_pipeline("sd1")
    ticks = itertools.count()
    found = hook_cost(
        pipeline,
        list(attention_layers(pipeline))[:2],
        ["a kite"],
        repeats=2,
        turns=5,
        clock=lambda: next(ticks),
    )
    assert found == {"step_ms": 1000.0, "hooks_us": 0.0, "idle_overhead": 0.0}
    seen = []
    plain = Observer._on_layer
    monkeypatch.setattr(
        Observer, "_on_layer", lambda *given: (seen.append(given[1]), next(ticks), plain(*given))[2]
    )
    found = hook_cost(
        pipeline,
        list(attention_layers(pipeline))[:2],
        ["a kite"],
        repeats=2,
        turns=5,
        clock=lambda: next(ticks),
    )
    assert len(seen) == 2 * 5 * 3
    assert found["hooks_us"] == pytest.approx(2e6)
