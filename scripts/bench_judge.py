"""Images a second of the judge against free generation and transformers' DecisionPipeline; what more taxonomies cost.

    python scripts/bench_judge.py                                    # mid-size model, 2 CPU threads
    python scripts/bench_judge.py --size 7b --device cuda --dtype bfloat16

Random weights in LLaVA-1.5's layout (`judge/standins/random_llava.py`; 576 image tokens, 32,000 tokens), images of
noise.

1. A stream of images under one taxonomy of 11 categories, `policy_first`. The judge keeps the policy's keys and
   values; the others read it again with every image. `generate` gets the same chat and writes exactly as many tokens
   as the median answer has, as random weights would never stop by themselves: kinder to it than the longest answer.
   DecisionPipeline asks one choice between safe and the categories with their definitions, its cheapest form: one
   prompt an image, one letter read. It takes prompts one at a time.
2. One image under eight taxonomies, `perspective`, each about 300 tokens with prompt and question: the cost, when one
   taxonomy costs 1; for whole policies, and for a score per category, where shared categories are asked about once.

Rounds go through all ways in turn; medians are compared. The mid size takes about 6 minutes on one thread of an
x86 server. Seen there: 2.15 times `generate`, 1.99 times DecisionPipeline, eight taxonomies for 3.61 times one. The
last line is JSON.
"""

import argparse
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import pipeline
from transformers.decision.configuration_utils import DecisionConfig
from transformers.utils import logging

from judge.standins.random_llava import random_llava
from judge.vlm.score import VisionLanguageJudge
from prompts import Taxonomy, load_taxonomy, parse_answer, render

WORDS = (
    "a quiet street in the old town painted in bright colours while people walk home after the rain".split()
)
ROUND = 8
"""Images in a round: one full batch."""
TAXONOMIES, TAXONOMY_TOKENS = 8, 300

Posts = list[tuple[Image.Image, str]]


def main() -> None:
    """Build, time, print."""
    options = parse()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, processor = random_llava(options.size, device=options.device, dtype=options.dtype)
    noise = np.random.default_rng(0)
    posts = [draw_post(noise) for _ in range(options.images)]

    stream, tokens = time_stream(model, processor, posts, options)
    several, sizes = time_taxonomies(model, processor, posts[0], options)
    print(
        f"\n{options.size} on {options.device}, {options.dtype}; {model.config.image_seq_length} image tokens, "
        f"{model.config.text_config.vocab_size:,} in the vocabulary\n\n"
        f"a stream of {len(posts)} images; a policy of {tokens['policy']} tokens, "
        f"{tokens['answer']} tokens written by generate"
    )
    for name, seconds in stream.items():
        print(f"  {name:34}{seconds / ROUND:9.4f} s/image{ROUND / seconds:9.3f} images/s")
    print(f"\none image under taxonomies that add {min(sizes)} to {max(sizes)} tokens each")
    for name, seconds in several.items():
        print(f"  {name:34}{seconds:9.4f} s")
    print(json.dumps(summary(stream, several, tokens, sizes, options)))


def parse() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=("tiny", "mid", "7b"), default="mid")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=24, help=f"of the stream; a multiple of {ROUND}")
    parser.add_argument("--steps", type=int, default=5, help="measurements of each number of taxonomies")
    parser.add_argument("--taxonomy", default="unsafebench")
    options = parser.parse_args()
    if options.images < ROUND or options.images % ROUND:
        parser.error(f"--images {options.images}: give a positive multiple of {ROUND}.")
    return options


def draw_post(noise: np.random.Generator) -> tuple[Image.Image, str]:
    """An image of noise and the prompt it came with."""
    pixels = noise.integers(0, 256, (400, 400, 3), dtype=np.uint8)
    return Image.fromarray(pixels), " ".join(noise.choice(WORDS, 15))


def time_stream(
    model: Any, processor: Any, posts: Posts, options: argparse.Namespace
) -> tuple[dict[str, float], dict[str, int]]:
    """Median seconds of a round of images for each way to judge them, and the lengths of policy and answer."""
    taxonomy = load_taxonomy(options.taxonomy)
    judge = VisionLanguageJudge(model, processor)
    text = judge.encoder.text(render(taxonomy))
    answers = [len(judge.encoder.answer_ids(text, answer)) for answer in render(taxonomy).answers]
    length = int(statistics.median(answers))

    def scored(batch: int) -> Callable[[Posts], Any]:
        batched = VisionLanguageJudge(model, processor, batch_size=batch)
        return lambda group: batched.score(
            [image for image, _ in group], [said for _, said in group], taxonomy
        )

    def generated(batch: int) -> Callable[[Posts], Any]:
        return lambda group: [
            verdict
            for start in range(0, len(group), batch)
            for verdict in generate(model, processor, group[start : start + batch], taxonomy, length)
        ]

    decide = decision_pipeline(model, processor, options)
    ways: dict[str, Callable[[Posts], Any]] = {
        "ours, batch 1": scored(1),
        "ours, batch 8": scored(8),
        "generate and parse, batch 1": generated(1),
        "generate and parse, batch 8": generated(8),
        "DecisionPipeline": lambda group: [decide(decision_request(*post, taxonomy)) for post in group],
    }
    for way in ways.values():
        way(posts[:1])  # to warm up; the judge keeps the policy from here on
    times: dict[str, list[float]] = {name: [] for name in ways}
    for start in range(0, len(posts), ROUND):
        for name, way in ways.items():
            times[name].append(seconds(lambda way=way, start=start: way(posts[start : start + ROUND])))
    policy, _ = judge.encoder.split(text)
    return medians(times), {"policy": len(policy), "answer": length}


