"""Speed and robust accuracy of an attack on a judge, against a loop like UnsafeBench's.

    python scripts/bench_attack.py                                   # mid-size model, 2 CPU threads
    python scripts/bench_attack.py --size 7b --device cuda --dtype bfloat16 --steps 100 --baseline-steps 5

Random weights in LLaVA-1.5's layout (`judge/standins/random_llava.py`; 576 image tokens, 32,000 tokens), smooth random
images of the model's input size, a policy of 11 categories before the image. An image-step is one gradient step on
one image.

- `baseline`: UnsafeBench's loop as far as it is known, reimplemented: one image at a time; gradients of the weights are
  computed; the whole text is processed in each step, with logits at each token; cross-entropy of a bare "safe" or
  "unsafe"; epsilon 0.01 and an absolute step of 0.01 / 0.3 on the normalised tensor, clamped to (-3, 3); the graph is
  retained; the last iterate counts; each image runs all steps.
- `baseline, pixel gradients only`: the same with frozen weights.
- `ours`: `ClassifierVictim` and `Problem`, which all attacks of this library use: batches of four, cached keys and
  values of the policy, one row of logits per image, gradients of the pixels only. Then APGD with early stopping, for
  seconds per image.

Speed is compared on gradient steps only, in turns, without early stopping; medians. Robust accuracy is compared at a
budget that is not larger for ours: 0.01 on normalised tensors is 0.01 times a channel's standard deviation in pixels,
0.67 to 0.70 grey levels, and ours gets the smallest of the three. Final pixels of both are scored in float32, as
rounding to bytes would undo such changes. Random weights hardly depend on the image, so the threshold is the median of
the clean margins, which makes half of the images "unsafe". The last line is JSON.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils import logging

from adversarial.pixels.apgd import APGD
from adversarial.problem import AttackResult, Problem
from adversarial.search import Search, run_verified
from adversarial.threat import ThreatModel, format_epsilon
from adversarial.victim import Context
from eval.robustness.victims import ClassifierVictim
from eval.timing import synchronise
from judge.encoders.pixels import preprocess
from judge.runs.machine import device_name
from judge.standins.noise import WORDS
from judge.standins.random_llava import SHAPES, random_llava
from judge.vlm.encode import Encoded, Variant
from judge.vlm.score import VisionLanguageJudge
from judge.vlm.tree import one_vs_rest
from prompts import Taxonomy, load_taxonomy, render

RELATIVE_STEP = 1 / 0.3
"""UnsafeBench's step in units of its epsilon."""
BOUNDS = (-3.0, 3.0)
"""UnsafeBench's clamping range of normalised tensors."""


@dataclass
class Setting:
    """The task, which is the same for all methods."""

    judge: VisionLanguageJudge
    taxonomy: Taxonomy
    images: Tensor
    """(N, 3, h, w) pixels in [0, 1], of the model's input size."""
    prompts: list[str]
    threshold: float
    """P(unsafe) from which an image is flagged."""
    truth: Tensor
    """(N,) 1 where the clean image is flagged, else -1: the verdict that an attack has to change."""

    def margins(self, pixels: Tensor) -> Tensor:
        """Signed margins (N,) of pixels (N, 3, h, w), in logits, one image at a time; below 0 the attack succeeded."""
        victim = ClassifierVictim(self.judge, threshold=self.threshold)
        contexts = [Context(prompt, self.taxonomy) for prompt in self.prompts]
        with torch.no_grad():
            found = [
                victim.margins(pixels[row : row + 1], contexts[row : row + 1]) for row in range(len(pixels))
            ]
        return torch.cat(found).cpu() * self.truth


