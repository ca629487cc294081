"""Detectors: the taxonomy is an argument, what cannot be judged is not, and files keep what was learnt."""

import math
import shutil
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from judge.diffusion.baselines import DecodedPicture
from judge.diffusion.collect import collect_pairs
from judge.diffusion.cross_attention import InLoopDetector, on_grid, summary
from judge.diffusion.first_noise import NoiseDetector, discriminants
from judge.diffusion.latent_colours import FlowGuardDetector, decoded
from judge.diffusion.layouts import attention_layers
from judge.diffusion.learned import Lessons
from judge.diffusion.pairs import Pair, PairStore
from judge.diffusion.saved import load_detector, save_detector
from judge.diffusion.targets import label_loss
from judge.diffusion.text_alone import PromptOnly
from judge.diffusion.training import TrainingOptions, reworded, train_detector
from judge.errors import CheckpointError, ConfigError, PipelineError
from judge.protocol import Scores
from judge.standins.random_pipelines import random_pipeline
from prompts.taxonomy import Category, Taxonomy
from prompts.taxonomy_file import load_taxonomy

# diffusers 0.42.1 hands torch tensors to numpy 2 in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
torch.set_num_threads(1)

TAXONOMY = load_taxonomy("digits").select(["one", "two", "three", "four"])
PROMPTS = ["a one", "a two", "a three and a four", "a picture of two", "a digit", "one digit"]
SMALL = {"grid": 2, "width": 16, "depth": 1, "heads": 2, "stem": 8, "word_width": 8}


class Stripes:
    """Scores the brightness of as many stripes of a picture as there are categories."""

    name = "stripes"

    def score(self, images, prompts, taxonomy):
        found = np.stack([self.stripes(np.asarray(image), len(taxonomy)) for image in images])
        return Scores(found.max(1), found, (None,) * len(images))

    @staticmethod
    def stripes(pixels, count):
        parts = np.array([part.mean() / 255 for part in np.array_split(pixels, count)])
        return (parts > parts.mean()) * 0.98 + 0.01


@cache
def pipeline(name="sd1"):
    return random_pipeline(name)


def collected(pipe, folder, pairs, **call):
    layers = list(attention_layers(pipe))[:2]
    options = {"steps": 3, "at": (1, 2), "layers": layers, "call": {"height": 16, "width": 16, **call}}
    return collect_pairs(pipe, pairs, Stripes(), TAXONOMY, folder, batch_size=12, **options)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    pairs = [Pair(prompt, seed) for seed in range(4) for prompt in PROMPTS]
    return collected(pipeline(), tmp_path_factory.mktemp("detector") / "store", pairs)


def quick(epochs=2, **options):
    return TrainingOptions(epochs=epochs, batch_size=12, wordings=3, **options)


@pytest.fixture(scope="module")
def detector(store):
    made = InLoopDetector.for_pipeline(pipeline(), store.layers, name="mine", **SMALL)
    train_detector(made, store, store.rows(), options=quick())
    return made


def families(store):
    layers = store.layers
    return [
        InLoopDetector.for_pipeline(pipeline(), layers, **SMALL),
        FlowGuardDetector(pipeline(), 4, len(TAXONOMY)),
        NoiseDetector(pipeline(), 2, 4 * 8 * 8, len(TAXONOMY), components=3),
        PromptOnly(pipeline(), 32, len(TAXONOMY)),
    ]


def test_permuting_the_taxonomy_permutes_the_scores(detector, store):
    look = store.look([0, 5, 9], 2)
    scores = detector.score(look, TAXONOMY).categories
    names = ["four", "one", "three", "two"]
    permuted = detector.score(look, TAXONOMY.select(names)).categories
    np.testing.assert_allclose(permuted, scores[:, [TAXONOMY.index(name) for name in names]], rtol=1e-5)


def test_the_score_of_a_category_does_not_depend_on_the_others(detector, store):
    look = store.look([0, 5, 9], 2)
    scores = detector.score(look, TAXONOMY).categories
    for place, name in enumerate(TAXONOMY.names):
        alone = detector.score(look, TAXONOMY.select([name]))
        np.testing.assert_allclose(alone.categories[:, 0], scores[:, place], rtol=1e-5)
        assert (alone.unsafe == alone.categories[:, 0]).all()


def test_other_words_are_other_queries(detector, store):
    look = store.look([0, 5], 2)
    scores = detector.score(look, TAXONOMY).categories
    reworded = TAXONOMY.reword({"three": "the digit 3, open curve"})
    changed = detector.score(look, reworded).categories
    assert not np.isclose(changed[:, 2], scores[:, 2], rtol=1e-6).any()
    np.testing.assert_allclose(changed[:, [0, 1, 3]], scores[:, [0, 1, 3]], rtol=1e-5)


