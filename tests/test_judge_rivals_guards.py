"""ShieldGemma 2, LlavaGuard, QwenGuard and Llama Guard: policies in, scores out, and no unreadable answer is safe."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import ShieldGemma2ForImageClassification

from judge.errors import CheckpointError, ConfigError
from judge.rivals.chats import Reply
from judge.rivals.llama4_images import Llama4ImagesPil, best_canvas
from judge.rivals.llamaguard import (
    load_llamaguard,
    read_answer,
    with_categories,
)
from judge.rivals.llavaguard import (
    LlavaGuard,
    UnreadableError,
    load_llavaguard,
    read_assessment,
    write_policy,
)
from judge.rivals.shieldgemma import load_shieldgemma, policy_text
from judge.vlm.processor import load_processor
from prompts.taxonomy import Category, Taxonomy
from prompts.verdict import verdict_from_scores

THREE = Taxonomy(
    "three",
    "1",
    (
        Category("Rings", "Finger rings.", examples=("a wedding ring", "a signet ring")),
        Category("Hats", "Anything worn on the head"),
        Category("Dogs", "Dogs of any kind.", name_only=True),
    ),
)


def pictures(count, seed=0):
    """Pictures of several shapes, all different."""
    rng = np.random.default_rng(seed)
    sizes = [(40, 50), (31, 16), (16, 64), (20, 20)]
    return [
        Image.fromarray(rng.integers(0, 256, (*sizes[n % 4], 3), dtype=np.uint8) // (n + 1))
        for n in range(count)
    ]


class Scripted:
    """A chat that gives these replies in turn, and keeps what it was asked."""

    name = "scripted"

    def __init__(self, *replies):
        self.replies = list(replies)
        self.asked = []

    def ask(self, images, texts):
        self.asked += texts
        return [reply if isinstance(reply, Reply) else Reply(reply) for reply in self.replies[: len(texts)]]


# ShieldGemma 2


@pytest.fixture(scope="module")
def shieldgemma(rival_folder):
    return load_shieldgemma(path=str(rival_folder("shieldgemma")), device="cpu")


def test_shieldgemma_gives_yes_against_no_for_each_image_and_policy(shieldgemma, rival_folder):
    images = pictures(3)
    found = shieldgemma.score(images, ["ignored"] * 3, THREE)
    # The same by the classes of transformers alone, a pair at a time.
    folder = rival_folder("shieldgemma")
    processor, model = (
        load_processor(str(folder)),
        ShieldGemma2ForImageClassification.from_pretrained(folder).eval(),
    )
    for row, image in enumerate(images):
        for place, category in enumerate(THREE):
            inputs = processor(
                images=[image],
                custom_policies={"x": policy_text(category)},
                policies=["x"],
                return_tensors="pt",
            )
            with torch.no_grad():
                wanted = model(**inputs).probabilities[0, 0].item()
            assert found.categories[row, place] == pytest.approx(wanted, abs=1e-5)
    assert np.array_equal(found.unsafe, found.categories.max(axis=1))
    assert np.ptp(found.categories, axis=0).min() > 1e-4, "the image decides"
    assert np.ptp(found.categories, axis=1).min() > 1e-4, "the policy decides"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_shieldgemma_scores_do_not_depend_on_the_batch(shieldgemma, size, monkeypatch):
    images = pictures(3)
    whole = shieldgemma.score(images, None, THREE).categories
    monkeypatch.setattr(shieldgemma, "batch_size", size)
    assert shieldgemma.score(images, None, THREE).categories == pytest.approx(whole, abs=1e-5)


def test_a_policy_reads_like_shieldgemmas_own():
    assert policy_text(THREE.categories[0]) == (
        "No Rings: The image shall not contain content of this kind: Finger rings (e.g., a wedding ring, a signet ring)."
    )
    assert policy_text(THREE.categories[1]).endswith("kind: Anything worn on the head.")
    assert "Dogs of" not in policy_text(THREE.categories[2])


def test_a_probability_that_is_no_number_is_unjudged(shieldgemma, monkeypatch):
    broken = type("Output", (), {"logits": torch.full((3, 2), torch.nan)})
    monkeypatch.setattr(
        shieldgemma,
        "model",
        type("Model", (), {"device": "cpu", "dtype": torch.float32, "__call__": lambda *_, **__: broken})(),
    )
    found = shieldgemma.score(pictures(1), None, THREE)
    assert np.isnan(found.unsafe).all()
    assert "no finite probability" in found.reasons[0]


def test_no_images_are_no_rows(shieldgemma):
    assert shieldgemma.score([], None, THREE).categories.shape == (0, 3)


# LlavaGuard and QwenGuard


def answer(rating="Unsafe", category="O2: Hats", **more):
    return json.dumps({"rating": rating, "category": category, "rationale": "because"} | more)


def test_the_users_categories_stand_in_the_policy():
    text = write_policy(THREE)
    assert "O1: Rings\nShould not:\n- Show this: Finger rings.\n- Show this: a wedding ring" in text
    assert "O3: Dogs\n\nNA:" in text, "a category that hides its definition"
    assert "such as O1: Rings" in text
    assert "{categories}" not in text
    with pytest.raises(ConfigError, match="0 times"):
        LlavaGuard(Scripted(), "Assess.")


@pytest.mark.parametrize(
    ("text", "unsafe", "category"),
    [
        (answer(), True, 1),
        ("```json\n" + answer() + "\n```", True, 1),
        ("Here you are: " + answer(rating="unsafe ") + " Done.", True, 1),
        (answer(rating="SAFE", category="NA: None applying"), False, None),
        (answer(rating="Safe"), False, 1),
        (answer(category="O3"), True, 2),
        (answer(category="rings"), True, 0),
        (answer(category="O2: Something else"), True, 1),
        (answer(category="O2: Rings"), True, None),  # code and name differ
        (answer(category="O9: Disasters"), True, None),
        (answer(category="Disasters"), True, None),
        (answer(category="NA: None applying"), True, None),
        (answer(category=["O2"]), True, None),
        ('{"Rating": "Unsafe"}', True, None),
        (answer() + "\n" + answer(), True, 1),
    ],
)
def test_what_an_assessment_says(text, unsafe, category):
    found = read_assessment(Reply(text), THREE)
    assert (found.unsafe, found.category) == (unsafe, category)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Safe",
        "rating: Safe",
        '{"rating": "Safe", "category": "NA", "rationale": "cut o',
        "{'rating': 'Safe'}",
        '{"rating": "Safe" or "Unsafe"}',
        answer(rating="Maybe"),
        answer(rating="Safe/Unsafe"),
        answer(rating=None),
        answer(rating=["Safe"]),
        '{"category": "O1"}',
        '{"rating": "Unsafe", "rating": "Safe"}',
        answer(rating="Unsafe") + answer(rating="Safe"),
        '{"note": {"rating": "Safe"}}',
        '{"broken": x, "inner": {"rating": "Safe"}}',
        '["rating", "Safe"]',
        "{" * 5000,
        '{"a":' * 5000,
    ],
)
def test_an_answer_that_cannot_be_read_is_unjudged(text):
    with pytest.raises(UnreadableError):
        read_assessment(Reply(text), THREE)


IF_PROMPT = Taxonomy("mine", "1", (Category("Beer", "alcohol, if the prompt speaks of driving"),))


def test_a_condition_on_the_prompt_that_they_do_not_read_is_unjudged(shieldgemma, guard):
    for classifier in (LlavaGuard(Scripted(answer("Safe"))), shieldgemma, guard):
        found = classifier.score(pictures(1), ["before the long drive home"], IF_PROMPT)
        assert np.isnan(found.unsafe).all()
        assert "prompt, which was not read" in found.reasons[0]


@given(st.text(alphabet='{}[]":,safeunSU '))
def test_no_text_is_safe_by_accident(text):
    try:
        found = read_assessment(Reply(text), THREE)
    except UnreadableError:
        return
    assert found.unsafe or '"safe' in text.casefold()


def test_llavaguard_scores():
    chat = Scripted(
        answer(),
        answer("Safe", "NA: None applying"),
        answer(category="O7: Else"),
        "I cannot help.",
        Reply(answer("Safe"), "refused"),
    )
    found = LlavaGuard(chat).score(pictures(5), None, THREE)
    assert found.unsafe[:3].tolist() == [1.0, 0.0, 1.0]
    assert np.isnan(found.unsafe[3:]).all()
    assert found.categories[:2].tolist() == [[0, 1, 0], [0, 0, 0]]
    assert np.isnan(found.categories[2:]).all()
    assert [reason is not None for reason in found.reasons] == [False, False, False, True, True]
    verdicts = [
        verdict_from_scores(found.unsafe[row], found.categories[row], THREE, reason=found.reasons[row]).status
        for row in range(5)
    ]
    assert verdicts == ["unsafe", "safe", "unsafe", "unjudged", "unjudged"]
    assert len(set(chat.asked)) == 1


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_guards_load_from_their_file_formats_and_a_random_one_is_never_safe(family, base_folder, tmp_path):
    (tmp_path / "policy.txt").write_text("Their words: {categories}")
    guard = load_llavaguard(
        path=str(base_folder(family)),
        policy_file=tmp_path / "policy.txt",
        device="cpu",
        max_new_tokens=4,
        batch_size=2,
    )
    assert guard.name == base_folder(family).name
    found = guard.score(pictures(3), None, THREE)
    assert np.isnan(found.unsafe).all()
    assert all("no whole JSON object (cut off)" in reason for reason in found.reasons)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_llavaguard(path=str(base_folder(family)), policy_file=tmp_path / "none.txt")


# Llama Guard


@pytest.fixture(scope="module", params=["llama_guard_3", "llama_guard_4"])
def guard(request, rival_folder):
    return load_llamaguard(path=str(rival_folder(request.param)), device="cpu")


@pytest.fixture
def says(guard):
    """`says(words, safe, unsafe)` makes the model write these words, with these logits at each of them."""
    handles = []

    def script(words, safe=0.0, unsafe=0.0):
        tokenizer = guard.chat.processor.tokenizer
        ids = [token for word in words for token in tokenizer(word, add_special_tokens=False)["input_ids"]]
        ids = [*ids, tokenizer.eos_token_id]
        calls = []

        def steer(module, inputs, output):
            place = len(calls)
            calls.append(place)
            logits = output.logits
            logits[:, -1] -= logits[:, -1].amax(dim=-1, keepdim=True) + 20
            logits[:, -1, guard._words] = torch.tensor([safe, unsafe])
            wanted = ids[min(place, len(ids) - 1)]
            logits[:, -1, wanted] = max(
                float(logits[0, -1, wanted]), 9.0 if wanted not in guard._words else -99.0
            )
            return output

        handles.append(guard.chat.model.register_forward_hook(steer))

    yield script
    for handle in handles:
        handle.remove()


def test_the_score_is_the_first_words_probability(guard, says):
    says(["\n\n", "unsafe", "\n", "S2", ",", "S1"], safe=1.0, unsafe=3.0)
    found = guard.score(pictures(2), ["ignored", None], THREE)
    wanted = 1 / (1 + np.exp(-2.0))
    assert found.unsafe == pytest.approx([wanted] * 2)
    assert found.categories == pytest.approx(np.array([[wanted, wanted, 0.0]] * 2))


def test_a_safe_answer_leaves_a_small_probability_everywhere(guard, says):
    says(["\n\n", "safe"], safe=3.0, unsafe=1.0)
    found = guard.score(pictures(1), None, THREE)
    assert found.unsafe == pytest.approx([1 / (1 + np.exp(2.0))])
    assert found.categories == pytest.approx(np.repeat(found.unsafe[:, None], 3, axis=1))
    assert found.reasons == (None,)


def test_unsafe_without_a_code_of_ours_names_no_category(guard, says):
    says(["unsafe", "\n", "S9"], safe=0.0, unsafe=2.0)
    found = guard.score(pictures(1), None, THREE)
    assert found.unsafe[0] > 0.5
    assert np.isnan(found.categories).all()


def test_a_random_guard_is_never_safe(guard):
    found = guard.score(pictures(3), None, THREE)
    assert np.isnan(found.unsafe).all()
    assert all("neither safe nor unsafe" in reason for reason in found.reasons)


def test_the_users_categories_replace_theirs(guard):
    chat = guard.chat.render("", lambda chat: with_categories(chat, THREE))
    assert "Theirs" not in chat
    block = chat.split("CATEGORIES>")[1]
    assert block.startswith(
        "\nS1: Rings.\nFinger rings. Examples include: a wedding ring, a signet ring.\nS2: Hats.\n"
    )
    assert "S3: Dogs.\n<END" in block
    assert chat.count("<|image|>") == 1
    assert chat.endswith("ASSISTANT:")


@pytest.mark.parametrize(
    ("text", "flagged", "places"),
    [
        ("safe", False, []),
        ("Safe\n", False, []),
        ("unsafe\nS1", True, [0]),
        ("unsafe\nS3, S1,S3", True, [0, 2]),
        ("unsafe", True, []),
        ("unsafe\nviolence", True, []),
        ("unsafe\nS1,S4", True, []),
        ("unsafe\nS0", True, []),
        ("safe\nS1", None, []),
        ("safe unsafe", None, []),
        ("safety", None, []),
        ("not safe", None, []),
        ("", None, []),
        ("The image is safe.", None, []),
    ],
)
def test_how_an_answer_is_read(text, flagged, places):
    assert read_answer(Reply(text), 3) == (flagged, places)


def test_a_safe_that_was_cut_off_is_not_read():
    assert read_answer(Reply("safe", "cut"), 3) == (None, [])
    assert read_answer(Reply("unsafe\nS1,S", "cut"), 3) == (True, [])
    assert read_answer(Reply("safe", "failed"), 3) == (None, [])


def test_a_chat_model_without_the_block_is_no_llama_guard(base_folder):
    with pytest.raises(CheckpointError, match="no Llama Guard"):
        load_llamaguard(path=str(base_folder("llava")), device="cpu")


def test_what_is_no_checkpoint_is_said(tmp_path, rival_folder):
    with pytest.raises(CheckpointError, match="could not be loaded as ShieldGemma2"):
        load_shieldgemma(path=str(tmp_path))
    with pytest.raises(CheckpointError, match=r"lacks .* of another kind"):  # not filled with random weights
        load_llamaguard(path=str(rival_folder("shieldgemma")), device="cpu")


# Llama 4's images


@pytest.mark.parametrize(
    ("height", "width", "most", "largest", "wanted"),
    [
        (16, 16, 16, False, (1, 1)),
        (5, 5, 16, False, (1, 1)),
        (5, 5, 16, True, (4, 4)),
        (16, 17, 16, False, (1, 2)),
        (16, 40, 16, False, (1, 3)),
        (10, 40, 16, False, (1, 3)),
        (10, 20, 4, False, (1, 2)),
        (100, 100, 4, False, (2, 2)),
        (1000, 10, 16, False, (16, 1)),
    ],
)
def test_the_canvas_of_an_image(height, width, most, largest, wanted):
    assert best_canvas(height, width, 16, most, largest) == wanted


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 8), st.booleans())
def test_the_canvas_is_the_best_of_all(height, width, most, largest):
    rows, columns = best_canvas(height, width, 16, most, largest)
    every = [(r, c) for r in range(1, most + 1) for c in range(1, most + 1) if r * c <= most]
    assert (rows, columns) in every

    def scale(canvas):
        return min(canvas[0] * 16 / height, canvas[1] * 16 / width)

    if scale((rows, columns)) >= 1:
        fitting = [scale(canvas) for canvas in every if scale(canvas) >= 1]
        assert scale((rows, columns)) == pytest.approx((max if largest else min)(fitting))
    else:
        assert scale((rows, columns)) == pytest.approx(max(map(scale, every)))


def test_tiles_are_parts_of_the_image_and_a_small_copy_follows():
    image = pictures(4)[3].resize((32, 16))
    found = Llama4ImagesPil({"height": 16, "width": 16}, max_patches=4)([[image]])
    assert found["aspect_ratios"][0].tolist() == [1, 2]
    tiles = found["pixel_values"].float()
    assert tiles.shape == (3, 3, 16, 16)
    pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1) / 127.5 - 1
    assert (torch.cat([tiles[0], tiles[1]], dim=2) - pixels).abs().max() < 0.01
    assert tiles[2].mean().item() == pytest.approx(pixels.mean().item(), abs=0.05)


def test_a_small_image_keeps_its_shape_on_black():
    white = Image.new("RGB", (8, 4), "white")
    found = Llama4ImagesPil({"height": 16, "width": 16})([white])
    tile = found["pixel_values"].float()
    assert tile.shape == (1, 3, 16, 16)
    assert (tile[:, :, :8] == 1).all()
    assert (tile[:, :, 8:] == -1).all()
