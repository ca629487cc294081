"""Time that the student's head and a taxonomy add to an image encoder, and the speed-up by int8 in ONNX Runtime.

    python scripts/bench_student.py                          # CLIP ViT-B/32 and ViT-L/14, 2 CPU threads
    python scripts/bench_student.py --device cuda --dtype bfloat16   # images a second beside the 7B-shaped judge

Random weights in the shapes of OpenAI's CLIP, the head at its default size, images and prompts of noise.

1. Head and taxonomy, per image, at batch 1 and 32, under 11 categories (`unsafebench`, ten examples each) and 100
   (its categories again, in other words). The baseline is the pooled embedding alone (`get_image_features`), without
   patches and head. The student's time on the same pixels includes the projection of each patch and the head, with the
   queries of a taxonomy encoded before. Encoding it, once per taxonomy, is measured separately (of the 100 categories:
   those beyond the first 11). Prompts are encoded before, too; in `overhead_with_prompts`, both sides include it.
   `head_overhead` is the largest of the former.
   `prompt_modes`: images a second from prepared images and their prompts to the scores, reading each image alone and
   with its prompt (`max`), with it only (`use`) and alone (`ignore`). `max_over_use`, the smallest ratio, says what it
   costs that a prompt can only add suspicion: a second pass of the head.
2. From an opened image and its prompt to the scores under 11 categories, at batch 1: PyTorch in float32, ONNX Runtime
   in float32 (not ViT-L/14) and in int8; `int8_speedup` is the smallest over the shapes. For comparison, on the same
   images, NudeNet's detector (package `nudenet`, ONNX Runtime, without its search for boxes) and a ViT-B/16 classifier
   with two labels (Falconsai's shape, PyTorch).

All variants take turns in each round; medians are compared. Takes 7 minutes on two threads of an x86 server with VNNI;
in two runs there, head and taxonomy added at most 5.9 and 9.0 %, and int8 was at least 3.1 times as fast. The last
line is JSON.
"""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
import torch
import transformers
from PIL import Image

from eval.timing import medians, seconds_of, time_in_turns
from judge.encoders.dual import DualEncoder
from judge.runs.machine import device_name
from judge.standins.noise import WORDS, noise_posts
from judge.standins.tokenizer import train_byte_bpe
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.student import Student
from prompts import Taxonomy, load_taxonomy
from prompts.reading import PromptMode
from prompts.taxonomy import Category

Shape = tuple[tuple[int, int, int, int], tuple[int, int, int, int], int, int]
SHAPES: dict[str, Shape] = {
    "tiny": ((64, 128, 2, 2), (64, 128, 2, 2), 32, 64),
    "ViT-B/32": ((768, 3072, 12, 12), (512, 2048, 12, 8), 32, 512),
    "ViT-L/14": ((1024, 4096, 24, 16), (768, 3072, 12, 12), 14, 768),
}
"""(width, inner width, layers, heads) of image and text tower, patch size, width of the joint embedding."""
CATEGORIES = (11, 100)
BATCHES = (1, 32)

Work = Callable[[], Any]


def main() -> None:
    """Build the models, time them, print the results."""
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    load = os.getloadavg()[0]
    if options.device != "cpu":
        found: dict[str, Any] = {"images_per_second": time_accelerator(options)}
    else:
        shapes = ["tiny"] if options.size == "tiny" else [name for name in SHAPES if name != "tiny"]
        overheads, speeds = {}, {}
        for name in shapes:
            student = random_student(name)
            rounds = options.rounds if name != "ViT-L/14" else max(2, options.rounds // 3)
            overheads[name] = time_head(student, options.batches, rounds)
            speeds[name] = time_scores(student, options, rounds)
            report(name, overheads[name], speeds[name])
        others = time_other_models(options)
        print("\nothers, image to answer, batch 1")
        for name, taken in others.items():
            print(f"    {name:44}{taken:9.4f} s/image")
        found = summarise(overheads, speeds, others)
    found |= {
        "machine": device_name(options.device, options.threads),
        "load_average": {"before": load, "after": os.getloadavg()[0]},
        "versions": {name: version(name) for name in ("torch", "transformers", "onnxruntime")},
    }
    print(json.dumps(found))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("tiny", "real"), default="real")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", help="on another device than the CPU")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7, help="a third of them, two at least, for ViT-L/14")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    return parser.parse_args()