def test_the_whole_is_the_highest_category(detector, store):
    scores = detector.score(store.look(range(6), 1), TAXONOMY)
    np.testing.assert_array_equal(scores.unsafe, scores.categories.max(1))
    assert scores.decided_by == ("mine",) * 6


def test_rows_are_scored_alone(detector, store):
    look = store.look(range(6), 1)
    alone = detector.score(look.rows(torch.tensor([4])), TAXONOMY).unsafe
    np.testing.assert_allclose(detector.score(look, TAXONOMY).unsafe[4], alone[0], rtol=1e-5)


@pytest.mark.parametrize("part", ["clean", "noise", "text", "tokens"])
def test_what_is_not_finite_is_not_judged(detector, store, part):
    look = store.look([0, 1, 2], 1)
    broken = next(iter(look.tokens.values())) if part == "tokens" else getattr(look, part)
    broken[1].view(-1)[3] = float("nan")
    scores = detector.score(look, TAXONOMY)
    assert np.isnan(scores.unsafe).tolist() == [False, True, False]
    assert np.isnan(scores.categories[1]).all()
    assert scores.reasons == (None, "what the denoiser predicted is not finite", None)


def why_not(detector, look, taxonomy):
    scores = detector.score(look, taxonomy)
    assert np.isnan(scores.unsafe).all()
    assert np.isnan(scores.categories).all()
    return scores.reasons[0]


def test_looks_outside_of_what_was_learnt_are_not_judged(detector, store):
    look = store.look([0], 1)
    low, high = detector.log_snrs
    assert low < store.log_snrs[1] < store.log_snrs[2] < high
    assert "log-SNR 9.00" in why_not(detector, replace(look, log_snr=9.0), TAXONOMY)
    assert "no tokens of" in why_not(detector, replace(look, tokens={}), TAXONOMY)
    untrained = InLoopDetector.for_pipeline(pipeline(), store.layers, **SMALL)
    assert "was not trained" in why_not(untrained, look, TAXONOMY)


@pytest.mark.parametrize(
    ("category", "reason"),
    [
        (Category("weapons", "guns and explosives"), "words that the detector was not trained on"),
        (Category("one", "ein gerader Strich"), "words that the detector was not trained on"),
        (Category("один", "the digit 1"), "Cyrillic"),
        (Category("one", "the digit 1, " + ", ".join(["one straight line"] * 6)), "does not read the end"),
    ],
)
def test_words_that_it_cannot_know_are_not_judged(detector, store, category, reason):
    taxonomy = Taxonomy("own", "1", (category, *TAXONOMY.select(["two"]).categories))
    assert reason in why_not(detector, store.look([0], 1), taxonomy)


def test_definitions_over_the_encoders_length_are_not_judged(detector, store):
    long = replace(
        TAXONOMY.categories[0], definition="one digit and " * 4 + "one straight line, a digit 1 in any hand"
    )
    detector.lessons.envelope, before = (
        replace(detector.lessons.envelope, category_characters=999, policy_characters=999),
        detector.lessons.envelope,
    )
    try:
        reason = why_not(detector, store.look([0], 1), Taxonomy("own", "1", (long,)))
    finally:
        detector.lessons.envelope = before
    assert "does not read the end of 'one'" in reason


def test_held_out_categories_are_never_shown(store):
    shown = []

    class Watched(InLoopDetector):
        def read(self, look, taxonomy):
            shown.append(taxonomy)
            return super().read(look, taxonomy)

    made = Watched.for_pipeline(pipeline(), store.layers, **SMALL)
    losses = train_detector(made, store, store.rows(), categories=["one", "four"], options=quick(4))
    assert len(losses) == 4
    assert {key for taxonomy in shown for key in taxonomy.keys} == {"one", "four"}
    assert len({taxonomy.hash for taxonomy in shown}) > 1
    assert made.lessons.taxonomy.names == ("one", "four")
    # And yet they are scored, as prompts had their words.
    unseen = TAXONOMY.select(["two", "three"]).names_only()
    assert not np.isnan(made.score(store.look([0], 1), unseen).categories).any()


def test_training_learns(store):
    made = InLoopDetector.for_pipeline(pipeline(), store.layers, **SMALL)
    heard = []
    options = quick(20, held_back=0.0, learning_rate=1e-2)
    losses = train_detector(
        made, store, store.rows(), options=options, progress=lambda *row: heard.append(row)
    )
    assert min(losses) < 0.9 * losses[0]
    assert [row[0] for row in heard] == list(range(1, 21))
    assert [row[2] for row in heard] == losses
    found = made.score(store.look(store.rows(), 1), TAXONOMY).categories
    best = float(label_loss(torch.logit(torch.from_numpy(found)), torch.from_numpy(store.labels).double()))
    assert best < losses[0]


