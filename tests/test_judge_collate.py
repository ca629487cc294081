"""Groups become batches: the loss sees the answers alone, and nothing is cut without a word."""

from dataclasses import replace

import pytest
import torch

from judge.errors import CheckpointError
from judge.vlm.encode import ChatEncoder
from judge.vlm.training.answers import shared_start
from judge.vlm.training.collate import GroupCollator, PixelCache
from prompts import Category, Example, Taxonomy, render
from prompts.errors import ArbiterError, ExampleError, TemplateError
from prompts.flip.rows import Group, Row

SHORT = Taxonomy("short", "1", (Category("hate", "contempt"), Category("hate/slur", "slurs")))
LONG = Taxonomy("long", "1", (Category("violence", "people are hurt in any way"), *SHORT.categories))


@pytest.fixture
def group(noise_image):
    """`group(taxonomy, (prompt, category or None, focus), ...)`"""

    def make(taxonomy, *rows):
        return Group(
            taxonomy,
            tuple(
                Row(
                    example=Example(id=f"{taxonomy.name}-{i}", image=noise_image(i, (16, 16))),
                    taxonomy=taxonomy,
                    prompt=prompt,
                    prompt_of=None,
                    unsafe=category is not None,
                    category=category,
                    focus=focus,
                    arm="keep",
                )
                for i, (prompt, category, focus) in enumerate(rows)
            ),
        )

    return make


@pytest.fixture
def groups(group):
    return [
        group(SHORT, ("a street", "hate", None), (None, None, None), ("x", "hate/slur", "hate/slur")),
        group(
            LONG,
            ("a much longer prompt than others", None, "violence"),
            ("y", "violence", None),
            (None, "hate", None),
        ),
    ]


@pytest.fixture
def collator(tiny_vlm):
    def make(max_length=2048, template="policy_first"):
        model, processor = tiny_vlm()
        return GroupCollator(ChatEncoder(processor, template), max_length, model)

    return make


def expected_answer(row):
    return "safe" if not row.unsafe else f"unsafe: {row.category}"


def test_exactly_the_answers_are_supervised(collator, groups):
    collate = collator()
    tokenizer = collate.encoder.processor.tokenizer
    batch = collate(groups)
    rows = [row for g in groups for row in g.rows]
    assert tokenizer.decode(batch["labels"]) == "".join(f" {expected_answer(row)}</s>" for row in rows)
    assert int(batch["logits_to_keep"].sum()) == len(batch["labels"])
    # A kept position holds the token before the one it predicts: the last of the prompt, then the answer's own.
    kept = batch["input_ids"][batch["logits_to_keep"]]
    places = torch.where(batch["labels"] == tokenizer.eos_token_id)[0].tolist()
    start = 0
    for end, row in zip(places, rows, strict=True):
        assert tokenizer.decode(kept[start]) == ":"
        assert kept[start + 1 : end + 1].tolist() == batch["labels"][start:end].tolist()
        assert batch["labels"][end] not in batch["input_ids"], "the end of the turn is predicted, never read"
        assert tokenizer.decode(batch["labels"][start:end]).strip() == expected_answer(row)
        start = end + 1


@pytest.mark.parametrize(
    ("template", "said"),
    [("policy_first", " unsafe:"), ("perspective", " Safety Status: Unsafe, Unsafe Category:")],
)
def test_of_an_unnamed_unsafe_image_only_that_it_is_unsafe_is_supervised(collator, group, template, said):
    collate = collator(template=template)
    policy = Taxonomy("p", "1", (Category("hate", "contempt"), Category("violence", "people are hurt")))
    safe, unnamed = group(policy, (None, None, None), ("x", None, None)).rows
    rows = (safe, replace(unnamed, unsafe=True, arm="unnamed"))
    batch = collate([Group(policy, rows)])
    tokenizer = collate.encoder.processor.tokenizer
    end = batch["labels"].tolist().index(tokenizer.eos_token_id)
    assert tokenizer.decode(batch["labels"][end + 1 :]).rstrip() == said
    # The last of them is predicted and never read, as is the end of an answer.
    kept = batch["input_ids"][batch["logits_to_keep"]]
    assert kept[end + 2 :].tolist() == batch["labels"][end + 1 : -1].tolist()


def test_what_right_answers_begin_with():
    assert shared_start([(1, 2, 3)]) == (1, 2, 3)
    assert shared_start([(1, 2, 3), (1, 2, 4, 5), (1, 2, 9)]) == (1, 2)