def random_student(name: str, device: str = "cpu", dtype: str = "float32") -> Student:
    """A student with random weights, of one of the `SHAPES`."""
    image, text, patch, joint = SHAPES[name]
    tokenizer = random_tokenizer()
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = transformers.CLIPConfig(
        vision_config={**dict(zip(sizes, image, strict=True)), "image_size": 224, "patch_size": patch},
        text_config={
            **dict(zip(sizes, text, strict=True)),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        projection_dim=joint,
    )
    model = transformers.CLIPModel(config)
    encoder = DualEncoder(model, tokenizer, transformers.CLIPImageProcessorPil(), name=name)
    encoder.model.to(device=device, dtype=getattr(torch, dtype))
    return Student(encoder, CrossAttentionHead(HeadConfig(width=joint)), name=name)


def random_tokenizer() -> Any:
    """Byte-level BPE over the shipped categories, with the start and end tokens of CLIP."""
    from tokenizers import processors

    start, end = "<|startoftext|>", "<|endoftext|>"
    texts = [text for c in load_taxonomy("unsafebench") for text in (c.name, c.definition, *c.examples)]
    core = train_byte_bpe([*texts, " ".join(WORDS)], 4000, ("<pad>", start, "<unk>", end))
    core.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, 1), (end, 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token=start, eos_token=end, unk_token="<unk>"
    )


def draw_taxonomy(count: int) -> Taxonomy:
    """`unsafebench`, and from the 12th category on its categories again with a number in every phrase."""
    own = load_taxonomy("unsafebench")
    more = []
    for number in range(len(own), count):
        category, copy = own.categories[number % len(own)], number // len(own)
        examples = tuple(f"{text} {copy}" for text in category.examples)
        more.append(Category(f"{category.name} {copy}", f"{category.definition} ({copy})", examples))
    return own.extend(more)