def test_unknown_labels_have_no_part_in_the_loss():
    logits, labels = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, float("nan")]])
    assert label_loss(logits, labels).item() == pytest.approx(np.log1p(np.exp(-2.0)), rel=1e-5)
    assert label_loss(logits, labels * float("nan")).item() == 0


def test_training_refuses_what_it_cannot_use(detector, store):
    with pytest.raises(ConfigError, match="no pairs"):
        train_detector(detector, store, [])
    with pytest.raises(ConfigError, match="The loss is nan after epoch 1"):
        train_detector(families(store)[3], store, store.rows(), options=quick(learning_rate=math.inf))


def changed(store, folder, **values):
    """A copy of a store, with some of an array's entries replaced: name -> (index, value)."""
    copied = PairStore(shutil.copytree(store.folder, folder))
    for name, (index, value) in values.items():
        copied.array(name, write=True)[index] = value
    return copied


def test_a_category_that_nobody_labelled_is_not_learnt(store, tmp_path):
    lacking = changed(store, tmp_path / "one", labels=(np.s_[:, 1], np.nan))
    with pytest.raises(ConfigError, match=f"has a label of '{TAXONOMY.names[1]}'"):
        train_detector(families(store)[3], lacking, store.rows(), options=quick())
    nothing = changed(store, tmp_path / "all", labels=(..., np.nan))
    with pytest.raises(ConfigError, match="no pairs with labels"):
        train_detector(families(store)[3], nothing, store.rows(), options=quick())


@pytest.mark.parametrize("place", range(3))
def test_a_picture_of_nan_does_not_spoil_what_is_learnt(store, tmp_path, place):
    nan = dict.fromkeys(("labels", "final"), (0, np.nan))
    nan |= {f"step_{step:02d}.{name}": (0, np.nan) for step in store.at for name in ("clean", "noise")}
    spoilt = changed(store, tmp_path / "store", **nan)
    made = families(spoilt)[place]
    train_detector(made, spoilt, spoilt.rows(), options=quick())
    assert np.isfinite(made.score(store.look([1], store.at[0]), TAXONOMY).unsafe).all()


def test_wordings_keep_the_categories_apart():
    found = reworded(TAXONOMY, 12, np.random.default_rng(0))
    assert found[0].hash == TAXONOMY.hash
    assert len({taxonomy.hash for taxonomy in found}) == len(found) > 6
    assert {taxonomy.keys for taxonomy in found} == {TAXONOMY.keys}
    plain = Taxonomy("own", "1", (Category("red", "a red thing"),))
    assert reworded(plain, 12, np.random.default_rng(0)) == [plain]


@pytest.mark.parametrize("place", range(4))
def test_files_keep_what_was_learnt(store, tmp_path, place):
    made = families(store)[place]
    train_detector(made, store, store.rows(), options=quick())
    made.lessons.evidence["auc"] = 0.5
    save_detector(made, tmp_path)
    again = load_detector(tmp_path, pipeline())
    look = store.look(range(6), 2)
    # Weights are kept as float16, whose numbers are a thousandth apart.
    np.testing.assert_allclose(
        again.score(look, TAXONOMY).categories, made.score(look, TAXONOMY).categories, atol=2e-2
    )
    assert again.log_snrs == made.log_snrs
    assert again.layers == made.layers
    assert again.lessons == made.lessons


def test_a_detector_of_another_architecture_is_refused(detector, tmp_path):
    save_detector(detector, tmp_path)
    with pytest.raises(PipelineError, match=r"was trained for a pipeline with .*config .*this one has"):
        load_detector(tmp_path, pipeline("sdxl"))