@pytest.mark.parametrize("template", ["policy_first", "perspective"])
def test_rows_are_one_joint_tokenisation(collator, groups, template):
    """What the model reads of a row is what the processor makes of the whole conversation at once."""
    collate = collator(template=template)
    if template == "perspective":
        groups = [Group(g.taxonomy, tuple(row for row in g.rows if row.focus is None)[:1]) for g in groups]
    processor = collate.encoder.processor
    batch = collate(groups)
    each = len(groups[0].rows)
    length = batch["attention_mask"].shape[2]
    policy = batch["input_ids"].shape[1] - each * length
    for number, g in enumerate(groups):
        for slot, row in enumerate(g.rows):
            chat = render(row.taxonomy, row.prompt, template=template, focus=row.focus)
            text = processor.apply_chat_template(
                list(chat.messages), tokenize=False, add_generation_prompt=True
            )
            wanted = None if row.category is None else row.taxonomy.index(row.category)
            answer = next(a for a in chat.answers if a.unsafe == row.unsafe and a.category == wanted)
            whole = processor(
                text=[f"{text} {answer.text}</s>"], images=[row.example.image], return_tensors="pt"
            )
            ids = whole["input_ids"][0]
            start = policy + slot * length
            reads = batch["attention_mask"][number, slot]
            own = len(ids) - 1 - int(reads[0, :policy].sum())
            found = torch.cat(
                [
                    batch["input_ids"][number, :policy][reads[0, :policy]],
                    batch["input_ids"][number, start : start + own],
                ]
            )
            assert found.tolist() == ids[:-1].tolist()
            assert batch["position_ids"][number, start : start + own].tolist() == list(
                range(len(ids) - 1 - own, len(ids) - 1)
            )


def test_rows_read_their_policy_and_themselves(collator, groups):
    batch = collator()(groups)
    mask = batch["attention_mask"]
    count, each, length, keys = mask.shape
    policy = keys - length
    assert batch["input_ids"].shape == (count, policy + each * length)
    assert torch.equal(
        mask[..., policy:], torch.ones(length, length).tril().bool().expand(count, each, -1, -1)
    )
    lengths = mask[:, 0, 0, :policy].sum(dim=1)
    assert lengths[0] < lengths[1] == policy
    for number in range(count):
        expected = torch.arange(policy) < lengths[number]
        assert (mask[number, :, :, :policy] == expected).all()


def test_a_row_too_long_stops_the_run(collator, groups):
    longest = 0
    for g in groups:
        for row in g.rows:
            longest = max(longest, len(collator()._encode(row, (3,) * 4)))
    collator(max_length=longest)(groups)
    with pytest.raises(
        ExampleError, match=rf"takes {longest} tokens and max_length is {longest - 1}.*cut the answer"
    ):
        collator(max_length=longest - 1)(groups)


def test_groups_of_differing_size_are_refused(collator, groups):
    shorter = Group(groups[1].taxonomy, groups[1].rows[:2])
    with pytest.raises(ArbiterError, match=r"differ in size"):
        collator()([groups[0], shorter])


def test_images_keep_the_order_of_their_rows(collator, groups):
    collate = collator()
    batch = collate(groups)
    rows = [row for g in groups for row in g.rows]
    assert batch["image_ids"] == [row.example.id for row in rows]
    for pixels, row in zip(batch["pixel_values"], rows, strict=True):
        expected = collate.encoder.encode_image(row.example.image)[1]["pixel_values"][0]
        assert torch.equal(pixels, expected)


def test_the_pixel_cache_keeps_to_its_limit_and_forgets_the_oldest(collator, groups):
    rows = [row.example for g in groups for row in g.rows]
    size = 3 * 16 * 16 * 4
    cache = PixelCache(collator().encoder, limit=2 * size)
    for example in (rows[0], rows[1], rows[0], rows[2]):
        cache.get(example)
    assert list(cache._cache) == [rows[0].id, rows[2].id]
    assert cache._cache.currsize == 2 * size
    assert cache.get(rows[0])[1]["pixel_values"] is cache._cache[rows[0].id][1]["pixel_values"]


def test_an_image_token_in_a_taxonomy_or_prompt_stays_text(collator, group):
    """Prompts are quoted; a name or definition with an image token is refused where it is written, or here."""
    batch = collator()([group(SHORT, ("<image> <image></s>", None, None), ("x", "hate", None))])
    assert int((batch["input_ids"] == 3).sum()) == 2 * 4
    assert int((batch["input_ids"] == 2).sum()) == 0


def test_a_chat_template_that_drops_images_is_refused(tiny_vlm):
    _, processor = tiny_vlm()
    processor.chat_template = "{{ messages[0]['role'] }} ASSISTANT:"
    with pytest.raises(TemplateError, match="0 image tokens instead of one"):
        ChatEncoder(processor).text(render(SHORT))


def test_a_processor_without_chat_template_is_refused(tiny_vlm):
    _, processor = tiny_vlm()
    processor.chat_template = None
    with pytest.raises(CheckpointError, match="no chat template"):
        ChatEncoder(processor)
