"""Heads with fixed categories: targets, training, mapping of a caller's categories, run folders."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from judge.baselines.classifier import WEIGHTS
from judge.baselines.coverage import match_categories
from judge.baselines.fit import FitOptions, fit, judge_targets, label_targets, masked_cross_entropy
from judge.baselines.linear_probe import LinearProbe, ParallelMLP, load_linear_probe, save_linear_probe
from judge.baselines.prompt_learning import (
    PromptLearning,
    SoftPrompts,
    load_prompt_learning,
    save_prompt_learning,
)
from judge.encoders.dual import DualEncoder
from judge.errors import CheckpointError, ConfigError
from judge.protocol import Scores
from judge.runs.folder import RunDir
from prompts import Category, Taxonomy, load_taxonomy
from prompts.example import Example

DIGITS = load_taxonomy("digits")
TRAINED = DIGITS.drop(["four", "eight"])
KINDS = ("linear_probe", "prompt_learning")


@pytest.fixture(scope="module")
def encoder():
    return DualEncoder.load("tiny-clip", device="cpu")


@pytest.fixture(scope="module")
def classifiers(encoder):
    torch.manual_seed(0)
    return {
        "linear_probe": LinearProbe(encoder, ParallelMLP(encoder.width, len(TRAINED)), TRAINED),
        "prompt_learning": PromptLearning(encoder, SoftPrompts(encoder, TRAINED.names), TRAINED),
    }


def policy(*categories):
    return Taxonomy("mine", "1", categories)


def merged(name, *keys):
    return Category(name, "whatever", key="+".join(keys), members=keys)


# Training


def separate(heads):
    """The MLPs of a `ParallelMLP`, as a stranger would write each of them."""
    models = []
    for k in range(len(heads.into)):
        model = nn.Sequential(nn.Linear(heads.width, heads.hidden), nn.ReLU(), nn.Linear(heads.hidden, 2))
        model[0].weight.data, model[0].bias.data = heads.into[k].detach().T, heads.into_bias[k].detach()
        model[2].weight.data, model[2].bias.data = heads.out[k].detach().T, heads.out_bias[k].detach()
        models.append(model)
    return models


def test_parallel_mlps_train_as_separate_ones_do():
    images, labels = 3 * torch.randn(40, 12), torch.randint(0, 2, (40, 3)).float()
    labels[:7, 1] = torch.nan
    heads = ParallelMLP(12, 3)
    models = separate(ParallelMLP(12, 3))
    for k, model in enumerate(models):  # start alike
        heads.into.data[k], heads.into_bias.data[k] = model[0].weight.data.T, model[0].bias.data
        heads.out.data[k], heads.out_bias.data[k] = model[2].weight.data.T, model[2].bias.data
    fit(heads, [images], labels, FitOptions(epochs=20, learning_rate=1e-2, train_batch_size=40))
    scaled = images / images.norm(dim=1, keepdim=True) * math.sqrt(12)
    for k, model in enumerate(models):
        known = ~labels[:, k].isnan()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(model(scaled[known]), labels[known, k].long()).backward()
            optimizer.step()
        torch.testing.assert_close(heads(images)[:, k], model(scaled), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(heads.into[k].T, model[0].weight, atol=2e-5, rtol=1e-4)


def test_heads_start_as_linear_layers_do():
    heads = ParallelMLP(64, 200)
    assert heads.hidden == 32
    for weight, plain in ((heads.into, nn.Linear(64, 32)), (heads.out, nn.Linear(32, 2))):
        bound = 1 / math.sqrt(plain.in_features)
        assert weight.abs().max().item() == pytest.approx(bound, rel=1e-2)
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=2e-2)
    assert ParallelMLP(768, 11).into.shape == (11, 768, 384)  # the paper's 768-384-2


def test_the_loss_is_cross_entropy_summed_over_categories():
    logits = torch.randn(9, 4, 2)
    hard = torch.randint(0, 2, (9, 4))
    expected = sum(F.cross_entropy(logits[:, k], hard[:, k]) for k in range(4))
    torch.testing.assert_close(masked_cross_entropy(logits, hard.float()), expected)
    soft = torch.rand(9, 4)
    both = torch.stack([1 - soft, soft], -1)
    expected = sum(F.cross_entropy(logits[:, k], both[:, k]) for k in range(4))
    torch.testing.assert_close(masked_cross_entropy(logits, soft), expected)


def test_what_is_unknown_trains_nothing():
    logits = torch.randn(5, 2, 2, requires_grad=True)
    targets = torch.tensor([[1.0, torch.nan]] * 5)
    loss = masked_cross_entropy(logits, targets)
    loss.backward()
    torch.testing.assert_close(loss, F.cross_entropy(logits[:, 0], torch.ones(5, dtype=torch.long)))
    assert logits.grad[:, 1].abs().max() == 0 < logits.grad[:, 0].abs().min()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_fitting_learns_and_repeats(optimizer):
    def run():
        torch.manual_seed(3)
        images = torch.randn(300, 8)
        heads = ParallelMLP(8, 2)
        options = FitOptions(
            epochs=15, learning_rate=0.02, train_batch_size=32, optimizer=optimizer, momentum=0.9
        )
        heard = []
        history = fit(heads, [images], (images[:, :2] > 0).float(), options, progress=heard.append)
        assert heard == list(range(1, 16)) == [entry["epoch"] for entry in history]
        assert not heads.training
        return heads, [entry["loss"] for entry in history], images

    heads, losses, images = run()
    assert losses[0] > 0.5 > 0.2 > losses[-1]
    assert ((heads(images).argmax(-1) == 1) == (images[:, :2] > 0)).float().mean() > 0.9
    again, losses_again, _ = run()
    assert losses == losses_again
    assert torch.equal(heads.into, again.into)


def test_a_head_without_targets_is_refused():
    with pytest.raises(ConfigError, match=r"\[1\] have no known target"):
        fit(ParallelMLP(4, 2), [torch.randn(3, 4)], torch.tensor([[1.0, torch.nan]] * 3), FitOptions())


def test_a_batch_that_processes_cannot_share_is_refused(monkeypatch):
    import accelerate

    monkeypatch.setattr(accelerate.Accelerator, "num_processes", 3)
    with pytest.raises(ConfigError, match=r"128 cannot be shared by 3 processes; give a multiple"):
        fit(ParallelMLP(4, 1), [torch.randn(3, 4)], torch.ones(3, 1), FitOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adamw"}, "optimizer is 'adamw'; use one of adam, sgd"),
        ({"epochs": 0}, "epochs 0"),
        ({"learning_rate": -1.0}, "learning_rate -1.0"),
        ({"train_batch_size": 0}, "train_batch_size 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        FitOptions(**options)


# Targets

EXAMPLES = [
    Example("a", None, "pa", violates=frozenset({"one"})),
    Example("b", None, None, violates=frozenset({"two"}), unknown=frozenset({"one"})),
    Example("c", None, "pc", unknown=frozenset({"two"})),
    Example("d", None, "pd", violates=frozenset({"nine"})),
]
NAN = float("nan")


def test_labels_as_targets():
    found = label_targets(EXAMPLES, DIGITS.select(["two", "one"]))
    np.testing.assert_array_equal(found.categories, [[0, 1], [1, NAN], [NAN, 0], [0, 0]])
    np.testing.assert_array_equal(found.unsafe, [1, 1, NAN, 0])


def test_a_category_needs_images_on_both_sides():
    with pytest.raises(ConfigError, match=r"0 training images violate 'three' and 4 are known not to"):
        label_targets(EXAMPLES, DIGITS.select(["one", "three"]))
    with pytest.raises(ConfigError, match=r"1 training images violate 'one' and 0 are known not to"):
        label_targets(EXAMPLES[:2], DIGITS.select(["one"]))


class Teacher:
    name = "teacher"

    def __init__(self):
        self.asked = []

    def answer(self, prompts, taxonomy):
        self.asked += prompts
        start = len(self.asked) - len(prompts)
        numbers = np.arange(start, len(self.asked)) / 10
        return Scores(numbers, np.repeat(numbers[:, None], len(taxonomy), 1) / 2, (None,) * len(prompts))

    def score(self, images, prompts, taxonomy):
        return self.answer(prompts, taxonomy)


class MultilabelTeacher(Teacher):
    supports_multilabel = True

    def score(self, images, prompts, taxonomy, *, multilabel=False):
        assert multilabel
        return self.answer(prompts, taxonomy)


@pytest.mark.parametrize("kind", [Teacher, MultilabelTeacher])
def test_a_judges_scores_as_targets(kind, noise_image):
    examples = [Example(str(i), noise_image(i), f"prompt {i}") for i in range(5)]
    teacher, heard = kind(), []
    found = judge_targets(teacher, examples, TRAINED, batch_size=2, progress=heard.append)
    assert teacher.asked == [f"prompt {i}" for i in range(5)]
    assert heard == [2, 4, 5]
    np.testing.assert_allclose(found.unsafe, np.arange(5) / 10, rtol=1e-6)
    assert found.categories.shape == (5, 8)
    np.testing.assert_allclose(found.categories[:, 3], np.arange(5) / 20, rtol=1e-6)


# Which trained categories answer for a caller's

ASKED = {
    "as it was": (DIGITS.categories[3], [3], [3]),
    "renamed": (Category("trio", "x", key="three"), [3], [3]),
    "renamed to a word nobody trained": (Category("drei", "x", key="three"), [3], []),
    "held out": (DIGITS.categories[4], [], []),
    "held out, under a trained name": (Category("three", "x", key="four"), [], [3]),
    "merged": (merged("house list", "three", "nine"), [3, 7], []),
    "merged under a trained name": (merged("Three", "one", "two"), [1, 2], [3]),
    "merged with a held-out one": (merged("own rule", "three", "four"), [], []),
    "of the caller's own": (Category("balloons", "toy balloons"), [], []),
}


@pytest.mark.parametrize("case", ASKED)
def test_which_heads_answer(case):
    category, by_members, by_name = ASKED[case]
    assert match_categories(TRAINED, policy(category)) == [by_members]
    assert match_categories(TRAINED, policy(category), "name") == [by_name]


def test_a_merged_category_that_was_trained_answers_for_itself():
    trained = policy(merged("both", "one", "two"), Category("one", "x"))
    assert match_categories(trained, policy(merged("new name", "two", "one"))) == [[0]]
    assert match_categories(trained, policy(Category("two", "x"))) == [[]]


@given(
    probabilities=st.lists(st.floats(0.01, 0.99), min_size=8, max_size=8),
    order=st.permutations(range(10)),
    count=st.integers(1, 10),
    name=st.sampled_from(KINDS),
)
def test_scores_are_those_of_the_heads(classifiers, probabilities, order, count, name):
    probe = classifiers[name]
    logits = torch.tensor([[[0.0, math.log(p / (1 - p))] for p in probabilities]], dtype=torch.float64)
    taxonomy = DIGITS.select([DIGITS.names[place] for place in order[:count]])
    whole = type(probe)(probe.encoder, _Fixed(logits), TRAINED, name="probe")
    scores = whole.score_embeddings(torch.zeros(1, probe.encoder.width), None, taxonomy)
    by_key = dict(zip(TRAINED.keys, probabilities, strict=True))
    expected = [by_key.get(key, NAN) for key in taxonomy.keys]
    np.testing.assert_allclose(scores.categories[0], expected, rtol=1e-9)
    known = [p for p in expected if p == p]
    missed = [key for key in taxonomy.keys if key not in by_key]
    if known and (not missed or max(known) >= 0.5):
        assert scores.unsafe[0] == pytest.approx(max(known))
        assert scores.reasons == (None,)
    else:
        assert np.isnan(scores.unsafe[0])
        assert scores.reasons == (f"probe does not cover: {', '.join(missed)}",)


class _Fixed(nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits, self.width = logits, 128

    def forward(self, pooled_images):
        return self.logits


def test_a_merged_category_scores_as_its_highest_member(classifiers):
    probe = classifiers["linear_probe"]
    images = torch.randn(6, probe.encoder.width)
    parts = probe.score_embeddings(images, None, DIGITS.select(["three", "nine"]))
    whole = probe.score_embeddings(images, None, policy(merged("house list", "nine", "three")))
    np.testing.assert_array_equal(whole.categories[:, 0], parts.categories.max(axis=1))
    np.testing.assert_array_equal(whole.unsafe, parts.unsafe)


def test_a_score_that_is_not_finite_is_unjudged(classifiers):
    probe = classifiers["linear_probe"]
    images = torch.randn(2, probe.encoder.width)
    images[1, 0] = torch.inf
    scores = probe.score_embeddings(images, None, TRAINED)
    assert np.isfinite(scores.categories[0]).all()
    assert np.isnan(scores.categories[1]).all()
    assert np.isnan(scores.unsafe).tolist() == [False, True]
    assert scores.reasons == (None, "linear_probe gave no finite score")


@pytest.mark.parametrize("name", KINDS)
def test_images_and_their_embeddings_score_alike(classifiers, noise_image, name):
    probe = classifiers[name]
    probe.batch_size = 2
    images = [noise_image(seed) for seed in range(5)]
    pooled = probe.encoder.encode_images(images)[:, 0]
    scores = probe.score(images, ["a prompt", None, "x", "y", ""], TRAINED)
    expected = probe.score_embeddings(pooled, None, TRAINED)
    np.testing.assert_allclose(scores.categories, expected.categories, atol=1e-6)
    np.testing.assert_allclose(scores.unsafe, expected.categories.max(axis=1), atol=1e-6)
    nothing = probe.score([], None, TRAINED)
    assert nothing.unsafe.shape == (0,)
    assert nothing.categories.shape == (0, 8)
    with pytest.raises(ValueError, match="Got 5 images but 1 prompts"):
        probe.score(images, [None], TRAINED)


def test_wrong_match_and_wrong_width_are_refused(encoder):
    with pytest.raises(ConfigError, match="match is 'key'; use one of members, name"):
        LinearProbe(encoder, ParallelMLP(encoder.width, 8), TRAINED, match="key")
    with pytest.raises(CheckpointError, match="width 64, 'tiny-clip' has 128"):
        LinearProbe(encoder, ParallelMLP(64, 8), TRAINED)


# Soft prompts


def test_soft_prompts_of_real_tokens_are_read_as_the_text_is(encoder):
    text, ids = "", []
    while len(ids) < 8:  # a text of exactly eight tokens
        text = f"{text} nine"
        ids = encoder.tokenizer(text, add_special_tokens=False).input_ids
    text = encoder.tokenizer.decode(ids[:8])
    assert encoder.tokenizer(text, add_special_tokens=False).input_ids == ids[:8]
    head = SoftPrompts(encoder, ["x"])
    table = encoder.model.text_model.embeddings.token_embedding.weight
    head.prompts.data[0, 1] = table[ids[:8]]
    torch.testing.assert_close(
        head.embed()[0, 1], encoder.encode_texts([text])[0][0, 0], atol=5e-5, rtol=1e-5
    )
    pixels = torch.randn(3, 3, 40, 40)
    inputs = encoder.tokenizer([text], return_tensors="pt")
    with torch.no_grad():
        own = encoder.model(pixel_values=pixels, **inputs).logits_per_image
    ours = head(encoder.encode_pixel_values(pixels)[:, 0].detach())
    torch.testing.assert_close(ours[:, 0, 1], own[:, 0], atol=1e-4, rtol=1e-4)


def test_soft_prompts_start_as_the_papers_sentences(encoder):
    head = SoftPrompts(encoder, ["three", "nine"], length=4)
    table = encoder.model.text_model.embeddings.token_embedding.weight
    for k, name in enumerate(("three", "nine")):
        for side, end in enumerate(("safe", f"unsafe in {name}")):
            text = f"This image is about something {end}"
            ids = encoder.tokenizer(text, add_special_tokens=False).input_ids
            assert torch.equal(head.prompts[k, side].detach(), table[ids[-4:]])
    long = SoftPrompts(encoder, ["three"], length=40)
    ids = encoder.tokenizer("This image is about something safe", add_special_tokens=False).input_ids
    assert torch.equal(long.prompts[0, 0, -len(ids) :].detach(), table[ids])
    spare = long.prompts[0, 0, : -len(ids)]
    assert 0 < spare.abs().max() < 0.2


def test_only_the_prompts_learn(encoder):
    head = SoftPrompts(encoder, ["three", "nine"])
    assert [name for name, _ in head.named_parameters()] == ["prompts"] == list(head.state_dict())
    before = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    images = encoder.encode_pixel_values(torch.randn(16, 3, 40, 40))[:, 0].detach()
    head.eval()
    stale = head(images)
    history = fit(head, [images], torch.randint(0, 2, (16, 2)).float(), FitOptions(6, 0.01))
    assert history[-1]["loss"] < history[0]["loss"]
    assert not torch.equal(head(images), stale)  # what eval keeps is made anew after training
    assert torch.equal(head(images), head(images))
    for name, tensor in encoder.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert all(parameter.grad is None for parameter in encoder.model.parameters())


def test_soft_prompts_need_a_clip_and_a_length_that_fits(encoder):
    with pytest.raises(ConfigError, match=r"needs a CLIP; 'big' is a 'siglip'.*linear probe"):
        SoftPrompts(SimpleNamespace(family="siglip", name="big"), ["x"])
    for length in (0, 76):
        with pytest.raises(ConfigError, match=f"length {length} do not fit; 'tiny-clip' takes 1 to 75"):
            SoftPrompts(encoder, ["x"], length)


# Run folders

SAVE = {"linear_probe": save_linear_probe, "prompt_learning": save_prompt_learning}
LOAD = {"linear_probe": load_linear_probe, "prompt_learning": load_prompt_learning}


@pytest.fixture(params=KINDS)
def saved(request, classifiers, tmp_path):
    """Kind, run folder and the classifier in it."""
    run = RunDir.create(tmp_path / "run", kind=request.param)
    SAVE[request.param](run, classifiers[request.param])
    return request.param, run, classifiers[request.param]


def test_a_saved_head_scores_the_same(saved, noise_image):
    kind, run, probe = saved
    loaded = LOAD[kind](run, device="cpu", match="name")
    assert loaded.name == "run"
    assert loaded.match == "name"
    assert loaded.default_taxonomy.hash == TRAINED.hash
    images = [noise_image(seed) for seed in range(3)]
    one, other = (found.score(images, None, TRAINED) for found in (probe, loaded))
    np.testing.assert_array_equal(one.categories, other.categories)


def test_a_head_for_another_encoder_is_refused(saved, encoder):
    kind, run, _ = saved
    run.update_manifest(encoder_fingerprint="0" * 64)
    with pytest.raises(CheckpointError, match=f"fingerprint {'0' * 16}.*{encoder.fingerprint[:16]}"):
        LOAD[kind](run, encoder=encoder)
    run.update_manifest(width=512, encoder_fingerprint=encoder.fingerprint)
    with pytest.raises(CheckpointError, match=r"width 512.*width 128"):
        LOAD[kind](run, encoder=encoder)


def test_a_damaged_run_is_refused(saved, encoder):
    kind, run, _ = saved
    (run.path / WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=f"holds no {kind} that can be loaded"):
        LOAD[kind](run, encoder=encoder)
    (run.path / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=f"holds no {kind} that can be loaded"):
        LOAD[kind](run, encoder=encoder)


def test_a_run_of_another_kind_or_unfinished_is_refused(tmp_path, encoder):
    unfinished = RunDir.create(tmp_path / "unfinished", kind="linear_probe")
    with pytest.raises(CheckpointError, match="names no encoder; its training did not finish"):
        load_linear_probe(unfinished, encoder=encoder)
    with pytest.raises(CheckpointError, match="kind 'linear_probe', not 'prompt_learning'"):
        load_prompt_learning(unfinished, encoder=encoder)


def test_weights_for_another_number_of_categories_are_refused(saved, encoder):
    kind, run, _ = saved
    run.write_taxonomy(DIGITS)
    with pytest.raises(CheckpointError, match="Error\\(s\\) in loading"):
        LOAD[kind](run, encoder=encoder)
