"""The nodes for ComfyUI, loaded from a file of one line as it does, against a stub of the API that they use."""

import importlib.util
import math
import sys
from itertools import pairwise
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures_detectors import TAXONOMY, FakeDetector, flags_rows

from judge.diffusion.comfyui import SamplerGuard
from judge.errors import ConfigError, PipelineError
from judge.protocol import Scores
from prompts.errors import ArbiterError

SIGMAS = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.0])


class EPS:
    """Names of base classes are what the guard goes by: `comfy.model_sampling` is not here."""

    sigma_data = 1.0


class CONST:
    pass


class IMG_TO_IMG(EPS):  # noqa: N801 (ComfyUI's name)
    pass


class Interrupted(Exception):  # noqa: N818 (ComfyUI's has no such end either)
    pass


class Patcher:
    """What `comfy.model_patcher.ModelPatcher` offers to custom nodes."""

    def __init__(self):
        self.model_options, self.wrappers = {"transformer_options": {}}, {}

    def clone(self):
        other = Patcher()
        other.model_options = dict(self.model_options)
        other.wrappers = {kind: dict(added) for kind, added in self.wrappers.items()}
        return other

    def set_model_sampler_post_cfg_function(self, function, disable_cfg1_optimization=False):
        functions = self.model_options.get("sampler_post_cfg_function", [])
        self.model_options["sampler_post_cfg_function"] = [*functions, function]

    def add_wrapper_with_key(self, kind, key, wrapper):
        self.wrappers.setdefault(kind, {})[key] = wrapper


def sample(patcher, sampling, text=None, rows=3, sigmas=SIGMAS, picture=2.0):
    """`outer_sample` with Euler's method on a network that predicts a flat picture, as `comfy.samplers` calls it."""

    def euler():
        options = {**patcher.model_options, "transformer_options": {"sample_sigmas": sigmas}}
        cond = [] if text is None else [{"model_conds": {"c_crossattn": SimpleNamespace(cond=text)}}]
        latents = torch.full((rows, 4, 2, 2), 9.0)
        for sigma, following in pairwise(sigmas):
            denoised = torch.full_like(latents, picture)
            for function in patcher.model_options.get("sampler_post_cfg_function", []):
                denoised = function(
                    {
                        "denoised": denoised,
                        "cond": cond,
                        "uncond": None,
                        "cond_scale": 7.0,
                        "model": SimpleNamespace(model_sampling=sampling),
                        "uncond_denoised": denoised,
                        "cond_denoised": denoised,
                        "sigma": sigma.repeat(rows),
                        "model_options": options,
                        "input": latents,
                    }
                )
            latents = latents + (latents - denoised) / sigma * (following - sigma)
        return latents

    run = euler
    for wrapper in patcher.wrappers.get("outer_sample", {}).values():
        run = lambda run=run, wrapper=wrapper: wrapper(run)  # noqa: E731
    return run()


