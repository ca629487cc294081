"""Speed of the judge against text generation and transformers' DecisionPipeline, and the cost of more taxonomies.

    python scripts/bench_judge.py                                    # mid-size model, 2 CPU threads
    python scripts/bench_judge.py --size 7b --device cuda --dtype bfloat16

Random weights in LLaVA-1.5's layout (`judge/standins/random_llava.py`; 576 image tokens, 32,000 tokens), images of
noise.

1. A stream of images under one taxonomy of 11 categories, `policy_first`. The judge caches the policy's keys and
   values; the others process it again with every image. `generate` gets the same chat and writes exactly as many
   tokens as the median answer has, as random weights would never stop; the longest answer would be slower.
   DecisionPipeline gets one choice between safe and the categories with their definitions, its cheapest form: one
   prompt per image, one letter scored. It takes prompts one at a time. "Asked once" reads the image with its prompt
   only (`prompt_mode="use"`): what the guarantee that no prompt lowers a score costs.
2. One image under eight taxonomies, `perspective`, each about 300 tokens with prompt and question: the cost relative
   to one taxonomy, for whole policies, and for a score per category, where shared categories are scored once.

All methods take turns in each round; medians are compared. The mid size takes about 6 minutes on one thread of an
x86 server, where the judge was 2.15 times as fast as `generate` and 1.99 times as fast as DecisionPipeline, and eight
taxonomies cost 3.61 times one. The last line is JSON.
"""

import argparse
import json
import random
import statistics
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from PIL import Image
from transformers import pipeline
from transformers.decision.configuration_utils import DecisionConfig
from transformers.utils import logging

from eval.timing import medians, seconds_of
from judge.runs.machine import device_name
from judge.standins.noise import noise_posts
from judge.standins.random_llava import random_llava
from judge.vlm.score import VisionLanguageJudge
from prompts import Taxonomy, load_taxonomy, parse_answer, render
from prompts.reading import PromptMode

ROUND = 8
"""Images of a round: one full batch."""
TAXONOMIES, TAXONOMY_TOKENS = 8, 300

Posts = list[tuple[Image.Image, str]]


def main() -> None:
    """Build the model, time the methods, print the results."""
    options = parse()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model, processor = random_llava(options.size, device=options.device, dtype=options.dtype)
    posts = noise_posts(options.images)

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
    print(json.dumps(summarise(stream, several, tokens, sizes, options)))


def parse() -> argparse.Namespace:
    """The command line."""
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


def time_stream(
    model: Any, processor: Any, posts: Posts, options: argparse.Namespace
) -> tuple[dict[str, float], dict[str, int]]:
    """Median seconds of a round of images for each method, and the numbers of tokens of policy and answer."""
    taxonomy = load_taxonomy(options.taxonomy)
    judge = VisionLanguageJudge(model, processor)
    text = judge.encoder.text(render(taxonomy))
    answers = [len(judge.encoder.answer_ids(text, answer)) for answer in render(taxonomy).answers]
    length = int(statistics.median(answers))

    def scored(batch: int, mode: PromptMode = "max") -> Callable[[Posts], Any]:
        batched = VisionLanguageJudge(model, processor, batch_size=batch, prompt_mode=mode)
        return lambda group: batched.score(
            [image for image, _ in group], [prompt for _, prompt in group], taxonomy
        )

    def generated(batch: int) -> Callable[[Posts], Any]:
        return lambda group: [
            verdict
            for start in range(0, len(group), batch)
            for verdict in generate(model, processor, group[start : start + batch], taxonomy, length)
        ]

    decide = decision_pipeline(model, processor, options)
    methods: dict[str, Callable[[Posts], Any]] = {
        "ours, batch 1": scored(1),
        "ours, batch 8": scored(8),
        "ours, batch 8, asked once": scored(8, "use"),
        "generate and parse, batch 1": generated(1),
        "generate and parse, batch 8": generated(8),
        "DecisionPipeline": lambda group: [decide(decision_request(*post, taxonomy)) for post in group],
    }
    for method in methods.values():
        method(posts[:1])  # warm-up; from here on the judge has cached the policy
    times: dict[str, list[float]] = {name: [] for name in methods}
    for start in range(0, len(posts), ROUND):
        group = posts[start : start + ROUND]
        for name, method in methods.items():
            times[name].append(seconds_of(lambda method=method, group=group: method(group)))
    policy, _ = judge.encoder.split(text)
    return medians(times), {"policy": len(policy), "answer": length}


