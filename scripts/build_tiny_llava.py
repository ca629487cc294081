"""Rebuild `tiny-llava`, the shipped LLaVA of 1.6 M parameters, from handwritten digits alone.

    python scripts/build_tiny_llava.py --out judge/checkpoints/tiny-llava

Takes about an hour on two cores. It has the layout of `llava-hf/llava-1.5-7b-hf` (CLIP tower, two-layer projector,
Llama with a byte-level tokenizer) and learns generic tasks on canvases composed of training glyphs: locating digits
(the tower, as CLIP could), naming them, yes/no questions, "which of these, or none" from lists of names with and
without descriptions, repeating and describing words. It never sees a policy, the words safe and unsafe in an answer
about an image, or a template of Arbiter's: LoRA training is to turn these skills into a judge.

The shipped weights were trained on these tasks in several sessions with different proportions
(`judge/checkpoints/tiny-llava/built_by.json` lists them); a rebuild in one session gives a similar model, not the same.
"""

import argparse
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import processors
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from judge.standins.canvas import canvas_processor, normalise
from judge.standins.conversations import Conversations, Row
from judge.standins.digits import CANVAS, caption, compose_with_boxes
from judge.standins.tokenizer import train_byte_bpe
from judge.vlm.training.attention import register

PATCH = 8
VOCABULARY = 1024
# The layout of Llava 1.5: system text, then in each turn the images before the text.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@dataclass(frozen=True)
class Pictures:
    """N composed canvases of one split, with annotations."""

    pixels: torch.Tensor
    """(N, 3, CANVAS, CANVAS) uint8."""
    shown: list[frozenset[int]]
    patches: torch.Tensor
    """(N, patches) digit at each patch's centre, 10 where there is none."""
    remarks: list[str | None]


