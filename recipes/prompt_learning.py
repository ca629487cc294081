"""UnsafeBench's prompt learning: two soft prompts per category for a frozen CLIP.

    accelerate launch recipes/prompt_learning.py

As in the paper (CCS 2025, section A.5, after CoOp): eight vectors a prompt, started from "This image is about something
safe" and "... unsafe in [category]", Adam 2e-4, batches of 128, 80 epochs, both encoders frozen. `--teacher judge`
learns from a judge's probabilities instead of labels.

With no options: digits, tiny-clip, two digits held out. On one CPU core it takes about 30 seconds, leaves
`runs/prompt_learning` and prints F1 on the judge's own test questions, 0.99 with categories mapped to prompts by what
they mean, 0.86 by their names alone, and 0.21 on held-out categories.

Every option can stand in the YAML, and all but `flip` on the command line; `--help` lists them; an unknown one stops
the run.
"""

import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import set_seed

from eval.fixed_heads import HeadOptions, find_targets, load_splits, measure, open_run, write_results
from eval.options import parse_options
from eval.questions import draw_evaluation
from judge.baselines.fit import FitOptions, fit
from judge.baselines.prompt_learning import LENGTH, PromptLearning, SoftPrompts, save_prompt_learning
from judge.encoders.dual import DualEncoder
from judge.encoders.features import encode_images
from prompts import load_taxonomy
from prompts.errors import ArbiterError
from prompts.printable import error_line, printable_lines

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "prompt_learning.yaml"


@dataclass
class PromptOptions(FitOptions):
    """How soft prompts are trained; the defaults are the paper's (section A.5)."""

    epochs: int = field(default=80, metadata={"help": "Passes over the training images."})
    length: int = field(default=LENGTH, metadata={"help": "Vectors of a soft prompt."})


def main() -> None:
    """Parse, load, encode once, train, ask, save."""
    started = time.time()
    data, options = parse()
    state = PartialState(cpu=not torch.cuda.is_available())
    set_seed(options.seed)
    run = open_run(PromptLearning.kind, data, options)
    taxonomy = load_taxonomy(data.taxonomy)
    trained = data.trained(taxonomy)
    examples, test = load_splits(data, taxonomy, run)
    questions = draw_evaluation(test.examples, taxonomy, data.flips, seed=options.seed, rows=data.test_rows)

    encoder = DualEncoder.load(
        data.encoder, revision=data.encoder_revision, device=state.device, dtype=data.encoder_dtype
    )
    cache = Path(data.cache) if data.cache else None
    images = encode_images(encoder, examples, cache=cache, progress=state.is_main_process).pooled
    with bar("asking the judge", len(examples)) as asked:
        targets = find_targets(data, examples, trained, progress=partial(move, asked))
    say(f"{len(examples):,} training images, {len(trained)} categories, {len(test.examples):,} test images")

    set_seed(options.seed)
    head = SoftPrompts(encoder, trained.names, options.length)
    with bar("epochs", options.epochs) as done:
        history = fit(head, [images], targets.categories, options, progress=partial(move, done))
    classifier = PromptLearning(encoder, head, trained, name=run.path.name)
    if state.is_main_process:
        save_prompt_learning(run, classifier)
    found = measure(classifier, questions, data.threshold)
    if state.is_main_process:
        say(write_results(run, classifier, found, history, started))


def parse() -> tuple[HeadOptions, PromptOptions]:
    """Defaults, then the recipe's YAML, then that of `--config`, then the command line; unknown keys stop the run."""
    return parse_options((HeadOptions, PromptOptions), DEFAULT_CONFIG, sys.argv[1:])


def bar(what: str, total: int) -> tqdm:
    """A progress bar, shown once, not once a process; nothing where nothing moves it."""
    return tqdm(total=total, desc=what, disable=not PartialState().is_main_process, delay=1)


def move(shown: tqdm, done: int) -> None:
    """Set a bar to what is done."""
    shown.update(done - shown.n)


def say(text: str) -> None:
    """Print once, not once a process."""
    if PartialState().is_main_process:
        print(printable_lines(text), flush=True)


if __name__ == "__main__":
    try:
        main()
    except ArbiterError as error:
        raise SystemExit(f"error: {error_line(error)}") from None