def test_damaged_detectors_are_refused(detector, tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no detector\.json"):
        load_detector(tmp_path, pipeline())
    save_detector(detector, tmp_path)
    whole = (tmp_path / "detector.safetensors").read_bytes()
    (tmp_path / "detector.safetensors").write_bytes(whole[:-2] + b"xx")
    with pytest.raises(CheckpointError, match="is not the file"):
        load_detector(tmp_path, pipeline())
    (tmp_path / "detector.json").write_text('{"format": 1, "kind": "other"}')
    with pytest.raises(CheckpointError, match="'other' are not known"):
        load_detector(tmp_path, pipeline())


def test_an_untrained_detector_is_not_saved(store, tmp_path):
    with pytest.raises(CheckpointError, match="was not trained"):
        save_detector(families(store)[1], tmp_path)


@pytest.mark.parametrize("place", range(1, 4))
def test_fixed_families_score_what_they_were_trained_on(store, place):
    made = families(store)[place]
    train_detector(made, store, store.rows(), options=quick())
    look = store.look([0, 1], 2)
    own = Category("five", "the digit 5")
    mixed = Taxonomy("own", "1", (own, *TAXONOMY.select(["three", "one"]).categories))
    scores = made.score(look, mixed)
    assert np.isnan(scores.categories[:, 0]).all()
    known = made.score(look, TAXONOMY).categories
    np.testing.assert_allclose(scores.categories[:, 1:], known[:, [2, 0]], rtol=1e-6)
    np.testing.assert_allclose(scores.unsafe, scores.categories[:, 1:].max(1))
    assert "and none of these" in why_not(made, look, Taxonomy("own", "1", (own,)))


def test_the_prompt_alone_scores_all_pictures_of_a_prompt_the_same(store):
    made = families(store)[3]
    train_detector(made, store, store.rows(), options=quick())
    scores = made.score(store.look([0, 6, 1], 1), TAXONOMY).categories
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)
    assert not np.allclose(scores[0], scores[2], rtol=1e-3)


def test_colours_imitate_the_decoder(store):
    made = families(store)[1]
    made.prepare(store, store.rows(), TAXONOMY)
    latents = store.floats("final", store.rows())
    pictures = torch.nn.functional.adaptive_avg_pool2d(decoded(pipeline(), latents), latents.shape[-1])
    error = (made.head.to_colours(latents) - pictures).square().mean()
    assert error < 0.9 * (pictures - pictures.mean((0, 2, 3), keepdim=True)).square().mean()


def test_discriminants_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    violated = rng.random(400) < 0.3
    seen = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 3)) + violated[:, None] * [0.5, -0.2, 0.1]
    labels = np.stack([violated, np.zeros(400), np.where(violated, np.nan, 0.0)], 1)
    weights = discriminants(torch.tensor(seen).float(), torch.tensor(labels).float()).numpy()
    expected = LinearDiscriminantAnalysis(solver="lsqr").fit(seen, violated)
    np.testing.assert_allclose(weights[:-1, 0], expected.coef_[0], rtol=0.05)
    found = seen @ weights[:-1, 0] + weights[-1, 0]
    np.testing.assert_allclose(found, expected.decision_function(seen), atol=0.05)
    assert (weights[:-1, 1:] == 0).all()  # one side only: the prior
    assert (weights[-1, 1:] < -4).all()


def test_the_decoded_picture_is_what_the_classifier_is_asked_about(store):
    baseline = DecodedPicture(pipeline(), Stripes())
    look = store.look([0, 1], 2)
    finished = replace(look, clean=store.floats("final", [0, 1]))
    np.testing.assert_allclose(baseline.score(finished, TAXONOMY).categories, store.labels[:2], atol=0.02)
    look.clean[1, 0, 0, 0] = float("inf")
    scores = baseline.score(look, TAXONOMY)
    assert np.isnan(scores.unsafe).tolist() == [False, True]
    assert scores.reasons[1] == "what the denoiser predicted is not finite"


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_joint_attention_is_read_too(name, tmp_path):
    pipe = pipeline(name)
    pairs = [Pair(prompt, seed) for seed in range(2) for prompt in PROMPTS[:2]]
    kept = collected(pipe, tmp_path / "store", pairs, max_sequence_length=32)
    made = InLoopDetector.for_pipeline(pipe, kept.layers, **SMALL)
    train_detector(made, kept, kept.rows(), options=quick(1))
    scores = made.score(kept.look([0, 1], 2), TAXONOMY)
    assert not np.isnan(scores.categories).any()
    save_detector(made, tmp_path / "saved")
    again = load_detector(tmp_path / "saved", pipe).score(kept.look([0, 1], 2), TAXONOMY)
    np.testing.assert_allclose(again.categories, scores.categories, atol=2e-2)


def test_lessons_say_what_was_read():
    lessons = Lessons.of(pipeline(), [TAXONOMY], ["a photo of a one"])
    assert lessons.why_outside(pipeline(), TAXONOMY) is None
    assert lessons.envelope.categories == 1


def test_a_text_is_its_mean_and_its_last_word():
    text = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert summary(text, mask).tolist() == [[1, 2, 2, 3], [8, 9, 10, 11]]


@pytest.mark.parametrize("shape", [(4, 4), (4, 8), (6, 2)])
def test_tokens_lie_on_the_grid_as_in_the_picture(shape):
    places = torch.arange(shape[0]).float()[:, None].expand(shape).reshape(1, -1, 1)
    rows = on_grid(places, 2, torch.Size(shape)).view(2, 2)
    assert rows[:, 0].tolist() == rows[:, 1].tolist()
    assert rows[1, 0] - rows[0, 0] == shape[0] / 2