def draw_pictures(split: str, count: int, seed: int) -> Pictures:
    """Compose pictures; the seeds differ from those of `digits_examples`."""
    rng = np.random.default_rng([seed, 987654321])
    centres = (np.arange(CANVAS // PATCH) + 0.5) * PATCH
    pixels, shown, patches, remarks = [], [], [], []
    for _ in range(count):
        values = [
            int(v) for v in rng.choice(10, size=int(rng.choice(3, p=[0.08, 0.46, 0.46])), replace=False)
        ]
        image, boxes = compose_with_boxes(values, ("real", "generated")[int(rng.random() < 0.4)], split, rng)
        grid = np.full((len(centres), len(centres)), 10)  # 10 stands for no digit
        for value, top, left, side in boxes:
            rows, columns = ((centres > edge) & (centres < edge + side) for edge in (top, left))
            # A patch belongs to the digit that covers its centre.
            grid[np.ix_(rows, columns)] = value
        pixels.append(np.asarray(image).transpose(2, 0, 1))
        shown.append(frozenset(values))
        patches.append(grid.ravel())
        remarks.append(caption(values, rng))
    return Pictures(torch.from_numpy(np.stack(pixels)), shown, torch.from_numpy(np.stack(patches)), remarks)


def train_tokenizer(conversations: Conversations, pictures: Pictures) -> PreTrainedTokenizerFast:
    """Byte-level BPE over generic conversations, in which common words are one token."""
    texts = [
        re.sub("<image>|</s>", "", piece)
        for index in range(4000)
        for piece, _ in conversations.row(index, pictures.shown[index], pictures.remarks[index]).pieces
    ]
    texts += [*([" ".join(conversations.words)] * 50), *conversations.words * 50]
    core = train_byte_bpe(texts, VOCABULARY, ("<pad>", "<s>", "</s>", "<image>"))
    start = core.token_to_id("<s>")
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", start)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=2048,
        padding_side="left",
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """A LLaVA of 1.6 M parameters with fresh weights."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=CANVAS,
        patch_size=PATCH,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(CANVAS // PATCH) ** 2,
        tie_word_embeddings=True,
    )
    return LlavaForConditionalGeneration(config)


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Resize to the canvas, scale, normalise; expand the image token; render the chat."""
    return LlavaProcessor(
        image_processor=canvas_processor(),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def train_tower(model: LlavaForConditionalGeneration, pictures: Pictures, steps: int) -> None:
    """Train the vision tower to classify each patch (a digit or none), and which digits the picture has."""
    tower = model.model.vision_tower
    head = nn.Linear(tower.config.hidden_size, 11)
    optimizer, schedule = _optimizer(
        [{"params": [*tower.parameters(), *head.parameters()], "lr": 2e-3}], steps
    )
    present = torch.tensor([[float(d in shown) for d in range(10)] for shown in pictures.shown])
    progress = Progress("tower", steps)
    for _ in range(steps):
        chosen = torch.randint(0, len(present), (128,))
        scores = head(tower(normalise(pictures.pixels[chosen])).last_hidden_state[:, 1:])  # (128, P, 11)
        per_patch = F.cross_entropy(scores.flatten(0, 1), pictures.patches[chosen].flatten())
        # (128, 10): each digit against "none", at its best patch.
        margin = (scores[..., :10] - scores[..., 10:]).amax(1)
        loss = per_patch + F.binary_cross_entropy_with_logits(margin, present[chosen])
        _step(loss, optimizer, schedule)
        progress.update(loss.item())


class Batches:
    """Endless batches of conversations of similar length."""

    def __init__(
        self, pictures: Pictures, conversations: Conversations, tokenizer: PreTrainedTokenizerFast, size: int
    ) -> None:
        """Rows are drawn and encoded on demand."""
        self.pictures, self.conversations, self.tokenizer, self.size = (
            pictures,
            conversations,
            tokenizer,
            size,
        )
        self.image_tokens = (CANVAS // PATCH) ** 2

    def encode(self, row: Row, *, start: bool = True) -> tuple[list[int], list[int]]:
        """Token ids and labels (-100 where not supervised), with or without the start token."""
        ids, labels = ([self.tokenizer.bos_token_id], [-100]) if start else ([], [])
        for text, supervised in row.pieces:
            text = text.replace("<image>", "<image>" * self.image_tokens)
            piece = self.tokenizer(text, add_special_tokens=False).input_ids
            ids += piece
            labels += piece if supervised else [-100] * len(piece)
        return ids, labels

    def __iter__(self):
        """Yield normalised pixels (N, 3, H, W), inputs of the model, and labels (N, S)."""
        while True:
            chosen = self.conversations.random.sample(range(len(self.pictures.shown)), 16 * self.size)
            rows = [
                (self.encode(self.conversations.row(i, self.pictures.shown[i], self.pictures.remarks[i])), i)
                for i in chosen
            ]
            # Similar lengths share a batch, which saves padding; the batches are shuffled again.
            rows.sort(key=lambda row: len(row[0][0]))
            batches = [rows[start : start + self.size] for start in range(0, len(rows), self.size)]
            self.conversations.random.shuffle(batches)
            for batch in batches:
                width = len(batch[-1][0][0])
                ids = torch.tensor([ids + [0] * (width - len(ids)) for (ids, _), _ in batch])
                labels = torch.tensor([labels + [-100] * (width - len(labels)) for (_, labels), _ in batch])
                inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
                yield normalise(self.pictures.pixels[[i for _, i in batch]]), inputs, labels


class SharedLists:
    """Endless batches in which several pictures share one list before them; half of them show something listed.

    The list is processed once for its pictures (`judge.vlm.training.attention`), so a step has three times as many of
    the questions that are hard to learn: which of these, or none, with the list before the picture.
    """

    def __init__(self, plain: Batches, lists: int, each: int) -> None:
        """Use the pictures, tokenizer and random generator of `plain`."""
        self.plain, self.lists, self.each = plain, lists, each

    def __iter__(self):
        """Yield normalised pixels (N, 3, H, W), inputs of the model, and labels (N, S)."""
        while True:
            groups = [self.group() for _ in range(self.lists)]
            chosen = [picture for _, rows in groups for picture, _ in rows]
            yield normalise(self.plain.pictures.pixels[chosen]), *self.packed(groups)

    def group(self):
        """The tokens of a list, and for each of its pictures the index and the encoded questions."""
        talk, shown = self.plain.conversations, self.plain.pictures.shown
        entries, text, described = talk.shared_list()
        listed = frozenset().union(*(entry.digits for entry in entries))
        rows: list[tuple[int, tuple[list[int], list[int]]]] = []
        hits = 0
        for _ in range(200):
            picture = talk.random.randrange(len(shown))
            hit = bool(shown[picture] & listed)
            if len(rows) == self.each:
                break
            if hit and hits == self.each // 2 and len(listed) < 9:
                continue
            if not hit and len(rows) - hits == self.each // 2 and len(listed) < 9:
                continue
            hits += hit
            pieces = talk.about(entries, described, shown[picture], self.plain.pictures.remarks[picture])
            rows.append((picture, self.plain.encode(Row(picture, pieces), start=False)))
        return self.plain.encode(Row(0, ((f"{text} USER: ", False),)))[0], rows

    def packed(self, groups):
        """Inputs in the layout of `judge.vlm.training.collate.pack`, with several answers per row."""
        policy = max(len(ids) for ids, _ in groups)
        length = max(len(ids) for _, rows in groups for _, (ids, _) in rows)
        size = (len(groups), policy + self.each * length)
        ids, labels = torch.zeros(size, dtype=torch.long), torch.full(size, -100)  # (groups, S) each
        # Every answer starts at the position behind its list, as if it were the only one.
        positions = torch.arange(size[1]).repeat(len(groups), 1)
        # Each answer attends to its list and, causally, to itself: (groups, answers, S, policy + S).
        visible = torch.zeros(len(groups), self.each, length, policy + length, dtype=torch.bool)
        visible[..., policy:] = torch.ones(length, length, dtype=torch.bool).tril()
        for number, (before, rows) in enumerate(groups):
            ids[number, : len(before)] = torch.tensor(before)
            visible[number, :, :, : len(before)] = True
            for slot, (_, (tokens, wanted)) in enumerate(rows):
                start = policy + slot * length
                ids[number, start : start + len(tokens)] = torch.tensor(tokens)
                labels[number, start : start + len(wanted)] = torch.tensor(wanted)
                positions[number, start : start + length] = len(before) + torch.arange(length)
        return {"input_ids": ids, "attention_mask": visible, "position_ids": positions}, labels


def train_conversations(model: LlavaForConditionalGeneration, plain: Batches, steps: int) -> None:
    """Generic instruction tuning of projector and language model; nine of ten batches have shared lists."""
    model.model.vision_tower.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, schedule = _optimizer([{"params": trained, "lr": 2e-3}], steps)
    model.set_attn_implementation({"text_config": register()})
    shared = iter(SharedLists(plain, lists=8, each=8))
    single = iter(plain)
    progress = Progress("talk", steps)
    for step in range(steps):
        pixels, inputs, labels = next(single if step % 10 == 9 else shared)
        hidden = model.model(pixel_values=pixels, **inputs).last_hidden_state
        # Logits only where an answer is predicted: (answer tokens, vocabulary).
        answered = labels[:, 1:] != -100
        logits = model.lm_head(hidden[:, :-1][answered])
        loss = F.cross_entropy(logits, labels[:, 1:][answered])
        _step(loss, optimizer, schedule)
        progress.update(loss.item(), (logits.argmax(-1) == labels[:, 1:][answered]).float().mean().item())
    # The attention of packed lists must not be saved in the configuration.
    model.set_attn_implementation({"text_config": "sdpa"})


def _optimizer(groups: list[dict], steps: int):
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [group["lr"] for group in groups], total_steps=steps, pct_start=0.08
    )
    return optimizer, schedule


def _step(loss: torch.Tensor, optimizer: torch.optim.Optimizer, schedule) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()


class Progress:
    """Prints the means of a hundred steps."""

    def __init__(self, name: str, steps: int) -> None:
        """Start the clock."""
        self.name, self.steps, self.done, self.start, self.recent = name, steps, 0, time.time(), []

    def update(self, *values: float) -> None:
        """Count a step and its metrics."""
        self.done += 1
        self.recent.append(values)
        if self.done % 100 == 0 or self.done == self.steps:
            means = " ".join(f"{np.mean(column):.4f}" for column in zip(*self.recent, strict=True))
            print(
                f"{self.name} {self.done}/{self.steps} {means} {time.time() - self.start:.0f} s", flush=True
            )
            self.recent = []


def main() -> None:
    """Build, train, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("judge/checkpoints/tiny-llava"))
    parser.add_argument("--pictures", type=int, default=40_000)
    parser.add_argument("--tower-steps", type=int, default=2_500)
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    pictures = draw_pictures("train", options.pictures, options.seed)
    conversations = Conversations(options.seed)
    tokenizer = train_tokenizer(conversations, pictures)
    model = build_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    train_tower(model, pictures, options.tower_steps)
    train_conversations(model, Batches(pictures, conversations, tokenizer, options.batch), options.steps)
    model.eval().half().save_pretrained(options.out)
    build_processor(tokenizer).save_pretrained(options.out)
    recipe = {name: str(value) for name, value in vars(options).items() if name != "out"}
    (options.out / "built_by.json").write_text(
        json.dumps({"script": Path(__file__).name, **recipe}, indent=2)
    )


if __name__ == "__main__":
    main()