@torch.inference_mode()
def time_head(student: Student, batches: list[int], rounds: int) -> dict[str, Any]:
    """Median seconds per image by batch size: image encoder alone, student, with and without the text encoder."""
    encoder = student.encoder
    taxonomies = {count: draw_taxonomy(count) for count in CATEGORIES}
    # The categories of the first are among those of the second, and cached.
    preparing = {count: seconds_of(lambda t=t: student.queries(t)) for count, t in taxonomies.items()}
    found: dict[str, Any] = {"preparing_seconds": preparing, "batches": {}}
    for batch in batches:
        images, prompts = zip(*noise_posts(batch), strict=True)
        pixels = encoder.pixel_values(images)
        # A pass over 32 images of the largest shape takes half a minute: two rounds of it are enough.
        times = time_parts(
            student, pixels, prompts, taxonomies, rounds if batch == 1 else max(2, rounds // 3)
        )
        bare, tokens, read = times["bare"], times["tokens"], times["read"]
        variants = {"bare encoder": bare, "bare encoder and text encoder": add(bare, read)}
        for count in CATEGORIES:
            variants[f"student, {count} categories"] = add(tokens, times[f"head {count}"])
            variants[f"student, {count} categories, reads prompts"] = add(
                tokens, times[f"head {count}"], read
            )
        median = medians(variants)
        # Overheads are ratios of medians: differences of single rounds are mostly noise.
        found["batches"][batch] = {name: taken / batch for name, taken in median.items()} | {
            key: {
                count: median[f"student, {count} categories{more}"] / median[base] - 1 for count in CATEGORIES
            }
            for key, base, more in (
                ("overhead", "bare encoder", ""),
                ("overhead_with_prompts", "bare encoder and text encoder", ", reads prompts"),
            )
        }
    found["prompt_modes"] = time_prompt_modes(student, max(batches), max(2, rounds // 3))
    return found


def time_prompt_modes(student: Student, batch: int, rounds: int) -> dict[str, float]:
    """Images a second under 11 categories, from prepared images to scores, by prompt mode."""
    images, prompts = zip(*noise_posts(batch), strict=True)
    pixels, taxonomy = student.encoder.pixel_values(images), draw_taxonomy(CATEGORIES[0])

    def score(mode: PromptMode) -> None:
        student.prompt_mode = mode
        student.score_tokens(student.encoder.encode_pixel_values(pixels), prompts, taxonomy)
        student.prompt_mode = "max"

    modes: tuple[PromptMode, ...] = get_args(PromptMode)
    taken = medians(time_in_turns({mode: lambda mode=mode: score(mode) for mode in modes}, repeats=rounds))
    return {mode: batch / seconds for mode, seconds in taken.items()}


def time_parts(
    student: Student,
    pixels: torch.Tensor,
    prompts: Sequence[str],
    taxonomies: dict[int, Taxonomy],
    rounds: int,
) -> dict[str, list[float]]:
    """Seconds of each part in each round; the time of a student is the sum of its parts.

    `pixels` are (B, 3, H, W), normalised.
    """
    encoder, model = student.encoder, student.encoder.model
    image_tokens = encoder.encode_pixel_values(pixels)
    words, mask = student.encode_prompts(prompts)
    parts: dict[str, Work] = {
        "bare": lambda: model.get_image_features(pixel_values=pixels),
        "tokens": lambda: encoder.encode_pixel_values(pixels),
        "read": lambda: student.encode_prompts(prompts),
    }
    for count, taxonomy in taxonomies.items():
        queries = student.queries(taxonomy)
        parts[f"head {count}"] = lambda queries=queries: student.head(
            image_tokens[None], words[None], mask[None], queries
        )
    return time_in_turns(parts, repeats=rounds, warm_up=len(prompts) == 1)


def time_scores(student: Student, options: argparse.Namespace, rounds: int) -> dict[str, float]:
    """Median seconds from an opened image and its prompt to the scores: PyTorch, ONNX Runtime in two precisions."""
    from judge.student.export import export_student
    from judge.student.onnx import load_onnx_student

    taxonomy = draw_taxonomy(CATEGORIES[0])
    images, prompts = zip(*noise_posts(1), strict=True)
    with TemporaryDirectory() as folder:
        classifiers: dict[str, Any] = {"PyTorch, float32": student}
        for name, int8 in (("ONNX Runtime, float32", False), ("ONNX Runtime, int8", True)):
            if student.name != "ViT-B/32" and not int8:
                continue  # tracing ViT-L/14 takes a minute, and no result depends on it
            path = Path(folder) / f"{'int8' if int8 else 'float32'}.onnx"
            export_student(student, path, int8=int8)
            classifiers[name] = load_onnx_student(path, threads=options.threads)
        variants = {
            name: (lambda one=one: one.score(images, prompts, taxonomy)) for name, one in classifiers.items()
        }
        return medians(time_in_turns(variants, repeats=rounds))


@torch.inference_mode()
def time_other_models(options: argparse.Namespace) -> dict[str, float]:
    """Median seconds per image of other small classifiers."""
    [(image, _)] = noise_posts(1)
    config = transformers.ViTConfig(num_labels=2)
    vit = transformers.ViTForImageClassification(config).eval()
    processor = transformers.ViTImageProcessorPil()
    # Both get the opened image, so that preprocessing is included.
    models: dict[str, Work] = {
        "ViT-B/16 classifier, PyTorch, float32": lambda: (
            vit(**processor(images=[image], return_tensors="pt")).logits
        )
    }
    detector = nudenet(options.threads)
    if detector is not None:
        models["NudeNet 320n, ONNX Runtime, float32"] = lambda: detector(image)
    return medians(time_in_turns(models, repeats=options.rounds))


def nudenet(threads: int) -> Callable[[Image.Image], Any] | None:
    """NudeNet's network with its bundled weights, without importing the package, which needs OpenCV.

    None if it is not installed.
    """
    found = importlib.util.find_spec("nudenet")
    if found is None or not found.submodule_search_locations:
        print("nudenet is not installed (pip install nudenet), so its row is missing.", file=sys.stderr)
        return None
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    [folder] = found.submodule_search_locations
    session = onnxruntime.InferenceSession(
        str(Path(folder) / "320n.onnx"), settings, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name

    def detect(image: Image.Image) -> Any:
        # Padded with black on the right and below, then resized, as the package does it.
        side = max(image.size)
        square = Image.new("RGB", (side, side))
        square.paste(image)
        small = np.asarray(square.resize((320, 320), Image.Resampling.BILINEAR), np.float32) / 255
        return session.run(None, {name: small.transpose(2, 0, 1)[None]})

    return detect


@torch.inference_mode()
def time_accelerator(options: argparse.Namespace) -> dict[str, float]:
    """Images per second of students and of the 7B-shaped judge, in `--dtype`, from opened image to scores."""
    from judge.standins.random_llava import random_llava
    from judge.vlm.score import VisionLanguageJudge

    images, prompts = zip(*noise_posts(32), strict=True)
    taxonomy = draw_taxonomy(CATEGORIES[0])
    found = {}
    tiny = options.size == "tiny"
    for name in ["tiny"] if tiny else [name for name in SHAPES if name != "tiny"]:
        student = random_student(name, options.device, options.dtype)
        pixels = student.encoder.pixel_values(images).to(options.device)
        variants: dict[str, Work] = {
            f"student {name}": lambda student=student: student.score(images, prompts, taxonomy),
            f"student {name}, images prepared": lambda student=student, pixels=pixels: student.score_tokens(
                student.encoder.encode_pixel_values(pixels), prompts, taxonomy
            ),
        }
        taken = medians(time_in_turns(variants, repeats=options.rounds))
        found |= {variant: len(images) / seconds for variant, seconds in taken.items()}
    model, processor = random_llava("tiny" if tiny else "7b", device=options.device, dtype=options.dtype)
    judge = VisionLanguageJudge(model, processor, batch_size=8)
    seven = {"judge": lambda: judge.score(images[:8], prompts[:8], taxonomy)}
    found["judge, 7B shape"] = 8 / medians(time_in_turns(seven, repeats=options.rounds))["judge"]
    for name, speed in found.items():
        print(f"  {name:40}{speed:10.1f} images/s")
    return found


def add(*parts: list[float]) -> list[float]:
    """Sums of the parts, round by round."""
    return [sum(values) for values in zip(*parts, strict=True)]


def report(name: str, overheads: dict[str, Any], speeds: dict[str, float]) -> None:
    """Print the results of one shape."""
    print(f"\n{name}")
    for count, taken in overheads["preparing_seconds"].items():
        print(f"  {f'preparing {count} categories, once':46}{taken:9.4f} s")
    for batch, rows in overheads["batches"].items():
        print(f"  batch {batch}")
        for variant, taken in rows.items():
            if isinstance(taken, float):
                print(f"    {variant:44}{taken:9.4f} s/image")
        for key in ("overhead", "overhead_with_prompts"):
            text = ", ".join(f"{value:+.1%} with {count}" for count, value in rows[key].items())
            print(f"    {key.replace('_', ' '):44} {text}")
    modes = overheads["prompt_modes"]
    speeds_by_mode = ", ".join(f"{mode} {speed:.1f}" for mode, speed in modes.items())
    print(f"  images/s by prompt mode: {speeds_by_mode}; max is {modes['max'] / modes['use']:.2f} of use")
    print("  image and prompt to scores, batch 1")
    for variant, taken in speeds.items():
        print(f"    {variant:44}{taken:9.4f} s/image{speeds['PyTorch, float32'] / taken:8.2f} times")


def summarise(
    overheads: dict[str, Any], speeds: dict[str, dict[str, float]], others: dict[str, float]
) -> dict[str, Any]:
    """The headline numbers, and everything measured."""

    def largest(key: str) -> float:
        rows = [rows for found in overheads.values() for rows in found["batches"].values()]
        return max(value for row in rows for value in row[key].values())

    return {
        "head_overhead": largest("overhead"),
        "head_overhead_with_prompts": largest("overhead_with_prompts"),
        "max_over_use": min(
            found["prompt_modes"]["max"] / found["prompt_modes"]["use"] for found in overheads.values()
        ),
        "int8_speedup": min(row["PyTorch, float32"] / row["ONNX Runtime, int8"] for row in speeds.values()),
        "head": overheads,
        "seconds_per_image": {**speeds, "others": others},
    }


if __name__ == "__main__":
    main()
