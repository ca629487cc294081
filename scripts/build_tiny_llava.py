"""Rebuild `tiny-llava`, the shipped LLaVA of 1.9 M parameters, from handwritten digits alone.

    python scripts/build_tiny_llava.py --out judge/checkpoints/tiny-llava

Takes about two hours on two cores. It has the layout of `llava-hf/llava-1.5-7b-hf` (CLIP tower, two-layer projector,
Llama with a byte-level tokenizer) and learns generic tasks on canvases composed of training glyphs: locating digits
(the tower, as CLIP could), naming them, yes/no questions, "which of these, or none" from lists of digits and everyday
things in many forms (`judge/standins/entries.py`), repeating and describing words. It never sees a policy, the words
safe and unsafe in an answer about an image, or a template of Arbiter's: LoRA training is to turn these skills into a
judge. At the end it prints how often it is right by kind of list, on pictures of other glyphs.

The shipped weights were trained on these tasks in several sittings with different proportions, later ones by
`--warm` (`judge/checkpoints/tiny-llava/built_by.json` lists them); a rebuild in one sitting gives a similar model, not
the same.
"""

import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import processors
from torch import nn
from transformers import (
    AttentionInterface,
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from judge.standins.batches import PATCH, Batches
from judge.standins.canvas import canvas_processor, normalise
from judge.standins.conversations import Conversations
from judge.standins.digits import CANVAS, caption, compose_with_boxes
from judge.standins.english import written_sentences
from judge.standins.tokenizer import train_byte_bpe
from judge.standins.tuning import Progress, accuracy_by_kind, start_schedule, step, train_conversations
from judge.standins.warm_start import carry_over
from judge.vlm.training.attention import policy_grouped_attention

VOCABULARY = 3500
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


def english(conversations: Conversations) -> tuple[str, ...]:
    """Sentences to quote, none of which speaks of a digit."""
    names = {word for names in conversations.names for name in names for word in name.split()}
    return written_sentences(frozenset(names))


def train_tokenizer(conversations: Conversations, pictures: Pictures) -> PreTrainedTokenizerFast:
    """Byte-level BPE over generic conversations and English prose, in which common words are one token."""
    texts = [
        re.sub("<image>|</s>", "", piece)
        for index in range(4000)
        for piece, _ in conversations.row(index, pictures.shown[index], pictures.remarks[index]).pieces
    ]
    texts += [conversations.shared_list()[1] for _ in range(1500)]
    texts += conversations.written
    known = [*conversations.words, *(text for texts in conversations.meanings for text in texts)]
    known += [name for names in conversations.names for name in names]
    for case in (str, str.lower, str.title, str.upper):
        texts += [" ".join(map(case, known))] * 50
    texts += conversations.words * 50
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


def build_model(tokenizer: PreTrainedTokenizerFast, layers: int) -> LlavaForConditionalGeneration:
    """A LLaVA with fresh weights."""
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
        num_hidden_layers=layers,
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
    optimizer, schedule = start_schedule([*tower.parameters(), *head.parameters()], steps, 2e-3)
    present = torch.tensor([[float(d in shown) for d in range(10)] for shown in pictures.shown])
    progress = Progress("tower", steps)
    for _ in range(steps):
        chosen = torch.randint(0, len(present), (128,))
        scores = head(tower(normalise(pictures.pixels[chosen])).last_hidden_state[:, 1:])  # (128, P, 11)
        per_patch = F.cross_entropy(scores.flatten(0, 1), pictures.patches[chosen].flatten())
        # (128, 10): each digit against "none", at its best patch.
        margin = (scores[..., :10] - scores[..., 10:]).amax(1)
        loss = per_patch + F.binary_cross_entropy_with_logits(margin, present[chosen])
        step(loss, optimizer, schedule)
        progress.update(loss.item())


def tower_features(model: LlavaForConditionalGeneration, pictures: Pictures) -> torch.Tensor:
    """What the tower, which stays as it is from here on, makes of the pictures: (N, P, hidden) in float16."""
    with torch.no_grad():
        return torch.cat(
            [
                model.model.vision_tower(normalise(pixels)).last_hidden_state[:, 1:].half()
                for pixels in pictures.pixels.split(256)
            ]
        )


def float_attention(module, query, key, value, mask, **options):
    """Attention of shared lists in float32, whose backward pass is twice as fast as in bfloat16 on CPUs."""
    with torch.autocast("cpu", enabled=False):
        return policy_grouped_attention(module, query.float(), key.float(), value.float(), mask, **options)


def use_shared_lists(model: LlavaForConditionalGeneration) -> None:
    """Let the language model read the layout of `Batches`."""
    AttentionInterface.register("shared_lists", float_attention)
    AttentionMaskInterface.register("shared_lists", sdpa_mask)
    model.set_attn_implementation({"text_config": "shared_lists"})


def main() -> None:
    """Build, train, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("judge/checkpoints/tiny-llava"))
    parser.add_argument(
        "--warm", type=Path, help="go on from this checkpoint, with its tower and projector as they are"
    )
    parser.add_argument("--pictures", type=int, default=40_000)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tower-steps", type=int, default=2_500)
    parser.add_argument("--steps", type=int, default=6_000)
    parser.add_argument("--tokens", type=int, default=5_000, help="in a step of conversations")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    pictures = draw_pictures("train", options.pictures, options.seed)
    conversations = Conversations(options.seed, english(Conversations(options.seed)))
    model, tokenizer = start(options, conversations, pictures)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    features = tower_features(model, pictures)
    batches = Batches(conversations, pictures.shown, pictures.remarks, tokenizer, tokens=options.tokens)
    use_shared_lists(model)
    train_conversations(model, batches, features, options.steps, options.rate)
    report(model, tokenizer)
    save(model, tokenizer, options)


def report(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Print the accuracy by kind of list on pictures of other glyphs."""
    pictures = draw_pictures("validation", 2000, 1)
    batches = Batches(Conversations(1), pictures.shown, pictures.remarks, tokenizer)
    found = accuracy_by_kind(model, batches, tower_features(model, pictures))
    print("\n".join(f"{kind:16} {share:.3f}" for kind, share in found.items()))


def start(options: argparse.Namespace, conversations: Conversations, pictures: Pictures):
    """A model whose tower can locate digits, and its tokenizer: trained here, or from a checkpoint."""
    if options.warm is None:
        tokenizer = train_tokenizer(conversations, pictures)
        model = build_model(tokenizer, options.layers)
        train_tower(model, pictures, options.tower_steps)
        return model, tokenizer
    model = LlavaForConditionalGeneration.from_pretrained(options.warm, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.warm)
    if (len(tokenizer), model.config.text_config.num_hidden_layers) != (VOCABULARY, options.layers):
        old, old_tokenizer = model, tokenizer
        tokenizer = train_tokenizer(conversations, pictures)
        model = build_model(tokenizer, options.layers)
        carry_over(old, old_tokenizer, model, tokenizer)
    model.model.multi_modal_projector.requires_grad_(False)
    return model, tokenizer


def save(model: LlavaForConditionalGeneration, tokenizer, options: argparse.Namespace) -> None:
    """Weights in float16, processor, and how they were made."""
    # The attention of shared lists must not be saved in the configuration.
    model.set_attn_implementation({"text_config": "sdpa"})
    model.eval().half().save_pretrained(options.out)
    build_processor(tokenizer).save_pretrained(options.out)
    recipe = {name: str(value) for name, value in vars(options).items() if name != "out"}
    (options.out / "built_by.json").write_text(
        json.dumps({"script": Path(__file__).name, **recipe}, indent=2)
    )


if __name__ == "__main__":
    main()
