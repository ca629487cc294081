"""Pairs and their collection: rows stand alone, a killed collection goes on, labels come from the picture."""

from dataclasses import replace
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch

from judge.diffusion.collect import collect_pairs
from judge.diffusion.latent_colours import decoded
from judge.diffusion.layouts import attention_layers
from judge.diffusion.pairs import Pair, PairStore, split_by_prompt
from judge.diffusion.training import train_detector
from judge.encoders.dual import DualEncoder
from judge.errors import CheckpointError, ConfigError, PipelineError
from judge.protocol import Scores
from judge.standins.random_pipelines import random_pipeline
from prompts.taxonomy import Category, Taxonomy

# diffusers 0.42.1 hands torch tensors to numpy 2 in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
torch.set_num_threads(1)

TAXONOMY = Taxonomy("colours", "1", (Category("red", "a red thing"), Category("blue", "a blue thing")))
PAIRS = [
    Pair("a red kite", 1),
    Pair("a red kite", 2),
    Pair("two boats", 3, "vague", "test"),
    Pair("a dog", 4),
]


class Colours:
    """Scores how red and how blue a picture is, and sees no prompts."""

    name = "colours"

    def __init__(self, unjudged=()):
        self.seen, self.unjudged = [], unjudged

    def score(self, images, prompts, taxonomy):
        assert all(prompt is None for prompt in prompts)
        found = np.stack([np.asarray(image)[..., [0, 2]].mean((0, 1)) / 255 for image in images])
        reasons = []
        for row in range(len(images)):
            self.seen.append(row)
            bad = len(self.seen) - 1 in self.unjudged
            found[row] = np.nan if bad else found[row]
            reasons.append("too dark" if bad else None)
        return Scores(found.max(1), found, tuple(reasons))


@pytest.fixture(scope="module")
def pipeline():
    return random_pipeline("sd1")


def collect(pipeline, folder, pairs=PAIRS, classifier=None, **options):
    layer = next(iter(attention_layers(pipeline)))
    given = {
        "steps": 4,
        "at": (2, 3),
        "batch_size": 2,
        "layers": (layer,),
        "call": {"height": 16, "width": 16},
    }
    return collect_pairs(pipeline, pairs, classifier or Colours(), TAXONOMY, folder, **{**given, **options})


def arrays(store):
    return {path.stem: np.load(path) for path in sorted(store.folder.glob("*.npy"))}


@pytest.fixture(scope="module")
def whole(pipeline, tmp_path_factory):
    return collect(pipeline, tmp_path_factory.mktemp("pairs") / "store")


def same(first, second):
    one, other = arrays(first), arrays(second)
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_allclose(
            values, other[name], rtol=0, atol=5e-3 * max(1, np.abs(values).max()), err_msg=name
        )


def test_rows_do_not_depend_on_their_batch(pipeline, whole, tmp_path):
    same(whole, collect(pipeline, tmp_path, batch_size=3))


def test_pictures_of_one_prompt_differ_by_their_seed(whole):
    final = np.load(whole.folder / "final.npy")
    assert np.abs(final[0] - final[1]).max() > 0.1
    assert len(np.load(whole.folder / "text.npy")) == 3  # different prompts


