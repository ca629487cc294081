"""Rebuild `tiny-clip`, the shipped CLIP of 1.5 M parameters, from handwritten digits and captions.

    python scripts/build_tiny_clip.py --out judge/checkpoints/tiny-clip

Takes about 15 minutes on two cores. The image tower is initialised from that of `tiny-llava`, the reverse of LLaVA-1.5,
whose tower comes from CLIP; the text tower is trained from scratch. Training is contrastive, on canvases composed of
training glyphs with true captions, with the sigmoid loss of SigLIP (Zhai et al. 2023, equation 1) on the pooled
embeddings and, as in FILIP (Yao et al. 2022, equation 3), on the best patch. The model learns the names and
descriptions of all ten digits, as CLIP learns words from web pages; it never sees a policy or a verdict.
"""

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import processors
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
)

from judge.standins.canvas import canvas_processor, normalise
from judge.standins.conversations import MADE_UP, Conversations
from judge.standins.digits import CANVAS, compose
from judge.standins.tokenizer import train_byte_bpe

PATCH = 8
WIDTH = 128
VOCABULARY = 768
CONTEXT = 77
TEMPLATES = (
    "{}",
    "{}",
    "{}",
    "a photo of {}",
    "handwritten {}",
    "{} on a wall",
    "a poster with {}",
    "{}, oil painting",
    "a note that says {}",
    "{} in neon",
    "an old page with {}",
)
WORDLESS = ("a piece of paper", "something on a wall", "an old page", "abstract art, oil painting", "nothing")


class Captions:
    """Draws captions and the digits they mention: names, numerals, descriptions, and made-up words."""

    def __init__(self, seed: int) -> None:
        """Read the digits' names and descriptions."""
        self.random = random.Random(seed)
        known = Conversations(seed)
        self.names, self.meanings = known.names, known.meanings

    def draw(self, shown: frozenset[int]) -> tuple[str, frozenset[int] | None]:
        """A true caption of a picture with these digits, and the digits it mentions.

        The empty set: it says that there are none. None: it says nothing about digits.
        """
        r = self.random
        if not shown or r.random() < 0.04:
            return (r.choice(WORDLESS), frozenset()) if r.random() < 0.6 else (self.noise(), None)
        digits = r.sample(sorted(shown), r.randint(1, len(shown)) if r.random() < 0.4 else 1)
        words = [r.choice(self.names[d] if r.random() < 0.5 else self.meanings[d]) for d in digits]
        text = r.choice(TEMPLATES).format(" and ".join(words))
        if r.random() < 0.15:
            text = f"{self.noise()}: {text}"
        return text, frozenset(digits)

    def noise(self) -> str:
        """One or two words that name no digit."""
        return " ".join(self.random.sample(MADE_UP, self.random.choice((1, 1, 2))))


def draw_pictures(count: int, seed: int) -> tuple[torch.Tensor, list[frozenset[int]]]:
    """Pictures (count, 3, CANVAS, CANVAS) uint8 and their digits; the seeds differ from those of every split."""
    rng = np.random.default_rng([seed, 123456789])
    pixels, shown = [], []
    for _ in range(count):
        digits = [
            int(v) for v in rng.choice(10, size=int(rng.choice(3, p=[0.06, 0.48, 0.46])), replace=False)
        ]
        image = compose(digits, ("real", "generated")[int(rng.random() < 0.4)], "train", rng)
        pixels.append(np.asarray(image).transpose(2, 0, 1))
        shown.append(frozenset(digits))
    return torch.from_numpy(np.stack(pixels)), shown


def train_tokenizer(captions: Captions, shown: list[frozenset[int]]) -> PreTrainedTokenizerFast:
    """Byte-level BPE over captions, with the start and end tokens of CLIP."""
    texts = [captions.draw(digits)[0] for digits in shown[:20_000]]
    core = train_byte_bpe(texts, VOCABULARY, ("<pad>", "<|startoftext|>", "<unk>", "<|endoftext|>"))
    # CLIP pools its text features at the end token.
    start, end = core.token_to_id("<|startoftext|>"), core.token_to_id("<|endoftext|>")
    core.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", start), ("<|endoftext|>", end)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<unk>",
        model_max_length=CONTEXT,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> CLIPModel:
    """A CLIP whose image tower has the shape, and the first weights, of tiny-llava's."""
    model = CLIPModel(
        CLIPConfig(
            vision_config={
                "hidden_size": WIDTH,
                "intermediate_size": 384,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "image_size": CANVAS,
                "patch_size": PATCH,
                "hidden_act": "gelu",
            },
            text_config={
                "hidden_size": WIDTH,
                "intermediate_size": 384,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "vocab_size": len(tokenizer),
                "max_position_embeddings": CONTEXT,
                "hidden_act": "gelu",
                "pad_token_id": tokenizer.pad_token_id,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
            },
            projection_dim=WIDTH,
        )
    )
    return model


def start_tower(model: CLIPModel, llava: Path) -> None:
    """Copy the image tower of a LLaVA with the same shape."""
    marker = "vision_tower."
    state = {
        name.split(marker, 1)[1].removeprefix("vision_model."): tensor.float()
        for name, tensor in load_file(llava / "model.safetensors").items()
        if marker in name
    }
    model.vision_model.load_state_dict(state, strict=True)


