"""What head and taxonomy add to a bare image encoder, and what int8 in ONNX Runtime saves.

    python scripts/bench_student.py                          # CLIP ViT-B/32 and ViT-L/14, 2 CPU threads
    python scripts/bench_student.py --device cuda --dtype bfloat16   # images a second beside the 7B-shaped judge

Random weights in the shapes of OpenAI's CLIP, the head at its default size, images and prompts of noise.

1. Head and taxonomy, per image, at batch 1 and 32, under 11 categories (`unsafebench`, ten examples each) and 100
   (its categories again, in other words). The base is the pooled embedding alone (`get_image_features`): no patches, no
   head. Against it stands all that the student does with the same pixels: every patch projected, the head, the queries
   of a taxonomy that was prepared before; what preparing costs, once, is told apart (of the 100: those beyond the first
   11). Prompts have been read before. With `with_prompts`, both sides read them too, by the same text encoder.
   `head_overhead` is the worst of the former.
2. From an opened image and its prompt to the scores under 11 categories, at batch 1: PyTorch in float32, ONNX Runtime
   in float32 (not ViT-L/14) and in int8; `int8_speedup` is the smallest over the shapes. Beside them, on the same
   images, NudeNet's detector (package `nudenet`, ONNX Runtime, without its search for boxes) and a ViT-B/16 classifier
   with two labels (Falconsai's shape, PyTorch).

Rounds go through all ways in turn; medians are compared. Takes 7 minutes on two threads of an x86 server with VNNI.
Seen there in two runs: head and taxonomy add at most 5.9 and 9.0%, int8 is at least 3.1 times as fast. Last line: JSON.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from judge.encoders.dual import DualEncoder
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.student import Student
from prompts import Taxonomy, load_taxonomy
from prompts.taxonomy import Category

Shape = tuple[tuple[int, int, int, int], tuple[int, int, int, int], int, int]
SHAPES: dict[str, Shape] = {
    "tiny": ((64, 128, 2, 2), (64, 128, 2, 2), 32, 64),
    "ViT-B/32": ((768, 3072, 12, 12), (512, 2048, 12, 8), 32, 512),
    "ViT-L/14": ((1024, 4096, 24, 16), (768, 3072, 12, 12), 14, 768),
}
"""(width, inner width, layers, heads) of image and text tower, patch size, width of the joint space."""
CATEGORIES = (11, 100)
BATCHES = (1, 32)
WORDS = (
    "a quiet street in the old town painted in bright colours while people walk home after the rain".split()
)

Times = dict[str, list[float]]
Work = Callable[[], Any]


def main() -> None:
    """Build, time, print."""
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
        rivals = time_rivals(options)
        print("\nothers, image to answer, batch 1")
        for way, taken in rivals.items():
            print(f"    {way:44}{taken:9.4f} s/image")
        found = summary(overheads, speeds, rivals)
    found |= {
        "machine": machine(options),
        "load_average": {"before": load, "after": os.getloadavg()[0]},
        "versions": {name: version(name) for name in ("torch", "transformers", "onnxruntime")},
    }
    print(json.dumps(found))


def parse() -> argparse.Namespace:
    """Options."""
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
    """A student with random weights of a shape."""
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
    """Byte-level BPE over the categories that ship, which begins and ends texts as CLIP's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    start, end = "<|startoftext|>", "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=["<pad>", start, "<unk>", end],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [text for c in load_taxonomy("unsafebench") for text in (c.name, c.definition, *c.examples)]
    core.train_from_iterator([*texts, " ".join(WORDS)], trainer)
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


def draw_posts(count: int) -> tuple[list[Image.Image], list[str | None]]:
    """Images of noise and prompts of fifteen words."""
    noise = np.random.default_rng(0)
    images = [Image.fromarray(noise.integers(0, 256, (400, 400, 3), dtype=np.uint8)) for _ in range(count)]
    return images, [" ".join(noise.choice(WORDS, 15)) for _ in range(count)]