def test_a_killed_collection_goes_on(pipeline, whole, tmp_path):
    def die(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(pipeline, tmp_path, progress=die)
    assert PairStore(tmp_path).done.tolist() == [True, True, False, False]
    assert np.isnan(PairStore(tmp_path).labels[2:]).all()
    assert PairStore(tmp_path).rows("test").tolist() == []
    counts = []
    same(whole, collect(pipeline, tmp_path, progress=lambda done, total: counts.append((done, total))))
    assert counts == [(4, 4)]


def test_parts_fill_one_store(pipeline, whole, tmp_path):
    assert collect(pipeline, tmp_path, part=(1, 2)).done.tolist() == [False, True, False, True]
    same(whole, collect(pipeline, tmp_path, part=(0, 2)))


@pytest.mark.parametrize(
    ("changed", "named"),
    [({"steps": 5}, "steps"), ({"guidance": 2.0}, "guidance"), ({"pairs": PAIRS[::-1]}, "pairs")],
)
def test_another_collection_is_refused(pipeline, whole, changed, named):
    with pytest.raises(CheckpointError, match=f"other {named}"):
        collect(pipeline, whole.folder, **changed)


@pytest.mark.parametrize("wrong", [{"at": (0, 2)}, {"at": (5,)}, {"at": ()}, {"pairs": []}])
def test_impossible_collections_are_refused(pipeline, tmp_path, wrong):
    with pytest.raises(ConfigError, match="at least one pair, and steps from 1 to 4"):
        collect(pipeline, tmp_path, **wrong)


def test_unjudged_pictures_have_no_label(pipeline, tmp_path):
    store = collect(pipeline, tmp_path, classifier=Colours(unjudged={1}))
    assert np.isnan(store.labels).any(1).tolist() == [False, True, False, False]
    assert store.done.all()


def test_pictures_that_the_pipeline_blackened_have_no_label(pipeline, tmp_path, monkeypatch):
    def blackens(self, image, device, dtype):
        return image, [True] + [False] * (len(image) - 1)

    monkeypatch.setattr(type(pipeline), "run_safety_checker", blackens)
    labels = collect(pipeline, tmp_path).labels
    assert np.isnan(labels).all(1).tolist() == [True, False, True, False]


def test_pictures_of_nan_have_no_label(pipeline, tmp_path):
    broken = random_pipeline("sd1")
    with torch.no_grad():
        broken.unet.conv_out.bias.fill_(float("nan"))
    store = collect(broken, tmp_path)
    assert np.isnan(store.labels).all()
    assert store.look([0], 2).clean.isnan().all()


def test_pictures_of_one_colour_have_no_label(pipeline, tmp_path, monkeypatch):
    """As they are where the decoder comes to NaN in half precision, though the latents are finite."""
    decode = type(pipeline.vae).decode

    def broken(self, latents, *args, **kwargs):
        found = decode(self, latents, *args, **kwargs)
        found[0][0] = float("nan")
        return found

    monkeypatch.setattr(type(pipeline.vae), "decode", broken)
    store = collect(pipeline, tmp_path)
    assert np.isnan(store.labels).all(1).tolist() == [True, False, True, False]
    assert np.isfinite(store.array("final")).all()


def test_a_service_that_does_not_answer_ends_the_collection_which_goes_on_later(pipeline, whole, tmp_path):
    class Silent(Colours):
        def score(self, images, prompts, taxonomy):
            first = not self.seen
            scores = super().score(images, prompts, taxonomy)
            if first:
                return scores
            return replace(scores, unanswered=(False, True), reasons=(None, "no connection"))

    with pytest.raises(CheckpointError, match=r"colours left 1 pictures unanswered \(no connection\)"):
        collect(pipeline, tmp_path, classifier=Silent())
    assert PairStore(tmp_path).done.tolist() == [True, True, False, False]
    same(collect(pipeline, tmp_path), whole)


@pytest.mark.parametrize(("scheduler", "made"), [("PNDMScheduler", 5), ("HeunDiscreteScheduler", 7)])
def test_schedulers_that_make_more_steps_are_followed_to_the_end(
    pipeline, tmp_path, monkeypatch, scheduler, made
):
    own = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config, skip_prk_steps=True)
    monkeypatch.setattr(pipeline, "scheduler", own)
    store = collect(pipeline, tmp_path, PAIRS[:1])
    assert (store.steps, store.timesteps, store.look([0], 2).steps) == (4, made, made)
    size = {"height": 16, "width": 16, "num_inference_steps": 4, "guidance_scale": 5.0}
    seed = torch.Generator().manual_seed(1)
    latents = pipeline("a red kite", generator=seed, output_type="latent", **size).images
    difference = (latents - store.floats("final", [0])).norm() / latents.norm()
    assert difference < 0.05


