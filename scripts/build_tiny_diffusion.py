"""Rebuild `tiny-diffusion`, the shipped Stable Diffusion of 3 M parameters, which draws handwritten digits.

    python scripts/build_tiny_diffusion.py --out judge/checkpoints/tiny-diffusion

An unchanged `StableDiffusionPipeline` of diffusers: an autoencoder to 8 channels of 10 x 10, the text tower of
`tiny-clip`, a U-Net with cross-attention, DDIM with velocity prediction (Salimans and Ho 2022). First the autoencoder
learns to copy canvases of training glyphs, then the U-Net to denoise their latents, with prompts that name the digits
or only say how many there are.
Takes an hour of 2 CPU cores. The weights that ship were trained in two goes on one core: 3,200 steps, and from their
average 3,800 more (`--vae`, `--unet`, `--unet-steps 3800`), 1.3 CPU hours with the autoencoder. Then pictures are drawn
with the result (`--unet-steps 0`: only that), and the share of the prompted digits that the shipped student finds in
them is printed.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoTokenizer, CLIPTextModel, PreTrainedTokenizerBase

from judge.standins.digits import CANVAS, DIGIT_NAMES, compose
from judge.standins.picture_prompts import named_prompt, vague_prompt
from judge.standins.shipped import checkpoint_path

CHANNELS = 8
LATENT = CANVAS // 4
WORDS = 24
"""Tokens of a prompt, the start and the end among them."""
VAGUE, EMPTY = 0.2, 0.1
"""Shares of prompts that name no digit, and that are left out for classifier-free guidance."""


def draw(count: int, seed: int) -> tuple[Tensor, list[str]]:
    """Pictures (count, 3, CANVAS, CANVAS) uint8 of training glyphs, and a true prompt of each."""
    pixels, prompts = [], []
    for number in range(count):
        rng = np.random.default_rng([seed, number, 77])
        size = int(rng.choice([0, 1, 2], p=[0.04, 0.44, 0.52]))
        digits = [int(digit) for digit in rng.choice(10, size=size, replace=False)]
        pixels.append(np.asarray(compose(digits, "real", "train", rng)).transpose(2, 0, 1))
        vague = not digits or rng.random() < VAGUE
        prompts.append(vague_prompt(digits, rng) if vague else named_prompt(digits, rng))
    return torch.from_numpy(np.stack(pixels)), prompts


def floats(pixels: Tensor) -> Tensor:
    """Bytes -> floats in [-1, 1], as the autoencoder takes them."""
    return pixels.float().div(127.5).sub(1)


def train_autoencoder(pixels: Tensor, steps: int, batch: int = 32) -> AutoencoderKL:
    """Learn to copy pictures (N, 3, CANVAS, CANVAS); sets `scaling_factor` so that latents have unit variance."""
    model = AutoencoderKL(
        latent_channels=CHANNELS,
        block_out_channels=(16, 32, 48),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
        sample_size=CANVAS,
        mid_block_add_attention=False,
    ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    started = time.process_time()
    for step in range(steps):
        images = floats(pixels[torch.randint(len(pixels), (batch,))]).contiguous(
            memory_format=torch.channels_last
        )
        posterior = model.encode(images).latent_dist
        error = F.mse_loss(model.decode(posterior.sample()).sample, images)
        loss = error + 1e-4 * posterior.kl().mean() / (CHANNELS * LATENT**2)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0 or step == steps - 1:
            psnr = 10 * math.log10(4 / error.item())
            print(
                f"autoencoder {step}: PSNR {psnr:.1f} dB, {time.process_time() - started:.0f} CPU-s",
                flush=True,
            )
    model.eval()
    with torch.no_grad():
        spread = model.encode(floats(pixels[:512])).latent_dist.mode().std()
    model.register_to_config(scaling_factor=float(1 / spread))
    return model.to(memory_format=torch.contiguous_format)


@torch.no_grad()
def encode(
    pixels: Tensor,
    prompts: list[str],
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (N, CHANNELS, LATENT, LATENT), embeddings of the different prompts (P, WORDS, D), and whose is which.

    The last of the P embeddings is that of the empty prompt.
    """
    latents = [vae.encode(floats(some)).latent_dist.mode() for some in pixels.split(256)]
    different = [*sorted(set(prompts)), ""]
    place = {prompt: number for number, prompt in enumerate(different)}
    tokens = tokenizer(
        different, padding="max_length", max_length=WORDS, truncation=True, return_tensors="pt"
    ).input_ids
    embeddings = torch.cat([text_encoder(some)[0] for some in tokens.split(256)])
    which = torch.tensor([place[prompt] for prompt in prompts])
    return torch.cat(latents) * vae.config.scaling_factor, embeddings, which