def generate(model: Any, processor: Any, group: Posts, taxonomy: Taxonomy, length: int) -> list[Any]:
    """The usual method: generate an answer and parse it."""
    texts = [
        processor.apply_chat_template(list(render(taxonomy, prompt).messages), add_generation_prompt=True)
        for _, prompt in group
    ]
    inputs = processor(
        text=texts,
        images=[image for image, _ in group],
        padding=True,
        padding_side="left",
        add_special_tokens=False,
        return_tensors="pt",
    ).to(model.device, model.dtype)
    # (B, S + length) tokens; exactly `length` are generated.
    written = model.generate(**inputs, do_sample=False, min_new_tokens=length, max_new_tokens=length)
    answers = processor.batch_decode(written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [parse_answer(answer, taxonomy) for answer in answers]


def decision_pipeline(model: Any, processor: Any, options: argparse.Namespace) -> Any:
    """Closed-answer pipeline of transformers, with its generic prompt."""
    return pipeline(
        "decision",
        model=model,
        processor=processor,
        tokenizer=processor.tokenizer,
        decision_config=DecisionConfig(),
        device=options.device,
    )


def decision_request(image: Image.Image, prompt: str, taxonomy: Taxonomy) -> dict[str, Any]:
    """One choice between safe and the categories, with the wording of our policy."""
    criteria = {"safe": None, **{category.name: defined(category) for category in taxonomy}}
    question = {"type": "choice", "instructions": "Is the image safe or unsafe?", "criteria": criteria}
    state = f"image-1\nPrompt: {prompt}"
    return {"state": state, "questions": {"verdict": question}, "assets": {"image-1": image}}


def defined(category: Any) -> str:
    """Definition and examples."""
    return f"{category.definition}. For example: {', '.join(category.examples)}."


def time_taxonomies(
    model: Any, processor: Any, post: tuple[Image.Image, str], options: argparse.Namespace
) -> tuple[dict[str, float], list[int]]:
    """Median seconds of one image under one and under eight taxonomies, and the numbers of tokens of these."""
    judge = VisionLanguageJudge(model, processor, "perspective")
    taxonomies, sizes = draw_taxonomies(judge.encoder, post[1])
    times: dict[str, list[float]] = {}
    for step in range(options.steps + 1):
        for multilabel in (False, True):
            for count in (1, TAXONOMIES):
                # A different one each time, so that differences in length average out.
                chosen = taxonomies if count > 1 else [taxonomies[step % TAXONOMIES]]
                taken = seconds_of(
                    lambda chosen=chosen, multilabel=multilabel: judge.score_taxonomies(
                        [post[0]], [post[1]], chosen, multilabel=multilabel
                    )
                )
                name = f"{count} taxonom{'ies' if count > 1 else 'y'}{', per category' if multilabel else ''}"
                times.setdefault(name, []).append(taken)
    return medians({name: values[1:] for name, values in times.items()}), sizes  # the first is a warm-up


def draw_taxonomies(encoder: Any, prompt: str) -> tuple[list[Taxonomy], list[int]]:
    """Eight lists drawn from the categories of two taxonomies, and the number of tokens after the image for each."""
    pool = [category for name in ("unsafebench", "openai-moderation") for category in load_taxonomy(name)]
    pool = list({category.name.casefold(): category for category in pool}.values())  # distinct names
    rng = random.Random(0)
    taxonomies, sizes = [], []
    for number in range(TAXONOMIES):
        order = rng.sample(pool, len(pool))
        lists = [Taxonomy(f"list {number}", 1, tuple(order[:count])) for count in range(1, len(order))]
        tails = [
            len(encoder.split(encoder.text(render(one, prompt, template="perspective")))[1]) for one in lists
        ]
        # As many categories as come closest to the wanted number of tokens.
        best = min(range(len(lists)), key=lambda place, tails=tails: abs(tails[place] - TAXONOMY_TOKENS))
        taxonomies.append(lists[best])
        sizes.append(tails[best])
    return taxonomies, sizes


def summarise(
    stream: dict[str, float],
    several: dict[str, float],
    tokens: dict[str, int],
    sizes: list[int],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Ratios of the measured times."""
    ours = min(stream["ours, batch 1"], stream["ours, batch 8"])
    generated = min(stream["generate and parse, batch 1"], stream["generate and parse, batch 8"])
    many = f"{TAXONOMIES} taxonomies"
    return {
        "stream_vs_generate": generated / ours,  # the better batch size of each
        "stream_vs_generate_batch_1": stream["generate and parse, batch 1"] / stream["ours, batch 1"],
        "stream_vs_generate_batch_8": stream["generate and parse, batch 8"] / stream["ours, batch 8"],
        "stream_vs_decision_pipeline": stream["DecisionPipeline"] / ours,
        "stream_vs_decision_pipeline_batch_1": stream["DecisionPipeline"] / stream["ours, batch 1"],
        "max_over_use": stream["ours, batch 8"] / stream["ours, batch 8, asked once"],
        "eight_taxonomies_cost": several[many] / several["1 taxonomy"],
        "eight_taxonomies_shared_cost": several[f"{many}, per category"]
        / several["1 taxonomy, per category"],
        "seconds_per_image": {name: taken / ROUND for name, taken in stream.items()},
        "seconds_per_taxonomies": several,
        "policy_tokens": tokens["policy"],
        "written_tokens": tokens["answer"],
        "taxonomy_tokens": sizes,
        "machine": device_name(options.device, options.threads),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


if __name__ == "__main__":
    main()