def test_looks_come_back_as_they_were_seen(whole):
    look = whole.look([2, 0], 3)
    assert (look.step, look.steps, look.prompts) == (3, 4, ("two boats", "a red kite"))
    assert look.log_snr == whole.log_snrs[3] > whole.log_snrs[2]
    signal = 1 / (1 + np.exp(-look.log_snr))
    mixed = np.sqrt(signal) * look.clean + np.sqrt(1 - signal) * look.noise
    np.testing.assert_allclose(look.noisy, mixed, rtol=1e-5, atol=1e-5)
    assert look.tokens.keys() == set(whole.layers)
    assert torch.equal(look.rows(torch.tensor([1])).clean, whole.look([0], 3).clean)
    assert torch.equal(look.text[1], whole.look([1], 3).text[0])  # of one prompt
    with pytest.raises(ConfigError, match="not after step 4"):
        whole.look([0], 4)


def test_finished_latents_are_those_of_the_last_step(pipeline, whole):
    # The picture of the first pair, made by the pipeline alone.
    seed = torch.Generator().manual_seed(1)
    options = {
        "num_inference_steps": 4,
        "guidance_scale": 5.0,
        "output_type": "latent",
        "height": 16,
        "width": 16,
    }
    latents = pipeline("a red kite", generator=seed, **options).images
    # The scheduler of Stable Diffusion 1 ends a little before the clean picture.
    assert np.corrcoef(latents.flatten(), whole.floats("final", [0]).flatten())[0, 1] > 0.999


def test_an_encoder_sees_finished_and_predicted_pictures(pipeline, tmp_path):
    encoder = DualEncoder.load("tiny-clip")
    store = collect(pipeline, tmp_path, encoder=encoder)
    seen = encoder.encode_pixels((decoded(pipeline, store.look([0], 3).clean) / 2 + 0.5).clamp(0, 1))
    np.testing.assert_allclose(
        store.floats("step_03.perceived", [0]), seen, atol=0.05 * float(seen.abs().max())
    )
    assert store.floats("features", [0, 1]).shape == (2, 26, 128)
    assert not store.has("step_02.perceived")
    with pytest.raises(CheckpointError, match="other encoder"):
        collect(pipeline, tmp_path)


@pytest.mark.parametrize(("free", "loaded"), [(1 << 40, True), (1 << 10, False)])
def test_a_store_is_loaded_where_memory_allows(whole, monkeypatch, free, loaded):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free))
    store = PairStore(whole.folder)
    store.load()
    monkeypatch.setattr(store, "array", lambda name: pytest.fail(f"{name} is mapped"))
    if loaded:
        assert torch.equal(store.look([0, 2], 3).clean, whole.look([0, 2], 3).clean)
    else:
        with pytest.raises(pytest.fail.Exception, match="is mapped"):
            store.look([0, 2], 3)


def test_splits_and_kinds(whole):
    assert whole.rows("train").tolist() == [0, 1, 3]
    assert whole.rows("test", "vague").tolist() == [2]
    assert whole.rows().tolist() == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match=r"'a dog' is in the splits 'train' and 'test'"):
        split_by_prompt([*PAIRS, replace(PAIRS[3], split="test")], "train")


def test_a_damaged_store_is_refused(whole, tmp_path):
    with pytest.raises(CheckpointError, match="holds no readable store"):
        PairStore(tmp_path)
    (tmp_path / "store.json").write_text('{"format": 9}')
    (tmp_path / "pairs.jsonl").write_text("")
    with pytest.raises(CheckpointError, match="format 9"):
        PairStore(tmp_path)
    with pytest.raises(CheckpointError, match=r"no array .step_09\.clean."):
        whole.array("step_09.clean")


def test_a_detector_does_not_learn_from_pairs_of_another_pipeline(whole):
    with pytest.raises(PipelineError, match="made by another pipeline"):
        train_detector(SimpleNamespace(pipeline=random_pipeline("sdxl")), whole, whole.rows())