def generate(model: Any, processor: Any, group: Posts, taxonomy: Taxonomy, length: int) -> list[Any]:
    """The usual way: write an answer, read it."""
    texts = [
        processor.apply_chat_template(list(render(taxonomy, said).messages), add_generation_prompt=True)
        for _, said in group
    ]
    inputs = processor(
        text=texts,
        images=[image for image, _ in group],
        padding=True,
        padding_side="left",
        add_special_tokens=False,
        return_tensors="pt",
    ).to(model.device, model.dtype)
    written = model.generate(**inputs, do_sample=False, min_new_tokens=length, max_new_tokens=length)
    answers = processor.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [parse_answer(answer, taxonomy) for answer in answers]


def decision_pipeline(model: Any, processor: Any, options: argparse.Namespace) -> Any:
    """Transformers' own closed-answer pipeline, with its generic prompt."""
    return pipeline(
        "decision",
        model=model,
        processor=processor,
        tokenizer=processor.tokenizer,
        decision_config=DecisionConfig(),
        device=options.device,
    )


def decision_request(image: Image.Image, said: str, taxonomy: Taxonomy) -> dict[str, Any]:
    """One choice between safe and every category, with the same words as our policy."""
    criteria = {"safe": None, **{category.name: defined(category) for category in taxonomy}}
    question = {"type": "choice", "instructions": "Is the image safe or unsafe?", "criteria": criteria}
    state = f"image-1\nPrompt: {said}"
    return {"state": state, "questions": {"verdict": question}, "assets": {"image-1": image}}


def defined(category: Any) -> str:
    """Definition and examples."""
    return f"{category.definition}. For example: {', '.join(category.examples)}."


def time_taxonomies(
    model: Any, processor: Any, post: tuple[Image.Image, str], options: argparse.Namespace
) -> tuple[dict[str, float], list[int]]:
    """Median seconds of one image under one and under eight taxonomies, and the tokens of these."""
    judge = VisionLanguageJudge(model, processor, "perspective")
    taxonomies, sizes = draw_taxonomies(judge.encoder, post[1])
    times: dict[str, list[float]] = {}
    for step in range(options.steps + 1):
        for multilabel in (False, True):
            for count in (1, TAXONOMIES):
                # One taxonomy is another one each time, so that their lengths even out.
                chosen = taxonomies if count > 1 else [taxonomies[step % TAXONOMIES]]
                taken = seconds(
                    lambda chosen=chosen, multilabel=multilabel: judge.score_taxonomies(
                        [post[0]], [post[1]], chosen, multilabel=multilabel
                    )
                )
                name = f"{count} taxonom{'ies' if count > 1 else 'y'}{', per category' if multilabel else ''}"
                times.setdefault(name, []).append(taken)
    return medians({name: values[1:] for name, values in times.items()}), sizes


def draw_taxonomies(encoder: Any, said: str) -> tuple[list[Taxonomy], list[int]]:
    """Eight lists drawn from the categories of two taxonomies, and how many tokens follow the image under each."""
    pool = [category for name in ("unsafebench", "openai-moderation") for category in load_taxonomy(name)]
    pool = list({category.name.casefold(): category for category in pool}.values())
    chance = random.Random(0)
    taxonomies, sizes = [], []
    for number in range(TAXONOMIES):
        order = chance.sample(pool, len(pool))
        lists = [Taxonomy(f"list {number}", 1, tuple(order[:count])) for count in range(1, len(order))]
        tails = [
            len(encoder.split(encoder.text(render(one, said, template="perspective")))[1]) for one in lists
        ]
        best = min(range(len(lists)), key=lambda place, tails=tails: abs(tails[place] - TAXONOMY_TOKENS))
        taxonomies.append(lists[best])
        sizes.append(tails[best])
    return taxonomies, sizes


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of a piece of work, the device's part included."""
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    """The middle of each list."""
    return {name: statistics.median(values) for name, values in times.items()}


def summary(
    stream: dict[str, float],
    several: dict[str, float],
    tokens: dict[str, int],
    sizes: list[int],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Ratios of what was measured."""
    ours = min(stream["ours, batch 1"], stream["ours, batch 8"])
    generated = min(stream["generate and parse, batch 1"], stream["generate and parse, batch 8"])
    many = f"{TAXONOMIES} taxonomies"
    return {
        "stream_vs_generate": generated / ours,  # the better batch size of each
        "stream_vs_generate_batch_1": stream["generate and parse, batch 1"] / stream["ours, batch 1"],
        "stream_vs_generate_batch_8": stream["generate and parse, batch 8"] / stream["ours, batch 8"],
        "stream_vs_decision_pipeline": stream["DecisionPipeline"] / ours,
        "stream_vs_decision_pipeline_batch_1": stream["DecisionPipeline"] / stream["ours, batch 1"],
        "eight_taxonomies_cost": several[many] / several["1 taxonomy"],
        "eight_taxonomies_shared_cost": several[f"{many}, per category"]
        / several["1 taxonomy, per category"],
        "seconds_per_image": {name: taken / ROUND for name, taken in stream.items()},
        "seconds_per_taxonomies": several,
        "policy_tokens": tokens["policy"],
        "written_tokens": tokens["answer"],
        "taxonomy_tokens": sizes,
        "machine": machine(options),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def machine(options: argparse.Namespace) -> str:
    """What the numbers were taken on."""
    if options.device != "cpu":
        return torch.cuda.get_device_name()
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
    names = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {options.threads} threads"


if __name__ == "__main__":
    main()
