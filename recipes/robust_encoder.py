"""A robust image encoder for student and filters: fine-tuned on images without labels (FARE, Schlarmann et al. 2024).

    accelerate launch recipes/robust_encoder.py

A head on an ordinary CLIP loses its verdicts to changes that nobody sees; the encoder is what has to hold. This moves
the image tower so that attacked pictures keep the tokens that the original gives the clean ones; texts are read as
before, so every head, filter and taxonomy goes on working, and a head is best trained again on top.

With no options: `tiny-clip` and digits, attacked by up to 8 grey levels. On 2 CPU cores it takes about eight minutes,
leaves `runs/robust_encoder/encoder` (for any recipe's `--encoder`) and prints cosines to the original's tokens and the
accuracy of naming an image's category by the nearest text, clean and under PGD, before and after: 0.99 clean both
times, and 0.73 instead of 0.10 at 8/255. Labels serve that table only. Then:

    accelerate launch recipes/robust_student.py

A CLIP and images of your own (a GPU; a ViT-L/14 takes some hours per 100,000 images):

    accelerate launch recipes/robust_encoder.py --encoder openai/clip-vit-large-patch14 --dataset folder:my_images \
        --taxonomy my.yaml --epsilon 4/255 --learning_rate 1e-5 --epochs 2

Every option can stand in the YAML and on the command line; `--help` lists them; an unknown one stops the run.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from tqdm.auto import tqdm
from transformers import set_seed

from adversarial.errors import AttackError
from adversarial.pixels.pgd import PGD
from adversarial.problem import Problem
from adversarial.search import run_verified
from adversarial.threat import ThreatModel, format_epsilon, parse_epsilon
from adversarial.victim import Context
from eval.closing import command, recipe_beside
from eval.options import RecipeOptions, parse_options
from judge.cascade.similarity import Similarities
from judge.data.examples import ExampleSet, check_splits, load_examples
from judge.encoders.dual import DualEncoder
from judge.encoders.fare import (
    FareOptions,
    copy_encoder,
    fare,
    fare_loss,
    resize_to_input,
    save_encoder,
    token_cosines,
)
from judge.encoders.perturb import as_pixels, perturb
from judge.errors import ConfigError
from judge.runs.folder import RunDir
from judge.runs.machine import environment
from prompts import Example, Taxonomy, load_taxonomy
from prompts.errors import ArbiterError
from prompts.printable import error_line, printable_lines

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "robust_encoder.yaml"


@dataclass
class EncoderOptions(RecipeOptions):
    """What is made robust, on which images, and how it is measured."""

    output_dir: str = field(default="runs/robust_encoder", metadata={"help": "Run folder; new or empty."})
    encoder: str = field(
        default="tiny-clip", metadata={"help": "A CLIP or SigLIP: hub id, folder, or tiny-clip."}
    )
    dataset: str = field(
        default="digits", metadata={"help": "As in recipes/lora_llava.py; labels serve the final table only."}
    )
    taxonomy: str = field(default="digits", metadata={"help": "A taxonomy that ships, or a YAML file."})
    limit: int | None = field(
        default=None,
        metadata={"help": "Learn from at most so many images."},
    )
    test_images: int = field(default=256, metadata={"help": "Test images that are attacked in the end."})
    attack_steps: int = field(default=20, metadata={"help": "Steps of the attacks of the final table."})
    attack_epsilons: list[str] = field(
        default_factory=lambda: ["2/255", "4/255", "8/255"],
        metadata={"help": "Budgets of the final table, such as 2/255."},
    )


def main() -> None:
    """Parse, load, measure, fine-tune, measure, save."""
    started = time.time()
    options, how = parse()
    epsilon, budgets = parse_epsilon(how.epsilon), [parse_epsilon(text) for text in options.attack_epsilons]
    state = PartialState(cpu=not torch.cuda.is_available())
    set_seed(how.seed)
    taxonomy = load_taxonomy(options.taxonomy)
    run = open_run(options, how, taxonomy)
    train, test = load_splits(options, taxonomy, run)
    encoder = DualEncoder.load(options.encoder, device=state.device)
    original = copy_encoder(encoder)
    images = resize_to_input(encoder, train.examples)
    say(f"{len(images):,} images to learn from, {len(test.examples):,} to measure on")

    measured = partial(measure, original, test.examples, taxonomy, budgets, options.attack_steps, how.seed)
    before = measured(original) if state.is_main_process else {}
    began = time.time()
    with tqdm(total=how.epochs, desc="epochs", disable=not state.is_main_process, delay=1) as bar:
        history = fare(encoder, images, epsilon, how, progress=lambda done: bar.update(done - bar.n))
    trained = time.time() - began
    if not state.is_main_process:
        return
    robust = save_encoder(encoder, run.path / "encoder")
    run.update_manifest(
        encoder="encoder", encoder_fingerprint=robust.fingerprint, made_from=original.fingerprint
    )
    run.write_rows("history", history)
    after = measured(robust)
    place = environment()
    run.write_metrics(
        {
            "before": before,
            "after": after,
            "epsilon": epsilon,
            "images": len(images),
            "seconds_training": trained,
            "seconds": time.time() - started,
            **{"machine": place["machine"], "versions": place["packages"], "commit": place["git"]},
        }
    )
    show(run, before, after, trained, time.time() - started)


def parse() -> tuple[EncoderOptions, FareOptions]:
    """Defaults, then the recipe's YAML, then that of `--config`, then the command line; unknown keys stop the run."""
    return parse_options((EncoderOptions, FareOptions), DEFAULT_CONFIG, sys.argv[1:])