@pytest.fixture
def nodes(monkeypatch, tmp_path):
    """The nodes as ComfyUI finds them: in `NODE_CLASS_MAPPINGS` of a file in `custom_nodes`."""
    for name, values in {
        "comfy": {},
        "comfy.model_management": {"InterruptProcessingException": Interrupted},
        "comfy.patcher_extension": {"WrappersMP": SimpleNamespace(OUTER_SAMPLE="outer_sample")},
    }.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    file = tmp_path / "arbiter.py"
    file.write_text("from judge.diffusion.comfyui import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS\n")
    spec = importlib.util.spec_from_file_location("custom_nodes.arbiter", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.NODE_CLASS_MAPPINGS.keys() == module.NODE_DISPLAY_NAME_MAPPINGS.keys()
    return module.NODE_CLASS_MAPPINGS


def guard_node(nodes, detector, **values):
    values = {"taxonomy": "digits", "threshold": 0.5, "looks": "-1 1", "on_stop": "interrupt", **values}
    model = Patcher()
    node = nodes["ArbiterGuard"]
    (guarded,) = getattr(node(), node.FUNCTION)(model, detector, **values)
    assert "sampler_post_cfg_function" not in model.model_options
    return guarded


class Fruit(FakeDetector):
    """Scores any taxonomy: its first category."""

    def score(self, look, taxonomy):
        scores = super().score(look, taxonomy)
        wide = np.zeros((len(scores.unsafe), len(taxonomy)))
        wide[:, 0] = scores.unsafe
        wide[np.isnan(scores.unsafe)] = np.nan
        return Scores(scores.unsafe, wide, scores.reasons)


def test_nodes_say_what_they_take(nodes):
    for node in nodes.values():
        inputs = node.INPUT_TYPES()["required"]
        assert callable(getattr(node, node.FUNCTION))
        assert all(isinstance(kind, tuple) for kind in inputs.values())
    assert nodes["ArbiterGuard"].RETURN_TYPES == ("MODEL",)
    kinds = [node.INPUT_TYPES()["required"].get("detector") for node in nodes.values()]
    assert kinds[1] == nodes["ArbiterDetector"].RETURN_TYPES


def test_a_safe_picture_comes_out_as_it_is(nodes):
    detector = Fruit(lambda look, row: 0.1)
    guarded = guard_node(nodes, detector)
    for sampling in (EPS(), EPS()):
        assert torch.equal(sample(guarded, sampling), sample(Patcher(), sampling))
    assert [look.step for look in detector.looks] == [4, 5] * 2
    assert detector.looks[0].steps == 5


def test_a_stopped_picture_ends_the_prompt(nodes):
    guarded = guard_node(nodes, Fruit(lambda look, row: 0.9 * (row == 1)))
    with pytest.raises(Interrupted):
        sample(guarded, EPS())


def test_or_comes_out_blank(nodes):
    detector = Fruit(lambda look, row: 0.9 * (row == 1))
    latents = sample(guard_node(nodes, detector, on_stop="blank"), EPS())
    whole = sample(Patcher(), EPS())
    assert torch.equal(latents[[0, 2]], whole[[0, 2]])
    assert not latents[1].any()
    # Also of the latents of a sampling that ends before its noise does.
    latents = sample(guard_node(nodes, detector, on_stop="blank"), EPS(), sigmas=SIGMAS[:5])
    assert not latents[1].any()


def test_a_look_that_never_came_stops_all(nodes):
    with pytest.raises(Interrupted):
        sample(guard_node(nodes, Fruit(lambda look, row: 0.1), looks="-1, 9"), EPS())
    latents = sample(guard_node(nodes, Fruit(lambda look, row: 0.1), looks="9", on_stop="blank"), EPS())
    assert not latents.any()


def test_finished_latents_of_nan_are_stopped():
    guard = SamplerGuard(Fruit(lambda look, row: 0.1), TAXONOMY, at=(0.0,))
    guard.taken = {0}
    samples = torch.ones(2, 4, 2, 2)
    samples[1, 0, 0, 0] = math.nan
    assert guard.end(samples).flatten(1).sum(1).tolist() == [16, 0]
    assert guard.stopped[1].status == "unjudged"


@pytest.mark.parametrize("sampling", [IMG_TO_IMG(), SimpleNamespace()])
def test_noise_of_another_kind_is_not_judged(nodes, sampling, caplog):
    detector = Fruit(lambda look, row: 0.1)
    assert not sample(guard_node(nodes, detector, on_stop="blank"), sampling).any()
    assert detector.looks == []
    assert "the look failed: PipelineError: how noisy latents are" in caplog.text


def test_a_failure_stops_all(nodes, caplog):
    def fail(look, row):
        raise MemoryError

    assert not sample(guard_node(nodes, Fruit(fail), on_stop="blank"), EPS()).any()
    assert "the look failed: MemoryError" in caplog.text
    assert not sample(guard_node(nodes, Fruit(lambda look, row: math.nan), on_stop="blank"), EPS()).any()


def test_what_is_seen_fits_the_scales_of_diffusers():
    """Latents are a picture of 2 and what noise makes of them 9, in either mixture."""
    for sampling, sigmas in ((EPS(), SIGMAS), (CONST(), torch.tensor([0.9, 0.5, 0.2, 0.0]))):
        detector = FakeDetector(lambda look, row: 0.1)
        guard = SamplerGuard(detector, TAXONOMY, at=(-100.0,))
        patcher = Patcher()
        patcher.set_model_sampler_post_cfg_function(guard.after_guidance)
        sample(patcher, sampling, sigmas=sigmas)
        (look,) = detector.looks
        sigma = float(sigmas[0])
        signal = 1.0 if isinstance(sampling, EPS) else 1 - sigma
        whole = math.hypot(signal, sigma)
        assert look.log_snr == pytest.approx(2 * math.log(signal / sigma))
        assert look.clean.unique().tolist() == [2.0]
        assert torch.allclose(look.noisy, signal / whole * look.clean + sigma / whole * look.noise, rtol=1e-5)
        assert look.noisy.unique().item() == pytest.approx(9 / whole, rel=1e-5)


def test_embeddings_of_the_prompt_are_for_every_picture():
    detector = FakeDetector(lambda look, row: 0.1)
    guard = SamplerGuard(detector, TAXONOMY, at=(0.0,))
    patcher = Patcher()
    patcher.set_model_sampler_post_cfg_function(guard.after_guidance)
    text = torch.arange(6.0).reshape(1, 2, 3)
    sample(patcher, EPS(), text)
    assert torch.equal(detector.looks[0].text, text.expand(3, 2, 3))
    for other in (None, torch.zeros(2, 2, 3)):
        guard.begin()
        sample(patcher, EPS(), other)
        assert detector.looks[-1].text.isnan().all()


def test_detectors_of_layers_are_refused():
    detector = flags_rows(0)
    detector.layers = ("mid_block.attn2",)
    with pytest.raises(PipelineError, match="reads attention layers of diffusers"):
        SamplerGuard(detector, TAXONOMY)


@pytest.mark.parametrize(
    "values", [{"looks": "early"}, {"threshold": 2.0}, {"on_stop": "smile"}, {"taxonomy": "./none.yaml"}]
)
def test_inputs_that_cannot_be_used(nodes, values):
    with pytest.raises(ArbiterError):
        guard_node(nodes, flags_rows(0), **values)
    with pytest.raises(ConfigError, match=r"by log-SNR, not by step: give 4\.0"):
        SamplerGuard(flags_rows(0), TAXONOMY, at=(4,))


def test_detectors_are_loaded_by_name(nodes, monkeypatch):
    import judge.classifiers
    import judge.diffusion.pipelines
    import judge.diffusion.saved

    monkeypatch.setattr(judge.diffusion.pipelines, "load_pipeline", lambda name: f"pipeline {name}")
    monkeypatch.setattr(judge.diffusion.saved, "load_detector", lambda name, pipeline: (name, pipeline))
    monkeypatch.setattr(judge.classifiers, "load_classifier", lambda name: f"classifier {name}")
    node = nodes["ArbiterDetector"]()
    assert node.load("here", "runs/detector") == (("runs/detector", "pipeline here"),)
    (decoded,) = node.load("here", "decoded:tiny-student")
    assert decoded.classifier == "classifier tiny-student"
