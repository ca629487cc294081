"""judge.encoders.fare and harden: adversarial training keeps its budget, its original encoder and its targets."""

import json
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from judge.encoders.dual import DualEncoder
from judge.encoders.fare import (
    FareOptions,
    copy_encoder,
    fare,
    fare_loss,
    resize_to_input,
    save_encoder,
    token_cosines,
    unfreeze_image_tower,
)
from judge.encoders.perturb import as_pixels, cosine_with_warmup, perturb
from judge.errors import ConfigError
from judge.runs.folder import RunDir
from judge.student.distill_data import DistillOptions
from judge.student.harden import (
    CARRIERS,
    MisleadingGroups,
    PixelCollator,
    RobustDistillation,
    RobustOptions,
    mislead_prompt,
)
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.student import Student, load_student, save_student
from judge.student.teacher_scores import ScoredGroup
from prompts import Category, Example, FlipOptions, Taxonomy, draw_groups, load_taxonomy

FAMILIES = ("clip", "siglip")


def load(tiny_encoder_folder, family):
    return DualEncoder.load(tiny_encoder_folder(family))


def pictures(noise_image, count, size=(16, 16)):
    return [Example(str(n), noise_image(n, size)) for n in range(count)]


@settings(max_examples=40, deadline=None)
@given(
    epsilon=st.floats(0, 1),
    steps=st.integers(0, 4),
    seed=st.integers(0, 9),
    slope=st.sampled_from([-1.0, 1.0]),
)
def test_perturb_keeps_budget_and_range_whatever_the_loss(epsilon, steps, seed, slope):
    torch.manual_seed(seed)
    clean = torch.rand(3, 3, 4, 5)
    clean[0] = torch.rand(3, 4, 5).round()  # pixels on the edge of the range
    moved = perturb(lambda p: slope * (p * torch.linspace(-1, 1, 5)).sum(), clean, epsilon, steps)
    assert ((moved >= 0) & (moved <= 1)).all()
    assert (moved - clean).abs().max() <= epsilon + 1e-6
    assert not moved.requires_grad