def open_run(options: EncoderOptions, how: FareOptions, taxonomy: Taxonomy) -> RunDir:
    """The run folder, made by the first process; the others wait for it."""
    state = PartialState()
    if state.is_main_process:
        run = RunDir.create(options.output_dir, kind="encoder", base=options.encoder)
        run.write_taxonomy(taxonomy)
        run.write_environment()
        run.write_config({**asdict(options), **asdict(how)})
    state.wait_for_everyone()
    return RunDir.open(options.output_dir, kind="encoder")


def load_splits(options: EncoderOptions, taxonomy: Taxonomy, run: RunDir) -> tuple[ExampleSet, ExampleSet]:
    """Training images and test images; no image in both."""
    train, test = (
        load_examples(options.dataset, split=split, taxonomy=taxonomy, limit=limit)
        for split, limit in (("train", options.limit), ("test", options.test_images))
    )
    check_splits(train, test)
    if PartialState().is_main_process:
        run.write_skipped((row.id, row.reason) for part in (train, test) for row in part.skipped)
    return train, test


@dataclass
class NearestText:
    """Naming an image's category by the nearest text, as an attack sees it: right as long as the margin is positive."""

    encoder: DualEncoder
    taxonomy: Taxonomy
    name: str = "nearest text"
    no_gradients: str | None = None

    def __post_init__(self) -> None:
        self._similar = Similarities(self.encoder)

    def margins(self, pixels: Tensor, contexts: Sequence[Context]) -> Tensor:
        """(B, 3, h, w) -> (B,): largest cosine to what the image shows less the largest to what it does not."""
        found = self._similar.cosines(self.encoder.encode_pixels(pixels)[:, 0], self.taxonomy)
        shown = torch.tensor([context.policy for context in contexts], device=found.device)
        right, wrong = (found.masked_fill(mask, -2.0).amax(-1) for mask in (~shown, shown))
        return right - wrong

    def score(self, images: Any, contexts: Any) -> Any:
        """Nobody asks for verdicts here.

        Raises:
            AttackError: always.
        """
        raise AttackError(
            "The nearest text is measured at the model's input; it has no real path of its own."
        )