def main() -> None:
    """Build the model, time the methods, attack, print the results."""
    options = parse()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    load = os.getloadavg()[0]
    setting = build(options)
    problem = attack_problem(setting, options)

    methods = {
        "baseline": UnsafeBenchLoop(setting, options, pixels_only=False),
        "baseline, pixel gradients only": UnsafeBenchLoop(setting, options, pixels_only=True),
        "ours": OurLoop(problem, options),
    }
    times = time_steps(methods, options)
    methods["baseline"].finish()
    spent = time.perf_counter()
    found = run_verified(APGD(steps=options.steps), problem)
    spent = time.perf_counter() - spent

    result = summarise(setting, methods, times, found, spent, options)
    result["load_average"] = {"before": load, "after": os.getloadavg()[0]}
    report(setting, times, result, options)
    print(json.dumps(result))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=tuple(SHAPES), default="mid")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6, help="of each attack on each image")
    parser.add_argument(
        "--baseline-steps", type=int, help="fewer of them for the baseline, whose seconds are scaled up"
    )
    parser.add_argument("--batch", type=int, default=4, help="images in a forward pass of ours")
    parser.add_argument(
        "--epsilon", type=float, default=0.01, help="on normalised tensors, as UnsafeBench's code has it"
    )
    parser.add_argument("--taxonomy", default="unsafebench")
    parser.add_argument(
        "--tflops",
        type=float,
        default=300.0,
        help="sustained TFLOP/s, for the lower bound printed on a GPU",
    )
    options = parser.parse_args()
    options.baseline_steps = options.baseline_steps or options.steps
    if min(options.images, options.steps, options.batch, options.baseline_steps) < 1:
        parser.error("--images, --steps, --batch and --baseline-steps are 1 at least.")
    return options