def train_unet(
    latents: Tensor,
    embeddings: Tensor,
    which: Tensor,
    scheduler: DDIMScheduler,
    steps: int,
    start: Path | None,
    batch: int = 64,
) -> UNet2DConditionModel:
    """Learn to denoise latents given their prompts; the weights are an exponential moving average."""
    model = UNet2DConditionModel(
        sample_size=LATENT,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(48, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=embeddings.shape[-1],
        attention_head_dim=(2, 3),
        norm_num_groups=16,
    )
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, weight_decay=1e-2, betas=(0.9, 0.99), fused=True
    )
    schedule = LambdaLR(optimizer, lambda step: min(1, (step + 1) / 100) * decay(step / steps))
    average = EMAModel(model.parameters(), decay=0.998, use_ema_warmup=True, power=0.8)
    started, smooth = time.process_time(), 1.0
    for step in range(steps):
        chosen = torch.randint(len(latents), (batch,))
        prompts = torch.where(torch.rand(batch) < EMPTY, len(embeddings) - 1, which[chosen])
        clean, noise = latents[chosen], torch.randn_like(latents[chosen])
        times = torch.randint(scheduler.config.num_train_timesteps, (batch,))
        noisy = scheduler.add_noise(clean, noise, times)
        loss = F.mse_loss(
            model(noisy, times, embeddings[prompts]).sample, scheduler.get_velocity(clean, noise, times)
        )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.step(model.parameters())
        smooth = 0.99 * smooth + 0.01 * loss.item()
        if step % 200 == 0 or step == steps - 1:
            print(f"U-Net {step}: loss {smooth:.4f}, {time.process_time() - started:.0f} CPU-s", flush=True)
    average.copy_to(model.parameters())
    return model.eval()


def decay(share: float) -> float:
    """Factor of the learning rate after a share of the steps: constant, then a cosine to 2 %."""
    return 1.0 if share < 0.4 else 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (share - 0.4) / 0.6))


def build(
    vae_steps: int,
    unet_steps: int,
    pictures: int,
    vae_path: Path | None,
    unet_path: Path | None,
    keep: Path,
) -> StableDiffusionPipeline:
    """Train both parts and put the pipeline together."""
    torch.manual_seed(0)
    pixels, prompts = draw(pictures, 1)
    if vae_path is None:
        vae = train_autoencoder(pixels, vae_steps)
        vae.save_pretrained(keep)
    else:
        vae = AutoencoderKL.from_pretrained(vae_path).eval()
    clip = checkpoint_path("tiny-clip")
    text_encoder = CLIPTextModel.from_pretrained(clip, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(clip)
    tokenizer.model_max_length = WORDS
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )
    unet = train_unet(
        *encode(pixels, prompts, vae, text_encoder, tokenizer), scheduler, unet_steps, unet_path
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def evaluate(pipeline: StableDiffusionPipeline, count: int, guidance: float) -> None:
    """Print the share of the prompted digits that the shipped student finds, for prompts of one and of two digits."""
    from judge import load_classifier
    from prompts import load_taxonomy

    student, taxonomy = load_classifier("tiny-student"), load_taxonomy("digits")
    pipeline.set_progress_bar_config(disable=True)
    for size in (1, 2):
        rng = np.random.default_rng([5, size])
        asked = [[int(digit) for digit in rng.choice(10, size=size, replace=False)] for _ in range(count)]
        prompts = [named_prompt(digits, rng) for digits in asked]
        images = []
        for start in range(0, count, 50):
            generator = torch.Generator().manual_seed(100 + start)
            images += pipeline(
                prompts[start : start + 50],
                num_inference_steps=20,
                guidance_scale=guidance,
                height=CANVAS,
                width=CANVAS,
                generator=generator,
            ).images
        found = student.score(images, None, taxonomy).categories > 0.5  # (count, 10)
        wanted = np.zeros_like(found)
        for row, digits in enumerate(asked):
            wanted[row, digits] = True
        print(
            f"guidance {guidance:g}, {size} of {len(DIGIT_NAMES)} digits: {found[wanted].mean():.3f} of them found, "
            f"exactly these in {(found == wanted).all(axis=1).mean():.3f} of {count} pictures"
        )


def main() -> None:
    """Train, save, evaluate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--pictures", type=int, default=24_000)
    parser.add_argument("--vae-steps", type=int, default=3000)
    parser.add_argument("--unet-steps", type=int, default=8000)
    parser.add_argument("--vae", type=Path, help="a trained autoencoder to go on from")
    parser.add_argument("--unet", type=Path, help="a trained U-Net to go on from")
    parser.add_argument("--evaluate", type=int, default=200, help="pictures of each kind to draw afterwards")
    options = parser.parse_args()
    if options.unet_steps:
        pipeline = build(
            options.vae_steps,
            options.unet_steps,
            options.pictures,
            options.vae,
            options.unet,
            options.out / "vae",
        )
        pipeline.to(torch.float16).save_pretrained(options.out)
    pipeline = StableDiffusionPipeline.from_pretrained(options.out, dtype=torch.float32)
    for guidance in (3.0, 6.0):
        evaluate(pipeline, options.evaluate, guidance)


if __name__ == "__main__":
    main()