def measure(
    original: DualEncoder,
    examples: Sequence[Example],
    taxonomy: Taxonomy,
    budgets: Sequence[float],
    steps: int,
    seed: int,
    encoder: DualEncoder,
) -> dict[str, Any]:
    """Cosines to the original's clean tokens, and accuracy of the nearest text, clean and at each budget."""
    torch.manual_seed(seed)
    images = as_pixels(resize_to_input(encoder, examples)).to(encoder.device)
    found: dict[str, Any] = {"cosine_pooled": {}, "cosine_patches": {}, "accuracy": {}}
    for epsilon in (0.0, *budgets):
        pairs = []
        for part in images.split(64):
            with torch.no_grad():
                wanted = original.encode_pixels(part)

            def away(pixels: Tensor, wanted: Tensor = wanted) -> Tensor:
                return fare_loss(encoder.encode_pixels(pixels), wanted, 1.0)

            attacked = perturb(away, part, epsilon, steps) if epsilon else part
            with torch.no_grad():
                pairs.append(torch.stack(token_cosines(encoder.encode_pixels(attacked), wanted)))
        pooled, patches = torch.cat(pairs, dim=1).mean(1).tolist()
        found["cosine_pooled"][format_epsilon(epsilon)] = pooled
        found["cosine_patches"][format_epsilon(epsilon)] = patches
    found["accuracy"] = nearest_text_accuracy(encoder, examples, images, taxonomy, budgets, steps, seed)
    return found


def nearest_text_accuracy(
    encoder: DualEncoder,
    examples: Sequence[Example],
    images: Tensor,
    taxonomy: Taxonomy,
    budgets: Sequence[float],
    steps: int,
    seed: int,
) -> dict[str, float]:
    """Share of images with and without a category that are named right; attacked ones must have been right before."""
    shown = [tuple(bool(label) for label in taxonomy.label(example)) for example in examples]
    rows = [place for place, each in enumerate(shown) if any(each) and not all(each)]
    if not rows:
        return {}
    problem = Problem(
        NearestText(encoder, taxonomy),
        images[rows].cpu(),
        [Context(None, shown[place]) for place in rows],
        torch.ones(len(rows)),
        ThreatModel(budgets[0] if budgets else 0.0, space="input", after=()),
        seed=seed,
    )
    found = {format_epsilon(0.0): float((problem.clean_margins() > 0).float().mean())}
    for epsilon in budgets:
        margin = run_verified(PGD(steps=steps), problem.with_epsilon(epsilon)).margin
        found[format_epsilon(epsilon)] = float(((margin > 0) & (problem.clean_margins() > 0)).float().mean())
    return found


def show(run: RunDir, before: dict[str, Any], after: dict[str, Any], trained: float, seconds: float) -> None:
    """The table, and what to type next."""
    columns = list(after["cosine_pooled"])
    say(f"\n{'':34}" + "".join(f"{column if i else 'clean':>10}" for i, column in enumerate(columns)))
    for key, label in (
        ("cosine_pooled", "cosine to the original, pooled"),
        ("cosine_patches", "cosine to the original, patches"),
        ("accuracy", "accuracy of the nearest text"),
    ):
        for when, found in (("before", before), ("after", after)):
            cells = "".join(f"{found[key].get(column, float('nan')):>10.3f}" for column in columns)
            say(f"{label if when == 'before' else '':32}{when:>7} {cells[5:]}")
    say(f"\n{seconds:.0f} s in all, {trained:.0f} s of them training. Next:")
    student = recipe_beside(__file__, "robust_student")
    words = ("--student", "runs/student", "--encoder", run.path / "encoder")
    say(f"  {command('accelerate', 'launch', student, *words)}")


def say(text: str) -> None:
    """Print once, not once a process."""
    if PartialState().is_main_process:
        print(printable_lines(text), flush=True)


if __name__ == "__main__":
    try:
        main()
    except (ArbiterError, ConfigError, AttackError) as error:
        raise SystemExit(f"error: {error_line(error)}") from None
