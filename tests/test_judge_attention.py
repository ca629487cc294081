"""A packed group computes what its rows compute apart: same logits, same loss, same gradients."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from judge.vlm.adapter import LoraOptions, add_lora
from judge.vlm.encode import ChatEncoder, Variant
from judge.vlm.random_bases import RANDOM_BASES
from judge.vlm.score import stack_visual
from judge.vlm.training.attention import attend, policy_grouped_attention, register
from judge.vlm.training.collate import pack_groups
from judge.vlm.training.trainer import ImageFeatureCache, answer_loss
from prompts import Category, Taxonomy, render
from prompts.errors import ArbiterError
from prompts.template import Chat

SHORT = Taxonomy("short", "1", (Category("hate", "contempt"),))
LONG = Taxonomy(
    "long",
    "1",
    (Category("violence", "people are hurt"), Category("hate", "contempt"), Category("nudity", "no clothes")),
)
ROWS = (  # of each group: prompt and which answer; bodies of differing length
    (SHORT, (("a street", 1), (None, 0), ("a much longer prompt, to be padded to", 1))),
    (LONG, (("x", 0), ("the same again", 3), (None, 2))),
)


def encode(processor, images, template="policy_first"):
    """Encoded rows of ROWS, and their images' tensors."""
    encoder = ChatEncoder(processor, template)
    encoded, visual = [], []
    for taxonomy, rows in ROWS:
        for prompt, answer in rows:
            run, seen = encoder.encode_image(images[len(visual)])
            chat = render(taxonomy, prompt, template=template)
            encoded.append(encoder.encode_row([Variant(Chat(chat.messages, (chat.answers[answer],)))], run))
            visual.append(seen)
    return encoded, visual


def separate(model, encoded, visual):
    """Logits at the answers' positions, each row run by itself, plainly."""
    kept = []
    for row, seen in zip(encoded, visual, strict=True):
        answer = row.continuations[0].tokens
        ids = torch.tensor([row.prefix + row.chain + answer])
        inputs = {"mm_token_type_ids": (ids == 3).int()} if "image_grid_thw" in seen else {}
        if model.config.model_type == "gemma3":
            inputs = {"token_type_ids": (ids == 3).int()}
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs, **seen).logits[0]
        kept.append(logits[-len(answer) - 1 : -1])
    return torch.cat(kept)


def packed(model, encoded, visual):
    batch = pack_groups(model, encoded, len(ROWS), stack_visual(visual))
    labels = batch.pop("labels")
    outputs = model(**batch, **stack_visual(visual), use_cache=False)
    return outputs, labels


@pytest.fixture
def images(noise_image):
    """Of sizes that families cut into differing numbers of tiles or patches."""
    sizes = ((20, 16), (16, 16), (30, 20), (17, 40), (48, 16), (16, 16))
    return [noise_image(seed, size) for seed, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("family", "kv_heads", "template"),
    [
        ("llava", 4, "policy_first"),
        ("llava", 1, "policy_first"),
        *((family, 2, "policy_first") for family in RANDOM_BASES),
        *((family, 2, "perspective") for family in ("llava", "qwen2_5_vl", "gemma3")),
    ],
)
def test_logits_of_packed_groups_are_those_of_separate_rows(tiny_vlm, images, family, kv_heads, template):
    model, processor = tiny_vlm(family, kv_heads=kv_heads)
    encoded, visual = encode(processor, images, template)
    with torch.no_grad():
        expected = separate(model, encoded, visual)
        model.set_attn_implementation({"text_config": register()})
        outputs, labels = packed(model, encoded, visual)
    assert labels.tolist() == [token for row in encoded for token in row.continuations[0].tokens]
    assert outputs.logits.reshape(expected.shape) == pytest.approx(expected, abs=2e-4)
    assert expected.std() > 0.1


@pytest.mark.parametrize(
    ("family", "options", "checkpointing"),
    [
        ("llava", {}, False),
        ("llava", {"use_dora": True}, True),
        ("llava", {"use_rslora": True}, False),
        ("llava", {"train_projector": True}, False),
        *((family, {"train_projector": True}, True) for family in ("llava", "gemma3", "internvl", "smolvlm")),
    ],
    ids=str,
)
def test_loss_and_every_gradient_are_those_of_separate_rows(tiny_vlm, images, family, options, checkpointing):
    model, processor = tiny_vlm(family, kv_heads=2)
    model, _ = add_lora(model, LoraOptions(lora_r=4, **options), base="tiny")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():  # a fresh adapter's B is zero, and so would be the gradient of A
        for name, parameter in trained.items():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    encoded, visual = encode(processor, images)
    plain = model.get_base_model()
    logits = separate(model, encoded, visual)
    labels = torch.tensor([token for row in encoded for token in row.continuations[0].tokens])
    loss = F.cross_entropy(logits, labels)
    expected = torch.autograd.grad(loss, list(trained.values()))

    plain.set_attn_implementation({"text_config": register()})
    if checkpointing:
        model.train()
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    outputs, labels = packed(model, encoded, visual)
    found_loss = answer_loss(outputs, labels)
    found = torch.autograd.grad(found_loss, list(trained.values()))
    assert found_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    scale = max(gradient.abs().max().item() for gradient in expected)
    for name, left, right in zip(trained, found, expected, strict=True):
        assert right.abs().max() > 0, f"{name} gets no gradient, so comparing it proves nothing"
        assert (left - right).abs().max().item() <= 1e-4 * scale, name