def embed(model: CLIPModel, pixels: torch.Tensor, tokens: dict[str, torch.Tensor]):
    """Unit vectors of images (N, D), their patches (N, P, D) and texts (N, D), from normalised pixels (N, 3, H, W)."""
    images = model.vision_model(pixels)
    texts = model.text_model(**tokens)
    patches = model.vision_model.post_layernorm(images.last_hidden_state[:, 1:])  # without the class token
    return (
        F.normalize(model.visual_projection(images.pooler_output), dim=-1),
        F.normalize(model.visual_projection(patches), dim=-1),
        F.normalize(model.text_projection(texts.pooler_output), dim=-1),
    )


def label_pairs(
    shown: list[frozenset[int]], mentioned: list[frozenset[int] | None]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether caption j is true of picture i (N, N), and whether this is known (N, N), both bool."""
    true = [[m is not None and (m <= s if m else not s) for m in mentioned] for s in shown]
    known = [[m is None or bool(m) or not s for m in mentioned] for s in shown]
    return torch.tensor(true), torch.tensor(known)


def train(model: CLIPModel, tokenizer, captions: Captions, pixels, shown, options) -> None:
    """Contrastive training; the biases of the sigmoid loss are not part of CLIP and are dropped afterwards."""
    # Most pairs are negative: without a bias they would dominate the first steps (SigLIP, section 3.2).
    biases = nn.Parameter(torch.tensor([-4.0, -6.0]))
    scales = nn.Parameter(torch.tensor([2.3, 2.3]))
    tower = list(model.vision_model.parameters())
    rest = [p for name, p in model.named_parameters() if not name.startswith("vision_model.")]
    optimizer = torch.optim.AdamW(
        [{"params": tower, "lr": 3e-4}, {"params": [*rest, biases, scales], "lr": 1.5e-3}],
        weight_decay=0.05,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [3e-4, 1.5e-3], total_steps=options.steps, pct_start=0.1
    )
    started, recent = time.time(), []
    for step in range(1, options.steps + 1):
        chosen = torch.randint(0, len(shown), (options.batch,)).tolist()
        drawn = [captions.draw(shown[i]) for i in chosen]
        tokens = tokenizer([text for text, _ in drawn], padding=True, return_tensors="pt")
        tokens.pop("token_type_ids", None)
        images, patches, texts = embed(model, normalise(pixels[chosen]), dict(tokens))
        # Captions of other pictures may be true as well, so labels are computed for all pairs.
        true, known = label_pairs([shown[i] for i in chosen], [digits for _, digits in drawn])
        best = torch.einsum("npd,md->nmp", patches, texts).amax(-1)  # (pictures, captions)
        loss = torch.zeros(())
        for number, similarity in enumerate((images @ texts.T, best)):
            logits = similarity * scales[number].exp() + biases[number]
            each = F.binary_cross_entropy_with_logits(logits, true.float(), reduction="none")
            loss = loss + (each * known).sum() / options.batch
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if step % 100 == 0:
            print(
                f"{step}/{options.steps} loss {np.mean(recent):.3f} {time.time() - started:.0f} s", flush=True
            )
            recent = []
    # The scale of the pooled embeddings; the one of the patches is not part of CLIP.
    model.logit_scale.data = scales[0].detach().clone()


@torch.no_grad()
def zero_shot(model: CLIPModel, tokenizer, captions: Captions) -> dict[str, float]:
    """Top-1 accuracy of the nearest name on single-digit validation pictures, by embedding and by best patch."""
    rng = np.random.default_rng(7)
    values = [int(v) for v in rng.integers(0, 10, 600)]
    pixels = np.stack(
        [np.asarray(compose([v], "real", "validation", rng)).transpose(2, 0, 1) for v in values]
    )
    tokens = tokenizer([names[0] for names in captions.names], padding=True, return_tensors="pt")
    tokens.pop("token_type_ids", None)
    images, patches, texts = embed(model, normalise(torch.from_numpy(pixels)), dict(tokens))
    truth = torch.tensor(values)
    best = torch.einsum("npd,md->nmp", patches, texts).amax(-1)
    return {
        "embedding": (images @ texts.T).argmax(-1).eq(truth).float().mean().item(),
        "best patch": best.argmax(-1).eq(truth).float().mean().item(),
    }


def main() -> None:
    """Build, train, evaluate, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("judge/checkpoints/tiny-clip"))
    parser.add_argument("--llava", type=Path, default=Path("judge/checkpoints/tiny-llava"))
    parser.add_argument("--pictures", type=int, default=40_000)
    parser.add_argument("--steps", type=int, default=2_500)
    parser.add_argument("--batch", type=int, default=192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    pixels, shown = draw_pictures(options.pictures, options.seed)
    captions = Captions(options.seed)
    tokenizer = train_tokenizer(captions, shown)
    model = build_model(tokenizer)
    start_tower(model, options.llava)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    train(model, tokenizer, captions, pixels, shown, options)
    found = zero_shot(model.eval(), tokenizer, captions)
    print("zero-shot top-1 on validation glyphs:", {name: round(value, 3) for name, value in found.items()})
    # float16 halves the file that ships.
    model.half().save_pretrained(options.out)
    CLIPProcessor(image_processor=canvas_processor(), tokenizer=tokenizer).save_pretrained(options.out)
    recipe = {name: str(value) for name, value in vars(options).items() if name not in ("out", "llava")}
    about = {"script": Path(__file__).name, "tower_from": "tiny-llava", **recipe, "zero_shot_top1": found}
    (options.out / "built_by.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