def build(options: argparse.Namespace) -> Setting:
    """The model, smooth images, prompts, and a threshold at which verdicts depend on the image."""
    model, processor = random_llava(options.size, device=options.device, dtype=options.dtype)
    judge = VisionLanguageJudge(model, processor, name=options.size)
    generator = torch.Generator().manual_seed(0)
    side = SHAPES[options.size].image
    # Smooth images: pixel noise would make all verdicts nearly equal.
    coarse = torch.rand(options.images, 3, 6, 6, generator=generator)
    images = (F.interpolate(coarse, (side, side), mode="bicubic") * 0.7 + 0.15).clamp(0.0, 1.0)
    words = torch.randint(len(WORDS), (15,), generator=generator)
    prompts = [" ".join(WORDS[place] for place in words)] * options.images
    setting = Setting(
        judge, load_taxonomy(options.taxonomy), images, prompts, 0.5, torch.ones(options.images)
    )
    clean = setting.margins(images)
    # The median; of an even number, the mean of the middle two, which torch does not give.
    middle = clean.sort().values[(len(clean) - 1) // 2 : len(clean) // 2 + 1].mean()
    setting.threshold = float(middle.sigmoid())
    setting.truth = torch.where(clean > middle, 1.0, -1.0)
    return setting


def attack_problem(setting: Setting, options: argparse.Namespace) -> Problem:
    """The task for this library's attacks, with a budget no larger than the baseline's in any channel."""
    smallest = min(setting.judge.processor.image_processor.image_std)
    victim = ClassifierVictim(setting.judge, threshold=setting.threshold)
    threat = ThreatModel(options.epsilon * smallest, space="input", after=())
    contexts = [Context(prompt, setting.taxonomy) for prompt in setting.prompts]
    return Problem(
        victim, setting.images, contexts, setting.truth, threat, batch_size=options.batch
    )  # fmt: skip


class UnsafeBenchLoop:
    """The baseline, one image after another; `step` does one image-step."""

    def __init__(self, setting: Setting, options: argparse.Namespace, *, pixels_only: bool) -> None:
        self.setting, self.options, self.pixels_only = setting, options, pixels_only
        self.model = setting.judge.model
        self.processor = setting.judge.processor.image_processor
        self.done: list[Tensor] = []
        """(1, 3, h, w) final pixels in [0, 1], image by image."""
        self.taken: list[float] = []
        """Seconds of every step."""
        self._steps = self._run()

    def step(self) -> int:
        """Do one image-step; returns 1."""
        self.model.requires_grad_(not self.pixels_only)
        started = time.perf_counter()
        next(self._steps, None)
        synchronise()
        self.taken.append(time.perf_counter() - started)
        # Outside of the measured time.
        self.model.zero_grad()
        self.model.requires_grad_(False)
        return 1

    def finish(self) -> None:
        """Do the remaining steps."""
        while len(self.done) < len(self.setting.images):
            self.step()

    def _run(self) -> Iterator[None]:
        for row in range(len(self.setting.images)):
            yield from self._attack(row)

    def _attack(self, row: int) -> Iterator[None]:
        device = self.model.device
        clean = preprocess(self.processor, self.setting.images[row : row + 1]).to(device)
        ids, target = self._tokens(row)
        ids, target = ids.to(device), target.to(device)
        pixels = clean.clone()
        for number in range(self.options.baseline_steps):
            pixels = pixels.detach().requires_grad_(True)
            output = self.model(input_ids=ids, pixel_values=pixels.to(self.model.dtype), use_cache=False)
            predicted = output.logits[0, -len(target) - 1 : -1]
            loss = F.cross_entropy(predicted.float(), target)
            # Needless, but part of the reimplemented loop.
            loss.backward(retain_graph=True)
            assert pixels.grad is not None
            moved = pixels.detach() - RELATIVE_STEP * self.options.epsilon * pixels.grad.sign()
            change = (moved - clean).clamp(-self.options.epsilon, self.options.epsilon)
            pixels = (clean + change).clamp(*BOUNDS)
            if number + 1 == self.options.baseline_steps:
                self.done.append(self._in_pixels(pixels.detach().cpu()))
            yield

    def _tokens(self, row: int) -> tuple[Tensor, Tensor]:
        """The whole text (1, S) with the target at its end, and the target (T,): a bare word without end of turn."""
        encoded = encode(self.setting, row)
        safe, unsafe, *_ = one_vs_rest(encoded.continuations)
        wanted = safe.tokens[:-1] if self.setting.truth[row] > 0 else unsafe.tokens
        return torch.tensor([[*encoded.prefix, *encoded.chain, *wanted]]), torch.tensor(wanted)

    def _in_pixels(self, normalised: Tensor) -> Tensor:
        mean, deviation = (
            torch.tensor(values)[:, None, None]
            for values in (self.processor.image_mean, self.processor.image_std)
        )
        return (normalised * deviation + mean).clamp(0.0, 1.0)


class OurLoop:
    """PGD as in this library, without early stopping; `step` does one step of one batch."""

    def __init__(self, problem: Problem, options: argparse.Namespace) -> None:
        self.problem, self.taken = problem, []
        self.search = Search(problem, options.steps, early_stop=False)
        self._steps = self._run()

    def step(self) -> int:
        """Do one step of one batch; returns its number of image-steps, 0 at the end."""
        started = time.perf_counter()
        moved = next(self._steps, 0)
        synchronise()
        # A batch moves several images at once.
        self.taken.append((time.perf_counter() - started) / max(moved, 1))
        return moved

    def _run(self) -> Iterator[int]:
        problem, threat = self.problem, self.problem.threat
        # The step size of Madry et al. (2018): 2.5 epsilon over the number of steps.
        state, length = problem.images.clone(), 2.5 * threat.epsilon / self.search.limit
        while batches := self.search.batches():
            for rows in batches:
                margin, gradient = problem.gradient(state[rows], rows)
                self.search.update(rows, state[rows], margin)
                moved = state[rows] - length * gradient.sign()
                state[rows] = threat.project(moved, problem.images[rows])
                yield len(rows)


def encode(setting: Setting, row: int) -> Encoded:
    """The tokens of a row as the judge encodes them."""
    encoder = setting.judge.encoder
    run = (encoder.image_token_id,) * SHAPES[setting.judge.name].image_tokens
    chat = render(setting.taxonomy, setting.prompts[row], template=setting.judge.template)
    return encoder.encode_row([Variant(chat)], run)


def time_steps(methods: dict[str, Any], options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each image-step; all methods do one step per round, the first of which is a warm-up."""
    rounds = min(options.steps, options.baseline_steps)
    for _ in range(rounds):
        for method in methods.values():
            method.step()
    while methods["ours"].step():  # the remaining steps, for its robust accuracy
        pass
    return {name: (method.taken[1:rounds] or method.taken[:1]) for name, method in methods.items()}


def summarise(
    setting: Setting,
    methods: dict[str, Any],
    times: dict[str, list[float]],
    found: AttackResult,
    spent: float,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Ratios of the measured times, and robust accuracy of both attacks."""
    step = {name: statistics.median(values) for name, values in times.items()}
    reached = setting.margins(found.pixels)
    baseline = setting.margins(torch.cat(methods["baseline"].done))
    # The baseline always runs all steps, so its time can be extrapolated.
    seconds = {"baseline": step["baseline"] * options.steps, "ours": spent / len(setting.images)}
    row = encode(setting, 0)
    tokens = {"policy": len(row.prefix), "after_policy": len(row.chain)}
    weights = sum(p.numel() for p in setting.judge.model.model.language_model.layers.parameters())
    # Operations of an image-step: 2 per weight and token forward, and 2 backward, as only pixels get gradients.
    work = 4 * weights * tokens["after_policy"]
    return {
        "image_steps_ratio": step["baseline"] / step["ours"],
        "image_steps_ratio_pixel_gradients_only": step["baseline, pixel gradients only"] / step["ours"],
        "seconds_per_image_ratio": seconds["baseline"] / seconds["ours"],
        "robust_accuracy": float((reached > 0).float().mean()),
        "baseline_robust_accuracy": float((baseline > 0).float().mean()),
        "mean_gap": {
            "clean": float(setting.margins(setting.images).mean()),
            "baseline": float(baseline.mean()),
            "ours, no early stop": float(methods["ours"].search.result.margin.mean()),
        },
        "seconds_per_step": step,
        "seconds_per_image": seconds,
        "steps_until_success": found.steps.tolist(),
        "steps": {"ours": options.steps, "baseline": options.baseline_steps},
        "budget": {
            "baseline_normalised": options.epsilon,
            "ours_grey_levels": format_epsilon(methods["ours"].problem.threat.epsilon),
        },
        "tokens": tokens,
        "sustained_tflops": work / step["ours"] / 1e12,
        "seconds_per_image_100_steps": step["ours"] * 100,
        "floor_seconds_per_image_100_steps": work * 100 / (options.tflops * 1e12),
        "machine": device_name(options.device, options.threads),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def report(
    setting: Setting, times: dict[str, list[float]], result: dict[str, Any], options: argparse.Namespace
) -> None:
    """Print the results."""
    tokens = result["tokens"]
    print(
        f"\n{options.size} on {options.device}, {options.dtype}; a policy of {tokens['policy']} tokens, "
        f"{tokens['after_policy']} after it; {len(setting.images)} images, {options.steps} steps\n"
    )
    for name, taken in result["seconds_per_step"].items():
        print(f"  {name:34}{taken:9.4f} s an image-step, of {len(times[name])}")
    print(
        f"  early stop: {result['seconds_per_image']['ours']:.2f} s an image, baseline "
        f"{result['seconds_per_image']['baseline']:.2f} s\n"
        f"  robust accuracy: ours {result['robust_accuracy']:.2f} at {result['budget']['ours_grey_levels']}, baseline "
        f"{result['baseline_robust_accuracy']:.2f} at {options.epsilon} on normalised tensors\n"
        f"  mean distance to the other verdict: {result['mean_gap']}"
    )
    if options.device != "cpu":
        hundred, floor = (result[f"{key}seconds_per_image_100_steps"] for key in ("", "floor_"))
        print(
            f"  100 steps: {hundred:.1f} s an image; 4NT operations a step at {options.tflops:g} TFLOP/s would take "
            f"{floor:.1f} s, so {floor / hundred:.0%} of that floor's speed"
        )


if __name__ == "__main__":
    main()