def test_perturb_finds_the_corner_of_a_linear_loss():
    torch.manual_seed(0)
    clean, weight = 0.3 + 0.4 * torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    moved = perturb(lambda p: (p * weight).sum(), clean, 0.1, 2)
    torch.testing.assert_close(moved, clean + 0.1 * weight.sign(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_perturb_beats_random_and_moves_no_weight(tiny_encoder_folder, family):
    torch.manual_seed(0)
    encoder = load(tiny_encoder_folder, family)
    unfreeze_image_tower(encoder)
    clean = torch.rand(8, 3, 16, 16)
    wanted = encoder.encode_pixels(clean).detach()

    def loss(pixels):
        return fare_loss(encoder.encode_pixels(pixels), wanted, 1.0)

    by_chance, found = (loss(perturb(loss, clean, 8 / 255, steps)).item() for steps in (0, 3))
    assert found > 2 * by_chance
    assert all(p.grad is None for p in encoder.model.parameters())


def test_the_fare_loss_by_hand():
    original = torch.zeros(2, 3, 2)
    tokens = torch.tensor([[[1.0, 2.0], [1.0, 0.0], [0.0, 3.0]], [[0.0, 0.0], [2.0, 0.0], [0.0, 0.0]]])
    assert fare_loss(tokens, original, 0.0).item() == pytest.approx((5 + 0) / 2)
    assert fare_loss(tokens, original, 0.5).item() == pytest.approx((5 + 0.5 * 5 + 0.5 * 2) / 2)
    assert [x.tolist() for x in token_cosines(torch.ones(1, 3, 2), torch.ones(1, 3, 2))] == [
        [pytest.approx(1.0)],
        [pytest.approx(1.0)],
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_input_bytes_are_what_the_processor_makes(tiny_encoder_folder, family, noise_image):
    encoder = load(tiny_encoder_folder, family)
    examples = pictures(noise_image, 3, (37, 29))
    values = resize_to_input(encoder, examples)
    assert values.dtype == torch.uint8
    assert values.shape == (3, 3, 16, 16)
    torch.testing.assert_close(
        encoder.encode_pixels(as_pixels(values)),
        encoder.encode_images([example.image for example in examples]),
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("blocks", [None, 1])
def test_fare_brings_attacked_tokens_home_and_touches_nothing_else(
    tiny_encoder_folder, family, blocks, noise_image
):
    original = load(tiny_encoder_folder, family)
    encoder = copy_encoder(original)
    before = {name: tensor.clone() for name, tensor in original.model.state_dict().items()}
    images = resize_to_input(encoder, pictures(noise_image, 48))
    options = FareOptions(epochs=6, learning_rate=3e-3, train_batch_size=16, steps=2, blocks=blocks)
    history = fare(encoder, images, 8 / 255, options)
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    for name, tensor in original.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    changed = {n for n, tensor in encoder.model.state_dict().items() if not torch.equal(tensor, before[n])}
    assert changed
    assert all(name.startswith("vis") for name in changed)  # vision_model, visual_projection
    if blocks:
        assert not [name for name in changed if "layers.1." in name or "projection" in name]
    assert not any(p.requires_grad for p in encoder.model.parameters())

    clean = as_pixels(images[:24])
    wanted = original.encode_pixels(clean)

    def distance(model):
        torch.manual_seed(1)
        moved = perturb(lambda p: fare_loss(model.encode_pixels(p), wanted, 1.0), clean, 8 / 255, 5)
        return fare_loss(model.encode_pixels(moved), wanted, 1.0).item()

    assert distance(encoder) < 0.8 * distance(original)


def test_fare_is_the_same_again_and_follows_its_weights(tiny_encoder_folder, noise_image):
    images = resize_to_input(load(tiny_encoder_folder, "clip"), pictures(noise_image, 16))

    def run(**options):
        encoder = copy_encoder(load(tiny_encoder_folder, "clip"))
        history = fare(encoder, images, 0.03, FareOptions(epochs=1, train_batch_size=8, steps=1, **options))
        return history[0]["loss"], encoder.encode_pixels(as_pixels(images))

    one, two, held = run(), run(), run(clean_weight=1.0)
    assert torch.equal(one[1], two[1])
    assert held[0] > one[0]
    assert run(patch_weight=0.0)[0] < one[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_encoder_reloads_with_the_same_features_and_a_new_identity(
    tiny_encoder_folder, family, tmp_path
):
    encoder = copy_encoder(load(tiny_encoder_folder, family))
    with torch.no_grad():
        for parameter in unfreeze_image_tower(encoder):
            parameter.add_(0.01)
    encoder.model.requires_grad_(False)  # SigLIP's attention rounds otherwise while gradients are kept
    back = save_encoder(encoder, tmp_path / "encoder")
    pixels, texts = torch.rand(2, 3, 16, 16), ["two", "a photo of seven"]
    kept = back.model.state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in encoder.model.state_dict().items())
    # Weights mapped from a file lie elsewhere in memory, which may round the last bit of a product otherwise.
    torch.testing.assert_close(
        back.encode_pixels(pixels), encoder.encode_pixels(pixels), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(
        back.encode_texts(texts)[0], encoder.encode_texts(texts)[0], atol=1e-5, rtol=1e-5
    )
    assert back.fingerprint != encoder.fingerprint
    assert back.name == str(tmp_path / "encoder")
    assert not any(p.requires_grad for p in back.model.parameters())
    assert DualEncoder.load(tmp_path / "encoder").fingerprint == back.fingerprint


def test_what_does_not_exist_is_refused(tiny_encoder_folder):
    encoder = load(tiny_encoder_folder, "clip")
    with pytest.raises(ConfigError, match="1 to 2"):
        unfreeze_image_tower(encoder, 3)
    with pytest.raises(ConfigError, match="must all be positive"):
        FareOptions(steps=0)
    with pytest.raises(ConfigError, match="not be negative"):
        FareOptions(patch_weight=-1)
    with pytest.raises(ConfigError, match="lie is 2"):
        RobustOptions(lie=2)
    with pytest.raises(ConfigError, match="train_blocks -2"):
        RobustOptions(train_blocks=-2)


def test_the_rate_warms_up_and_falls_to_zero():
    rates = [cosine_with_warmup(40)(step) for step in range(41)]
    assert rates[0] == pytest.approx(0.25)
    assert max(rates) == rates[3] == 1.0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[40] == pytest.approx(0.0)


def test_prompts_are_misled_as_often_as_asked():
    rng, others = Random(0), ["a photo of nine"]
    off = {"lie": 0.0, "delete": 0.0, "carry": 0.0}

    def many(**options):
        return [
            mislead_prompt("one two three four", others, RobustOptions(**(off | options)), rng)
            for _ in range(200)
        ]

    assert set(many()) == {"one two three four"}
    assert set(many(lie=1.0)) == {"a photo of nine"}
    assert 60 < many(lie=0.5).count("a photo of nine") < 140
    thinned = many(delete=1.0)
    assert all(set(text.split()) <= {"one", "two", "three", "four"} for text in thinned)
    assert 350 < sum(len(text.split()) for text in thinned) < 450
    assert set(many(carry=1.0)) == {text.replace("{}", "one two three four") for text in CARRIERS}
    assert mislead_prompt(None, others, RobustOptions(lie=1.0, carry=1.0), rng) is None
    assert (
        mislead_prompt("{brace} {}", others, RobustOptions(**(off | {"carry": 1.0})), rng).count("{brace}")
        == 1
    )


def test_training_carriers_are_none_of_the_attacks():
    texts = pytest.importorskip("adversarial.texts.sentences")
    said = [text for group in (texts.CARRIERS, *texts.DISAVOWALS.values()) for text in group]
    assert not {text.replace("{prompt}", "{}") for text in said} & set(CARRIERS)


@pytest.fixture(scope="module")
def scored():
    """Groups of images whose colour is the category they violate, with a perfect teacher's scores."""
    from PIL import Image

    taxonomy = Taxonomy(
        "colours", "1", (Category("red", "a red"), Category("blue", "a blue"), Category("two", "2"))
    )
    rng = np.random.default_rng(0)
    examples = []
    for number in range(60):
        key = taxonomy.keys[number % 3]
        colour = np.eye(3)[number % 3] * 120 + 60 + rng.integers(-20, 20, (16, 16, 3))
        image = Image.fromarray(colour.astype(np.uint8))
        examples.append(Example(f"e{number}", image, f"a photo of {key}", frozenset({key})))
    groups = draw_groups(
        examples, taxonomy, FlipOptions(group_size=4, custom=0.0, focus=0.0).plain, seed=0, epoch=0, groups=12
    )
    taught = []
    for group in groups:
        known = np.array([[bool(label) for label in group.taxonomy.label(r.example)] for r in group.rows])
        scores = np.where(known, 0.9, 0.1)
        taught.append(ScoredGroup(group.taxonomy, group.rows, scores.max(axis=1), scores))
    return taxonomy, examples, taught


def batch_of(scored, encoder, **options):
    taxonomy, examples, taught = scored
    robust = RobustOptions(**options)
    stated = MisleadingGroups(taught, taxonomy, DistillOptions(drop=0.0), robust, seed=0)
    collate = PixelCollator(encoder, resize_to_input(encoder, examples), [e.id for e in examples])
    return stated, collate, robust


def test_groups_keep_their_scores_and_change_their_prompts(scored, tiny_encoder_folder):
    plain, collate, _ = batch_of(scored, load(tiny_encoder_folder, "clip"), lie=0, delete=0, carry=0)
    misled, _, _ = batch_of(scored, load(tiny_encoder_folder, "clip"), lie=0.5, delete=0.5, carry=0.5)
    one, other = plain[0], misled[0]
    assert one.prompts != other.prompts
    assert one.images == other.images
    np.testing.assert_array_equal(one.soft, other.soft)
    misled.set_epoch(1)
    assert misled[0].prompts != other.prompts
    tensors = collate([plain[0], plain[1]])
    assert tensors["image"].shape == (2, 4, 3, 16, 16)
    assert ((tensors["image"] >= 0) & (tensors["image"] <= 1)).all()
    _, examples, taught = scored
    place = [e.id for e in examples].index(one.images[0])
    wanted = torch.from_numpy(np.array(examples[place].image)).permute(2, 0, 1) / 255
    torch.testing.assert_close(tensors["image"][0, 0], wanted)
    assert taught[0].rows[0].example.id == one.images[0]


@pytest.mark.parametrize("blocks", [0, 1, -1])
def test_adversarial_training_learns_and_leaves_the_rest(scored, tiny_encoder_folder, blocks):
    torch.manual_seed(0)
    original = load(tiny_encoder_folder, "clip")
    encoder = copy_encoder(original)
    before = {name: tensor.clone() for name, tensor in original.model.state_dict().items()}
    stated, collate, robust = batch_of(
        scored, encoder, train_blocks=blocks, steps=1, token_epsilon=0.05, fare_weight=0.1
    )
    head = CrossAttentionHead(HeadConfig(original.width, 16, 2, 1, 4))
    model = RobustDistillation(encoder, original, head, DistillOptions(), robust, 8 / 255).train()
    assert not encoder.model.training
    learning = [*head.parameters(), *model.tower]
    assert bool(model.tower) == bool(blocks)
    optimizer = torch.optim.Adam(learning, lr=3e-3)
    losses = []
    for _ in range(25):
        found = model(**collate([stated[index] for index in range(8)]))
        optimizer.zero_grad()
        found["loss"].backward()
        optimizer.step()
        losses.append(found["attacked"].item())
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    assert ("fare" in found) == bool(blocks)
    for name, tensor in original.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    changed = {n for n, tensor in encoder.model.state_dict().items() if not torch.equal(tensor, before[n])}
    assert bool(changed) == bool(blocks)
    assert all(name.startswith("vis") for name in changed)


def test_attacked_rows_are_worse_than_clean_ones_and_labels_stay_out_where_told(scored, tiny_encoder_folder):
    torch.manual_seed(0)
    original = load(tiny_encoder_folder, "clip")
    stated, collate, robust = batch_of(scored, original, train_blocks=0, steps=3)
    head = CrossAttentionHead(HeadConfig(original.width, 16, 2, 1, 4))
    batch = collate([stated[index] for index in range(8)])
    model = RobustDistillation(original, original, head, DistillOptions(hard_weight=1.0), robust, 16 / 255)
    found = model(**batch)
    assert found["attacked"] > found["clean"]
    assert found["loss"].item() == pytest.approx((found["attacked"] + found["clean"]).item() / 2, rel=1e-5)

    alone = RobustDistillation(original, original, head, DistillOptions(hard_weight=0.0), robust, 16 / 255)
    wrong = batch | {"hard": 1 - batch["hard"]}
    losses = []
    for each in (batch, wrong):
        torch.manual_seed(0)
        losses.append(alone(**each)["loss"].item())
    assert losses[0] == losses[1]


def test_a_student_whose_encoder_learnt_loads_in_another_process_from_anywhere(
    tiny_encoder_folder, start_script, tmp_path, noise_image
):
    taxonomy = load_taxonomy("digits")
    run = RunDir.create(tmp_path / "robust", kind="student")
    run.write_taxonomy(taxonomy)
    encoder = copy_encoder(load(tiny_encoder_folder, "clip"))
    with torch.no_grad():
        for parameter in unfreeze_image_tower(encoder):
            parameter.mul_(1.01)
    kept = save_encoder(encoder, run.path / "encoder")
    head = CrossAttentionHead(HeadConfig(encoder.width, 16, 2, 1, 4))
    student = Student(kept, head, default_taxonomy=taxonomy)
    save_student(run, student)
    moved = run.path.rename(tmp_path / "elsewhere")
    policy = taxonomy.select(["one"]).reword({"one": "1"})
    wanted = student.score([noise_image(0)], ["two"], policy).unsafe.tolist()
    script = tmp_path / "load.py"
    script.write_text(
        "import json, sys, numpy as np\nfrom PIL import Image\nfrom judge import load_classifier\n"
        "from prompts import load_taxonomy\n"
        "noise = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)\n"
        "policy = load_taxonomy('digits').select(['one']).reword({'one': '1'})\n"
        "student = load_classifier(sys.argv[1], device='cpu')\n"
        "print(json.dumps(student.score([Image.fromarray(noise)], ['two'], policy).unsafe.tolist()))\n"
    )
    done = start_script(script, moved)
    assert done.wait() == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == pytest.approx(wanted, abs=1e-6)
    assert load_student(RunDir.open(moved)).encoder.fingerprint == kept.fingerprint