@torch.inference_mode()
def time_head(student: Student, batches: list[int], rounds: int) -> dict[str, Any]:
    """Median seconds an image by batch: the bare encoder, the student's tokens, its head, the prompts."""
    encoder = student.encoder
    taxonomies = {count: draw_taxonomy(count) for count in CATEGORIES}
    preparing = {count: seconds(lambda t=t: student.queries(t)) for count, t in taxonomies.items()}
    found: dict[str, Any] = {"preparing_seconds": preparing, "batches": {}}
    for batch in batches:
        images, prompts = draw_posts(batch)
        pixels = encoder.pixel_values(images)
        # A pass over 32 images of the largest shape takes half a minute: two rounds of it are enough.
        times = time_parts(
            student, pixels, prompts, taxonomies, rounds if batch == 1 else max(2, rounds // 3)
        )
        bare, tokens, read = times["bare"], times["tokens"], times["read"]
        ways = {"bare encoder": bare, "bare encoder and text encoder": add(bare, read)}
        for count in CATEGORIES:
            ways[f"student, {count} categories"] = add(tokens, times[f"head {count}"])
            ways[f"student, {count} categories, reads prompts"] = add(tokens, times[f"head {count}"], read)
        median = {name: statistics.median(values) for name, values in ways.items()}
        found["batches"][batch] = {name: taken / batch for name, taken in median.items()} | {
            key: {
                count: median[f"student, {count} categories{more}"] / median[base] - 1 for count in CATEGORIES
            }
            for key, base, more in (
                ("overhead", "bare encoder", ""),
                ("overhead_with_prompts", "bare encoder and text encoder", ", reads prompts"),
            )
        }
    return found


def time_parts(
    student: Student,
    pixels: torch.Tensor,
    prompts: list[str | None],
    taxonomies: dict[int, Taxonomy],
    rounds: int,
) -> Times:
    """Seconds of each part in each round; the student's time is the sum of its parts."""
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
    return time_ways(parts, rounds, warm_up=len(prompts) == 1)


def time_scores(student: Student, options: argparse.Namespace, rounds: int) -> dict[str, float]:
    """Median seconds from an opened image and its prompt to the scores: PyTorch, ONNX Runtime in two precisions."""
    from judge.student.export import export_student
    from judge.student.onnx import load_onnx_student

    taxonomy = draw_taxonomy(CATEGORIES[0])
    images, prompts = draw_posts(1)
    with TemporaryDirectory() as folder:
        classifiers: dict[str, Any] = {"PyTorch, float32": student}
        for name, int8 in (("ONNX Runtime, float32", False), ("ONNX Runtime, int8", True)):
            if student.name == "ViT-L/14" and not int8:
                continue  # tracing it takes a minute, and no promise hangs on it
            path = Path(folder) / f"{'int8' if int8 else 'float32'}.onnx"
            export_student(student, path, int8=int8)
            classifiers[name] = load_onnx_student(path, threads=options.threads)
        ways = {
            name: (lambda one=one: one.score(images, prompts, taxonomy)) for name, one in classifiers.items()
        }
        times = time_ways(ways, rounds)
    return {name: statistics.median(values) for name, values in times.items()}


@torch.inference_mode()
def time_rivals(options: argparse.Namespace) -> dict[str, float]:
    """Median seconds an image of what others put before their models."""
    [image], _ = draw_posts(1)
    config = transformers.ViTConfig(num_labels=2)
    vit = transformers.ViTForImageClassification(config).eval()
    processor = transformers.ViTImageProcessorPil()
    ways: dict[str, Work] = {
        "ViT-B/16 classifier, PyTorch, float32": lambda: (
            vit(**processor(images=[image], return_tensors="pt")).logits
        )
    }
    detector = nudenet(options.threads)
    if detector is not None:
        ways["NudeNet 320n, ONNX Runtime, float32"] = lambda: detector(image)
    times = time_ways(ways, options.rounds)
    return {name: statistics.median(values) for name, values in times.items()}


def nudenet(threads: int) -> Callable[[Image.Image], Any] | None:
    """NudeNet's network on its bundled weights, without importing the package, which wants OpenCV; None: not there."""
    found = importlib.util.find_spec("nudenet")
    if found is None or not found.submodule_search_locations:
        print("nudenet is not installed (pip install nudenet), so its row is missing", file=sys.stderr)
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
        # Black is added on the right and below, then all is resized, as the package does it.
        side = max(image.size)
        ground = Image.new("RGB", (side, side))
        ground.paste(image)
        small = np.asarray(ground.resize((320, 320), Image.Resampling.BILINEAR), np.float32) / 255
        return session.run(None, {name: small.transpose(2, 0, 1)[None]})

    return detect


@torch.inference_mode()
def time_accelerator(options: argparse.Namespace) -> dict[str, float]:
    """Images a second of students and of the 7B-shaped judge, all in `--dtype`, from opened image to scores."""
    from judge.standins.random_llava import random_llava
    from judge.vlm.score import VisionLanguageJudge

    images, prompts = draw_posts(32)
    taxonomy = draw_taxonomy(CATEGORIES[0])
    found = {}
    tiny = options.size == "tiny"
    for name in ["tiny"] if tiny else [name for name in SHAPES if name != "tiny"]:
        student = random_student(name, options.device, options.dtype)
        pixels = student.encoder.pixel_values(images).to(options.device)
        ways: dict[str, Work] = {
            f"student {name}": lambda student=student: student.score(images, prompts, taxonomy),
            f"student {name}, images prepared": lambda student=student, pixels=pixels: student.score_tokens(
                student.encoder.encode_pixel_values(pixels), prompts, taxonomy
            ),
        }
        times = time_ways(ways, options.rounds)
        found |= {way: len(images) / statistics.median(values) for way, values in times.items()}
    model, processor = random_llava("tiny" if tiny else "7b", device=options.device, dtype=options.dtype)
    judge = VisionLanguageJudge(model, processor, batch_size=8)
    times = time_ways({"judge": lambda: judge.score(images[:8], prompts[:8], taxonomy)}, options.rounds)
    found["judge, 7B shape"] = 8 / statistics.median(times["judge"])
    for name, speed in found.items():
        print(f"  {name:40}{speed:10.1f} images/s")
    return found


def time_ways(ways: dict[str, Work], rounds: int, *, warm_up: bool = True) -> Times:
    """Seconds of each way in each round; all ways take their turn in every round."""
    for work in ways.values() if warm_up else ():
        work()
    times: Times = {name: [] for name in ways}
    for _ in range(rounds):
        for name, work in ways.items():
            times[name].append(seconds(work))
    return times


def seconds(work: Work) -> float:
    """Wall time of a piece of work, the device's part included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def add(*parts: list[float]) -> list[float]:
    """Round by round."""
    return [sum(values) for values in zip(*parts, strict=True)]


def report(name: str, overheads: dict[str, Any], speeds: dict[str, float]) -> None:
    """Print what was measured of a shape."""
    print(f"\n{name}")
    for count, taken in overheads["preparing_seconds"].items():
        print(f"  {f'preparing {count} categories, once':46}{taken:9.4f} s")
    for batch, rows in overheads["batches"].items():
        print(f"  batch {batch}")
        for way, taken in rows.items():
            if isinstance(taken, float):
                print(f"    {way:44}{taken:9.4f} s/image")
        for key in ("overhead", "overhead_with_prompts"):
            text = ", ".join(f"{value:+.1%} with {count}" for count, value in rows[key].items())
            print(f"    {key.replace('_', ' '):44} {text}")
    print("  image and prompt to scores, batch 1")
    for way, taken in speeds.items():
        print(f"    {way:44}{taken:9.4f} s/image{speeds['PyTorch, float32'] / taken:8.2f} times")


def summary(
    overheads: dict[str, Any], speeds: dict[str, dict[str, float]], rivals: dict[str, float]
) -> dict[str, Any]:
    """The keys that count, and all that was measured."""

    def worst(key: str) -> float:
        rows = [rows for found in overheads.values() for rows in found["batches"].values()]
        return max(value for row in rows for value in row[key].values())

    return {
        "head_overhead": worst("overhead"),
        "head_overhead_with_prompts": worst("overhead_with_prompts"),
        "int8_speedup": min(row["PyTorch, float32"] / row["ONNX Runtime, int8"] for row in speeds.values()),
        "head": overheads,
        "seconds_per_image": {**speeds, "others": rivals},
    }


def machine(options: argparse.Namespace) -> str:
    """What the numbers were taken on."""
    if options.device != "cpu":
        return torch.cuda.get_device_name()
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'unknown CPU'}, {options.threads} threads"


if __name__ == "__main__":
    main()