@pytest.mark.parametrize("family", RANDOM_BASES)
def test_kept_features_are_those_of_the_pixels(tiny_vlm, images, family):
    """Also where some images of a batch are known, and one stands in it twice."""
    model, processor = tiny_vlm(family)
    _, visual = encode(processor, images)
    names, cache = ["b", "a", "c", "d", "e", "a"], ImageFeatureCache()
    visual[1] = visual[5]
    with torch.no_grad():
        for chosen in ([1, 3], [0, 1, 2, 3, 4, 5], [5, 4]):
            seen = [visual[place] for place in chosen]
            lengths = [len(one["pixel_values"]) for one in seen]
            batch = stack_visual(seen)
            kept = cache.get(model, [names[place] for place in chosen], lengths, batch)
            expected = model.get_image_features(**batch, return_dict=True).pooler_output
            expected, found = (
                torch.cat([*parts]).flatten() for parts in (expected, kept["image"].pooler_output)
            )
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_rows_of_one_group_share_a_policy(tiny_vlm, images):
    model, processor = tiny_vlm()
    encoded, visual = encode(processor, images)
    with pytest.raises(ArbiterError, match="differ before the image"):
        pack_groups(model, encoded, 1, stack_visual(visual))


def test_a_share_of_the_loss_counts_all_tokens_of_the_step():
    logits, labels = torch.randn(5, 7), torch.arange(5)
    outputs = type("Outputs", (), {"logits": logits})
    whole = F.cross_entropy(logits, labels)
    assert answer_loss(outputs, labels) == pytest.approx(whole)
    assert answer_loss(outputs, labels, torch.tensor(10)) == pytest.approx(whole / 2)


class Heads(nn.Module):
    """What transformers' own attention asks its module, for masks of the ordinary shape."""

    is_causal = True

    def __init__(self, repeats=1):
        super().__init__()
        self.num_key_value_groups = repeats


def plain_attention(query, key, value, reads, scaling):
    """Softmax attention in float64 under a mask over the whole packed sequence (N, S, S)."""
    scores = query @ key.transpose(2, 3) * scaling
    return scores.masked_fill(~reads[:, None], -torch.inf).softmax(dim=-1) @ value


@given(
    sequences=st.integers(1, 3),
    rows=st.integers(1, 4),
    policy=st.integers(0, 6),
    length=st.integers(1, 5),
    kv_heads=st.integers(1, 3),
    repeats=st.integers(1, 3),
    scaled=st.booleans(),
    data=st.data(),
)
def test_grouped_attention_is_masked_attention(
    sequences, rows, policy, length, kv_heads, repeats, scaled, data
):
    real = torch.tensor([data.draw(st.integers(min(policy, 1), policy)) for _ in range(sequences)])
    total = policy + rows * length
    generator = torch.Generator().manual_seed(total)
    query = torch.randn(sequences, kv_heads * repeats, total, 4, dtype=torch.float64, generator=generator)
    key, value = (
        torch.randn(sequences, kv_heads, total, 4, dtype=torch.float64, generator=generator) for _ in range(2)
    )
    readable = torch.arange(policy) < real[:, None]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.cat(
        [
            readable[:, None, None].expand(sequences, rows, length, policy),
            causal.expand(sequences, rows, length, length),
        ],
        dim=-1,
    )
    reads = torch.zeros(sequences, total, total, dtype=torch.bool)
    reads[:, :policy, :policy] = torch.ones(policy, policy, dtype=torch.bool).tril()
    for row in range(rows):
        own = slice(policy + row * length, policy + (row + 1) * length)
        reads[:, own, :policy] = readable[:, None]
        reads[:, own, own] = causal
    scaling = 0.3 if scaled else None
    # One row of one token without a policy has the shape of an ordinary mask, and means the same.
    found, weights = policy_grouped_attention(Heads(repeats), query, key, value, mask, scaling=scaling)
    spread = (states.repeat_interleave(repeats, dim=1) for states in (key, value))
    expected = plain_attention(query, *spread, reads, scaling or 0.5)
    assert weights is None
    assert torch.allclose(found.transpose(1, 2), expected, atol=1e-12)


def test_dropout_reaches_the_attention_weights():
    query = torch.ones(1, 1, 6, 4)
    mask = torch.ones(1, 2, 2, 4, dtype=torch.bool)
    kept, _ = policy_grouped_attention(Heads(), query, query, query, mask)
    dropped, _ = policy_grouped_attention(Heads(), query, query, query, mask, dropout=0.5)
    assert torch.allclose(kept, torch.ones_like(kept))
    assert not torch.allclose(dropped, kept)


def test_registering_twice_is_harmless():
    assert register() == register() == "policy_grouped"


@pytest.mark.parametrize("causal", [True, False])
def test_attention_in_bfloat16_is_that_in_float32_but_for_rounding(causal):
    """On a CPU it takes another way, whose values and gradients are those of the fused kernel."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(2, 3, 7, 8, generator=generator) for _ in range(3)]
    mask = None if causal else torch.rand(2, 1, 7, 7, generator=generator) < 0.7
    if mask is not None:
        mask[..., 0] = True  # every query may attend to something
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        states = [part.to(dtype, copy=True).requires_grad_() for part in drawn]
        output = attend(*states, mask, 0.0, None)
        output.float().square().sum().backward()
        found.append([output.detach().float(), *(state.grad.float() for state in states)])
    for exact, rounded in zip(*found, strict=True):
        assert (exact - rounded).abs().max() < 0.03 * exact.abs().max()
